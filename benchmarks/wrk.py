"""Drives `wrk` (one thread, closed loop) with JSON-RPC calls over real MCP sessions, and reads its numbers."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).parent
HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
LUA = """
local sessions = {%s}
local requests, calls = {}, 0
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Accept"] = "application/json, text/event-stream"
function init(args)
  for id = 1, 1024 do  -- formatted once: what is measured is the proxy, not the generator
    wrk.headers["Mcp-Session-Id"] = sessions[id %% #sessions + 1]
    local body = '{"jsonrpc":"2.0","id":' .. id ..
      ',"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello"}}}'
    requests[id] = wrk.format("POST", nil, nil, body)
  end
end
function request()
  calls = calls %% #requests + 1
  return requests[calls]
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('\\nJSON {"requests":%%d,"seconds":%%f,"p50_ms":%%f,"p95_ms":%%f,"p99_ms":%%f,"max_ms":%%f,"errors":%%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True)
class Run:
    """One run of wrk. Latencies in milliseconds, closed loop, errors of connecting, reading, writing, status."""

    rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    errors: int


def need(program: str, package: str) -> str:
    """The path of a program, or a message that says where it comes from, and exit code 2."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        sys.exit(f"this benchmark needs {program}; on Debian: apt-get install {package}")
    return found


def open_session(url: str) -> str:
    """Initialize; returns the session id."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "bench", "version": "1"},
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    connection.request("POST", parts.path, json.dumps(message), HEADERS)
    response = connection.getresponse()
    body = response.read()
    session = response.getheader("mcp-session-id")
    if session is None or b'"result"' not in body:
        sys.exit(f"{url} did not initialize: {response.status} {body[:300]!r}")
    note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    connection.request("POST", parts.path, json.dumps(note), {**HEADERS, "mcp-session-id": session})
    connection.getresponse().read()
    connection.close()
    return session


def load(url: str, sessions: list[str], *, connections: int, seconds: float) -> Run:
    """One closed-loop run; the sessions take turns."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA % ", ".join(f'"{session}"' for session in sessions))
        script.flush()
        command = [need("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", script.name, url]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30)
    line = next(line for line in found.stdout.splitlines() if line.startswith("JSON "))
    numbers = json.loads(line[5:])
    return Run(
        rps=numbers["requests"] / numbers["seconds"],
        p50_ms=numbers["p50_ms"],
        p95_ms=numbers["p95_ms"],
        p99_ms=numbers["p99_ms"],
        max_ms=numbers["max_ms"],
        errors=numbers["errors"],
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"nothing listens on port {port} after {seconds} s")


@contextmanager
def process(*command: str, port: int) -> Iterator[None]:
    """A server process that listens on `port`, ended afterwards."""
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield
    finally:
        started.terminate()
        try:
            started.wait(5)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextmanager
def proxy(*args: str) -> Iterator[tuple[str, int]]:
    """`mcpdiag proxy` in a process of its own; its URL and pid."""
    command = [sys.executable, "-m", "mcpdiag", "proxy", "--port", "0", *args]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert started.stderr is not None
    try:
        line = started.stderr.readline()
        if " at http" not in line:
            sys.exit(f"the proxy did not start: {line}{started.stderr.read()}")
        yield line.split(" at ")[-1].strip(), started.pid
    finally:
        started.terminate()
        started.wait(20)
        started.stderr.close()


def median(runs: list[Run], field: str) -> float:
    return float(statistics.median(getattr(run, field) for run in runs))


def spread(runs: list[Run], field: str) -> str:
    """`median (min-max)` of a field over repeated runs."""
    values = [getattr(run, field) for run in runs]
    return f"{statistics.median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})"
