"""A run of which every allocation is recorded: which call sites grow with the requests. `Heap.growth` calls it."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from mcpdiag.errors import HeapError
from mcpdiag.samples.heap_records import Grown
from mcpdiag.samples.heap_tracker import read_in_child, tracker

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

LEAST_GROWTH = 16.0  # bytes a request: what a site must gain in each of the last two thirds to be a candidate
SNAPSHOTS = 90  # memory snapshots of a run: the moments at which live bytes are known


async def record(
    seconds: float, requests: Callable[[], int], path: Path, tell: Callable[[str], None]
) -> DataFrame:
    """The candidates of a run of so many seconds; see `Heap.growth`.

    Args:
        seconds: length of the run.
        requests: how many there were so far.
        path: of the capture, a file that does not exist yet.
        tell: is told of the edges, each in one line.
    """
    history_ms = max(1, round(seconds * 1000 / SNAPSHOTS))
    moments: list[float] = []
    counts: list[int] = []
    with (
        _old_objects_aside(),
        tracker("growth", path, tell, python_allocators=True, history_ms=history_ms),
    ):
        for _ in range(3):
            await anyio.sleep(seconds / 3)
            gc.collect()  # cycles that wait for the collector are no growth
            moments.append(time.time() * 1000)
            counts.append(requests())
    if not counts[0] < counts[1] < counts[2]:
        raise HeapError(
            f"growth per request needs requests in every third of the run; counted were {counts} "
            "at their ends: give it load, or more seconds"
        )
    rows = await read_in_child("growth", path, *moments)
    grown = [Grown(*row) for row in rows]
    return await to_thread.run_sync(_candidates, grown, (counts[0], counts[1], counts[2]))


def _candidates(grown: Sequence[Grown], counts: tuple[int, int, int]) -> DataFrame:
    from mcpdiag.samples.heap_frame import candidates

    return candidates(grown, counts, LEAST_GROWTH)


@contextlib.contextmanager
def _old_objects_aside() -> Iterator[None]:
    """The collector looks only at objects that are made in the block: with all of them it takes 100 ms and more."""
    ours = not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
