"""The ASGI server against raw bytes: what a client may send, what it costs, and how it ends."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from mcpdiag.server import Server, connection, listen

pytestmark = pytest.mark.anyio
HOST = b"host: a\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


App = Callable[[Any, Any, Any], Awaitable[None]]


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[tuple[Server, Callable[[], Awaitable[SocketStream]]]]:
    server, listener = Server(app), listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, listener)
        await server.is_up.wait()
        try:
            yield server, lambda: anyio.connect_tcp("127.0.0.1", port)
        finally:
            server.stop(force=True)
            with anyio.fail_after(10):
                await server.is_down.wait()
    assert not server.connections
    assert not server.cycles


async def whole_body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    return body


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with method, path, query and body; no length, so it is chunked."""
    body = await whole_body(receive)
    said = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} ".encode() + body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
    await send({"type": "http.response.body", "body": said, "more_body": True})
    await send({"type": "http.response.body", "body": b"!"})


async def direct(scope: Any, receive: Any, send: Any) -> None:
    """Answers through the extension."""
    cycle = scope["extensions"]["mcpdiag.direct"]
    body = cycle.whole_body()
    if body is None:
        body = await whole_body(receive)
    cycle.whole(200, [(b"content-type", b"text/plain")], body)


async def until(client: SocketStream, end: bytes) -> bytes:
    """What comes, up to and with `end`."""
    data = b""
    with anyio.fail_after(20):
        while not data.endswith(end):
            data += await client.receive()
    return data


async def to_the_end(client: SocketStream) -> bytes:
    data = b""
    with anyio.fail_after(20):
        try:
            while True:
                data += await client.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return data


