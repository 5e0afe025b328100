"""Locust's users that make the calls of a workload, on Locust's own masters and workers; samples as `bench` has them.

A locustfile subclasses `McpUser` (`mcpdiag bench locustfile` writes one). Each worker keeps its samples and writes
them when the test stops; `mcpdiag bench locust-result` makes a result of them.
"""

from __future__ import annotations

import inspect
import os
import random
import threading
import time
import uuid
from pathlib import Path
from time import perf_counter_ns
from typing import Any, ClassVar

import msgspec

try:
    import locust
    from locust import User, events, task
    from locust.runners import MasterRunner, WorkerRunner
except ImportError as error:
    raise ImportError(f"McpUser needs {error.name}; pip install 'mcpdiag[locust]'") from None

from mcpdiag.bench import spool
from mcpdiag.bench.blocking import BlockingSession
from mcpdiag.bench.columns import CLOSED, CONNECT, OK, Columns
from mcpdiag.bench.environment import here
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.workload import Workload
from mcpdiag.config.masking import public_url
from mcpdiag.errors import ConfigError
from mcpdiag.protocol.revisions import Era

FOLDER = "mcpdiag-locust"
PAUSE_S = 1.0  # before another attempt to open a session
WRITE_AFTER_S = 1.0
FINISH_S = 5.0  # for calls on their way when the test stops, unless --stop-timeout says otherwise


class Failed(Exception):
    """What Locust shows of a call that failed."""


class McpUser(User):
    """A client of `mcpdiag bench`: picks a call by weight, waits for the answer, thinks, and goes on.

    Attributes:
        host: the URL of the MCP endpoint; Locust's `--host` overrules it.
        workload: a `Workload`, or the same as plain values.
        era, headers, timeout_s: as `mcpdiag bench` has them.
    """

    abstract = True
    workload: ClassVar[Any] = None
    era: ClassVar[Era] = "handshake"
    headers: ClassVar[dict[str, str]] = {}
    timeout_s: ClassVar[float] = 30.0
    plan: ClassVar[Workload]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.workload is None:
            return
        try:
            cls.plan = msgspec.convert(msgspec.to_builtins(cls.workload), type=Workload)
        except msgspec.ValidationError as error:
            raise ConfigError([f"{cls.__name__}.workload: found no workload: {error}"]) from None
        if not cls.plan.calls:
            raise ConfigError([f"{cls.__name__}.workload: found no calls; allowed: one or more"])

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        if not self.host:
            raise ConfigError(["host: found none; give the URL of the MCP endpoint with --host"])
        plan = self.plan
        self._sessions = [
            BlockingSession(
                self.host, calls=plan.calls, headers=self.headers, era=self.era, timeout_s=self.timeout_s
            )
            for _ in range(plan.sessions_per_client)
        ]
        self._turn = 0
        self._weights = [call.weight for call in plan.calls]

    def wait_time(self) -> float:
        """Seconds of thinking between an answer and the next call."""
        return self.plan.think_time_s

    @task
    def call(self) -> None:
        """One call, on the next session."""
        session = self._sessions[self._turn % len(self._sessions)]
        self._turn += 1
        if 0 < self.plan.session_calls <= session.served:
            session.close()
        if not session.usable and not self._open(session):
            time.sleep(PAUSE_S)
            return
        number = random.choices(range(len(self._weights)), self._weights)[0]  # noqa: S311
        sent = perf_counter_ns()
        try:
            outcome = session.call(number)
        except BaseException:  # Locust stops this user in the middle of a call
            self._told(
                sent, perf_counter_ns(), number, CLOSED, "stopped by Locust before there was an answer"
            )
            raise
        self._told(sent, session.done_ns, number, outcome, session.error, session.size)
        if outcome == CONNECT:
            time.sleep(PAUSE_S)

    def _open(self, session: BlockingSession) -> bool:
        began = perf_counter_ns()
        try:
            session.open()
        except SessionError as error:
            self._told(began, perf_counter_ns(), len(self.plan.calls), CONNECT, str(error))
            return False
        if _samples is not None:
            _samples.opened += 1
        return True

    def _told(self, sent: int, done: int, number: int, outcome: int, error: str, size: int = 0) -> None:
        """Keep a sample, and tell Locust."""
        calls = self.plan.calls
        if _samples is not None:
            _samples.add(type(self), sent, done, number, outcome, error)
        self.environment.events.request.fire(
            request_type="MCP",
            name=calls[number].label if number < len(calls) else "open",
            response_time=(done - sent) / 1e6,
            response_length=size,
            exception=None if outcome == OK else Failed(error),
            context=self.context(),
            url=self.host,
        )

    def on_stop(self) -> None:
        """End the sessions."""
        for session in self._sessions:
            session.close()


