"""The proxy that a soak loads, the server behind it, and how their processes are read."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from mcpdiag import embedded, embedded_http
from mcpdiag.bench import vitals
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.sites import Site
from mcpdiag.bench.vitals import NAN, Vitals
from mcpdiag.cli.bench_proxies import KEPT_LINES, Target, drain, escaped, running, running_embedded_http
from mcpdiag.errors import AttachError, ConfigError, StartError
from mcpdiag.samples.remote import Remote, attach

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SITES_S = 12.0  # to record allocations; reading them takes as long again, or more
REAPER = "reaper.py"  # the proxy's own helper is no server


@dataclass(frozen=True)
class Front:
    """How the proxy is set up."""

    target: Target
    transport: Literal["stdio", "http"]
    pool_mode: str
    max_connections: int
    sessions: int
    timeout_s: float
    probe: bool
    """Run the server's own command with a probe in it."""
    server_pid: int | None = None


class Loaded:
    """A running proxy and its server. `read` is what a soak calls for its readings."""

    def __init__(
        self,
        process: subprocess.Popen[str],
        url: str,
        admin: Remote,
        sockets: Path,
        server: tuple[int, ...] | None,
    ) -> None:
        self.url, self.pid = url, process.pid
        self._process, self._admin, self._sockets = process, admin, sockets
        self._server = server  # pids; None: the proxy's children

    def read(self) -> tuple[Mapping[str, Vitals], float, float]:
        """The vitals of `proxy` and, where its processes can be seen, `server`; the proxy's sessions; the calls under way.

        Raises:
            SessionError: the proxy has ended.
        """
        if (code := self._process.poll()) is not None:
            raise SessionError(f"the proxy ended with code {code} under load")
        try:
            stats = self._admin.stats()
            sessions, busy = float(stats["sessions"]), float(stats["calls"])
        except AttachError:  # too busy to answer, which is no reason to stop
            sessions = busy = NAN
        found = {"proxy": vitals.read([self.pid], self._sockets, descendants=False)}
        if roots := self._roots():
            found["server"] = vitals.read(roots, self._sockets)
        return found, sessions, busy

    def candidates(self, processes: set[str], rate: float) -> tuple[tuple[Site, ...], str]:
        """The call sites that grow in the first of these processes that has a probe."""
        pids = [self.pid] if "proxy" in processes else []
        pids += self._roots() if "server" in processes else []
        for pid in pids:
            if (self._sockets / f"{pid}.sock").exists():
                return vitals.growing(self._sockets, pid, seconds=SITES_S, rate=rate)
        return (), "the process has no probe: a Python server gets one with --probe"

    def _roots(self) -> tuple[int, ...]:
        if self._server is not None:
            return self._server
        return tuple(pid for pid in vitals.children_of(self.pid) if not vitals.runs(pid, REAPER))


@contextmanager
def loaded(front: Front) -> Iterator[Loaded]:
    """Start the server, where it is ours, and the proxy in front of it.

    Raises:
        ConfigError: `probe` is asked for, and the command is no Python program.
        StartError: one of them does not start.
    """
    with ExitStack() as stack:
        # Short, because the path of a Unix socket is 100 characters at most.
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="mcpdiag-", ignore_cleanup_errors=True))
        )
        url, command, server = front.target.url, front.target.command, _pids(front)
        if front.target.kind == "embedded" and front.transport == "http":
            url = stack.enter_context(running_embedded_http(_with_probe(embedded_http.COMMAND, folder)))
            server = tuple(vitals.listens_on(urlsplit(url).port or 0))
        elif front.target.kind == "embedded":
            command = _with_probe(embedded.COMMAND, folder)
        elif front.probe:
            command = _with_probe(command, folder)
        config = _config(front, folder, url, command)
        arguments = ["-m", "mcpdiag", "proxy", "--port", "0", "--admin-port", "0", "--config", str(config)]
        process = stack.enter_context(running(_with_probe((sys.executable, *arguments), folder)))
        where, admin = _ready(process)
        # The first question sets aside what is there. Were that asked with the sessions open, they would never be
        # collected once they have ended, and the memory of the sessions after them would look like growth.
        for pid in (process.pid, *(server or ())):
            vitals.ask(folder, pid)
        yield Loaded(process, where, attach(admin), folder, server)


def _with_probe(command: tuple[str, ...], sockets: Path) -> tuple[str, ...]:
    found = vitals.probed(command, sockets)
    if found is None:
        raise ConfigError(
            [
                f"--probe: found the command {command[0]!r}; allowed: python FILE, python -m MODULE or python -c CODE"
            ]
        )
    return tuple(found)


def _pids(front: Front) -> tuple[int, ...] | None:
    """The processes of an HTTP server: the one named, or whoever listens there, if that is this machine."""
    if front.server_pid is not None:
        return (front.server_pid,)
    if front.target.kind != "url":
        return None
    parts = urlsplit(front.target.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return tuple(vitals.listens_on(port)) if parts.hostname in LOOPBACK else ()


def _config(front: Front, folder: Path, url: str, command: tuple[str, ...]) -> Path:
    stdio = bool(command)
    lines = [
        f"pool_mode = {json.dumps(front.pool_mode)}" if stdio else "",
        f"max_sessions = {2 * front.sessions + 100}",
        "session_idle_timeout = '24h'",
        "[pool]",
        f"max_connections = {front.max_connections}",
        "max_waiting = 100000",
        "max_lifetime = '24h'",
        "idle_timeout = '24h'",
        "[timeouts]",
        f"acquire_timeout = {front.timeout_s}",
        "[upstreams.soak]",
    ]
    if stdio:
        program, *arguments = map(escaped, command)
        lines += [f"command = {json.dumps(program)}", f"args = {json.dumps(arguments)}"]
    else:
        lines.append(f"url = {json.dumps(url)}")
        if front.target.headers:
            lines.append("[upstreams.soak.headers]")
            lines += [f"{json.dumps(k)} = {json.dumps(escaped(v))}" for k, v in front.target.headers]
    file = folder / "proxy.toml"
    file.touch(mode=0o600)  # it may hold a header's secret
    file.write_text("\n".join(lines) + "\n")
    return file


def _ready(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The proxy's URL and that of its admin port."""
    assert process.stderr is not None
    kept: list[str] = []
    url = ""
    for line in process.stderr:
        where = line.strip().split(" at ")[-1]
        if " admin at http" in line:
            threading.Thread(target=drain, args=[process], daemon=True).start()
            return url, where.removesuffix("/stats")
        if " at http" in line:
            url = where
        elif len(kept) < KEPT_LINES:
            kept.append(line.strip().removeprefix("mcpdiag: "))
    raise StartError(f"the proxy did not start: {kept[0] if kept else 'it said nothing'}")