async def test_a_body_without_a_length_is_chunked_and_the_connection_is_kept() -> None:
    async with serving(echo) as (_, connect), await connect() as client:
        for number in range(3):
            await client.send(b"POST /p%%20q?n=%d HTTP/1.1\r\n%bcontent-length: 2\r\n\r\nhi" % (number, HOST))
            answer = await until(client, b"0\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(OK)
            assert {b"transfer-encoding: chunked", b"x-a: b"} < {*head.split(b"\r\n")}
            assert re.search(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", head)
            said = b"POST /p q n=%d hi" % number
            assert body == b"%x\r\n%b\r\n1\r\n!\r\n0\r\n\r\n" % (len(said), said)


async def test_a_whole_answer_is_one_write_with_its_length() -> None:
    async with serving(direct) as (_, connect), await connect() as client:
        await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 5\r\n\r\nwhole")
        answer = await until(client, b"whole")
        assert b"\r\ncontent-length: 5\r\n" in answer
        await client.send(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n")
        head = await until(client, b"content-type: text/plain\r\ncontent-length: 0\r\n\r\n")
        assert head.count(OK) in {1, 2}


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_any_slicing_of_pipelined_requests_gives_the_same_answers_in_order(size: int) -> None:
    requests = b"".join(
        b"POST /%d HTTP/1.1\r\n%btransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        % (number, HOST)
        for number in range(5)
    )
    async with serving(echo) as (_, connect), await connect() as client:
        for start in range(0, len(requests), size):
            await client.send(requests[start : start + size])
            await anyio.lowlevel.checkpoint()
        answers = b""
        while answers.count(b"0\r\n\r\n") < 5:
            answers += await until(client, b"0\r\n\r\n")
    assert re.findall(rb"POST /(\d)  abcde", answers) == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize(
    "request_bytes",
    [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\n" + HOST + b"connection: close\r\n\r\n"],
    ids=["HTTP/1.0", "close"],
)
@pytest.mark.parametrize("app", [echo, direct], ids=["asgi", "direct"])
async def test_a_client_that_wants_no_second_answer_gets_the_end(request_bytes: bytes, app: App) -> None:
    async with serving(app) as (_, connect), await connect() as client:
        await client.send(request_bytes)
        answer = await to_the_end(client)
        assert b"\r\nconnection: close\r\n" in answer
        if b"HTTP/1.0" in request_bytes:
            assert b"chunked" not in answer


async def test_a_client_that_waits_for_leave_to_send_its_body_gets_it() -> None:
    async with serving(echo) as (_, connect), await connect() as client:
        await client.send(
            b"POST / HTTP/1.1\r\n" + HOST + b"expect: 100-continue\r\ncontent-length: 4\r\n\r\n"
        )
        assert await until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"body")
        assert b"POST /  body" in await until(client, b"0\r\n\r\n")


async def test_an_offer_to_speak_another_protocol_is_answered_in_this_one() -> None:
    """Java's HttpClient offers h2c with every first request."""
    upgrade = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
    async with serving(echo) as (_, connect), await connect() as client:
        for _ in range(2):
            await client.send(b"POST / HTTP/1.1\r\n" + HOST + upgrade + b"content-length: 2\r\n\r\nhi")
            assert b"POST /  hi" in await until(client, b"0\r\n\r\n")


async def test_the_absolute_form_is_taken() -> None:
    async with serving(echo) as (_, connect), await connect() as client:
        await client.send(b"GET http://a/mcp?x HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b"GET /mcp x" in await until(client, b"0\r\n\r\n")


async def test_what_is_not_http_is_refused_with_words() -> None:
    async with serving(echo) as (_, connect), await connect() as client:
        await client.send(b"\x16\x03\x01 hello\r\n\r\n")
        answer = await to_the_end(client)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert answer.endswith(b"this is not HTTP/1.1")


async def test_garbage_behind_a_request_does_not_break_into_its_answer() -> None:
    async with serving(echo) as (_, connect), await connect() as client:
        await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n\x00\x01garbage\r\n\r\n")
        answer = await to_the_end(client)
        assert answer.startswith(OK)
        assert answer.endswith(b"!\r\n0\r\n\r\n")


async def test_an_endless_head_is_refused() -> None:
    async with serving(echo) as (_, connect), await connect() as client:
        await client.send(b"GET / HTTP/1.1\r\n")
        with anyio.fail_after(20), pytest.raises(anyio.BrokenResourceError):
            while True:
                await client.send(b"x-filler: " + b"y" * 1000 + b"\r\n")


async def test_a_head_that_is_too_large_is_refused_with_words() -> None:
    async with serving(echo) as (_, connect), await connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nx: " + b"y" * connection.HEAD_BYTES)
        assert b"431 Request Header Fields Too Large" in await to_the_end(client)


async def test_there_is_no_tunnel() -> None:
    async with serving(echo) as (_, connect), await connect() as client:
        await client.send(b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await to_the_end(client)).startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")


async def test_a_connection_without_a_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE", 0.2)
    async with serving(echo) as (_, connect):
        async with await connect() as silent:
            assert await to_the_end(silent) == b""
        async with await connect() as slow:
            await slow.send(b"GET / HTTP/1.1\r\nhost:")
            assert await to_the_end(slow) == b""


async def test_a_slow_application_is_waited_for_longer_than_an_idle_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE", 0.1)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep(0.5)
        await echo(scope, receive, send)

    async with serving(slow) as (_, connect), await connect() as client:
        await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await until(client, b"0\r\n\r\n")).startswith(OK)


async def test_a_body_that_nobody_asks_for_is_not_read_without_end() -> None:
    asked = anyio.Event()
    sizes: list[int] = []

    async def lazy(scope: Any, receive: Any, send: Any) -> None:
        await asked.wait()
        sizes.append(len(await whole_body(receive)))
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    async with serving(lazy) as (server, connect), await connect() as client:
        total, sent = 16 * 1024 * 1024, 0
        await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: %d\r\n\r\n" % total)
        async with anyio.create_task_group() as tasks:

            async def fill() -> None:
                nonlocal sent
                while sent < total:
                    await client.send(b"x" * 65536)
                    sent += 65536

            tasks.start_soon(fill)
            while not any(cycle.unread for cycle in server.cycles):
                await anyio.sleep(0.01)
            before = -1
            while before != sent:
                before = sent
                await anyio.sleep(0.2)
            assert sent < total
            assert all(cycle.unread < 1024 * 1024 for cycle in server.cycles)
            asked.set()
        assert (await until(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 204 No Content\r\n")
        assert sizes == [total]


async def test_an_early_answer_leaves_the_connection_usable() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"]["mcpdiag.direct"].whole(413, [], b"no")

    async with serving(refuse) as (_, connect), await connect() as client:
        await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 300000\r\n\r\n" + b"x" * 1000)
        await until(client, b"\r\n\r\nno")
        await client.send(b"x" * 299_000 + b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 0\r\n\r\n")
        assert b"413" in await until(client, b"\r\n\r\nno")


async def test_a_failing_application_is_a_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("deliberate")

    async with serving(fail) as (_, connect), await connect() as client:
        await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await to_the_end(client)).startswith(b"HTTP/1.1 500 ")
    assert "deliberate" in caplog.text


async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def break_off(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise LookupError("deliberate")

    async with serving(break_off) as (_, connect), await connect() as client:
        await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await to_the_end(client)).endswith(b"4\r\nhalf\r\n")


async def test_a_line_break_in_a_header_is_never_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def inject(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nset-cookie: b")]})

    async with serving(inject) as (_, connect), await connect() as client:
        await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b"set-cookie" not in await to_the_end(client)


async def test_a_client_that_leaves_is_noticed() -> None:
    seen: list[str] = []
    gone, there = anyio.Event(), anyio.Event()

    async def watch(scope: Any, receive: Any, send: Any) -> None:
        await whole_body(receive)
        there.set()
        seen.append((await receive())["type"])
        gone.set()

    async with serving(watch) as (_, connect):
        async with await connect() as client:
            await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            await there.wait()
        with anyio.fail_after(10):
            await gone.wait()
    assert seen == ["http.disconnect"]


async def test_a_client_that_does_not_read_holds_up_its_own_answer_only() -> None:
    sent = 0

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            sent += 65536

    async with serving(flood) as (server, connect):
        client = await connect()
        await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        before = -1
        while before != sent or not sent:
            before = sent
            await anyio.sleep(0.2)
        assert sent < 64 * 1024 * 1024
        await client.aclose()
        while server.cycles:  # it ends: what it sends into the void is no error, so cancel it
            for cycle in [*server.cycles]:
                assert cycle.task is not None
                cycle.task.cancel()
            await anyio.sleep(0.01)


async def test_stopping_lets_an_answer_under_way_end_and_closes_the_rest() -> None:
    go, there = anyio.Event(), anyio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        body = await whole_body(receive)
        there.set()
        await go.wait()
        scope["extensions"]["mcpdiag.direct"].whole(200, [], body)

    async with serving(slow) as (server, connect):
        async with await connect() as idle, await connect() as busy:
            await busy.send(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 4\r\n\r\nlast")
            await there.wait()
            server.stop()
            assert await to_the_end(idle) == b""
            with pytest.raises(OSError):
                await connect()
            go.set()
            answer = await to_the_end(busy)
            assert answer.endswith(b"\r\n\r\nlast")
            assert b"connection: close" in answer
            await server.is_down.wait()


async def test_force_cuts_off_what_never_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep_forever()

    caplog.set_level(logging.ERROR)
    async with serving(never) as (server, connect), await connect() as client:
        await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        while not server.cycles:
            await anyio.sleep(0.01)
        server.stop(force=True)
        await to_the_end(client)
        with anyio.fail_after(10):
            await server.is_down.wait()
    assert not caplog.records


def test_accepted_sockets_do_not_wait_to_fill_a_packet() -> None:
    listener = listen("127.0.0.1", 0)
    with listener:
        assert listener.proto == socket.IPPROTO_TCP
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
