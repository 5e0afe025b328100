"""How much processor time others took while something was measured: what no statistics of two runs can know otherwise.

The matrix reads it around each run; `compare` doubts the differences that it could explain. On Linux only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

_TICK: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
# Of user nice system idle iowait irq softirq steal: what nobody used, and what processes or a hypervisor used. Interrupts
# are neither: those of the loopback are ours, and nobody says whose they are.
_IDLE: Final = (3, 4)
_USED: Final = (0, 1, 2, 7)
_FIELDS: Final = 8  # what comes after steal is in user already


class Reading(NamedTuple):
    """Seconds of processor time until now: all, what nobody used, what anybody used, what we used."""

    all_s: float
    idle_s: float
    used_s: float
    ours_s: float


class Neighbours:
    """`with Neighbours() as neighbours: ...; neighbours.others_cpus`: of everything but this process and what it started."""

    def __init__(self) -> None:
        self._before = self._after = read()

    def __enter__(self) -> Self:
        self._before = read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._after = read()

    @property
    def others_cpus(self) -> float | None:
        """As many processors as others kept busy, once the block has ended; None where that cannot be read."""
        if self._before is None or self._after is None:
            return None
        return others(self._before, self._after)


def others(before: Reading, after: Reading) -> float:
    """The processors that others kept busy between two readings.

    0 while a whole processor was idle, because then nothing had to wait for them. Short measurements are coarse:
    the kernel counts in ticks of 10 ms, so that the mean of many is needed, and single ones can be below 0.
    """
    total, idle, used, ours = (now - then for then, now in zip(before, after, strict=True))
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    elapsed = total / processors
    if elapsed <= 0 or idle >= elapsed:
        return 0.0
    return round((used - max(ours, 0.0)) / elapsed, 3)


def read() -> Reading | None:
    """The processors that we may run on, and the processes that descend from this one; None if not on Linux."""
    if sys.platform != "linux":
        return None
    try:
        spent = _processors(Path("/proc/stat").read_text())
    except (OSError, ValueError):
        return None
    return Reading(*spent, _ours())


def _processors(text: str) -> tuple[float, float, float]:
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    total = idle = used = 0
    for line in text.splitlines():
        name, *words = line.split()
        if name in mine:
            ticks = [int(word) for word in words[:_FIELDS]]
            total += sum(ticks)
            idle += sum(ticks[at] for at in _IDLE)
            used += sum(ticks[at] for at in _USED)
    if not total:
        raise ValueError("no such processor")
    return total / _TICK, idle / _TICK, used / _TICK


def _ours() -> float:
    """Of those alive, and of those that they have waited for."""
    ticks = 0
    pids = [os.getpid()]
    while pids:
        pid = pids.pop()
        try:
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, after_name[11:15]))  # utime, stime, cutime, cstime
            for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  (names are enough)
                pids += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except (OSError, ValueError, IndexError):  # it has just ended
            continue
    return ticks / _TICK
