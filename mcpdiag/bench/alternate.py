"""Two servers in turn, in slices of some milliseconds: what a machine does to one of them, it does to the other.

Only one of the two is called at a time. Slices go base, new, new, base and so on, so that a drift hits both alike
("duet benchmarking": Bulej et al., 2020, where both run at once on two cores; taking turns on one needs no second).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from mcpdiag.bench.columns import NEVER, Columns, Measurement, Report
from mcpdiag.bench.drive import Closed
from mcpdiag.bench.generate import Heart, open_all, sessions_of
from mcpdiag.bench.session import Session
from mcpdiag.bench.spec import DuetSpec, LoadSpec


async def alternate(spec: DuetSpec) -> tuple[Measurement, Measurement]:
    """One round in this process. The time of each side is that of its own slices, one after the other.

    Raises:
        SessionError: a session could not be opened before the start.
    """
    with _on(spec.cpu):
        sides = [_Side(load, spec.slice_s) for load in spec.sides]
        heart = Heart()
        try:
            for at in (spec.first, 1 - spec.first):
                await open_all(sides[at].sessions)
            gc.collect()
            gc.freeze()
            gc.disable()  # as in `generate`
            try:
                await _take_turns(sides, spec.first, heart)
            finally:
                gc.enable()
                gc.unfreeze()
                heart.stop()
        finally:
            await asyncio.gather(*(session.close() for side in sides for session in side.sessions))
    base, new = (side.measurement(heart) for side in sides)
    return base, new


async def _take_turns(sides: Sequence[_Side], first: int, heart: Heart) -> None:
    order = (first, 1 - first, 1 - first, first)
    turn = 0
    beating = False
    while not all(side.finished for side in sides):
        if not beating and all(side.warm for side in sides):
            heart.start()
            beating = True
        await sides[order[turn % 4]].slice()
        turn += 1


class _Side:
    """One of the two servers: its sessions, its calls so far, and how much of its time has passed."""

    def __init__(self, load: LoadSpec, slice_s: float) -> None:
        self._load = replace(load, warmup_s=0.0, seconds=slice_s)
        self._window_ns = int(load.seconds * 1e9)
        self._clients = sessions_of(load)
        self.sessions: list[Session] = [session for each in self._clients for session in each]
        self._columns = Columns()
        self._passed = -int(load.warmup_s * 1e9)
        self._opened = 0
        self._error = ""
        self._number = 0

    @property
    def warm(self) -> bool:
        return self._passed >= 0

    @property
    def finished(self) -> bool:
        return self._passed >= self._window_ns

    async def slice(self) -> None:
        """Call for the time of a slice, and until all answers are there; that is how long it took."""
        self._number += 1
        drive = Closed(replace(self._load, seed=self._load.seed + self._number), self._clients)
        await drive.run(lambda: None, lambda: None)
        found, end = drive.columns, 0
        for row in range(len(found)):
            sent = found.sent_ns[row]
            end = max(end, found.done_ns[row])
            self._columns.add(
                found.intended_ns[row] + self._passed,
                sent if sent == NEVER else sent + self._passed,
                found.done_ns[row] + self._passed,
                found.call[row],
                found.outcome[row],
            )
        self._passed += end or int(self._load.seconds * 1e9)
        self._opened += drive.opened
        self._error = self._error or drive.first_error

    def measurement(self, heart: Heart) -> Measurement:
        report = Report(
            window_ns=self._passed,
            calls=tuple(call.label for call in self._load.calls),
            sessions_opened=len(self.sessions) + self._opened,
            first_error=self._error,
            lateness=heart.lateness(()),
        )
        return Measurement(report, self._columns)


@contextlib.contextmanager
def _on(cpu: int | None) -> Iterator[None]:
    """This thread, and the processes that it starts meanwhile, on one processor."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
