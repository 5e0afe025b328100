"""Official clients through the fronts that are not Streamable HTTP: `mcpdiag proxy --stdio`, and HTTP+SSE."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import mcpdiag
from tests.clients.test_real_clients import CLIENTS, EVERYTHING, NODE, SLOW, http_everything
from tests.proxy.client import until

__all__ = ["http_everything"]  # a fixture
LIMITS: dict[str, Any] = {"request_timeout": "1500ms", "response_timeout": "1500ms"}
pytestmark = pytest.mark.slow


def visit(client: str, server: str) -> dict[str, Any]:
    """What a client sees of server-everything: tools, an answer, a timeout of the proxy, and another answer."""
    found = subprocess.run([*CLIENTS[client], server, *SLOW], capture_output=True, text=True, timeout=55)
    assert found.returncode == 0, found.stderr
    seen: dict[str, Any] = json.loads(found.stdout.strip().splitlines()[-1])
    assert seen["tools"] >= 10
    assert "the server 'everything'" in seen["error"]
    assert seen["echo"] == "Echo: hello"
    assert "answer to tools/call 'trigger-long-running-operation'" in seen["error"]
    assert seen["echo_after"] == "Echo: still here"
    return seen


@pytest.fixture(params=["stdio", "http"])
def upstream(request: pytest.FixtureRequest, http_everything: str) -> Any:
    if request.param == "http":
        return http_everything
    return [str(NODE), str(EVERYTHING), "stdio"]


@pytest.mark.parametrize("client", CLIENTS)
def test_the_stdio_front(client: str, upstream: Any, tmp_path: Path, nothing_left: None) -> None:
    """As an entry of `mcpServers`: the client starts the proxy, and ends it."""
    server = (
        {"url": upstream} if isinstance(upstream, str) else {"command": upstream[0], "args": upstream[1:]}
    )
    file = tmp_path / "mcpdiag.toml"
    lines = [*(f"{key} = {json.dumps(value)}" for key, value in server.items()), "[timeouts]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in LIMITS.items()]
    file.write_text("\n".join(["[upstreams.everything]", *lines]))
    seen = visit(
        client, json.dumps([sys.executable, "-m", "mcpdiag", "proxy", "--stdio", "--config", str(file)])
    )
    assert seen["protocol"] == "2025-11-25"


@pytest.mark.parametrize("client", CLIENTS)
def test_http_with_sse(client: str, upstream: Any) -> None:
    with mcpdiag.serve({"everything": upstream}, port=0, **LIMITS) as proxy:
        seen = visit(client, proxy.url.removesuffix("/mcp") + "/sse")
        assert seen["protocol"] == "2025-11-25"
        anyio.run(until, lambda: not proxy.stats()["sessions"], "the client's session is over")
