"""HTTP+SSE of 2024-11-05: what such a client sees, over a stdio server and over an HTTP one."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx
import psutil
import pytest

from mcpdiag.embedded import COMMAND
from mcpdiag.serve import Proxy
from tests.proxy import raw
from tests.proxy.client import LIMIT, UVLOOP, Client, Recorder, on_both_loops, pool, proxied, text_of, until
from tests.proxy.sse_client import SseClient
from tests.servers.mini import command

pytestmark = pytest.mark.anyio
Open = Callable[..., AbstractAsyncContextManager[Proxy]]


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


def sse(proxy: Proxy) -> str:
    """The URL of the stream of the only upstream."""
    return proxy.url.removesuffix("/mcp") + "/sse"


async def ask(url: str, body: bytes = b"", **request: Any) -> raw.Got:
    """One raw request, outside of the event loop."""
    return await anyio.to_thread.run_sync(partial(raw.send, url, body, **request))


@asynccontextmanager
async def over_http(server: Any, **settings: Any) -> AsyncIterator[Proxy]:
    """A proxy in front of a proxy, so that the upstream is an HTTP server."""
    async with proxied(server) as inner, proxied(inner.url, **settings) as outer:
        yield outer


@pytest.fixture(params=["stdio", "http"])
def opened(request: pytest.FixtureRequest) -> Open:
    """Opens a proxy in front of a server's command, as a stdio server or as an HTTP one."""
    return over_http if request.param == "http" else proxied


# -- a session ------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_session_over_a_stream_and_a_second_path(opened: Open) -> None:
    async with opened(COMMAND) as proxy, SseClient.connected(sse(proxy)) as client:
        assert re.fullmatch(r"/up/messages\?session_id=[0-9a-f]{32}", client.events[0][1])
        answer = await client.initialize()
        assert answer["result"]["protocolVersion"] == "2024-11-05"
        tools = (await client.request("tools/list"))["result"]["tools"]
        assert "echo" in {tool["name"] for tool in tools}
        assert await client.say("echo", text="grüße\n") == "grüße\n"
        assert {name for name, _ in client.events[1:]} == {"message"}
        assert proxy.stats()["sessions"] == 1


async def test_each_upstream_has_its_own_paths() -> None:
    async with proxied(COMMAND, COMMAND) as proxy:
        base = proxy.url.removesuffix("/up/mcp")
        assert (await ask(f"{base}/sse", method="GET")).status == 404
        async with SseClient.session(f"{base}/up/sse") as one, SseClient.session(f"{base}/up2/sse") as two:
            assert one.events[0][1].startswith("/up/messages?")
            assert two.events[0][1].startswith("/up2/messages?")
            assert await one.say("whoami") != await two.say("whoami")
            strange = one.endpoint.replace("/up/", "/up2/")
            assert (await one.http.post(strange, json={})).status_code == 404


async def test_calls_overlap_and_are_answered_by_their_ids(opened: Open) -> None:
    async with opened(COMMAND) as proxy, SseClient.session(sse(proxy)) as client:
        slow = await client.send_call("sleep", seconds=60)
        calls = [await client.send_call("echo", text=str(number)) for number in range(10)]
        assert [text_of(await client.answer(call)) for call in calls] == [str(n) for n in range(10)]
        await client.notify("notifications/cancelled", {"requestId": slow})
        await until(lambda: not proxy.stats()["calls"], "the call is cancelled")
        assert await client.say("echo", text="on") == "on"
        assert slow not in {message.get("id") for message in client.messages}


async def test_the_server_asks_and_the_client_answers(opened: Open) -> None:
    async with opened(command("asks")) as proxy, SseClient.session(sse(proxy), sampling={}) as client:
        call = await client.send_call("sample", text="what?")
        await until(lambda: client.heard("sampling/createMessage"), "the question")
        question = client.messages[-1]
        assert question["params"]["messages"][0]["content"]["text"] == "what?"
        response = await client.post({"jsonrpc": "2.0", "id": question["id"], "result": {"said": 42}})
        assert response.status_code == 202
        assert text_of(await client.answer(call)) == '{"said": 42}'


async def test_progress_and_late_words_of_the_server_arrive(opened: Open) -> None:
    async with opened(command("asks")) as proxy, SseClient.session(sse(proxy)) as client:
        call = await client.send_call("progress", token="mine", steps=3)
        assert text_of(await client.answer(call)) == "done"
        seen = [(each["progressToken"], each["progress"]) for each in client.heard("notifications/progress")]
        assert seen == [("mine", 1), ("mine", 2), ("mine", 3)]
        assert await client.say("log_late", text="too late") == "answered"
        await until(lambda: client.heard("notifications/message"), "what belongs to no call")
        assert client.heard("notifications/message")[0]["data"] == "too late"


