"""The load generator, a process of its own: `python -m mcpdiag.bench.load SPEC.json [-o FILE]`.

The measurement goes to stdout (or FILE) as `columns.encode` writes it. With `-` for the spec it runs one `Job` a line
of stdin, each with a file of its own, and says on stdout when it is done: that spares `generator.py` the start.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import msgspec

from mcpdiag.bench import columns
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
SWITCH_S = 0.0005  # between the thread that paces and the loop that sends


class Job(msgspec.Struct, frozen=True):
    """A run, and the file for its measurement."""

    spec: LoadSpec
    output: str


class Done(msgspec.Struct, frozen=True):
    """The end of a job; `error` is empty if all went well."""

    error: str = ""


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
    kind: Callable[[LoadSpec], Session] = HttpSession.of if spec.url else StdioSession.of
    clients = [[kind(spec) for _ in range(spec.sessions_per_client)] for _ in range(spec.clients)]
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


def serve() -> None:
    """One run for each `Job` on stdin, until that ends; a line with its error, if any, on stdout."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    for line in sys.stdin.buffer:
        job = msgspec.json.decode(line, type=Job)
        error = ""
        try:
            Path(job.output).write_bytes(columns.encode(run_loop(generate(job.spec))))
        except (SessionError, OSError) as failure:
            error = str(failure)
        try:
            os.write(sys.stdout.fileno(), msgspec.json.encode(Done(error)) + b"\n")
        except BrokenPipeError:  # whoever asked has been killed
            return


def _end_with_caller() -> None:
    """End once nobody holds the other end of stdin, amid a run too: whoever would read its result has been killed."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sys.stdin.fileno(), 0)  # for its end alone, which needs no asking; jobs are for `serve`
        poll.poll()
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mcpdiag.bench.load", description=__doc__)
    parser.add_argument("spec", help="a file with a LoadSpec in JSON, or - for jobs on stdin")
    parser.add_argument("-o", "--output", type=Path, help="where the measurement goes instead of stdout")
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_S)
    if arguments.spec == "-":
        serve()
        return
    try:
        spec = msgspec.json.decode(Path(arguments.spec).read_bytes(), type=LoadSpec)
        data = columns.encode(run_loop(generate(spec)))
    except (OSError, msgspec.MsgspecError) as error:
        sys.exit(f"mcpdiag.bench.load: {arguments.spec}: {error}")
    except SessionError as error:
        print(f"mcpdiag.bench.load: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(3)
    if arguments.output is not None:
        arguments.output.write_bytes(data)
    else:
        sys.stdout.buffer.write(data)


if __name__ == "__main__":
    main()
