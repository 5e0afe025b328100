"""The open loop: calls come when they are due, whether or not the server keeps up. `load.py` runs it.

Latency counts from when a call was due, so what a stalled server makes wait is in the numbers
(coordinated omission: Gil Tene, "How NOT to Measure Latency").
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns

from mcpdiag.bench.columns import NEVER, NOT_SENT
from mcpdiag.bench.drive import Drive
from mcpdiag.bench.spec import LoadSpec


class Open(Drive):
    """Calls become due at times that do not depend on the answers; a free client takes each, or it waits."""

    def begin(self, start: int) -> None:
        self._due = schedule(self.spec, start)
        self._at = 0
        self._backlog: deque[int] = deque()
        self._free = deque(range(len(self.clients)))
        self._stop = threading.Event()
        if not self._due:
            self.idle()
            return
        loop = asyncio.get_running_loop()
        fire = self._fire
        self._pacer = threading.Thread(
            target=_pace, args=(self._due, lambda: loop.call_soon_threadsafe(fire), self._stop), daemon=True
        )
        self._pacer.start()

    def _fire(self) -> None:
        now = perf_counter_ns()
        due, origin, late = self._due, self.origin, self.late_ns
        while self._at < len(due) and due[self._at] <= now:
            intended = due[self._at]
            self._at += 1
            if intended >= origin:
                late.append(now - intended)
            if self._free:
                self.send(self._free.popleft(), intended)
                now = perf_counter_ns()
            else:
                self._backlog.append(intended)

    def next(self, turn: int) -> None:
        if self._backlog:
            self.send(turn, self._backlog.popleft())
            return
        self._free.append(turn)
        if self._at == len(self._due) and len(self._free) == len(self.clients):
            self.idle()

    def lost(self, at: int) -> None:
        """Nothing to note: the call that waits for a session keeps the time at which it was due."""

    def finish(self) -> None:
        super().finish()
        self._stop.set()
        if self._due:
            self._pacer.join()
        now = perf_counter_ns()
        for intended in [*self.renewing.values(), *self._backlog, *self._due[self._at :]]:
            self.record(intended, NEVER, now, 0, NOT_SENT)


def schedule(spec: LoadSpec, start: int) -> array[int]:
    """When each call of an open loop is due, in ns: at equal distances, or as a Poisson process comes."""
    end = start + int((spec.warmup_s + spec.seconds) * 1e9)
    step = 1e9 / spec.rate
    due = array("q")
    if spec.arrivals == "constant":
        due.extend(start + int(number * step) for number in range(int((end - start) / step)))
        return due
    gap = random.Random(spec.seed + 1).expovariate  # noqa: S311
    at = start + gap(1.0) * step
    while at < end:
        due.append(int(at))
        at += gap(1.0) * step
    return due


def _pace(due: array[int], fire: Callable[[], object], stop: threading.Event) -> None:
    """Call `fire` whenever calls are due. A thread, because timers of uvloop and epoll count in milliseconds."""
    at = 0
    while at < len(due) and not stop.is_set():
        wait = due[at] - perf_counter_ns()
        if wait > 0:
            time.sleep(min(wait / 1e9, 0.1))  # short, so that a stop is seen
            if wait > 1e8:
                continue
        try:
            fire()
        except RuntimeError:  # the loop has been closed
            return
        at = bisect_right(due, perf_counter_ns(), at)
