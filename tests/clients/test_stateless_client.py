"""The official Python SDK 2.x speaks 2026-07-28 with a server of the same SDK through the proxy; stdio and HTTP."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mcpdiag

ROOT = Path(__file__).parents[2]
PYTHON_2 = ROOT / ".tools" / "mcp2" / "bin" / "python"
SERVER = [str(PYTHON_2), str(ROOT / "tests" / "servers" / "stateless_sdk.py")]
CLIENT = [str(PYTHON_2), str(Path(__file__).parent / "stateless_client.py")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def http_server() -> Iterator[str]:
    process = subprocess.Popen([*SERVER, "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found is not None
        yield found[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("mode", ["2026-07-28", "auto"])
@pytest.mark.parametrize("kind", ["stdio", "http"])
def test_everything_that_the_era_has_works_through_the_proxy(kind: str, mode: str, http_server: str) -> None:
    """Mirrored parameters, progress, input-required rounds, errors, and a subscription; `auto` needs no handshake."""
    upstream: Any = {"url": http_server}
    if kind == "stdio":
        # The server tells its own listeners what has changed in it, so listeners and calls have to share its process.
        upstream = {"command": SERVER[0], "args": [*SERVER[1:], "--stdio"], "pool_mode": "multiplex"}
    with mcpdiag.serve({"sdk": upstream}, port=0) as proxy:
        done = subprocess.run([*CLIENT, proxy.url, mode], capture_output=True, text=True, timeout=55)
        assert done.returncode == 0, done.stderr
        assert proxy.stats()["sessions"] == 0
    seen = json.loads(done.stdout)
    assert seen == {
        "protocol": "2026-07-28",
        "tools": seen["tools"],
        "text": "This is a simple text response for testing.",
        "steps": [0.0, 50.0, 100.0],
        "mirrored": {"region": " Köln\n", "limit": 42, "query": "x"},
        "rounds": "both rounds done",
        "asked": ["Step 1: What is your name?", "Step 2: What is your favorite color?"],
        "error": -32602,
        "event": "ToolsListChanged",
        "after": "This is a simple text response for testing.",
    }