async def test_two_clients_do_not_hear_of_each_other(opened: Open) -> None:
    async with opened(command("asks")) as proxy:
        async with SseClient.session(sse(proxy)) as one, SseClient.session(sse(proxy)) as two:
            assert one.session_id != two.session_id
            assert await one.say("pid") != await two.say("pid")
            await one.say("log_late", text="of one")
            await two.say("log_late", text="of two")
            for client, mine in ((one, "of one"), (two, "of two")):
                await until(lambda client=client: client.heard("notifications/message"))  # type: ignore[misc]
                assert [each["data"] for each in client.heard("notifications/message")] == [mine]


async def test_a_quiet_stream_is_kept_alive() -> None:
    async with proxied(COMMAND, keepalive_interval=0.1) as proxy, SseClient.connected(sse(proxy)) as client:
        await until(lambda: client.comments >= 2, "comments before initialize")
        await client.initialize()
        before = client.comments
        await until(lambda: client.comments >= before + 2, "comments in the session")


async def test_an_open_stream_is_not_idle() -> None:
    async with proxied(COMMAND, session_idle_timeout=0.2) as proxy, SseClient.session(sse(proxy)) as client:
        async with Client.session(proxy.url) as other:  # by comparison: one without a stream
            await until(lambda: proxy.stats()["sessions"] == 1, "the idle one is swept")
            assert (await other.whole(other.message("ping"))).status_code == 404
        assert await client.say("echo", text="still there") == "still there"


async def test_requests_out_of_order_are_refused_on_the_stream() -> None:
    async with proxied(COMMAND) as proxy, SseClient.connected(sse(proxy)) as client:
        assert (await client.request("server/discover"))["error"]["code"] == -32601
        assert (await client.request("tools/list"))["error"]["code"] == -32600
        assert (await client.request("ping"))["result"] == {}
        await client.initialize()
        assert (await client.initialize())["error"]["code"] == -32600
        assert await client.say("echo", text="on") == "on"


# -- the end --------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_client_that_goes_frees_its_session_and_its_child() -> None:
    hook = Recorder()
    async with proxied(COMMAND, hook=hook) as proxy:
        async with SseClient.session(sse(proxy)) as client:
            child = psutil.Process(int(await client.say("whoami")))
            await client.send_call("sleep", seconds=60)
            await until(lambda: proxy.stats()["calls"] == 1)
        await until(lambda: not child.is_running(), "the child is gone")
        await until(lambda: not pool(proxy)["size"], "its place is free")
        assert proxy.stats()["sessions"] == proxy.stats()["calls"] == 0
        assert [event.detail for event in hook.happened("session_end")] == ["left by its client"]
        assert [event.outcome for event in hook.done if event.target == "sleep"] == ["cancelled"]


async def test_a_client_that_goes_ends_its_session_at_an_http_server() -> None:
    async with proxied(COMMAND) as inner, proxied(inner.url) as outer:
        async with SseClient.session(sse(outer)) as client:
            await client.say("echo", text="x")
            assert inner.stats()["sessions"] == 1
        await until(lambda: not inner.stats()["sessions"], "the server was told")


async def test_places_of_clients_that_went_are_free_again() -> None:
    async with proxied(COMMAND, max_sessions=2, max_connections=2) as proxy:
        for _ in range(3):
            async with SseClient.session(sse(proxy)), SseClient.session(sse(proxy)):
                refused = await ask(sse(proxy), method="GET")
                assert refused.status == 503
                assert refused.error["data"]["type"] == "too_many_sessions"
            await until(lambda: not proxy.stats()["sessions"] and not pool(proxy)["size"])


async def test_shutdown_answers_the_call_in_flight_and_ends_the_stream(opened: Open) -> None:
    async with opened(COMMAND, drain_timeout=LIMIT) as proxy:
        async with SseClient.session(sse(proxy)) as client, SseClient.connected(sse(proxy)) as idle:
            call = await client.send_call("sleep", seconds=0.5)
            await until(lambda: proxy.stats()["calls"] == 1)
            await proxy.aclose()
            assert text_of(await client.answer(call)) == "awake"
            await until(lambda: client.ended and idle.ended, "the streams have ended")


async def test_shutdown_tells_a_call_that_takes_too_long(opened: Open) -> None:
    async with opened(COMMAND, drain_timeout=0.1) as proxy, SseClient.session(sse(proxy)) as client:
        call = await client.send_call("sleep", seconds=60)
        await until(lambda: proxy.stats()["calls"] == 1)
        await proxy.aclose()
        assert (await client.answer(call))["error"]["data"]["type"] == "shutting_down"
        await until(lambda: client.ended)


