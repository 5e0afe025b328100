"""Starts a peer in front of an upstream, waits until it serves MCP, and ends it with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from install import MissingError
from peer import Peer, Upstream

from mcpdiag import embedded_http
from mcpdiag.bench.discover import tools_of
from mcpdiag.bench.generator import stop
from mcpdiag.bench.spec import LoadSpec
from mcpdiag.errors import StartError

sys.path.append(str(Path(__file__).resolve().parents[1]))
from wrk import free_port

READY_S = 60.0
STOP_S = 5.0


@contextmanager
def embedded_server() -> Iterator[str]:
    """The embedded HTTP server in a process of its own; its URL."""
    command = embedded_http.COMMAND
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        stop(process)


@contextmanager
def running(peer: Peer, upstream: Upstream) -> Iterator[tuple[str, int]]:
    """The URL of a peer's endpoint and its process.

    Raises:
        MissingError: it is not installed, has ended, or does not answer; with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="mcpdiag-peers-") as name:
        port = free_port()
        command = peer.start(upstream, port, Path(name))
        log = Path(name, "output.log")
        environ = {key: value for key, value in os.environ.items() if not key.startswith("MCPDIAG_")}
        try:
            with log.open("wb") as sink:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    start_new_session=True,
                    cwd=name,
                    env=environ,
                )
        except OSError as error:
            raise MissingError(f"cannot be started: {error.strerror}; install it again") from None
        try:
            url = f"http://127.0.0.1:{port}{peer.path}"
            _wait(process, url, log)
            yield url, process.pid
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until it lists tools, which is what a client sees first; not until its port is open."""
    end = time.monotonic() + READY_S
    reason = "it was not asked"
    while time.monotonic() < end:
        if process.poll() is not None:
            raise MissingError(f"ended with {process.returncode}: {_last(log)}")
        try:
            tools_of(LoadSpec(url=url, timeout_s=10))
            return
        except StartError as error:
            reason = str(error).removeprefix("the server cannot be measured: ")
        time.sleep(0.2)
    raise MissingError(f"does not serve within {READY_S:g} s: {reason}")


def _last(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:120] if lines else "it said nothing"
