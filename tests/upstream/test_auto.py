"""`transport = "auto"`: what the first `initialize` tells of a server (2025-11-25, "Backwards Compatibility")."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mcpdiag.embedded import COMMAND
from tests.proxy.client import UVLOOP, Client, Recorder, pool, proxied, until
from tests.servers.http_faults import HttpFaults
from tests.servers.legacy import LegacyServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


def transport_of(proxy: Any) -> str:
    return str(proxy.stats()["upstreams"]["up"]["transport"])


@pytest.mark.parametrize("status", [400, 404, 405])
@pytest.mark.parametrize("mode", ["session", "request", "multiplex"])
async def test_a_server_that_refuses_in_the_old_way_and_names_an_endpoint_is_legacy_from_then_on(
    status: int, mode: str
) -> None:
    hook = Recorder()
    async with LegacyServer(COMMAND) as server:
        server.initialize_status = status
        upstream = {"url": server.url, "pool_mode": mode}
        async with proxied(upstream, hook=hook) as proxy:
            for number in range(2):
                async with Client.session(proxy.url) as client:
                    assert await client.say("echo", text=str(number)) == str(number)
                    await client.delete()
            assert transport_of(proxy) == "sse"
            assert proxy.stats()["upstreams"]["up"]["mode"] == mode
            assert pool(proxy)["opens"] >= 1
    assert [event.detail for event in hook.happened("transport")] == ["HTTP+SSE of 2024-11-05"]
    assert [done.outcome for done in hook.done] == ["ok"] * 4


async def test_sessions_that_begin_together_ask_once() -> None:
    async with LegacyServer(COMMAND) as server, proxied(server.url, pool_mode="multiplex") as proxy:

        async def work() -> None:
            async with Client.session(proxy.url) as client:
                assert await client.say("echo", text="hi") == "hi"

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(work)
        assert transport_of(proxy) == "sse"
        assert (
            sum("cache-control" not in headers for headers in server.gets) == 1
        )  # the question, not a session


async def test_a_streamable_http_server_stays_one() -> None:
    async with HttpFaults() as server, proxied(server.url) as proxy, Client.session(proxy.url) as client:
        assert await client.say("echo", text="hi") == "hi"
        assert transport_of(proxy) == "http"
        assert not [request for request in server.requests if request.method == "GET"]


@pytest.mark.parametrize("status", [400, 404, 405, 401, 500])
async def test_a_refusal_without_an_endpoint_reaches_the_client_as_it_came(status: int) -> None:
    """And nothing is decided: the next client is tried again."""
    async with HttpFaults() as server, proxied(server.url) as proxy, Client.bare(proxy.url) as client:
        server.refuse_initialize, server.get_status = status, 405
        response = await client.whole(client.message("initialize", {"protocolVersion": "2025-11-25"}))
        assert response.status_code == status
        asked = [request for request in server.requests if request.method == "GET"]
        assert len(asked) == (1 if status in {400, 404, 405} else 0)
        server.refuse_initialize = 0
        await client.initialize()
        assert await client.say("echo", text="now it works") == "now it works"
        assert transport_of(proxy) == "http"


async def test_an_event_stream_without_an_endpoint_is_no_legacy_server() -> None:
    async with LegacyServer(COMMAND) as server:
        server.preamble = b'data: {"jsonrpc":"2.0","method":"x"}\n\n'
        async with proxied(server.url) as proxy, Client.bare(proxy.url) as client:
            response = await client.whole(client.message("initialize", {"protocolVersion": "2025-11-25"}))
            assert response.status_code == 405
            assert transport_of(proxy) == "http"


async def test_with_http_given_nobody_is_asked() -> None:
    async with LegacyServer(COMMAND) as server:
        upstream = {"url": server.url, "transport": "http"}
        async with proxied(upstream) as proxy, Client.bare(proxy.url) as client:
            response = await client.whole(client.message("initialize", {"protocolVersion": "2025-11-25"}))
            assert response.status_code == 405
            assert not server.gets


async def test_through_httpx_it_is_the_same() -> None:
    async with LegacyServer(COMMAND) as server:
        upstream = {"url": server.url, "http_client": "httpx"}
        hook = Recorder()
        async with proxied(upstream, hook=hook) as proxy, Client.session(proxy.url) as client:
            for number in range(5):
                assert await client.say("echo", text=str(number)) == str(number)
            assert transport_of(proxy) == "sse"
            server.drop_streams()
            await until(lambda: hook.happened("reconnect_attempt"))
            assert await client.say("echo", text="after") == "after"
