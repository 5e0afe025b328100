"""The resident memory of a process and its descendants, read from outside while load runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from statistics import median_low
from types import TracebackType
from typing import Self

import msgspec

EVERY_S = 0.2
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Resident bytes during a run: of the process at their highest, of its descendants together the median.

    Not the highest of those: between fork and exec a child has, for a moment, all the memory of its parent.
    """

    rss_bytes: int = 0
    children_rss_bytes: int = 0


class MemoryWatch:
    """`with MemoryWatch(pid) as watch: ...; watch.memory`: looks five times a second, from a thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._seen: list[Memory] = []

    def _look(self) -> None:
        while True:
            self._seen.append(read(self._pid))
            if self._stop.wait(EVERY_S):
                return

    @property
    def memory(self) -> Memory:
        """What was seen, once the block has ended."""
        return Memory(
            rss_bytes=max(each.rss_bytes for each in self._seen),
            children_rss_bytes=median_low(each.children_rss_bytes for each in self._seen),
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def read(pid: int) -> Memory:
    """The memory of this moment; zeros for a process that is gone."""
    sizes = _linux(pid) if sys.platform == "linux" else _elsewhere(pid)
    return Memory(rss_bytes=sizes.pop(pid, 0), children_rss_bytes=sum(sizes.values()))


def _linux(pid: int) -> dict[int, int]:
    sizes: dict[int, int] = {}
    pids = [pid]
    while pids:
        each = pids.pop()
        try:
            sizes[each] = int(Path(f"/proc/{each}/statm").read_text().split()[1]) * _PAGE
            for task in os.listdir(f"/proc/{each}/task"):  # noqa: PTH208  (names are enough)
                pids += map(int, Path(f"/proc/{each}/task/{task}/children").read_text().split())
        except (OSError, IndexError):  # it has just ended
            continue
    return sizes


def _elsewhere(pid: int) -> dict[int, int]:
    listed = subprocess.run(
        ["/bin/ps", "-axo", "pid=,ppid=,rss="], capture_output=True, text=True, check=False
    ).stdout
    rows = [tuple(map(int, line.split())) for line in listed.splitlines() if len(line.split()) == 3]
    sizes: dict[int, int] = {}
    family = {pid}
    for _ in range(10):  # generations
        family |= {child for child, parent, _ in rows if parent in family}
    for each, _, kib in rows:
        if each in family:
            sizes[each] = kib * 1024
    return sizes