class _Samples:
    """What this process measures between the start of a test and its stop, and writes after it."""

    def __init__(self, environment: Any) -> None:
        self.columns = Columns(4096)
        self.spawned_ns = self.stopped_ns = self.opened = self.users = 0
        self.first_error = ""
        self.kind: type[McpUser] | None = None
        self._environment = environment
        # Now, because it lets other green threads run; at the end one of them ends the process meanwhile.
        self._machine = here()
        self.started_ns, self._origin = time.time_ns(), perf_counter_ns()
        self._spawned = self._cpu_s = self.cpu_share = 0.0

    def add(self, kind: type[McpUser], sent: int, done: int, number: int, outcome: int, error: str) -> None:
        self.kind = self.kind or kind
        self.columns.add(sent - self._origin, sent - self._origin, done - self._origin, number, outcome)
        if error and not self.first_error:
            self.first_error = error

    def all_there(self) -> None:
        self.spawned_ns = time.time_ns()
        self._spawned, self._cpu_s = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        if not self.stopped_ns:
            self.stopped_ns = time.time_ns()
            self.users = self._environment.runner.user_count
            if self._spawned:
                passed = max(time.perf_counter() - self._spawned, 1e-9)
                self.cpu_share = round((time.process_time() - self._cpu_s) / passed, 3)

    def write(self, folder: Path) -> None:
        kind = self.kind
        if kind is None:  # it had no user
            return
        about = spool.Spool(
            locust=locust.__version__,
            environment=self._machine,
            workload=kind.plan,
            target=public_url(self._environment.host or kind.host or ""),
            era=kind.era,
            timeout_s=kind.timeout_s,
            users=self.users,
            started_ns=self.started_ns,
            spawned_ns=self.spawned_ns,
            stopped_ns=self.stopped_ns,
            cpu_share=self.cpu_share,
            sessions_opened=self.opened,
            first_error=self.first_error,
        )
        spool.write(folder, f"worker-{os.getpid()}-{uuid.uuid4().hex[:8]}", about, self.columns)


_samples: _Samples | None = None
_unwritten: list[_Samples] = []
_events: Any = events  # its methods have no types


def _folder(environment: Any) -> Path:
    return Path(getattr(environment.parsed_options, "mcpdiag_samples", None) or FOLDER)


def _add_option(parser: Any) -> None:
    parser.add_argument(
        "--mcpdiag-samples",
        default=FOLDER,
        env_var="MCPDIAG_SAMPLES",
        help="Folder for the samples of McpUser, one for each run.",
    )


def _init(environment: Any, **_: Any) -> None:
    if not environment.stop_timeout:  # else calls on their way at the end are cut off, and nobody counts them
        environment.stop_timeout = FINISH_S
    _events.quit.add_listener(lambda **_: _write(environment))
    if not isinstance(environment.runner, WorkerRunner):
        _events.quit.add_listener(lambda **_: _write_master(environment))


def _test_start(environment: Any, **_: Any) -> None:
    global _samples
    if not isinstance(environment.runner, MasterRunner):
        # Locust looks at its stack when it stops, before it tells anybody: half a second in which every call on its
        # way waits, and the master gives up on the last report. Not so if it has been looked at before.
        inspect.stack()
        _samples = _Samples(environment)


def _spawning_complete(**_: Any) -> None:
    if _samples is not None:
        _samples.all_there()


def _test_stopping(**_: Any) -> None:
    if _samples is not None:
        _samples.stop()


def _test_stop(environment: Any, **_: Any) -> None:
    """Write later: the master waits half a second for a worker's last report, which comes after this."""
    global _samples
    if _samples is not None:
        _unwritten.append(_samples)
        _samples = None
        later = threading.Timer(
            WRITE_AFTER_S, _write, [environment]
        )  # a green thread, as Locust patches them
        later.daemon = True
        later.start()


def _write(environment: Any) -> None:
    while _unwritten:
        _unwritten.pop().write(_folder(environment))


def _write_master(environment: Any) -> None:
    total = environment.stats.total
    workers = environment.runner.worker_count if isinstance(environment.runner, MasterRunner) else 0
    counts = spool.Master(calls=total.num_requests, failures=total.num_failures, workers=workers)
    folder = _folder(environment)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / spool.MASTER).write_bytes(msgspec.json.encode(counts) + b"\n")


_events.init_command_line_parser.add_listener(_add_option)
_events.init.add_listener(_init)
_events.test_start.add_listener(_test_start)
_events.spawning_complete.add_listener(_spawning_complete)
_events.test_stopping.add_listener(_test_stopping)
_events.test_stop.add_listener(_test_stop)
