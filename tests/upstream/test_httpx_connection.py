"""`HttpxConnection` against real servers, on asyncio and trio: what it shares with `Http1Connection`, and HTTP/2."""

from __future__ import annotations

import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.streams.tls import TLSStream

from mcpdiag.connection.base import HttpConnection
from mcpdiag.connection.dial import Origin
from mcpdiag.errors import ConnectError, ConnectTimeout, UpstreamClosed, UpstreamError, UpstreamProtocolError
from mcpdiag.upstream.httpx_connection import STREAMS, HttpxConnection
from tests.connection.test_http1 import (
    BODY,
    CHUNKED,
    GET,
    HANG,
    HEAD,
    OK,
    Handler,
    Peer,
    answering,
    exchange,
    listening,
    read_request,
    stay,
)
from tests.servers.http2 import Http2Server
from tests.servers.http_faults import blackhole
from tests.upstream.certificates import Files

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connection_to(origin: Origin, **options: Any) -> AsyncIterator[HttpxConnection]:
    with anyio.fail_after(HANG):
        async with anyio.create_task_group() as tasks:
            connection = await HttpxConnection.open(tasks, origin, **options)
            try:
                yield connection
            finally:
                with anyio.CancelScope(shield=True):
                    await connection.aclose()


@asynccontextmanager
async def connected(handler: Handler, **options: Any) -> AsyncIterator[HttpxConnection]:
    async with listening(handler) as origin, connection_to(origin, **options) as connection:
        yield connection


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await anyio.sleep(0.002)


# --- one exchange


async def test_a_request_arrives_as_it_was_given_and_its_answer_comes_back() -> None:
    seen: list[bytes] = []

    async def handler(peer: Peer) -> None:
        request = b""
        while not request.endswith(BODY):
            request += await peer.receive()
        seen.append(request)
        await peer.send(OK)
        await stay(peer)

    async with connected(handler) as connection:
        as_asked: HttpConnection = connection
        assert (as_asked.capacity, as_asked.healthy, as_asked.single_shot) == (1, True, False)
        response = await connection.send(HEAD, BODY)
        assert connection.sent
        assert (response.status, response.keep_alive) == (200, True)
        assert response.headers == [(b"content-type", b"application/json"), (b"content-length", b"2")]
        assert response.header(b"content-type") == b"application/json"
        assert response.header(b"mcp-session-id") is None
        assert await response.body() == b"{}"
        assert response.complete
        assert await response.chunk() == b""
        assert connection.local_port
        assert (connection.capacity, connection.healthy) == (1, True)
    assert not connection.healthy
    (text,) = seen
    assert text.startswith(b"POST /mcp HTTP/1.1\r\n")
    assert text.endswith(b"\r\n\r\n" + BODY)
    head = text.lower().split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    assert sorted(head) == [b"content-length: %d" % len(BODY), b"host: test"]


async def test_exchanges_follow_one_another_on_one_connection() -> None:
    async with connected(answering(OK, CHUNKED, OK, then=stay)) as connection:
        assert await exchange(connection) == (200, b"{}")
        assert await exchange(connection, GET, b"") == (200, b"abcdefg")
        assert await exchange(connection) == (200, b"{}")
        assert connection.requests == 3