async def test_a_client_that_does_not_read_is_ended() -> None:
    async with proxied(command("asks"), response_timeout=0.3) as proxy:
        request = raw.head(sse(proxy), "GET", {"Accept": "text/event-stream"}) + b"\r\n"
        with raw.connect(sse(proxy)) as connection:
            connection.sendall(request)
            await until(lambda: proxy.stats()["sessions"] == 1)
            assert proxy._sessions is not None
            (session_id,) = proxy._sessions._sessions
            async with httpx.AsyncClient(timeout=LIMIT, trust_env=False) as http:
                client = SseClient(sse(proxy), http)
                client.events.append(("endpoint", f"/up/messages?session_id={session_id}"))
                info = {"name": "x", "version": "1"}
                params = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": info}
                await client.send("initialize", params)
                await client.notify("notifications/initialized")
                await client.send_call("spam", count=900, bytes=15_000)
            await until(lambda: not proxy.stats()["sessions"], "its session has ended")
            await until(lambda: not pool(proxy)["size"], "its child is gone")


# -- mistakes -------------------------------------------------------------------------------------------------


async def test_a_session_that_is_not_open_is_not_found() -> None:
    async with proxied(COMMAND) as proxy:
        base = proxy.url.removesuffix("/mcp")
        async with SseClient.session(sse(proxy)) as client, Client.session(proxy.url) as streamable:
            gone = client.endpoint
            for query in (
                "",
                "?session_id=",
                f"?session_id={'0' * 32}",
                f"?session_id={streamable.session_id}",
            ):
                response = await client.http.post(f"{base}/up/messages{query}", json={})
                assert response.status_code == 404, query
                assert "start again with GET" in response.json()["error"]["message"]
        await until(lambda: proxy.stats()["sessions"] == 1)
        assert (await ask(gone, b"{}", path=gone.removeprefix(base))).status == 404


async def test_bad_input_is_refused_and_the_session_goes_on() -> None:
    async with proxied(COMMAND, max_body_bytes=2000) as proxy, SseClient.session(sse(proxy)) as client:
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        for body, headers, status, code in [
            (b"hello", {}, 400, -32700),
            (b'{"id": 1}', {}, 400, -32600),
            ([ping], {}, 400, -32600),
            (ping, {"content-type": "text/plain"}, 415, -32600),
            (b" " * 3000, {}, 413, -32600),
        ]:
            response = await client.post(body, **headers)
            assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert await client.say("echo", text="on") == "on"


async def test_the_guard_stands_before_both_paths() -> None:
    async with proxied(COMMAND, token="secret") as proxy:
        bearer = {"authorization": "Bearer secret"}
        async with SseClient.connected(sse(proxy), **bearer) as client:
            assert "result" in await client.initialize()
            paths = [("GET", "/sse"), ("POST", client.events[0][1])]
            for method, path in paths:
                for status, headers in [
                    (401, {}),
                    (401, {"authorization": "Bearer wrong"}),
                    (403, {**bearer, "host": "evil.example"}),
                    (403, {**bearer, "origin": "http://evil.example"}),
                ]:
                    got = await ask(sse(proxy), method=method, path=path, headers=headers)
                    assert got.status == status, (method, headers)


async def test_methods_and_media_types_are_checked() -> None:
    async with proxied(COMMAND) as proxy:
        for method, path, allowed in [("POST", "/sse", "GET"), ("GET", "/messages", "POST")]:
            got = await ask(sse(proxy), b"{}" if method == "POST" else b"", method=method, path=path)
            assert (got.status, got.headers["allow"]) == (405, allowed)
            page = {"Origin": "http://localhost:3000"}
            asked = await ask(sse(proxy), method="OPTIONS", path=path, headers=page)
            assert (asked.status, asked.headers["access-control-allow-methods"]) == (204, allowed)
        assert (await ask(sse(proxy), method="GET", headers={"Accept": "application/json"})).status == 406


async def test_a_closing_proxy_admits_no_new_stream() -> None:
    async with proxied(COMMAND) as proxy, SseClient.session(sse(proxy)) as client:
        await client.send_call("sleep", seconds=60)
        await until(lambda: proxy.stats()["calls"] == 1)
        assert proxy._gate is not None
        proxy._gate.close()
        assert (await client.request("ping"))["error"]["data"]["type"] == "shutting_down"
        got = await ask(sse(proxy), method="GET")
        assert (got.status, got.error["data"]["type"]) == (503, "shutting_down")


async def test_a_server_that_cannot_start_is_said_on_the_stream() -> None:
    async with proxied(["python3", "-c", "import sys; sys.exit('no API key')"]) as proxy:
        async with SseClient.connected(sse(proxy)) as client:
            error = (await client.initialize())["error"]
            assert "no API key" in error["message"]


@pytest.mark.parametrize("mode", ["request", "multiplex"])
async def test_shared_pool_modes_serve_such_clients_too(mode: str) -> None:
    server = {"command": COMMAND[0], "args": [COMMAND[1]], "pool_mode": mode}
    async with proxied(server, max_connections=1) as proxy:
        async with SseClient.session(sse(proxy)) as one, SseClient.session(sse(proxy)) as two:
            assert await one.say("whoami") == await two.say("whoami")
            with anyio.fail_after(LIMIT):
                assert await one.say("echo", text="x") == "x"
