"""The two ways to a server, direct and through a proxy, for `mcpdiag bench overhead`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mcpdiag import embedded
from mcpdiag.bench.generator import stop
from mcpdiag.bench.overhead import Side, SideKey
from mcpdiag.bench.result import Transport
from mcpdiag.bench.spec import Endpoint
from mcpdiag.bench.split import Phases
from mcpdiag.cli.bench_proxies import STOP_S, Target, drain, running_embedded_http
from mcpdiag.cli.bench_recorded import Ask, Setup
from mcpdiag.connection.child import inherited
from mcpdiag.errors import StartError

COMMAND = (sys.executable, "-m", "mcpdiag.cli.bench_recorded")
NONE = Phases([], [], [], [])


class Direct:
    """The server itself."""

    pid = None

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def phases(self, methods: Collection[str]) -> Phases:
        """No proxy, no phases."""
        return NONE


class Recorded:
    """A running proxy whose recorder can be asked."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path) -> None:
        self._process, self._file = process, folder / f"phases-{process.pid}.json"
        self.endpoint, self.pid = Endpoint(url=url), process.pid

    def phases(self, methods: Collection[str]) -> Phases:
        """The exchanges since the last time.

        Raises:
            StartError: the proxy has ended.
        """
        sink, source = self._process.stdin, self._process.stdout
        assert sink is not None
        assert source is not None
        ask = Ask([*methods], str(self._file))
        with contextlib.suppress(BrokenPipeError):
            sink.write(msgspec.json.encode(ask).decode() + "\n")
            sink.flush()
        if not source.readline():
            raise StartError(f"the proxy ended with code {self._process.wait()} under load")
        return msgspec.json.decode(self._file.read_bytes(), type=Phases)


class Sides:
    """Starts the proxies of a round, each in a process of its own; a stdio server starts with each session."""

    def __init__(self, target: Target, *, pool_mode: str, max_connections: int, timeout_s: float) -> None:
        self._target, self._pool_mode = target, pool_mode
        self._settings: dict[str, Any] = {
            "pool": {"max_connections": max_connections, "max_waiting": 100_000},
            "timeouts": {"acquire_timeout": timeout_s},
        }

    @contextmanager
    def __call__(self, keys: tuple[SideKey, ...]) -> Iterator[Mapping[SideKey, Side]]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mcpdiag-bench-")))
            url = self._target.url
            if self._target.kind == "embedded" and any(transport == "http" for transport, _ in keys):
                url = stack.enter_context(running_embedded_http())
            servers = {transport: self._server(transport, url) for transport, _ in keys}
            proxied = [key for key in keys if key[1] != "direct"]
            # All are started before the first is waited for.
            started = [stack.enter_context(_process(self._setup(servers[t], way))) for t, way in proxied]
            sides: dict[SideKey, Side] = {key: Direct(servers[key[0]]) for key in keys if key[1] == "direct"}
            for key, process in zip(proxied, started, strict=True):
                sides[key] = Recorded(process, _ready(process), folder)
            try:
                yield sides
            finally:  # all are told to stop before the first is waited for
                for process in started:
                    process.terminate()

    def _server(self, transport: Transport, url: str) -> Endpoint:
        if transport == "stdio":
            return Endpoint(command=self._target.command or embedded.COMMAND)
        return Endpoint(url=url, headers=dict(self._target.headers))

    def _setup(self, server: Endpoint, way: str) -> Setup:
        if server.url:
            upstream: dict[str, Any] = {"url": server.url, "headers": server.headers}
        else:
            upstream = {"command": [*server.command], "pool_mode": self._pool_mode}
        return Setup(upstream, self._settings, record=way == "proxied")


@contextmanager
def _process(setup: Setup) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own, so that Ctrl-C reaches only us; MCPDIAG_* would overrule what we measure."""
    process = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=inherited(), start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(setup).decode() + "\n")
            process.stdin.flush()
        yield process
    finally:
        stop(process, STOP_S)


def _ready(process: subprocess.Popen[str]) -> str:
    """The URL of a proxy, once it serves."""
    assert process.stdout is not None
    assert process.stderr is not None
    url = process.stdout.readline().strip()
    if not url:
        said = process.stderr.read().strip().splitlines()
        process.stderr.close()
        raise StartError(f"the proxy did not start: {said[-1] if said else 'it said nothing'}")
    threading.Thread(target=drain, args=[process], daemon=True).start()
    return url