async def test_the_body_comes_in_pieces_as_they_arrive_and_a_cancelled_read_loses_nothing() -> None:
    more = anyio.Event()

    async def handler(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await more.wait()
        await peer.send(b"4\r\ndefg\r\n0\r\n\r\n")
        await stay(peer)

    async with connected(handler) as connection:
        response = await connection.send(GET, b"")
        assert await response.chunk() == b"abc"
        for _ in range(3):
            with anyio.move_on_after(0.01) as nobody_waits:
                await response.chunk()
            assert nobody_waits.cancelled_caught
        more.set()
        assert await response.chunk() == b"defg"
        assert await response.chunk() == b""
        assert connection.healthy


async def test_heard_is_called_for_what_arrives_in_body() -> None:
    heard: list[int] = []
    async with connected(answering(CHUNKED, then=stay)) as connection:
        response = await connection.send(GET, b"")
        assert await response.body(lambda: heard.append(1)) == b"abcdefg"
        assert heard or response.complete


async def test_an_answer_that_nobody_reads_stops_the_server() -> None:
    """At most 256 KiB are kept for a reader that does not come."""
    written: list[int] = []
    size = 64 * 1024 * 1024

    async def handler(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            await peer.send(b"x" * 65536)
            written.append(65536)

    async with connected(handler) as connection:
        response = await connection.send(GET, b"")
        before = -1
        while len(written) != before:  # until the server writes no more
            before = len(written)
            await anyio.sleep(0.1)
        assert response._waiting_bytes <= 256 * 1024 + 128 * 1024
        assert sum(written) < size


# --- ends


async def test_an_idle_connection_that_the_server_closed_is_unhealthy() -> None:
    async with connected(answering(OK)) as connection:
        assert await exchange(connection) == (200, b"{}")
        await until(lambda: not connection.healthy)


async def test_bytes_that_nobody_asked_for_make_an_idle_connection_unhealthy() -> None:
    answered = anyio.Event()

    async def speak_out_of_turn(peer: Peer) -> None:
        await answered.wait()
        await peer.send(OK)
        await stay(peer)

    async with connected(answering(OK, then=speak_out_of_turn)) as connection:
        assert await exchange(connection) == (200, b"{}")
        assert connection.healthy
        answered.set()
        await until(lambda: not connection.healthy)


@pytest.mark.parametrize(
    ("answer", "keep_alive"),
    [
        (OK, True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", False),
    ],
)
async def test_a_server_that_closes_after_one_answer_is_single_shot(answer: bytes, keep_alive: bool) -> None:
    async with connected(answering(answer, then=stay if keep_alive else None)) as connection:
        response = await connection.send(HEAD, BODY)
        assert await response.body() == b"{}"
        assert response.keep_alive is keep_alive
        assert (connection.single_shot, connection.healthy) == (not keep_alive, keep_alive)


async def test_a_connection_is_not_used_again_after_it_ended() -> None:
    async with connected(answering(OK)) as connection:
        await exchange(connection)
        await connection.aclose()
        with pytest.raises(UpstreamClosed, match="it was used again after it had ended") as caught:
            await connection.send(HEAD, BODY)
        assert (caught.value.data["sent"], connection.sent) == (False, False)


async def test_an_exchange_that_was_cut_short_makes_the_connection_unusable() -> None:
    async with connected(stay) as connection:
        with anyio.move_on_after(0.05):
            await connection.send(HEAD, BODY)
        assert not connection.healthy
        await until(lambda: not connection._running)


async def test_closing_ends_an_exchange_in_flight() -> None:
    async with connected(stay) as connection, anyio.create_task_group() as tasks:

        async def close() -> None:
            await until(lambda: connection.requests == 1)
            await connection.aclose(force=True)

        tasks.start_soon(close)
        with pytest.raises(UpstreamClosed, match="the proxy closed it"):
            await connection.send(HEAD, BODY)


# --- errors, in the words of the own client


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (b"", UpstreamClosed, "the server closed it without an answer; see the server's log"),
        (b"HTTP/1.1 200 OK\r\nContent-", UpstreamClosed, "the server closed it without an answer"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
            UpstreamClosed,
            "the server closed it after 2 of 9 bytes of the body",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            UpstreamClosed,
            "the server closed it after 3 bytes of an unfinished body",
        ),
        (
            b"SSH-2.0-OpenSSH\r\n\r\n",
            UpstreamProtocolError,
            "does not speak HTTP as it should .*check that 'url'",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            UpstreamProtocolError,
            "does not speak HTTP as it should",
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            UpstreamProtocolError,
            "answered 101 Switching Protocols",
        ),
        (
            b"HTTP/1.1 200 OK\r\nX: %b\r\nContent-Length: 2\r\n\r\n{}" % (b"x" * 70_000),
            UpstreamProtocolError,
            r"a response head or trailer of more than 65536 bytes \(max_head_bytes\)",
        ),
        (
            b"HTTP/1.1 200 OK\r\nX: %b" % (b"x" * 200_000),
            UpstreamProtocolError,
            r"a response head or trailer of more than 65536 bytes \(max_head_bytes\)",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n",
            UpstreamProtocolError,
            "sent a body of 999999 bytes, and 1024 bytes are allowed; raise max_message_bytes",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000,
            UpstreamProtocolError,
            "sent a larger body, and 1024 bytes are allowed; raise max_message_bytes",
        ),
    ],
)
async def test_a_wrong_answer_is_a_typed_error(answer: bytes, kind: type[UpstreamError], told: str) -> None:
    async with connected(answering(answer), max_body_bytes=1024) as connection:
        with pytest.raises(kind, match=told) as caught:
            await exchange(connection)
        assert f"127.0.0.1:{connection.origin.port}" in str(caught.value)
        if isinstance(caught.value, UpstreamClosed):
            assert f"exchange 1, local port {connection.local_port}" in str(caught.value)
            assert caught.value.data["sent"] is True
            assert (caught.value.data["received"] > 0) == (b"\r\n\r\n" in answer)
        await until(lambda: not connection._running)
        assert not connection.healthy


async def test_a_reset_is_told_as_such() -> None:
    async def handler(peer: Peer) -> None:
        await read_request(peer)
        await peer.reset()

    async with connected(handler) as connection:
        with pytest.raises(UpstreamClosed, match="the server broke it .* without an answer"):
            await exchange(connection)


async def test_a_refused_connection_names_the_port_and_the_remedy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        origin = Origin("http", *free.getsockname())
        async with connection_to(origin) as connection:
            with pytest.raises(
                ConnectError, match=f"{origin}: refused, nothing listens on port {origin.port}"
            ):
                await exchange(connection)
            assert not connection.sent
            assert not connection.healthy


async def test_an_unknown_name_is_called_so() -> None:
    async with connection_to(Origin("http", "nowhere.invalid", 80)) as connection:
        with pytest.raises(ConnectError, match=r"the name 'nowhere\.invalid' was not found"):
            await exchange(connection)


async def test_a_server_that_does_not_accept_is_a_connect_timeout() -> None:
    with blackhole() as url:
        error = ConnectTimeout("too slow")
        origin = Origin.from_url(url)
        async with connection_to(origin, connect_timeout=0.1, too_slow=lambda: error) as connection:
            with pytest.raises(ConnectTimeout, match="too slow"):
                await exchange(connection)
            assert not connection.sent


async def test_connect_timeout_does_not_limit_the_answer() -> None:
    async def handler(peer: Peer) -> None:
        await read_request(peer)
        await anyio.sleep(0.3)
        await peer.send(OK)

    async with connected(handler, connect_timeout=0.2) as connection:
        assert await exchange(connection) == (200, b"{}")


# --- through a proxy, on every loop


async def test_a_proxy_that_is_not_there_is_named_without_its_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
        async with connection_to(
            Origin("https", "h.test", 443), proxy=f"http://me:hunter2@{host}:{port}"
        ) as connection:
            with pytest.raises(
                ConnectError,
                match=f"cannot connect to the proxy http://{host}:{port}: refused.*or correct 'proxy'",
            ) as caught:
                await exchange(connection)
            for shown in (str(caught.value), repr(caught.value), repr(connection)):
                assert "hunter2" not in shown


async def test_a_proxy_that_refuses_is_named_with_its_words() -> None:
    refusal = b"HTTP/1.1 403 Not this host\r\ncontent-length: 0\r\n\r\n"
    async with listening(answering(refusal)) as proxy:
        target = Origin("https", "h.test", 443)
        async with connection_to(target, proxy=f"http://127.0.0.1:{proxy.port}") as connection:
            with pytest.raises(
                ConnectError, match=f"the proxy {proxy} gives no way to {target}: 403 Not this host"
            ):
                await exchange(connection)


async def test_socks5_carries_exchanges_and_keeps_its_password_to_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """RFC 1928 and 1929, played byte by byte; the rest of the connection is the server's."""
    seen: list[bytes] = []

    async def proxy(peer: Peer) -> None:
        seen.append(await peer.receive())
        await peer.send(b"\x05\x02")
        seen.append(await peer.receive())
        await peer.send(b"\x01\x00")
        seen.append(await peer.receive())
        await peer.send(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        await answering(OK, then=stay)(peer)

    with caplog.at_level(logging.DEBUG):
        async with listening(proxy) as at:
            url = f"socks5://me:hunter2@127.0.0.1:{at.port}"
            async with connection_to(Origin("http", "far.test", 8080), proxy=url) as connection:
                assert await exchange(connection) == (200, b"{}")
    assert b"hunter2" in seen[1]
    assert b"far.test" in seen[2]
    assert "hunter2" not in caplog.text


# --- HTTP/2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def over_http2(files: Files, **options: Any) -> AsyncIterator[tuple[Http2Server, HttpxConnection]]:
    trust = ssl.create_default_context(cafile=files.ca)
    async with Http2Server(files.server(alpn="h2")) as server:
        origin = Origin.from_url(server.url)
        async with connection_to(origin, ssl_context=trust, http2=True, **options) as connection:
            yield server, connection


async def call(connection: HttpxConnection, tool: str, **arguments: Any) -> Any:
    params = {"name": tool, "arguments": arguments}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    head = b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\nx-mark: 1\r\ncontent-length: %d\r\n\r\n" % len(body)
    response = await connection.send(head, body)
    assert response.status == 200
    return json.loads(await response.body())["result"]["content"][0]["text"]


async def test_http2_carries_many_exchanges_at_once_over_one_connection(files: Files) -> None:
    async with over_http2(files) as (server, connection):
        assert connection.capacity == 1
        assert await call(connection, "echo", text="first") == "first"
        assert connection.capacity == STREAMS
        answers: list[str] = []

        async def wait(text: str) -> None:
            answers.append(await call(connection, "wait", text=text))

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(wait, str(number))
            await until(lambda: server.inflight == 20)
            assert connection.healthy
            server.go.set()
        assert sorted(answers, key=int) == [str(number) for number in range(20)]
        assert (server.connections, connection.requests) == (1, 21)
        assert server.headers[0][":authority"] == "127.0.0.1"
        assert server.headers[0]["x-mark"] == "1"


async def test_a_long_answer_over_http2_arrives_whole_beside_others(files: Files) -> None:
    async with over_http2(files) as (_, connection):
        assert await call(connection, "echo", text="first") == "first"
        sizes: list[int] = []

        async def make(size: int) -> None:
            sizes.append(len(await call(connection, "make", size=size)))

        async with anyio.create_task_group() as tasks:
            for size in (3_000_000, 10, 1_000_000):
                tasks.start_soon(make, size)
        assert sorted(sizes) == [10, 1_000_000, 3_000_000]


async def test_a_stream_that_is_given_up_leaves_the_others_but_the_connection_takes_no_more(
    files: Files,
) -> None:
    async with over_http2(files) as (server, connection):
        await call(connection, "echo", text="first")
        async with anyio.create_task_group() as tasks:
            answers: list[str] = []

            async def wait() -> None:
                answers.append(await call(connection, "wait", text="goes on"))

            tasks.start_soon(wait)
            await until(lambda: server.inflight == 1)
            async with anyio.create_task_group() as given_up:
                given_up.start_soon(call, connection, "hang")
                await until(lambda: server.inflight == 2)
                given_up.cancel_scope.cancel()
            await until(lambda: not connection.healthy)
            server.go.set()
        assert answers == ["goes on"]


async def test_a_stream_that_the_server_resets_is_a_typed_error(files: Files) -> None:
    async with over_http2(files) as (_, connection):
        with pytest.raises(UpstreamClosed, match="the server closed it without an answer"):
            await call(connection, "reset")


async def test_a_connection_of_http2_that_ends_takes_all_its_exchanges_along(files: Files) -> None:
    async with over_http2(files) as (server, connection):
        await call(connection, "echo", text="first")
        failures: list[UpstreamError] = []

        async def hang() -> None:
            with pytest.raises(UpstreamError) as caught:
                await call(connection, "hang")
            failures.append(caught.value)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(hang)
            await until(lambda: server.inflight == 3)
            with pytest.raises(UpstreamClosed):
                await call(connection, "leave")
        assert [type(failure) for failure in failures] == [UpstreamClosed] * 3
        assert not connection.healthy


async def test_limits_hold_over_http2(files: Files) -> None:
    async with over_http2(files, max_body_bytes=1024) as (_, connection):
        with pytest.raises(UpstreamProtocolError, match="1024 bytes are allowed; raise max_message_bytes"):
            await call(connection, "make", size=100_000)


async def test_a_server_without_http2_is_spoken_to_in_http1(files: Files) -> None:
    async def over_tls(peer: Peer) -> None:
        tls = await TLSStream.wrap(
            peer, server_side=True, ssl_context=files.server(), standard_compatible=False
        )
        for _ in range(2):
            await read_request(tls)
            await tls.send(OK)
        await stay(tls)

    trust = ssl.create_default_context(cafile=files.ca)
    async with (
        listening(over_tls) as at,
        connection_to(Origin("https", at.host, at.port), ssl_context=trust, http2=True) as connection,
    ):
        assert await exchange(connection) == (200, b"{}")
        assert connection.capacity == 1
        assert await exchange(connection) == (200, b"{}")
