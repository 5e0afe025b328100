"""Official clients against `server-everything` through the proxy: Python 1.x and 2.x, TypeScript; stdio and HTTP."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import mcpdiag

ROOT = Path(__file__).parents[2]
NODE = ROOT / ".tools" / "node" / "bin" / "node"
EVERYTHING = (
    ROOT
    / ".tools"
    / "node"
    / "node_modules"
    / "@modelcontextprotocol"
    / "server-everything"
    / "dist"
    / "index.js"
)
PYTHON_2 = ROOT / ".tools" / "mcp2" / "bin" / "python"
HERE = Path(__file__).parent
CLIENTS = {
    "python 1.x": [sys.executable, str(HERE / "python_client.py")],
    "python 2.x": [str(PYTHON_2), str(HERE / "python_client.py")],
    "typescript": [str(NODE), str(HERE / "typescript_client.mjs")],
}
SLOW = ["--slow-tool", "trigger-long-running-operation", "--slow-args", '{"duration": 30, "steps": 1}']

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def http_everything() -> Iterator[str]:
    """server-everything in its own Streamable HTTP mode."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(NODE), str(EVERYTHING), "streamableHttp"],
        env={**os.environ, "PORT": str(port)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if re.search(r"listening|port", line, re.IGNORECASE):
                break
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(params=["stdio", "http"])
def upstream(request: pytest.FixtureRequest, http_everything: str) -> Any:
    if request.param == "http":
        return http_everything
    return [str(NODE), str(EVERYTHING), "stdio"]


@pytest.mark.parametrize("client", CLIENTS)
def test_lists_calls_and_survives_a_timeout(client: str, upstream: Any) -> None:
    """The caller sees the proxy's own message about the timeout, and the session goes on."""
    limits: Any = {
        "request_timeout": "1500ms",
        "response_timeout": "1500ms",
    }  # its HTTP answers begin at once, with SSE
    with mcpdiag.serve({"everything": upstream}, port=0, **limits) as proxy:
        found = subprocess.run(
            [*CLIENTS[client], proxy.url, *SLOW], capture_output=True, text=True, timeout=55
        )
        assert found.returncode == 0, found.stderr
        seen = json.loads(found.stdout.strip().splitlines()[-1])
    assert seen["tools"] >= 10
    assert seen["echo"] == "Echo: hello"
    assert "the server 'everything'" in seen["error"]
    assert "answer to tools/call 'trigger-long-running-operation'" in seen["error"]
    assert "1.5 s (request_timeout)" in seen["error"] or "1.5 s (response_timeout)" in seen["error"]
    assert seen["echo_after"] == "Echo: still here"
    assert seen["protocol"] == "2025-11-25"


def test_two_hundred_abandoned_sessions_leave_nothing(nothing_left: None) -> None:
    """Opened and never DELETEd: after the idle timeout there is no session, no child, no descriptor of them."""
    from mcpdiag.embedded import COMMAND
    from tests.conftest import RawClient, own_descriptors, own_processes

    settings: Any = {"session_idle_timeout": 2.0, "max_connections": 200, "max_sessions": 200}
    with mcpdiag.serve({"demo": COMMAND}, port=0, **settings) as proxy:
        RawClient(proxy.url).initialize().http("DELETE")
        processes, descriptors = own_processes(), own_descriptors()
        for _ in range(200):
            RawClient(proxy.url).initialize()

        async def all_gone() -> None:
            with anyio.fail_after(50):
                while proxy.stats()["sessions"] or len(own_processes()) > len(processes):
                    await anyio.sleep(0.1)

        assert proxy.stats()["upstreams"]["demo"]["pool"]["opens"] >= 200
        anyio.run(all_gone)
        # Out of the event loop, which has descriptors of its own; a process is gone a moment before its pipes are closed.
        give_up_at = time.monotonic() + 20
        while own_descriptors() > descriptors and time.monotonic() < give_up_at:
            time.sleep(0.05)
        assert own_descriptors() <= descriptors
        pool = proxy.stats()["upstreams"]["demo"]["pool"]
        assert pool["size"] == pool["closing"] == 0
