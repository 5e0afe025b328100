"""Servers and proxies in processes of their own, for `mcpdiag bench`: what is measured shares nothing with the caller."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mcpdiag import embedded, embedded_http
from mcpdiag.bench.generator import stop
from mcpdiag.bench.matrix import PoolKey
from mcpdiag.connection.child import inherited
from mcpdiag.connection.reaper import Reaper
from mcpdiag.errors import StartError

STOP_S = 8.0
KEPT_LINES = 20


@dataclass(frozen=True)
class Target:
    """The server to measure; neither command nor url is the embedded one."""

    command: tuple[str, ...] = ()
    url: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> str:
        return "command" if self.command else "url" if self.url else "embedded"


@dataclass(frozen=True)
class ProxyProcess:
    """A running `mcpdiag proxy`."""

    url: str
    pid: int


class Proxies:
    """Starts a proxy for each pool of the matrix; reuse is switched off by a lifetime of a millisecond."""

    def __init__(self, target: Target, *, pool_mode: str, max_connections: int, timeout_s: float) -> None:
        self._target, self._pool_mode = target, pool_mode
        self._max_connections, self._timeout_s = max_connections, timeout_s

    @contextmanager
    def __call__(self, pools: tuple[PoolKey, ...]) -> Iterator[Mapping[PoolKey, ProxyProcess]]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mcpdiag-bench-")))
            url = self._target.url
            if self._target.kind == "embedded" and any(transport == "http" for transport, _ in pools):
                url = stack.enter_context(running_embedded_http())
            # All are started before the first is waited for, and told to stop before the first is waited for:
            # most of either is the processor's time of one process.
            commands = [_proxy_command(self._config(folder, pool, url)) for pool in pools]
            started = [stack.enter_context(running(command)) for command in commands]
            try:
                yield {pool: _ready(process) for pool, process in zip(pools, started, strict=True)}
            finally:
                for process in started:
                    process.terminate()

    def _config(self, folder: Path, pool: PoolKey, url: str) -> Path:
        transport, reuse = pool
        lines = [
            f"pool_mode = {json.dumps(self._pool_mode)}" if transport == "stdio" else "",
            "[pool]",
            f"max_connections = {self._max_connections}",
            "max_waiting = 100000",
            "max_lifetime = '1ms'" if reuse == "off" else "max_lifetime = '24h'",
            "[timeouts]",
            f"acquire_timeout = {self._timeout_s}",
            "[upstreams.bench]",
        ]
        if transport == "http":
            lines.append(f"url = {json.dumps(url)}")
            if self._target.headers:
                lines += ["[upstreams.bench.headers]"]
                lines += [f"{json.dumps(k)} = {json.dumps(escaped(v))}" for k, v in self._target.headers]
        else:
            command = [*(self._target.command or embedded.COMMAND)]
            lines += [f"command = {json.dumps(command[0])}", f"args = {json.dumps(command[1:])}"]
        file = folder / f"{transport}-{reuse}.toml"
        file.touch(mode=0o600)  # it may hold a header's secret
        file.write_text("\n".join(lines) + "\n")
        return file


def escaped(value: str) -> str:
    """As configuration files write it."""
    return value.replace("${", "$${")


def _proxy_command(config: Path) -> list[str]:
    return [sys.executable, "-m", "mcpdiag", "proxy", "--port", "0", "--config", str(config)]


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, so that Ctrl-C reaches only us; MCPDIAG_* would overrule what we measure.

    Should we be killed, it is killed too.
    """
    with Reaper() as reaper:
        environment = {**inherited(), **reaper.environment()}
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        reaper.watch(process.pid)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # The drain thread ends with the pipe.


def _ready(process: subprocess.Popen[str]) -> ProxyProcess:
    assert process.stderr is not None
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    for line in process.stderr:
        if " at http" in line:
            threading.Thread(target=drain, args=[process], daemon=True).start()
            return ProxyProcess(line.split(" at ")[-1].strip(), process.pid)
        kept.append(line.strip().removeprefix("mcpdiag: "))
    raise StartError(f"the proxy did not start: {kept[0] if kept else 'it said nothing'}")


def drain(process: subprocess.Popen[str]) -> None:
    """Read what a process says until it ends, so that it is never held up."""
    assert process.stderr is not None
    with process.stderr as stream:
        for _ in stream:
            pass


@contextmanager
def running_embedded_http(command: Sequence[str] = embedded_http.COMMAND) -> Iterator[str]:
    """The embedded server over HTTP; its URL."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise StartError("the embedded HTTP server did not start")
        yield url
    finally:
        stop(process)
