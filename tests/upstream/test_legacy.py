"""HTTP+SSE of 2024-11-05 as upstream, against real servers: calls, pool modes, the way it breaks and goes on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from mcpdiag.embedded import COMMAND
from tests.proxy.client import UVLOOP, Client, Recorder, pool, proxied, text_of, until
from tests.servers import legacy_sdk, marked
from tests.servers.legacy import LegacyServer

pytestmark = pytest.mark.anyio
MARKS = ("alpha-5d1c", "omega-9b7e")
MODES = ("session", "request", "multiplex")


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


def sse(url: str, mode: str = "session", **settings: Any) -> dict[str, Any]:
    return {"url": url, "transport": "sse", "pool_mode": mode, **settings}


# --- calls


@pytest.mark.parametrize("mode", MODES)
async def test_calls_are_answered_in_every_pool_mode(mode: str) -> None:
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url, mode), max_connections=2) as proxy,
        Client.session(proxy.url) as client,
    ):

        async def work(number: int) -> None:
            assert await client.say("echo", text=str(number)) == str(number)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(work, number)
        assert proxy.stats()["upstreams"]["up"]["transport"] == "sse"
        assert pool(proxy)["opens"] <= (1 if mode == "session" else 2)
        assert not pool(proxy)["closed_single_shot"]


async def test_the_handshake_reaches_the_server_in_order_and_headers_go_along() -> None:
    async with LegacyServer(COMMAND) as server:
        upstream = sse(f"{server.url}?key=1", headers={"Authorization": "Bearer x"})
        async with proxied(upstream) as proxy, Client.session(proxy.url, version="2024-11-05") as client:
            await client.say("echo", text="hi")
        assert [message["method"] for message in server.posts] == [
            "initialize",
            "notifications/initialized",
            "tools/call",
        ]
        assert {headers["authorization"] for headers in [*server.gets, *server.post_headers]} == {"Bearer x"}
        assert server.posts[0]["params"]["protocolVersion"] == "2024-11-05"


async def test_posts_reuse_their_connections() -> None:
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url)) as proxy,
        Client.session(proxy.url) as client,
    ):
        for number in range(20):
            await client.say("echo", text=str(number))
        assert server.connections <= 3


async def test_progress_arrives_while_the_call_runs() -> None:
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url)) as proxy,
        Client.session(proxy.url) as client,
    ):
        assert text_of(await client.call("progress", token="mine", steps=5)) == "done"
        notes = [each for each in client.messages if each.get("method") == "notifications/progress"]
        assert [(each["params"]["progressToken"], each["params"]["progress"]) for each in notes] == [
            ("mine", step) for step in range(1, 6)
        ]


async def test_a_server_that_accepts_a_request_only_when_it_has_answered_it_can_still_ask() -> None:
    """Its questions reach the client, and the answers to them the server, while the POST of the call is open."""
    async with LegacyServer(marked.COMMAND) as server:
        server.accepts_late = True
        async with proxied(sse(server.url)) as proxy, Client.session(proxy.url, MARKS[0]) as client:
            said = json.loads(await client.say("talk", mark=client.mark, ask=["sample", "elicit", "roots"]))
            assert said["heard"] == [client.mark] * 3


async def test_a_cancelled_call_is_cancelled_at_the_server() -> None:
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url)) as proxy,
        Client.session(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):
        call = client.message("tools/call", {"name": "sleep", "arguments": {"seconds": 60}}, "waits")
        tasks.start_soon(client.whole, call)
        await until(lambda: server.posted("tools/call"))
        await client.cancel("waits")
        await until(lambda: server.posted("notifications/cancelled"))
        (cancelled,) = server.posted("notifications/cancelled")
        assert cancelled["params"]["requestId"] == server.posted("tools/call")[0]["id"]
        assert await client.say("echo", text="still here") == "still here"


async def test_a_call_that_is_too_slow_times_out_and_the_session_stays() -> None:
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url), request_timeout=1.5) as proxy,
        Client.session(proxy.url) as client,
    ):
        answer = await client.call("sleep", seconds=60)
        assert answer["error"]["data"]["type"] == "request_timeout"
        assert await client.say("echo", text="still here") == "still here"


@pytest.mark.parametrize("mode", MODES)
async def test_what_one_client_caused_never_reaches_another(mode: str) -> None:
    ask = [] if mode == "multiplex" else ["sample", "elicit", "roots"]
    hook = Recorder()
    async with (
        LegacyServer(marked.COMMAND) as server,
        proxied(sse(server.url, mode), max_connections=3, hook=hook) as proxy,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(Client.session(proxy.url, mark)) for mark in MARKS]

        async def hammer(client: Client, token: int) -> None:
            for _ in range(4):
                answer = await client.call("talk", token=token, mark=client.mark, ask=ask)
                assert json.loads(text_of(answer)) == {"mark": client.mark, "heard": [client.mark] * len(ask)}

        async with anyio.create_task_group() as tasks:
            for client in clients:
                for token in range(3):
                    tasks.start_soon(hammer, client, token)
        for client in clients:
            (foreign,) = [mark for mark in MARKS if mark != client.mark]
            assert not [text for text in client.received if foreign in text]
            progress = [each for each in client.messages if each.get("method") == "notifications/progress"]
            assert len(progress) == 3 * 4 * 3
        assert max(done.inflight for done in hook.done) > 1


@pytest.mark.parametrize("client", ["own", "httpx"])
@pytest.mark.parametrize("mode", MODES)
async def test_nothing_is_left_of_a_closed_proxy(mode: str, client: str, nothing_left: None) -> None:
    """No connection, no process of the server, no task; also with a call in flight and a stream that is broken."""
    async with LegacyServer(COMMAND) as server, anyio.create_task_group() as tasks:
        upstream = sse(server.url, mode, http_client=client)
        async with proxied(upstream, drain_timeout=0.1) as proxy, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client.session(proxy.url)) for _ in range(2)]
            for each in clients:
                await each.say("echo", text="hi")
            slow = clients[0].message("tools/call", {"name": "sleep", "arguments": {"seconds": 60}})
            tasks.start_soon(clients[0].whole, slow)
            await until(lambda: server.posted("tools/call")[2:])
            await proxy.aclose()
        await until(lambda: not server.sessions)


async def test_the_end_of_a_session_ends_it_at_the_server() -> None:
    async with LegacyServer(COMMAND) as server, proxied(sse(server.url)) as proxy:
        async with Client.session(proxy.url) as client:
            await client.say("echo", text="hi")
            assert len(server.sessions) == 1
            await client.delete()
        await until(lambda: not server.sessions)
        assert pool(proxy)["size"] == 0


# --- what breaks


async def test_a_server_with_ids_loses_and_repeats_nothing_although_its_stream_breaks_all_the_time() -> None:
    """The stream ends after every seventh event; each reopened one goes on behind the last."""
    async with LegacyServer(marked.COMMAND) as server:
        server.ids, server.drop_every = True, 7
        hook = Recorder()
        async with (
            proxied(sse(server.url), hook=hook) as proxy,
            Client.session(proxy.url, MARKS[0]) as client,
        ):
            await client.say("remember", text="kept over all of it")
            for number in range(4):
                await client.call("talk", token=number, mark=client.mark, steps=25)
                assert await client.say("recall") == "kept over all of it"
            notes = [
                each["params"] for each in client.messages if each.get("method") == "notifications/progress"
            ]
            assert [(note["progressToken"], note["progress"]) for note in notes] == [
                (number, step) for number in range(4) for step in range(1, 26)
            ]
            assert len(server.sessions) == 1
            assert len(hook.happened("reconnect_ok")) >= 5
            assert len(server.posted("initialize")) == 1


async def test_a_session_that_is_gone_at_the_server_begins_anew_with_what_the_client_had_set() -> None:
    async with LegacyServer(marked.COMMAND) as server:
        hook = Recorder()
        async with (
            proxied(sse(server.url), hook=hook) as proxy,
            Client.session(proxy.url, MARKS[0]) as client,
        ):
            await client.request("logging/setLevel", {"level": "error"})
            await client.request("resources/subscribe", {"uri": "file:///a"})
            server.drop_streams()
            await until(lambda: hook.happened("session_lost"))
            state = json.loads(await client.say("state"))
            assert (state["level"], state["watched"]) == ("error", ["file:///a"])
            assert len(server.posted("initialize")) == 2
        assert "names another endpoint" in hook.happened("session_lost")[0].detail
        assert [event.detail for event in hook.happened("recover")] == ["began a new session at the server"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_while_the_stream_is_opened_again_waits_for_it_and_is_served(mode: str) -> None:
    hook = Recorder()
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url, mode), max_connections=1, hook=hook) as proxy,
        Client.session(proxy.url) as client,
    ):
        for number in range(1, 4):
            assert await client.say("echo", text=str(number)) == str(number)
            server.drop_streams()
            await until(lambda: len(hook.happened("reconnect_attempt")) == number)  # noqa: B023


@pytest.mark.parametrize("mode", MODES)
async def test_calls_go_on_after_a_restart_of_the_server(mode: str) -> None:
    hook = Recorder()
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url, mode), max_connections=1, hook=hook) as proxy,
        Client.session(proxy.url) as client,
    ):
        assert await client.say("echo", text="before") == "before"
        await server.stop()
        await until(lambda: hook.happened("reconnect_attempt"))
        await server.start()
        assert await client.say("echo", text="after") == "after"


async def test_calls_in_flight_at_a_restart_end_in_a_typed_error_and_are_not_repeated() -> None:
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url), retries=3) as proxy,
        Client.session(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):

        async def call() -> None:
            error = (await client.call("sleep", seconds=60))["error"]
            assert error["data"]["type"] == "upstream_closed"
            assert f"the session at the server 'up' ({server.url}) is gone" in error["message"]

        tasks.start_soon(call)
        await until(lambda: server.posted("tools/call"))
        await server.stop()
        await server.start()
        await until(lambda: not proxy.stats()["calls"])
        assert len(server.posted("tools/call")) == 1


async def test_a_server_that_stays_away_is_told_as_such() -> None:
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url), connect_timeout=2) as proxy,
        Client.session(proxy.url) as client,
    ):
        await server.stop()
        error = (await client.call("echo", text="anybody?"))["error"]
        assert error["data"]["type"] in {"connect_timeout", "upstream_closed", "connect_error"}
        assert "127.0.0.1" in error["message"] or "'up'" in error["message"]
        await server.start()


async def test_a_post_that_is_not_accepted_ends_its_call_with_the_words_of_the_server() -> None:
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url)) as proxy,
        Client.session(proxy.url) as client,
    ):
        server.post_status = 500
        error = (await client.call("echo", text="no"))["error"]
        assert error["data"]["type"] == "upstream_protocol"
        assert error["data"]["status"] == 500
        assert (
            "the server 'up' did not accept a message: it answered with HTTP 500 (no no)" in error["message"]
        )
        server.post_status = 202
        assert await client.say("echo", text="yes") == "yes"


async def test_a_session_that_only_the_post_finds_gone_begins_anew() -> None:
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url)) as proxy,
        Client.session(proxy.url) as client,
    ):
        await client.say("echo", text="first")
        (number,) = server.sessions
        forgotten = server.sessions.pop(number)
        error = (await client.call("echo", text="lost"))["error"]
        assert error["data"]["type"] == "upstream_closed"
        assert "is gone: it answered a POST with HTTP 404 (unknown session)" in error["message"]
        assert await client.say("echo", text="anew") == "anew"
        assert forgotten.task is not None
        forgotten.task.cancel()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"get_status": 404}, "answered a GET with HTTP 404 and no event stream"),
        ({"get_status": 500}, "answered a GET with HTTP 500 and no event stream"),
        ({"preamble": b"data: {}\n\n"}, "began its event stream with something else than an endpoint"),
        (
            {"endpoint": "http://evil.test/messages"},
            r"names an endpoint at http://evil\.test:80, and only one at http://127\.0\.0\.1",
        ),
        ({"endpoint": "//evil.test/messages"}, r"names an endpoint at http://evil\.test:80"),
        ({"endpoint": "ftp://h/"}, "names an endpoint that is no URL"),
        ({"endpoint": "/a b"}, "names an endpoint that is no URL"),
    ],
)
async def test_what_is_no_such_server_is_a_typed_error(wrong: dict[str, Any], told: str) -> None:
    async with LegacyServer(COMMAND) as server:
        for name, value in wrong.items():
            setattr(server, name, value)
        async with proxied(sse(server.url)) as proxy, Client.bare(proxy.url) as client:
            error = (await client.initialize())["error"]
            assert error["data"]["type"] == "upstream_protocol"
            with pytest.raises(AssertionError, match=told):
                raise AssertionError(error["message"])
            assert not server.posts


async def test_a_server_that_names_no_endpoint_is_not_ready_in_time() -> None:
    async with LegacyServer(COMMAND) as server:
        server.preamble = b": only a comment\n\n"
        async with proxied(sse(server.url), connect_timeout=0.3) as proxy, Client.bare(proxy.url) as client:
            error = (await client.initialize())["error"]
            assert error["data"]["type"] == "connect_timeout"
            assert f"the server 'up' ({server.url}) was not ready within 0.3 s" in error["message"]
            assert pool(proxy)["size"] == 0


async def test_nobody_at_home_is_a_connect_error() -> None:
    async with proxied(sse("http://127.0.0.1:9/sse")) as proxy, Client.bare(proxy.url) as client:
        error = (await client.initialize())["error"]
        assert error["data"]["type"] == "connect_error"
        assert "http://127.0.0.1:9: refused" in error["message"]


async def test_too_long_an_event_ends_the_session_with_the_setting_to_raise() -> None:
    async with LegacyServer(COMMAND) as server:
        upstream = sse(server.url, max_message_bytes=2048)
        async with proxied(upstream) as proxy, Client.session(proxy.url) as client:
            error = (await client.call("echo", text="x" * 5000))["error"]
            assert error["data"]["type"] == "upstream_closed"
            assert "larger than 2048 bytes" in error["message"]
            assert await client.say("echo", text="anew") == "anew"


async def test_a_request_of_2026_07_28_is_told_what_the_server_speaks() -> None:
    async with (
        LegacyServer(COMMAND) as server,
        proxied(sse(server.url)) as proxy,
        Client.bare(proxy.url) as client,
    ):
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/list"}
        response = await client.whole(client.message("tools/list", {"_meta": meta}), headers)
        assert response.status_code == 400
        assert "2024-11-05" in response.json()["error"]["data"]["supported"]
        assert not server.gets


# --- the official SDK


@pytest.fixture(scope="module")
def sdk() -> Iterator[str]:
    process = subprocess.Popen(legacy_sdk.COMMAND, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("transport", ["sse", "auto"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_server_of_the_official_sdk_is_served(sdk: str, mode: str, transport: str) -> None:
    async with (
        proxied({"url": sdk, "transport": transport, "pool_mode": mode}) as proxy,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(Client.session(proxy.url, mark)) for mark in MARKS]
        for client in clients:
            assert await client.say("echo", text=client.mark) == client.mark
            answer = await client.call("count", token=client.mark, steps=4)
            assert text_of(answer) == "counted"
            notes = [each for each in client.messages if each.get("method") == "notifications/progress"]
            assert [each["params"]["progressToken"] for each in notes] == [client.mark] * 4
        if mode == "session":
            for client in clients:
                await client.say("remember", text=client.mark)
            for client in clients:
                assert await client.say("recall") == client.mark
        assert proxy.stats()["upstreams"]["up"]["transport"] == "sse"
