"""How an answer comes back: as JSON or as a stream, with what precedes it, and what a client does to it meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import anyio
import psutil
import pytest

from mcpdiag.config import UpstreamConfig
from mcpdiag.hooks import NO_HOOK
from mcpdiag.protocol.message import decode
from mcpdiag.protocol.sse import Event
from mcpdiag.proxy import forward
from mcpdiag.proxy.request import Reply
from mcpdiag.proxy.session import Session
from mcpdiag.serve import Proxy
from mcpdiag.upstream.base import Answer
from mcpdiag.upstream.client import INBOX_BYTES, INBOX_MESSAGES
from mcpdiag.upstream.client import Client as UpstreamClient
from mcpdiag.upstream.exchange import Exchange
from tests.proxy.client import UVLOOP, Client, Json, Recorder, on_both_loops, pool, proxied, text_of, until
from tests.proxy.test_session import open_streams, raw_request
from tests.servers import marked
from tests.servers.http_faults import HttpFaults, event

pytestmark = pytest.mark.anyio
over_both = pytest.mark.parametrize("transport", ["stdio", "http"])
SERVER = [*marked.COMMAND]
MIB = 1024 * 1024


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


def call_of(client: Client, tool: str, request_id: Any = None, token: Any = None, **arguments: Any) -> Json:
    params: Json = {"name": tool, "arguments": arguments}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return client.message("tools/call", params, request_id)


def messages_in(text: str) -> list[Json]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ") and line[6:]]


@asynccontextmanager
async def through(transport: str, **settings: Any) -> AsyncIterator[tuple[Proxy, Client, HttpFaults | None]]:
    """A proxy in front of a server of either kind, and a client with a session."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(HttpFaults()) if transport == "http" else None
        proxy = await stack.enter_async_context(proxied(server.url if server else SERVER, **settings))
        client = await stack.enter_async_context(Client.session(proxy.url))
        yield proxy, client, server


# -- JSON or a stream -----------------------------------------------------------------------------------------


async def test_an_answer_is_json_unless_a_message_precedes_it() -> None:
    async with through("stdio") as (_, client, _):
        plain = await client.whole(call_of(client, "echo", text="x"))
        assert plain.headers["content-type"] == "application/json"
        assert int(plain.headers["content-length"]) == len(plain.content)
        refused = await client.whole(call_of(client, "no such tool"))
        assert refused.headers["content-type"] == "application/json"
        assert "error" in refused.json()
        unasked = await client.whole(call_of(client, "talk", mark="m", ask=[], steps=0))
        assert unasked.headers["content-type"] == "application/json"
        streamed = await client.whole(call_of(client, "talk", token=1, mark="m", ask=[], steps=1))
        assert streamed.headers["content-type"] == "text/event-stream"
        assert streamed.headers["cache-control"] == "no-cache, no-transform"
        progress, message, answer = messages_in(streamed.text)
        assert progress["method"] == "notifications/progress"
        assert message["method"] == "notifications/message"
        assert "result" in answer


async def test_messages_come_in_the_order_in_which_the_server_wrote_them() -> None:
    async with through("stdio") as (_, client, _):
        response = await client.whole(call_of(client, "flood", messages=500, size=1))
        *logged, answer = messages_in(response.text)
        assert [int(message["params"]["data"].split(":")[0]) for message in logged] == [*range(500)]
        assert text_of(answer) == "flooded"


@on_both_loops
async def test_after_silence_the_answer_becomes_a_stream_with_keep_alives() -> None:
    """The first comment comes after `keepalive_interval`, more follow, and the answer is its only event."""
    async with through("stdio", keepalive_interval=0.1) as (_, client, _):
        await client.say("echo", text="x")
        response = await client.whole(call_of(client, "sleep", seconds=0.45))
        assert response.headers["content-type"] == "text/event-stream"
        assert 2 <= response.text.count(": keep-alive\n\n") <= 5
        (answer,) = messages_in(response.text)
        assert text_of(answer) == "awake"


