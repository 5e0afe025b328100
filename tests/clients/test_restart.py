"""A real HTTP server is killed and restarted under an official client that calls all the time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client
from pydantic import AnyUrl

from mcpdiag.serve import Proxy
from tests.clients.test_real_clients import EVERYTHING, NODE
from tests.proxy.client import Recorder

pytestmark = [pytest.mark.slow, pytest.mark.anyio]
CONFORMANCE = [sys.executable, "-m", "tests.servers.conformance"]
SERVERS: dict[str, tuple[Callable[[int], list[str]], str, str]] = {
    # command, a tool, the resource to watch. The SDK's server answers 404 for a session it does not know, the other 400.
    "python sdk": (
        lambda port: [*CONFORMANCE, "--port", str(port)],
        "touch_watched_resource",
        "test://watched-resource",
    ),
    "everything": (lambda _: [str(NODE), str(EVERYTHING), "streamableHttp"], "get-sum", ""),
}


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio", {"use_uvloop": True}


async def start(command: list[str], port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, env={**os.environ, "PORT": str(port)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with anyio.fail_after(30):
        while True:
            with suppress(OSError):
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                return process
            assert process.poll() is None
            await anyio.sleep(0.05)


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_client_does_not_notice_that_its_server_was_killed_and_restarted(kind: str) -> None:
    """No call fails, the client keeps its session, what it subscribed to still fires.

    A call that is made while the server is away is answered late.
    """
    command, tool, resource = SERVERS[kind]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await start(command(port), port)
    hook, updated = Recorder(), list[str]()

    async def on_message(message: Any) -> None:
        if isinstance(message, types.ServerNotification) and isinstance(
            message.root, types.ResourceUpdatedNotification
        ):
            updated.append(str(message.root.params.uri))

    try:
        async with (
            Proxy({"up": f"http://127.0.0.1:{port}/mcp"}, port=0, hook=hook) as proxy,
            streamable_http_client(proxy.url) as (read, write, session_id),
            ClientSession(read, write, message_handler=on_message) as client,
        ):
            await client.initialize()
            first_id = session_id()
            if resource:
                await client.subscribe_resource(AnyUrl(resource))

            async def call() -> None:
                result = await client.call_tool(tool, {} if resource else {"a": 1, "b": 2})
                assert not result.isError

            for _ in range(3):
                await call()
            for _ in range(2):
                updated.clear()
                process.kill()
                process.wait()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call)
                    process = await start(command(port), port)
                for _ in range(5):
                    await call()
                with anyio.fail_after(20):
                    while resource and not updated:
                        await call()
                        await anyio.sleep(0.1)
            assert session_id() == first_id
            assert len(hook.happened("recover")) == 2
    finally:
        process.kill()
        process.wait()
