"""The load of a soak, a process of its own: `python -m mcpdiag.bench.steady SPEC.json EVERY_S FOLDER`.

It goes on until stdin ends. What it measured goes to a new file of FOLDER every EVERY_S seconds, as `columns.encode`
writes it, and a line of JSON on stdout (`Told`) says so: its memory does not grow with the length of the run.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Final

import msgspec

from mcpdiag.bench import columns
from mcpdiag.bench.client import HttpSession
from mcpdiag.bench.columns import NEVER, NOT_SENT, Measurement, Report
from mcpdiag.bench.drive import Closed, Drive
from mcpdiag.bench.generate import Heart, open_all, run_loop
from mcpdiag.bench.load import SWITCH_S
from mcpdiag.bench.session import Session, SessionError
from mcpdiag.bench.spec import LoadSpec
from mcpdiag.bench.stdio import StdioSession

ROOM: Final = 65_536  # rows; more is made where an interval has more


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the load: it has begun (no `file`), an interval has ended, or it has failed (`error`)."""

    file: str = ""
    at_s: float = 0.0
    waiting: int = 0
    open: int = 0
    error: str = ""


class Steady(Drive):
    """An open loop without an end: calls are due at equal distances until `stop`."""

    def begin(self, start: int) -> None:
        self._start, self._step = start, 1e9 / self.spec.rate
        self._number = 0
        self._backlog: deque[int] = deque()
        self._free = deque(range(len(self.clients)))
        loop = asyncio.get_running_loop()
        fire = self._fire
        self._halt = threading.Event()
        self._pacer = threading.Thread(
            target=self._pace, args=[lambda: loop.call_soon_threadsafe(fire)], daemon=True
        )
        self._pacer.start()

    @property
    def waiting(self) -> int:
        """Calls that are due and have found no client free."""
        return len(self._backlog)

    def _due(self, number: int) -> int:
        return self._start + int(number * self._step)

    def _fire(self) -> None:
        now = min(perf_counter_ns(), self.end)
        while (intended := self._due(self._number)) <= now:
            self._number += 1
            self.late_ns.append(perf_counter_ns() - intended)
            if self._free:
                self.send(self._free.popleft(), intended)
            else:
                self._backlog.append(intended)
        self._look()

    def next(self, turn: int) -> None:
        if self._backlog:
            self.send(turn, self._backlog.popleft())
            return
        self._free.append(turn)
        self._look()

    def stop(self) -> None:
        super().stop()
        self._fire()
        self._backlog.clear()  # the end of the load is not the server's fault
        self._look()

    def _look(self) -> None:
        """Whether every call that was due until the end has been sent and answered."""
        if self._due(self._number) > self.end and len(self._free) == len(self.clients):
            self.idle()

    def lost(self, at: int) -> None:
        """Nothing to note: the call that waits for a session keeps the time at which it was due."""

    def finish(self) -> None:
        super().finish()
        self._halt.set()
        self._pacer.join()
        now = perf_counter_ns()
        for intended in self.renewing.values():
            self.record(intended, NEVER, now, 0, NOT_SENT)

    def _pace(self, fire: Callable[[], object]) -> None:
        """A thread, because timers of uvloop and epoll count in milliseconds."""
        number = 0
        while not self._halt.is_set():
            wait = self._due(number) - perf_counter_ns()
            if wait > 0:
                time.sleep(min(wait / 1e9, 0.1))
                if wait > 1e8:
                    continue
            try:
                fire()
            except RuntimeError:  # the loop has been closed
                return
            number = max(number + 1, int((perf_counter_ns() - self._start) / self._step) + 1)


class Intervals:
    """Empties a drive's columns into a file every so often."""

    def __init__(self, drive: Drive, sessions: list[Session], folder: Path) -> None:
        self._drive, self._sessions, self._folder = drive, sessions, folder
        self._number = 0
        self._heart = Heart()

    def begin(self) -> None:
        self._began = self._start = perf_counter_ns()
        self._heart.start()
        tell(Told(open=len(self._sessions)))

    def cut(self) -> None:
        """The interval that ends now."""
        drive, now = self._drive, perf_counter_ns()
        self._heart.stop()
        late, drive.late_ns = drive.late_ns, array("q")
        report = Report(
            window_ns=now - self._began,
            calls=tuple(call.label for call in drive.spec.calls),
            sessions_opened=len(self._sessions) + drive.opened,
            first_error=drive.first_error,
            lateness=self._heart.lateness(late),
        )
        file = self._folder / f"{self._number:06}"
        file.write_bytes(columns.encode(Measurement(report, drive.columns)))
        drive.columns.length = 0
        self._number, self._began = self._number + 1, now
        self._heart = Heart()
        self._heart.start()
        tell(
            Told(
                file=str(file),
                at_s=(now - self._start) / 1e9,
                waiting=drive.waiting if isinstance(drive, Steady) else 0,
                open=sum(each.usable for each in self._sessions),
            )
        )

    async def run(self, every_s: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += every_s
            await asyncio.sleep(max(0.0, due - loop.time()))
            self.cut()

    def end(self) -> None:
        self.cut()
        self._heart.stop()


async def load(spec: LoadSpec, every_s: float, folder: Path) -> None:
    """Open the sessions, load until stdin ends or the spec's time is over, close them.

    Raises:
        SessionError: a session could not be opened before the start.
    """
    kind: Callable[[LoadSpec], Session] = HttpSession.of if spec.url else StdioSession.of
    clients = [[kind(spec) for _ in range(spec.sessions_per_client)] for _ in range(spec.clients)]
    sessions = [session for each in clients for session in each]
    loop = asyncio.get_running_loop()
    try:
        await open_all(sessions)
        for number, session in enumerate(sessions):  # or else all would wear out at once, again and again
            session.served = number * spec.session_calls // len(sessions)
        drive: Drive = (Steady if spec.loop == "open" else Closed)(spec, clients, room=ROOM)
        intervals = Intervals(drive, sessions, folder)
        gc.collect()
        gc.freeze()  # what is there stays: a collection looks at what came later only
        loop.add_reader(0, _stop_at_end, loop, drive)
        intervals.begin()
        ticking = asyncio.create_task(intervals.run(every_s))
        try:
            await drive.run(lambda: None, lambda: None)
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
            intervals.end()
    finally:
        loop.remove_reader(0)
        await asyncio.gather(*(session.close() for session in sessions))


def _stop_at_end(loop: asyncio.AbstractEventLoop, drive: Drive) -> None:
    if not os.read(0, 4096):
        loop.remove_reader(0)
        drive.stop()


def tell(told: Told) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    spec, every_s, folder = sys.argv[1:]
    sys.setswitchinterval(SWITCH_S)
    try:
        run_loop(
            load(msgspec.json.decode(Path(spec).read_bytes(), type=LoadSpec), float(every_s), Path(folder))
        )
    except (SessionError, OSError) as error:
        tell(Told(error=str(error)))
        sys.exit(3)


if __name__ == "__main__":
    main()
