"""Reads memray's capture files: records become call sites. `heap.py` calls it, for long captures in a child process.

`main` prints JSON of `sites FILE TOP` and `growth FILE MS MS MS`. memray holds the GIL while it reads, which a proxy under load cannot afford for millions of records.
"""

from __future__ import annotations

import contextlib
import json
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from mcpdiag.errors import HeapError, HeapUnavailable
from mcpdiag.samples.interned import OTHER

MAX_STACK = 16  # frames kept of a stack, from the innermost
KINDS = ("high_watermark", "leaked")
Frames = Sequence[tuple[str, str, int]]


class Site(NamedTuple):
    """What one call site held in a window: the innermost Python frame and the allocator that it called.

    `stack` is the call path with the most bytes, innermost first, `function (file:line)` a line, at most 16 of them.
    """

    kind: str
    size_bytes: int
    n_allocations: int
    allocator: str
    function: str
    file: str
    line: int
    stack: str


class Grown(NamedTuple):
    """Live bytes of a call site, all allocators together, at three moments, and its live allocations at the last."""

    live_1_bytes: int
    live_2_bytes: int
    live_3_bytes: int
    n_allocations: int
    function: str
    file: str
    line: int
    stack: str


def import_memray() -> ModuleType:
    """memray, imported now.

    Raises:
        HeapUnavailable: it is not installed, or does not load on this platform.
    """
    try:
        import memray
    except ImportError as error:
        raise HeapUnavailable(
            f"heap windows need memray, which cannot be imported here ({error}); "
            "pip install 'mcpdiag[heap]' (memray runs on Linux and macOS)"
        ) from None
    return memray


class _Sum:
    """Numbers of one site, summed over its call paths; the frames are those of the heaviest path."""

    __slots__ = ("frames", "heaviest", "numbers")

    def __init__(self, width: int) -> None:
        self.numbers = [0] * width
        self.heaviest = -1
        self.frames: Frames = ()

    def add(self, numbers: Iterable[int], weight: int, frames: Frames) -> None:
        self.numbers = [old + new for old, new in zip(self.numbers, numbers, strict=True)]
        if weight > self.heaviest:
            self.heaviest, self.frames = weight, frames


def read_sites(path: Path, top: int) -> list[Site]:
    """The call sites of a capture, both kinds, by size: the `top` largest of each, the rest as one row `(other)`.

    Reads finished files of either format, and ALL files that are still written or whose process was killed.

    Raises:
        HeapError: it is no capture file, or one of another version of memray.
        HeapUnavailable: there is no memray.
    """
    memray = import_memray()
    sites: list[Site] = []
    with _errors_of(path), memray.FileReader(path) as reader:
        for kind, records in (
            ("high_watermark", reader.get_high_watermark_allocation_records(merge_threads=True)),
            ("leaked", reader.get_leaked_allocation_records(merge_threads=True)),
        ):
            sums: dict[tuple[str, str, str, int], _Sum] = {}
            for record in records:  # lazy: they must be read while the reader is open
                # Without max_stacks as many outer frames are cut as were there when the tracker started.
                frames = record.stack_trace(max_stacks=MAX_STACK)
                key = (memray.AllocatorType(record.allocator).name.lower(), *_innermost(frames))
                found = sums.setdefault(key, _Sum(2))
                found.add((record.size, record.n_allocations), record.size, frames)
            sites += _largest(kind, sums, top)
    return sites


def _largest(kind: str, sums: dict[tuple[str, str, str, int], _Sum], top: int) -> list[Site]:
    ordered = sorted(sums.items(), key=lambda item: (-item[1].numbers[0], item[0]))
    rows = [
        Site(kind, found.numbers[0], found.numbers[1], *key, _shown(found.frames))
        for key, found in ordered[:top]
    ]
    if rest := [found.numbers for _, found in ordered[top:]]:
        size, count = (sum(column) for column in zip(*rest, strict=True))
        rows.append(Site(kind, size, count, "", OTHER, "", 0, ""))
    return rows


def read_growth(path: Path, moments_ms: Sequence[float]) -> list[Grown]:
    """Live bytes of each call site at three moments of a capture; only sites that hold more at the last than at the first.

    Args:
        path: a finished capture in the format ALL.
        moments_ms: milliseconds since 1970; what counts is the first memory snapshot at or after each, or the end.

    Raises:
        HeapError: it is no capture file, or one of another version of memray.
        HeapUnavailable: there is no memray.
    """
    memray = import_memray()
    sums: dict[tuple[str, str, int], _Sum] = {}
    with _errors_of(path), memray.FileReader(path) as reader:
        times = [snapshot.time for snapshot in reader.get_memory_snapshots()]
        places = [bisect_left(times, moment) for moment in moments_ms]
        for record in reader.get_temporal_allocation_records(merge_threads=True):
            live = [0, 0, 0, 0]
            for interval in record.intervals:
                born, size = interval.allocated_before_snapshot, interval.n_bytes
                died = interval.deallocated_before_snapshot
                for third, place in enumerate(places):
                    if born <= place and (died is None or died > place):
                        live[third] += size
                        if third == 2:
                            live[3] += interval.n_allocations
            if any(live):
                frames = record.stack_trace(max_stacks=MAX_STACK)
                sums.setdefault(_innermost(frames), _Sum(4)).add(live, live[2], frames)
    return [
        Grown(first, second, third, count, *key, _shown(found.frames))
        for key, found in sums.items()
        for first, second, third, count in [found.numbers]
        if third > first
    ]


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise HeapError(f"the heap capture {path} cannot be read: {error}") from error


def _innermost(frames: Frames) -> tuple[str, str, int]:
    return frames[0] if frames else ("<no Python frame>", "", 0)


def _shown(frames: Frames) -> str:
    return "\n".join(f"{function} ({file}:{line})" for function, file, line in frames)


def main(arguments: Sequence[str]) -> int:
    """The program of the child process. An error that is expected is one line on stderr, and exit code 1."""
    what, file, *numbers = arguments
    try:
        rows = (
            read_sites(Path(file), int(numbers[0]))
            if what == "sites"
            else read_growth(Path(file), [float(number) for number in numbers])
        )
    except HeapError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    json.dump(rows, sys.stdout)
    return 0
