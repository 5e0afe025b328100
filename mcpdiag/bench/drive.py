"""What both loops share, and the closed one, in which each client calls again when it has its answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Coroutine, Sequence
from itertools import cycle
from time import perf_counter_ns

from mcpdiag.bench.columns import CONNECT, NEVER, TIMEOUT, Columns
from mcpdiag.bench.session import PENDING, Session, SessionError
from mcpdiag.bench.spec import LoadSpec

SWEEP_S = 0.1  # between looks for calls without an answer
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 1.0  # between attempts to get a lost session back
PICKS = 4096
GRACE_S = 1.0  # after the timeout of the last call


class Drive(ABC):
    """What both loops share: whose turn it is, the samples, lost sessions, calls without an answer."""

    def __init__(
        self, spec: LoadSpec, clients: Sequence[Sequence[Session]], *, room: int | None = None
    ) -> None:
        self.spec, self.clients = spec, clients
        # Room for what the server can hardly exceed; more is made if it does.
        rate = spec.rate if spec.loop == "open" else 30_000
        self.columns = Columns(int(rate * (spec.warmup_s + spec.seconds)) + 1024 if room is None else room)
        self.first_error = ""
        self.opened = 0
        self.late_ns = array("q")
        self.origin = self.end = 0
        self._busy: set[Session] = set()
        self.renewing: dict[Session, int] = {}  # and when its call was due
        self._tasks: set[asyncio.Task[None]] = set()
        weights = [call.weight for call in spec.calls]
        picks = random.Random(spec.seed).choices(range(len(weights)), weights, k=PICKS)  # noqa: S311
        self.pick = cycle(picks).__next__
        for turn, sessions in enumerate(clients):
            for session in sessions:
                session.on_done = self._done_of(turn)
        self._turns = [cycle(sessions).__next__ for sessions in clients]
        self._idle = asyncio.Event()
        self._stopped = asyncio.Event()

    async def run(self, began: Callable[[], None], ended: Callable[[], None]) -> None:
        """Warm up, measure, wait for what is still on its way.

        Args:
            began, ended: called when the measured time begins and ends.
        """
        loop = asyncio.get_running_loop()
        start = perf_counter_ns()
        self.origin = start + int(self.spec.warmup_s * 1e9)
        self.end = self.origin + int(self.spec.seconds * 1e9)
        timers = [
            loop.call_later(self.spec.warmup_s, began),
            loop.call_later(self.spec.warmup_s + self.spec.seconds, ended),
        ]
        sweeper = asyncio.create_task(self._sweep())
        try:
            self.begin(start)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.spec.warmup_s + self.spec.seconds):
                    await self._stopped.wait()
            async with asyncio.timeout(self.spec.timeout_s + GRACE_S):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            for timer in timers:
                timer.cancel()
            for task in (sweeper, *self._tasks):
                task.cancel()
            await asyncio.gather(sweeper, *self._tasks, return_exceptions=True)
            self.finish()

    def stop(self) -> None:
        """End the measured time now."""
        self.end = min(self.end, perf_counter_ns())
        self._stopped.set()

    @abstractmethod
    def begin(self, start: int) -> None:
        """Start calling; `start` is now."""

    @abstractmethod
    def next(self, turn: int) -> None:
        """A client is free."""

    def finish(self) -> None:
        """Nothing more will be sent or awaited: what is still on its way has failed."""
        now = perf_counter_ns()
        for session in self._busy - self.renewing.keys():
            self.record(session.intended_ns, session.sent_ns, now, session.call, TIMEOUT)
            session.abort()

    @abstractmethod
    def lost(self, at: int) -> None:
        """An attempt to get a session back has failed, begun at `at`."""

    def record(self, intended: int, sent: int, done: int, call: int, outcome: int) -> None:
        sent = NEVER if sent == NEVER else sent - self.origin
        self.columns.add(intended - self.origin, sent, done - self.origin, call, outcome)

    def send(self, turn: int, intended: int) -> None:
        """A client's next call, on its next session."""
        session, call = self._turns[turn](), self.pick()
        worn = 0 < self.spec.session_calls <= session.served
        self._busy.add(session)
        if session.usable and not worn:
            session.start(call, intended)
        else:
            self.own(self._renew_and_send(session, call, intended, worn))

    def own(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def idle(self) -> None:
        self._idle.set()

    def _done_of(self, turn: int) -> Callable[[Session], None]:
        busy, origin, add = self._busy, self.origin, self.columns.add

        def done(session: Session) -> None:
            nonlocal origin
            origin = origin or self.origin
            busy.discard(session)
            add(
                session.intended_ns - origin,
                session.sent_ns - origin,
                session.done_ns - origin,
                session.call,
                session.outcome,
            )
            if session.outcome and not self.first_error:
                self.first_error = session.error
            self.next(turn)

        return done

    async def _renew_and_send(self, session: Session, call: int, intended: int, worn: bool) -> None:
        """A session that is worn out or lost becomes a new one; its client waits for that."""
        pause = FIRST_PAUSE_S
        self.renewing[session] = intended
        if worn:
            session.outcome = 0
            await session.close()
        while True:
            at = perf_counter_ns()
            try:
                await (session.open() if worn else session.revive())
                self.opened += worn
                del self.renewing[session]
                session.start(call, intended)
                return
            except SessionError as error:
                self.first_error = self.first_error or str(error)
                self.lost(at)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)
            if self.spec.loop == "closed":
                if perf_counter_ns() >= self.end:
                    break
                intended = perf_counter_ns()
        self._busy.discard(session)
        self.next(-1)

    async def _sweep(self) -> None:
        limit = int(self.spec.timeout_s * 1e9)
        while True:
            await asyncio.sleep(SWEEP_S)
            oldest = perf_counter_ns() - limit
            for session in [each for each in self._busy if each.outcome == PENDING and each.sent_ns < oldest]:
                session.expire()


class Closed(Drive):
    """Each client waits for its answer, thinks, and calls again."""

    def begin(self, start: int) -> None:
        self._running = len(self.clients)
        for turn in range(len(self.clients)):
            self.send(turn, perf_counter_ns())

    def next(self, turn: int) -> None:
        now = perf_counter_ns()
        if turn < 0 or now >= self.end:
            self._running -= 1
            if not self._running:
                self.idle()
        elif self.spec.think_time_s:
            asyncio.get_running_loop().call_later(self.spec.think_time_s, self._thought, turn)
        else:
            self.send(turn, now)

    def _thought(self, turn: int) -> None:
        now = perf_counter_ns()
        if now >= self.end:
            self.next(turn)
        else:
            self.send(turn, now)

    def lost(self, at: int) -> None:
        if self.origin <= at < self.end:
            self.record(at, at, perf_counter_ns(), 0, CONNECT)