async def test_keep_alives_flow_between_messages_and_on_listening_streams() -> None:
    async with through("stdio", keepalive_interval=0.1) as (_, client, _):
        await client.say("echo", text="x")
        async with client.listen() as stream:
            response = await client.whole(call_of(client, "drip", token=1, steps=2, every_ms=250))
            assert len(messages_in(response.text)) == 3
            assert response.text.count(": keep-alive\n\n") >= 2
            await until(lambda: stream.comments >= 2)


async def test_a_slow_initialize_is_never_a_stream_without_a_session_id() -> None:
    late = ["sh", "-c", f"sleep 0.5; exec {shlex.join(SERVER)}"]
    async with proxied(late, keepalive_interval=0.1) as proxy, Client.session(proxy.url) as client:
        assert await client.say("echo", text="x") == "x"


async def test_an_http_servers_silence_is_not_turned_into_a_stream() -> None:
    """It may still answer with a status of its own."""
    async with through("http", keepalive_interval=0.05) as (_, client, server):
        assert server is not None
        server.delays = {"ping": [0.3]}
        response = await client.whole(client.message("ping"))
        assert response.headers["content-type"] == "application/json"


async def test_keep_alives_also_flow_on_the_listening_stream_of_an_http_server() -> None:
    async with through("http", keepalive_interval=0.1) as (_, client, server):
        assert server is not None
        async with client.listen() as stream:
            await until(lambda: stream.comments >= 2)
            server.push(event({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x"}}))
            await until(lambda: stream.messages)


async def test_waiting_for_a_new_process_is_not_told_as_time_of_the_answer() -> None:
    """Neither the look whether a server lives on, nor the start of the one that replaces it."""
    hook = Recorder()
    async with proxied(SERVER, hook=hook, proved=False) as proxy, Client.session(proxy.url) as client:
        await client.say("echo", text="x")
        await client.say("echo", text="x")
        for child in psutil.Process().children(recursive=True):
            if "marked" in " ".join(child.cmdline()):
                child.kill()
        await until(lambda: hook.happened("child_exit"))
        await client.say("echo", text="x")
    first, _, last = [done for done in hook.done if done.target == "echo"]
    assert first.queue_ms > 50, "SETTLE is 100 ms, and nobody could use the process meanwhile"
    assert last.connect_ms > 0
    assert hook.happened("recover")


# -- what an HTTP server says is relayed as it is ------------------------------------------------------------------

STATUSES: list[tuple[int, str, Json]] = [
    (401, "", {"www-authenticate": 'Bearer resource_metadata="https://as.example/x"'}),
    (403, '{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"scope"}}', {}),
    (400, '{"jsonrpc":"2.0","id":"i","error":{"code":-32602,"message":"bad"}}', {}),
    (429, "slow down", {"content-type": "text/plain", "retry-after": "70"}),
    (500, "<h1>oops</h1>", {"content-type": "text/html; charset=utf-8"}),
    (503, "", {"retry-after": "100"}),
    (404, "gone", {"content-type": "text/plain"}),  # the last one: it ends the session
]


async def test_an_http_servers_refusal_is_relayed_as_it_came() -> None:
    """Status, body and the headers that mean something; not those of its own connection, nor its cookies."""
    hook = Recorder()
    own = {"set-cookie": "a=b", "server": "faults", "connection": "close", "x-internal": "1"}
    async with through("http", hook=hook) as (_, client, _):
        for status, body, headers in STATUSES:
            given = {"content-type": "application/json", **headers}
            how = {"status": status, "body": body, "headers": {**given, **own}}
            response = await client.whole(call_of(client, "status", **how))
            assert (response.status_code, response.text) == (status, body)
            for key, value in (given if body else headers).items():
                assert response.headers[key] == value, status
            assert not {*own} & {*response.headers}, status
            assert hook.done[-1].outcome == f"http_{status}"
            if status != 404:
                assert await client.say("echo", text="still here") == "still here"
        ended = await client.whole(call_of(client, "echo", text="gone"))
        assert (ended.status_code, ended.json()["error"]["code"]) == (404, -32600)


async def test_a_refused_initialize_is_relayed_and_leaves_no_session() -> None:
    async with (
        HttpFaults() as server,
        proxied(server.url) as proxy,
        Client.bare(proxy.url) as client,
    ):
        server.get_status = 405  # it is no server of HTTP+SSE either
        for status in (401, 404, 500):
            server.refuse_initialize = status
            response = await client.whole(client.message("initialize", {"protocolVersion": "2025-11-25"}))
            assert response.status_code == status
            assert "mcp-session-id" not in response.headers
            assert proxy.stats()["sessions"] == 0


BROKEN_CHUNK = (
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
)
HTML, JSON = {"content-type": "text/html"}, {"content-type": "application/json"}
NO_ANSWERS: list[tuple[str, Json, str, str]] = [
    ("status", {"status": 200, "body": "<html>", "headers": HTML}, "upstream_protocol", "text/html"),
    ("status", {"status": 200, "body": "{", "headers": JSON}, "upstream_protocol", "not JSON"),
    ("status", {"status": 202, "body": "", "headers": {}}, "upstream_protocol", "202"),
    ("status", {"status": 307, "body": "", "headers": {"location": "/x"}}, "upstream_protocol", "307"),
    ("raw", {"text": "SSH-2.0-OpenSSH_9.2\r\n"}, "upstream_protocol", "SSH-2.0"),
    ("raw", {"text": BROKEN_CHUNK}, "upstream_protocol", "HTTP/1.1"),
    ("drop", {}, "upstream_closed", "closed it without an answer"),
    ("drop_body", {}, "upstream_closed", "of 1000 bytes"),
    ("drop_stream", {}, "upstream_closed", "without a response"),
]  # fmt: skip


async def test_what_is_no_mcp_answer_becomes_a_typed_error() -> None:
    """As JSON-RPC with the client's id; as the last event where a stream had begun; the session goes on."""
    async with through("http") as (proxy, client, _):
        for tool, arguments, kind, words in NO_ANSWERS:
            response = await client.whole(call_of(client, tool, "my-id", **arguments))
            assert response.status_code == 200, words
            if response.headers["content-type"] == "application/json":
                answer = response.json()
            else:
                answer = messages_in(response.text)[-1]
            assert answer["id"] == "my-id", words
            assert (answer["error"]["data"]["type"], answer["error"]["data"]["upstream"]) == (kind, "up"), (
                words
            )
            assert words in answer["error"]["message"]
            assert pool(proxy)["busy"] == 0, words
            assert await client.say("echo", text="still here") == "still here", words


async def test_a_stream_that_wants_to_be_polled_is_left_open_for_the_client() -> None:
    """2025-11-25, transports, Sending Messages 6: an event with an id, then the server closes the connection.

    The ids that the client sees are the proxy's, and the proxy fetches the answer in any case.
    """
    hook = Recorder()
    async with through("http", hook=hook) as (_, client, _):
        response = await client.whole(call_of(client, "poll"))
        assert response.text == "id: 1-0\ndata: \n\nid: 1-1\nretry: 10\ndata: \n\n"
        await until(lambda: hook.done[-1].method == "tools/call")
        assert hook.done[-1].outcome == "ok"
        headers = {**client.headers, "last-event-id": "1-1"}
        rest = await client.http.get(client.url, headers=headers)
        assert rest.text.startswith("id: 1-2\nevent: message\n")
        assert text_of(messages_in(rest.text)[0]) == "polled"


async def test_a_client_too_old_to_be_polled_just_waits() -> None:
    async with (
        HttpFaults() as server,
        proxied(server.url) as proxy,
        Client.session(proxy.url, version="2025-06-18") as client,
    ):
        assert await client.say("poll") == "polled"


async def test_in_a_batch_an_http_servers_refusal_still_answers_its_request() -> None:
    """A status has no place in a stream of several answers; the id gets an error instead."""
    async with (
        HttpFaults() as server,
        proxied(server.url) as proxy,
        Client.session(proxy.url, version="2025-03-26") as client,
    ):
        batch = [
            call_of(client, "status", 1, status=404, body="gone", headers={}),
            call_of(client, "echo", 2, text="x"),
        ]
        response = await client.whole(batch)
        answers = {answer["id"]: answer for answer in messages_in(response.text)}
        assert set(answers) == {1, 2}
        assert "HTTP 404" in answers[1]["error"]["message"]
        assert text_of(answers[2]) == "x"


@pytest.mark.parametrize("token", [None, "the-proxys-own"])
async def test_the_clients_authorization_goes_to_the_server_unless_it_is_for_the_proxy(
    token: str | None,
) -> None:
    settings: Json = {} if token is None else {"token": token}
    async with (
        HttpFaults() as server,
        proxied(server.url, **settings) as proxy,
        Client.bare(proxy.url) as client,
    ):
        client.headers["authorization"] = f"Bearer {token or 'the-clients'}"
        client.headers["mcp-protocol-version"] = "2025-11-25"
        await client.initialize()
        await client.say("echo", text="x")
        sent = server.requests[-1].headers
        assert sent.get("authorization") == (None if token else "Bearer the-clients")
        assert sent["mcp-protocol-version"] == "2025-11-25"
        assert sent["mcp-session-id"] == "server-session-1"


async def test_the_listening_stream_of_an_http_server_is_one_for_the_whole_session() -> None:
    """It stays open when the client's ends, what comes then waits, and a refusal comes as it is."""
    async with through("http") as (_, client, server):
        assert server is not None
        note = event({"jsonrpc": "2.0", "method": "notifications/message", "params": {}})
        for _ in range(2):
            async with client.listen() as stream:
                await until(lambda: len(server.streams) == 1)
                server.push(b"id: e8\n" + note)
                await until(lambda: stream.messages)
        server.push(note)
        async with client.listen() as stream:
            await until(lambda: stream.messages)
        await client.delete()
        await until(lambda: not server.streams, "the server's stream is closed with the session")
    async with through("http") as (_, client, server):
        assert server is not None
        server.get_status = 405
        response = await client.http.get(client.url, headers=client.headers)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")


@on_both_loops
@pytest.mark.parametrize("end", ["session", "proxy"])
async def test_a_listening_stream_ends(end: str, caplog: pytest.LogCaptureFixture) -> None:
    """With the session and with the proxy; never with a traceback."""
    async with through("http", drain_timeout=0.5) as (proxy, client, server):
        assert server is not None
        async with client.listen() as stream:
            await until(lambda: server.streams)
            if end == "session":
                await client.delete()
            else:
                assert proxy._sessions is not None
                proxy._sessions.close_streams()
            await until(lambda: stream.ended)
        await until(lambda: open_streams(proxy) == 0)
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


@on_both_loops
@pytest.mark.parametrize("end", ["closed", "garbage"])
async def test_a_client_does_not_notice_that_the_servers_listening_stream_broke(end: str) -> None:
    hook = Recorder()
    async with through("http", hook=hook) as (_, client, server):
        assert server is not None
        if end == "garbage":
            server.get_headers = {"transfer-encoding": "chunked"}
        async with client.listen() as stream:
            await until(lambda: server.streams)
            first = server.streams[0]
            if end == "closed":
                first.writer.close()
            else:
                server.push(b"zz\r\n")
            server.get_headers = {}
            await until(lambda: server.streams and server.streams[0] is not first)
            server.push(event({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}))
            await until(lambda: stream.messages)
        assert hook.happened("reconnect_attempt")[0].attempt == 1
        assert hook.happened("reconnect_ok")


# -- requests of the server ---------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("mode", ["session", "request"])
async def test_sampling_elicitation_and_roots_go_to_the_client_and_back(mode: str) -> None:
    upstream = {"command": SERVER[0], "args": SERVER[1:], "pool_mode": mode}
    async with proxied(upstream) as proxy, Client.session(proxy.url, "me") as client:
        said = await client.call("talk", token="t", mark="me", ask=["sample", "elicit", "roots"])
        assert json.loads(text_of(said))["heard"] == ["me", "me", "me"]
        asked = [message["method"] for message in client.asked]
        assert asked == ["sampling/createMessage", "elicitation/create", "roots/list"]
        assert len({message["id"] for message in client.asked}) == 3


@over_both
async def test_a_question_is_answered_although_calls_hold_every_connection(transport: str) -> None:
    """The pool has one place, and the call that waits for the client's answer is in it."""
    async with through(transport, max_connections=1, timeouts={"acquire_timeout": 1}) as (proxy, client, _):
        if transport == "http":
            assert await client.say("ask") == "mark"
        else:
            assert json.loads(await client.say("talk", mark="mark", ask=["elicit"]))["heard"] == ["mark"]
        await until(lambda: pool(proxy)["busy"] == (1 if transport == "stdio" else 0))


async def test_list_changed_reaches_the_client() -> None:
    async with through("stdio") as (_, client, _):
        for what in ("tools", "prompts", "resources"):
            response = await client.whole(call_of(client, "change", what=what))
            assert messages_in(response.text)[0]["method"] == f"notifications/{what}/list_changed"


async def test_updates_of_a_subscribed_resource_reach_the_client_without_a_call() -> None:
    """In request mode too: the session has got a process of its own."""
    upstream = {"command": SERVER[0], "args": SERVER[1:], "pool_mode": "request"}
    async with proxied(upstream) as proxy, Client.session(proxy.url) as client, client.listen() as stream:
        await client.request("resources/subscribe", {"uri": "file:///x"})
        await client.say("later", text="x", times=1)
        await until(lambda: stream.messages)
        response = await client.whole(call_of(client, "touch", uri="file:///x"))
        assert messages_in(response.text)[0]["params"] == {"uri": "file:///x"}


# -- ids, tokens, sizes ---------------------------------------------------------------------------------------

IDS = [
    "0", "1", "-7", "1.5", "-0", "1e3", "1E+3", "123456789012345678901234567890", "9007199254740993",
    '""', '"a"', '"1"', '"\\u0041\\n"', '"é\\ud83d\\ude00"', '"null"',
]  # fmt: skip


@over_both
async def test_ids_of_every_kind_come_back_byte_for_byte(transport: str) -> None:
    async with through(transport) as (_, client, _):
        for raw in IDS:
            if transport == "http" and any(kind in raw for kind in ("e3", "E+", "\\u", "é", "-0")):
                continue  # that test server reads and writes JSON anew; the proxy relays its bytes
            params = '{"name":"echo","arguments":{"text":"x"}}'
            body = f'{{"jsonrpc":"2.0","id":{raw},"method":"tools/call","params":{params}}}'
            response = await client.whole(body.encode())
            assert response.status_code == 200, raw
            assert f'"id":{raw},' in response.text.replace('"id": ', '"id":')
            error = (
                await client.whole(body.replace("echo", "none").encode()) if transport == "stdio" else None
            )
            assert error is None or f'"id":{raw},' in error.text


async def test_progress_tokens_come_back_as_the_client_chose_them() -> None:
    async with through("stdio") as (_, client, _):
        for token in ("abc", "", "1", 1, 0, -5, 123456789012345678901):
            response = await client.whole(call_of(client, "talk", token=token, mark="m", ask=[], steps=2))
            heard = [
                each for each in messages_in(response.text) if each.get("method") == "notifications/progress"
            ]
            tokens = [each["params"]["progressToken"] for each in heard]
            assert tokens == [token, token]
            assert [type(each) for each in tokens] == [type(token)] * 2


@on_both_loops
@over_both
async def test_large_messages_pass_both_ways(transport: str) -> None:
    """5 MiB there and back, as JSON and as events, with line breaks and characters of every width in them."""
    text = ("x" * 99 + "\n" + "é€😀") * (5 * MIB // 103)
    async with through(transport) as (_, client, _):
        assert await client.say("echo", text=text) == text
        if transport == "stdio":
            response = await client.whole(call_of(client, "flood", messages=1, size=5 * MIB))
            assert len(messages_in(response.text)[0]["params"]["data"]) == 5 * MIB + 2
        else:
            response = await client.whole(call_of(client, "stream_make", size=5 * MIB))
            note, answer = messages_in(response.text)
            assert len(note["params"]["data"]) == len(text_of(answer)) == 5 * MIB


@over_both
async def test_an_answer_above_max_message_bytes_is_refused_in_words(transport: str) -> None:
    """Its call ends at once, also over stdio, where the line itself is dropped and nothing more would come."""
    async with AsyncExitStack() as stack:
        upstream: Json = {"command": SERVER[0], "args": SERVER[1:]}
        if transport == "http":
            upstream = {"url": (await stack.enter_async_context(HttpFaults())).url}
        proxy = await stack.enter_async_context(proxied({**upstream, "max_message_bytes": 10_000}))
        client = await stack.enter_async_context(Client.session(proxy.url))
        assert len(await client.say("make", size=5000)) == 5000
        error = (await client.call("make", size=20_000))["error"]
        assert error["data"]["type"] == "upstream_protocol"
        assert "max_message_bytes" in error["message"]
        assert await client.say("echo", text="still here") == "still here"


# -- cancellation ---------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("mode", ["session", "request", "multiplex"])
async def test_a_cancelled_call_ends_without_a_response_and_its_server_is_told(
    mode: str, tmp_path: Any
) -> None:
    hook, journal = Recorder(), tmp_path / "journal"
    upstream = {"command": SERVER[0], "args": [*SERVER[1:], str(journal)], "pool_mode": mode}
    async with proxied(upstream, hook=hook) as proxy, Client.session(proxy.url) as client:
        await client.say("echo", text="x")
        async with anyio.create_task_group() as tasks:
            box = []

            async def call() -> None:
                box.append(await client.whole(call_of(client, "hang", "my-id")))

            tasks.start_soon(call)
            await until(
                lambda: '"hang"' in (journal.read_text() if journal.exists() else ""), "the call is there"
            )
            assert (await client.cancel("my-id")).status_code == 202
        assert (box[0].status_code, box[0].text) == (200, "")
        assert hook.done[-1].outcome == "cancelled"
        await until(lambda: "notifications/cancelled" in journal.read_text(), "the server was told")
        heard = [json.loads(line) for line in journal.read_text().splitlines()]
        (hang,) = [each for each in heard if each.get("params", {}).get("name") == "hang"]
        (told,) = [each for each in heard if each["method"] == "notifications/cancelled"]
        assert told["params"] == {"requestId": hang["id"], "reason": "changed my mind"}
        assert (await client.cancel("my-id")).status_code == 202  # again, and too late: ignored
        assert await client.say("echo", text="still here") == "still here"
        assert journal.read_text().count("notifications/cancelled") == 1


@on_both_loops
@pytest.mark.parametrize("tool", ["hang", "stalled_stream", "half_body"])
async def test_a_cancelled_call_to_an_http_server_ends_at_once(tool: str) -> None:
    """Although the server never accepts the notification, and the pool has a single place."""
    async with through("http", max_connections=1) as (_, client, server):
        assert server is not None
        server.hang_on = {"notifications/cancelled"}
        async with anyio.create_task_group() as tasks:
            box = []

            async def call() -> None:
                box.append(await client.whole(call_of(client, tool, "my-id")))

            tasks.start_soon(call)
            await until(lambda: server.posted("tools/call"), "the call is there")
            tasks.start_soon(client.cancel, "my-id")
            await until(lambda: box, "it ends")
            await until(lambda: server.posted("notifications/cancelled"), "the server is told")
            server.requests[-1].writer.close()
            tasks.cancel_scope.cancel()
        assert server.posted("notifications/cancelled")[0]["params"]["requestId"] == "my-id"
        assert not [message for message in messages_in(box[0].text) if "id" in message]
        assert await client.say("echo", text="still here") == "still here"


async def test_an_http_server_hears_of_a_cancellation_whose_stream_is_not_open_here() -> None:
    """The client may have resumed it elsewhere; a stdio server must not, for it knows calls by other ids."""
    async with through("http") as (_, client, server):
        assert server is not None
        await client.cancel("resumed")
        assert [each["params"]["requestId"] for each in server.posted("notifications/cancelled")] == [
            "resumed"
        ]


async def test_a_stdio_server_does_not_hear_of_a_cancellation_of_an_unknown_call(tmp_path: Any) -> None:
    """The client's id 3 is not the server's id 3."""
    journal = tmp_path / "journal"
    async with proxied([*SERVER, str(journal)]) as proxy, Client.session(proxy.url) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.whole, call_of(client, "sleep", "mine", seconds=0.2))
            await until(lambda: '"sleep"' in journal.read_text())
            heard = [json.loads(line) for line in journal.read_text().splitlines()]
            (call,) = [each for each in heard if each.get("params", {}).get("name") == "sleep"]
            await client.cancel(call["id"])
        assert "notifications/cancelled" not in journal.read_text()


# -- clients that do not read ---------------------------------------------------------------------------------


def tasks_of_connections() -> int:
    """How many requests the server is working on."""
    return sum("Cycle.run" in repr(task.get_coro()) for task in asyncio.all_tasks())


@pytest.mark.slow
@on_both_loops
async def test_a_caller_that_does_not_read_its_stream_is_bounded() -> None:
    """More than the sockets and 16 MiB hold: its call ends, what it held is freed, and the session goes on."""
    hook = Recorder()
    async with through("stdio", hook=hook, timeouts={"response_timeout": 0.5}) as (proxy, client, _):
        await client.say("echo", text="x")
        async with await raw_request(client, "POST", call_of(client, "flood", messages=1200, size=60_000)):
            await until(lambda: proxy.stats()["calls"] == 1)
            assert proxy._sessions is not None
            (session,) = proxy._sessions._sessions.values()
            (exchange,) = session.calls.values()
            await until(lambda: proxy.stats()["calls"] == 0, "the call has ended")
            assert hook.done[-1].outcome in {"response_timeout", "upstream_protocol"}
            assert exchange.inbox._bytes <= INBOX_BYTES
            assert len(exchange.inbox._items) <= INBOX_MESSAGES
            await until(lambda: tasks_of_connections() == 0, "nothing waits for the client")
            assert await client.say("echo", text="still here") == "still here"


@on_both_loops
async def test_a_listener_that_does_not_read_its_stream_is_bounded() -> None:
    """What does not fit is counted as undelivered, the stream is ended, and what it held waits for the next one."""
    hook = Recorder()
    async with through("stdio", hook=hook, timeouts={"response_timeout": 3}) as (proxy, client, _):
        await client.say("echo", text="x")
        async with await raw_request(client, "GET"), anyio.create_task_group() as tasks:
            await until(lambda: open_streams(proxy) == 1)
            # With two calls in flight, messages go to the stream.
            tasks.start_soon(client.whole, call_of(client, "hang", "other"))
            await until(lambda: proxy.stats()["calls"] == 1)
            assert await client.say("flood", messages=1200, size=60_000) == "flooded"
            await until(lambda: open_streams(proxy) == 0, "the stream has ended")
            await client.cancel("other")
            await until(lambda: tasks_of_connections() == 0, "nothing waits for the client")
        lost = len(hook.happened("undelivered"))
        assert lost > 0
        assert proxy._sessions is not None
        (session,) = proxy._sessions._sessions.values()
        assert session.client.pending._bytes <= INBOX_BYTES
        kept = len(session.client.pending._items)
        beside = sum(message.get("method") == "notifications/message" for message in client.messages)
        assert kept > 10
        async with client.listen() as stream:
            await until(lambda: len(stream.messages) == kept)
        numbers = [int(message["params"]["data"].split(":")[0]) for message in stream.messages]
        assert numbers == [*range(numbers[0], numbers[0] + kept)]
        assert numbers[0] + kept + lost + beside == 1200, (
            "each was sent, kept, counted, or went to its own call"
        )


@pytest.mark.slow
async def test_a_batch_that_is_not_read_is_bounded() -> None:
    hook = Recorder()
    async with (
        proxied(SERVER, hook=hook, timeouts={"response_timeout": 0.5}) as proxy,
        Client.session(proxy.url, version="2025-03-26") as client,
    ):
        await client.say("echo", text="x")
        batch = [call_of(client, "flood", number, messages=300, size=60_000) for number in (1, 2)]
        async with await raw_request(client, "POST", cast("Json", batch)):
            await until(lambda: proxy.stats()["calls"] == 2)
            await until(lambda: proxy.stats()["calls"] == 0, "the calls have ended")
            await until(lambda: tasks_of_connections() == 0, "nothing waits for the client")


async def test_an_answer_that_is_not_read_holds_up_nobody() -> None:
    """A large JSON answer sits in one socket's buffer; its call is over and others are served."""
    async with through("stdio") as (proxy, client, _):
        async with await raw_request(client, "POST", call_of(client, "make", size=8 * MIB)):
            await until(lambda: proxy.stats()["calls"] == 1)
            await until(lambda: proxy.stats()["calls"] == 0)
            assert await client.say("echo", text="still here") == "still here"


# -- run, alone -----------------------------------------------------------------------------------------------


class FakeUpstream:
    """As much of an upstream as `run` touches; `exchange` does what a test needs."""

    name = "up"
    transport = "stdio"
    config = UpstreamConfig(command="true")

    def __init__(self, exchange: Any) -> None:
        self.exchange = exchange

    def session(self, client: UpstreamClient) -> Any:
        return self


async def run(upstream: FakeUpstream) -> tuple[Exchange, list[Json]]:
    """One exchange and what was sent for it, as ASGI messages; checks that they are one whole response."""
    sent: list[Json] = []

    async def send(message: Any) -> None:
        assert not (sent and not sent[-1].get("more_body", True)), "sent after the end"
        sent.append(
            {"more_body": True, **message} if "body" not in message else {"more_body": False, **message}
        )

    session = Session(cast("Any", upstream), 0.0)
    message = decode(b'{"jsonrpc":"2.0","id":"my-id","method":"ping"}')
    exchange = Exchange(message, session.client, "up", upstream.config.timeouts)
    with anyio.fail_after(5):
        await forward.run(session, exchange, Reply(send, []), NO_HOOK)
    assert not session.calls
    assert not sent[-1]["more_body"]
    return exchange, sent


async def test_a_cancellation_that_meets_the_answer_in_one_turn_does_not_answer_twice() -> None:
    async def answer(exchange: Exchange) -> Answer:
        exchange.cancel("changed my mind")
        return Answer(body=b'{"result":{}}')

    exchange, sent = await run(FakeUpstream(answer))
    assert [message["body"] for message in sent[1:]] == [b'{"result":{}}']
    assert exchange.outcome == "ok"


async def test_a_failure_of_our_own_is_still_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(exchange: Exchange) -> Answer:
        raise RuntimeError("a bug")

    exchange, sent = await run(FakeUpstream(fail))
    error = json.loads(sent[1]["body"])["error"]
    assert json.loads(sent[1]["body"])["id"] == "my-id"
    assert error["data"]["type"] == "upstream"
    assert "a bug" in error["message"]
    assert exchange.outcome == "upstream"
    assert "unexpected" in caplog.text


async def test_a_failure_of_our_own_in_a_stream_is_its_last_event() -> None:
    async def events() -> AsyncIterator[Event]:
        yield Event(b"1")
        raise RuntimeError("a bug")

    async def stream(exchange: Exchange) -> Answer:
        return Answer(events=events())

    _, sent = await run(FakeUpstream(stream))
    assert sent[1]["body"] == b"data: 1\n\n"
    assert b"a bug" in sent[2]["body"]
    assert sent[-1]["body"] == b""
