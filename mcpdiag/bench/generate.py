"""One run of the load generator in this process, and what its runs have in common. `load.py` is the process."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any, TypeVar

from mcpdiag.bench.client import HttpSession
from mcpdiag.bench.columns import Lateness, Measurement, Report
from mcpdiag.bench.drive import Closed, Drive
from mcpdiag.bench.open_loop import Open
from mcpdiag.bench.session import Session, SessionError
from mcpdiag.bench.spec import LoadSpec
from mcpdiag.bench.stdio import StdioSession

T = TypeVar("T")
BEAT_S = 0.01  # uvloop's timers count in milliseconds
OPENING = 16  # sessions that are opened at once


class Heart:
    """How late the loop comes to its timers, and how busy its core is, while it beats."""

    def __init__(self) -> None:
        self._lags: list[float] = []
        self._timer: asyncio.TimerHandle | None = None
        self._began = self._cpu = 0.0
        self.cpu_share = 0.0

    def start(self) -> None:
        self._began, self._cpu = perf_counter(), time.process_time()
        self._next = self._began
        self._beat()

    def stop(self) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self.cpu_share = (time.process_time() - self._cpu) / max(perf_counter() - self._began, 1e-9)

    def _beat(self) -> None:
        now = perf_counter()
        self._lags.append(now - self._next)
        self._next = now + BEAT_S
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def lateness(self, late_ns: Sequence[int]) -> Lateness:
        lags, late = sorted(self._lags), sorted(late_ns)
        return Lateness(
            cpu_share=round(self.cpu_share, 3),
            lag_p99_ms=_at(lags, 0.99) * 1e3,
            lag_max_ms=_at(lags, 1.0) * 1e3,
            late_p99_ms=_at(late, 0.99) / 1e6,
            late_max_ms=_at(late, 1.0) / 1e6,
        )


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def generate(spec: LoadSpec) -> Measurement:
    """One run in this process.

    Raises:
        SessionError: a session could not be opened before the start.
    """
    clients = sessions_of(spec)
    sessions = [session for each in clients for session in each]
    try:
        await open_all(sessions)
        drive: Drive = Open(spec, clients) if spec.loop == "open" else Closed(spec, clients)
        heart = Heart()
        gc.collect()
        gc.freeze()
        gc.disable()  # a collection would be a stall of the generator's own
        try:
            await drive.run(heart.start, heart.stop)
        finally:
            gc.enable()
            gc.unfreeze()
            heart.stop()
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
    report = Report(
        window_ns=int(spec.seconds * 1e9),
        calls=tuple(call.label for call in spec.calls),
        sessions_opened=len(sessions) + drive.opened,
        first_error=drive.first_error,
        lateness=heart.lateness(drive.late_ns),
    )
    return Measurement(report, drive.columns)


def sessions_of(spec: LoadSpec) -> list[list[Session]]:
    """The sessions of each client, not yet open."""
    kind: Callable[[LoadSpec], Session] = HttpSession.of if spec.url else StdioSession.of
    return [[kind(spec) for _ in range(spec.sessions_per_client)] for _ in range(spec.clients)]


async def open_all(sessions: Sequence[Session]) -> None:
    """A few at a time: opening is not what is measured. Raises SessionError: one could not be opened."""
    slots = asyncio.Semaphore(OPENING)

    async def open_one(session: Session) -> None:
        async with slots:
            await session.open()

    tasks = [asyncio.create_task(open_one(session)) for session in sessions]
    try:
        await asyncio.gather(*tasks)
    except SessionError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run it on uvloop where there is one, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
