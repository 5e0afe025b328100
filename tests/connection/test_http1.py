"""`Http1Connection` against real sockets: a server in the same loop plays byte scripts."""

from __future__ import annotations

import errno
import select
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, cast

import anyio
import pytest
import trustme
from anyio import CancelScope
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSStream

from mcpdiag.connection import dial as dialing
from mcpdiag.connection.base import Connection, HttpConnection
from mcpdiag.connection.dial import Origin
from mcpdiag.connection.http1 import Http1Connection
from mcpdiag.errors import ConnectError, UpstreamClosed, UpstreamProtocolError

pytestmark = pytest.mark.anyio

BODY = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
HEAD = b"POST /mcp HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(BODY)
GET = b"GET /mcp HTTP/1.1\r\nHost: test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-T: 1\r\n\r\n"
)
BIG = b"x" * (8 * 1024 * 1024)
BIG_HEAD = b"POST /mcp HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(BIG)

# Guards against a hang, not a measure of speed.
HANG = 10.0

Handler = Callable[["Peer"], Awaitable[None]]


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every property holds on each of the three loops."""
    return cast("tuple[str, dict[str, Any]]", request.param)


class Peer(ByteStream):
    """The server's end: a bare socket, so that it reads exactly what its script says, on every loop."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.wait_readable(self.sock)
        if data := self.sock.recv(max_bytes):
            return data
        raise anyio.EndOfStream

    async def send(self, item: bytes) -> None:
        rest = memoryview(item)
        while rest:
            await anyio.wait_writable(self.sock)
            rest = rest[self.sock.send(rest) :]

    async def send_eof(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        self.sock.close()

    async def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[Origin]:
    """A server on a free port of 127.0.0.1; what a client's going away raises in `handler` is expected."""

    async def serve(sock: socket.socket) -> None:
        with sock, suppress(anyio.EndOfStream, OSError, anyio.BrokenResourceError):
            await handler(Peer(sock))

    with anyio.fail_after(HANG), socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        async with anyio.create_task_group() as group:

            async def accept() -> None:
                while True:
                    await anyio.wait_readable(listener)
                    sock, _ = listener.accept()
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    group.start_soon(serve, sock)

            group.start_soon(accept)
            yield Origin("http", *listener.getsockname())
            group.cancel_scope.cancel()


@asynccontextmanager
async def connected(handler: Handler, **options: Any) -> AsyncIterator[Http1Connection]:
    async with listening(handler) as origin:
        connection = await Http1Connection.open(origin, **options)
        try:
            yield connection
        finally:
            with CancelScope(shield=True):
                await connection.aclose(force=True)


async def read_request(stream: ByteStream) -> bytes:
    """One request: its head, and as much body as its Content-Length says."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    missing = length - len(body)
    while missing > 0:
        missing -= len(await stream.receive())
    return data


def answering(*answers: bytes, then: Handler | None = None) -> Handler:
    """Each answer follows one request; then `then`, or an orderly close."""

    async def handler(stream: Peer) -> None:
        for answer in answers:
            await read_request(stream)
            await stream.send(answer)
        if then is not None:
            await then(stream)

    return handler


async def stay(stream: ByteStream) -> None:
    """Keep the connection open until the client closes it."""
    while True:
        await stream.receive()


async def reset(peer: Peer) -> None:
    await peer.reset()


async def readable(connection: Http1Connection) -> None:
    """Until the socket has something to read, without a registration of its own in the event loop."""
    poll = select.poll()
    poll.register(connection._sock, select.POLLIN)
    assert await anyio.to_thread.run_sync(poll.poll, HANG * 1000)


async def healthy_once_readable(connection: Http1Connection) -> bool:
    await readable(connection)
    return connection.healthy


async def exchange(connection: HttpConnection, head: bytes = HEAD, body: bytes = BODY) -> tuple[int, bytes]:
    response = await connection.send(head, body)
    return response.status, await response.body()


# --- the origin


@pytest.mark.parametrize(
    ("url", "origin", "host_header", "text"),
    [
        ("http://a.test/mcp", Origin("http", "a.test", 80), b"a.test", "http://a.test:80"),
        ("https://A.test:443/", Origin("https", "a.test", 443), b"a.test", "https://a.test:443"),
        ("https://a.test:80", Origin("https", "a.test", 80), b"a.test:80", "https://a.test:80"),
        ("http://[::1]:8080/mcp", Origin("http", "::1", 8080), b"[::1]:8080", "http://[::1]:8080"),
        ("http://[::1]/", Origin("http", "::1", 80), b"[::1]", "http://[::1]:80"),
        ("http://bücher.test/", Origin("http", "xn--bcher-kva.test", 80), b"xn--bcher-kva.test", None),
    ],
)
def test_an_origin_is_what_the_url_says(
    url: str, origin: Origin, host_header: bytes, text: str | None
) -> None:
    assert Origin.from_url(url) == origin
    assert origin.host_header == host_header
    assert text is None or str(origin) == text


@pytest.mark.parametrize("url", ["ftp://a.test/", "a.test:80", "http://", "http://a.test:99999/", ""])
def test_what_is_no_http_url_has_no_origin(url: str) -> None:
    with pytest.raises(ValueError):
        Origin.from_url(url)


# --- opening


async def test_an_open_connection_answers_what_the_pool_asks() -> None:
    async with connected(stay) as connection:
        as_asked: Connection = connection
        assert (as_asked.capacity, as_asked.healthy, as_asked.single_shot) == (1, True, False)
        assert connection.local_port == connection._sock.getsockname()[1]
        assert (connection.requests, connection.sent) == (0, False)
        assert "idle, 0 requests" in repr(connection)


async def test_nagle_is_off() -> None:
    async with connected(stay) as connection:
        assert connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection._sock.proto == socket.IPPROTO_TCP


async def test_a_refused_connection_names_the_port_and_the_remedy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with anyio.fail_after(HANG), pytest.raises(ConnectError) as caught:
            await Http1Connection.open(Origin("http", "127.0.0.1", port))
    assert f"http://127.0.0.1:{port}: refused" in str(caught.value)
    assert "start the server or correct 'url'" in str(caught.value)


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 64 + ".invalid"])
async def test_an_unknown_name_is_called_so(host: str) -> None:
    with anyio.fail_after(HANG), pytest.raises(ConnectError, match=f"the name '{host}' was not found"):
        await Http1Connection.open(Origin("http", host, 80))


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.EMFILE, "lower max_connections"), (errno.ENETUNREACH, "check 'url' and the network")],
)
async def test_other_failures_to_connect_keep_the_system_s_words(
    monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    async def fail(address: dialing.Address) -> socket.socket:
        raise OSError(code, "words of the system")

    monkeypatch.setattr(dialing, "_connect", fail)
    with pytest.raises(ConnectError, match=f"http://127.0.0.1:9: words of the system.*{remedy}"):
        await Http1Connection.open(Origin("http", "127.0.0.1", 9))


async def test_a_connect_that_is_cancelled_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResourceWarning is an error in this suite, so a socket left open fails it."""
    waiting = anyio.Event()

    async def never(sock: socket.socket) -> None:
        waiting.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(dialing, "wait_writable", never)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with anyio.fail_after(HANG):
            async with anyio.create_task_group() as group:
                group.start_soon(Http1Connection.open, Origin("http", *server.getsockname()))
                await waiting.wait()
                group.cancel_scope.cancel()


def addresses(*ports: int) -> Callable[[Origin], Awaitable[list[dialing.Address]]]:
    async def resolve(origin: Origin) -> list[dialing.Address]:
        return [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]

    return resolve


async def test_a_name_with_a_dead_and_a_live_address_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        async with listening(answering(OK, then=stay)) as origin:
            monkeypatch.setattr(dialing, "_resolve", addresses(dead.getsockname()[1], origin.port))
            connection = await Http1Connection.open(Origin("http", "two.test", origin.port))
            assert await exchange(connection) == (200, b"{}")
            await connection.aclose()


async def test_a_name_with_only_dead_addresses_tells_the_first_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        monkeypatch.setattr(dialing, "_resolve", addresses(dead.getsockname()[1], dead.getsockname()[1]))
        with anyio.fail_after(HANG), pytest.raises(ConnectError, match=r"two\.test:1: refused"):
            await Http1Connection.open(Origin("http", "two.test", 1))


class GatedConnect:
    """Stands in for `_connect`: every attempt succeeds, cancelled or not, once the gate is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = anyio.Event()
        self.begun = 0
        self.made: list[socket.socket] = []
        monkeypatch.setattr(dialing, "_connect", self)
        monkeypatch.setattr(dialing, "_resolve", addresses(1, 2))
        monkeypatch.setattr(dialing, "ATTEMPT_DELAY", 0.0)

    async def __call__(self, address: dialing.Address) -> socket.socket:
        self.begun += 1
        with CancelScope(shield=True):
            await self.gate.wait()
        self.made.append(socket.socket())
        return self.made[-1]

    async def both_begun(self) -> None:
        while self.begun < 2:
            await checkpoint()


async def test_of_two_addresses_that_connect_one_is_kept_and_one_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = GatedConnect(monkeypatch)
    with anyio.fail_after(HANG):
        async with anyio.create_task_group() as group:

            async def open_gate() -> None:
                await attempts.both_begun()
                attempts.gate.set()

            group.start_soon(open_gate)
            sock = await dialing._race(Origin("http", "two.test", 1))
    assert len(attempts.made) == 2
    assert [made.fileno() for made in attempts.made if made is not sock] == [-1]
    sock.close()


async def test_an_address_that_never_answers_does_not_hold_up_the_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect = dialing._connect

    async def maybe(address: dialing.Address) -> socket.socket:
        if address[1][1] == 1:
            await anyio.sleep_forever()
        return await connect(address)

    async with listening(stay) as origin:
        monkeypatch.setattr(dialing, "ATTEMPT_DELAY", 0.0)
        monkeypatch.setattr(dialing, "_connect", maybe)
        monkeypatch.setattr(dialing, "_resolve", addresses(1, origin.port))
        connection = await Http1Connection.open(Origin("http", "two.test", 80))
        assert connection._sock.getpeername()[1] == origin.port
        await connection.aclose()


async def test_a_connect_cancelled_in_the_moment_it_succeeds_closes_what_it_won(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or hands it over, as trio does, to a caller that is cancelled at its next step."""
    attempts = GatedConnect(monkeypatch)
    handed_over: list[socket.socket] = []

    async def dial() -> None:
        handed_over.append(await dialing._race(Origin("http", "two.test", 1)))

    with anyio.fail_after(HANG):
        async with anyio.create_task_group() as group:
            group.start_soon(dial)
            await attempts.both_begun()
            group.cancel_scope.cancel()
            attempts.gate.set()
    assert len(attempts.made) == 2
    assert [made for made in attempts.made if made.fileno() != -1] == handed_over
    for sock in handed_over:
        sock.close()


# --- one exchange


async def test_a_request_arrives_as_it_was_given_and_its_answer_comes_back() -> None:
    seen: list[bytes] = []

    async def handler(stream: Peer) -> None:
        seen.append(await read_request(stream))
        await stream.send(OK)

    async with connected(handler) as connection:
        response = await connection.send(HEAD, BODY)
        assert connection.sent
        assert response.status == 200
        assert response.headers == [(b"content-type", b"application/json"), (b"content-length", b"2")]
        assert response.header(b"content-type") == b"application/json"
        assert response.header(b"mcp-session-id") is None
        assert (response.complete, response.keep_alive) == (True, True)
        assert await response.body() == b"{}"
        assert await response.chunk() == b""
        assert repr(response) == "<Response 200 2 bytes>"
    assert seen == [HEAD + BODY]


async def test_a_small_request_is_one_segment() -> None:
    chunks: list[bytes] = []

    async def handler(stream: Peer) -> None:
        chunks.append(await stream.receive())
        await stream.send(OK)

    async with connected(handler) as connection:
        await exchange(connection)
    assert chunks == [HEAD + BODY]


async def test_a_connection_is_reused_for_request_after_request() -> None:
    async with connected(answering(OK, CHUNKED, OK, then=stay)) as connection:
        for number, body in enumerate([b"{}", b"abcdefg", b"{}"], start=1):
            assert await exchange(connection) == (200, body)
            assert (connection.requests, connection.healthy, connection.single_shot) == (number, True, False)


@pytest.mark.parametrize(
    "answer", [OK, CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + OK], ids=["fixed", "chunked", "100"]
)
async def test_an_answer_cut_at_every_byte_is_the_same_answer(answer: bytes) -> None:
    """Each byte is parsed before the next is sent, so that no two share a feed."""

    async def handler(stream: Peer) -> None:
        await read_request(stream)
        for position in range(len(answer)):
            while connection._received < position:
                await checkpoint()
            await stream.send(answer[position : position + 1])
        await stay(stream)

    async with connected(handler) as connection:
        response = await connection.send(HEAD, BODY)
        first = await response.chunk()
        assert len(first) == 1
        assert not response.complete
        assert repr(response) == "<Response 200 1 bytes so far>"
        rest = await response.body()
        assert first + rest == (b"abcdefg" if answer is CHUNKED else b"{}")
        assert [name for name, _ in response.headers][-1] in {b"transfer-encoding", b"content-length"}
        assert connection.healthy


async def test_chunks_come_as_they_arrive() -> None:
    """An event stream must not wait for its end."""
    more = anyio.Event()

    async def handler(stream: Peer) -> None:
        await read_request(stream)
        await stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await stream.send(b"5\r\nfirst\r\n")
        await more.wait()
        await stream.send(b"3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n")
        await stay(stream)

    async with connected(handler) as connection:
        response = await connection.send(HEAD, BODY)
        assert await response.chunk() == b"first"
        assert (response.complete, connection.healthy) == (False, False)
        more.set()
        assert await response.chunk() + await response.chunk() in {b"second", b"sec"}
        assert await response.body() in {b"", b"ond"}
        assert (response.complete, connection.healthy) == (True, True)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_answers_without_a_body_end_with_their_head(head: bytes) -> None:
    async with connected(answering(head, OK, then=stay)) as connection:
        assert await exchange(connection) == (int(head[9:12]), b"")
        assert connection.healthy
        assert await exchange(connection) == (200, b"{}")


async def test_the_answer_to_head_has_no_body_whatever_its_length_says() -> None:
    head = b"HEAD /mcp HTTP/1.1\r\nHost: test\r\n\r\n"
    promise = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    async with connected(answering(promise, promise, OK, then=stay)) as connection:
        assert await exchange(connection, head, b"") == (200, b"")
        assert await exchange(connection, head, b"") == (200, b"")
        assert await exchange(connection) == (200, b"{}")
        assert connection.healthy


async def test_bytes_behind_the_answer_to_head_end_the_connection() -> None:
    head = b"HEAD /mcp HTTP/1.1\r\nHost: test\r\n\r\n"
    async with connected(answering(OK, then=stay)) as connection:
        assert await exchange(connection, head, b"") == (200, b"")
        assert not connection.healthy


async def test_interim_answers_are_skipped_and_leave_no_headers() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with connected(answering(interim + OK, OK, then=stay)) as connection:
        response = await connection.send(HEAD, BODY)
        assert (response.status, response.header(b"link")) == (200, None)
        assert connection.healthy
        assert await exchange(connection) == (200, b"{}")


@pytest.mark.parametrize("headers", [b"", b"Connection: upgrade\r\nUpgrade: websocket\r\n"])
async def test_switching_protocols_is_an_error(headers: bytes) -> None:
    async with connected(
        answering(b"HTTP/1.1 101 Switching\r\n" + headers + b"\r\n", then=stay)
    ) as connection:
        with pytest.raises(UpstreamProtocolError, match="101 Switching Protocols"):
            await connection.send(HEAD, BODY)
        assert not connection.healthy


async def test_an_offer_to_upgrade_is_ignored() -> None:
    """Apache sends one with every answer."""
    offer = OK.replace(b"\r\n\r\n", b"\r\nUpgrade: h2,h2c\r\nConnection: Upgrade, Keep-Alive\r\n\r\n")
    async with connected(answering(offer, then=stay)) as connection:
        assert await exchange(connection) == (200, b"{}")
        assert connection.healthy


async def test_an_empty_header_value_does_not_swallow_the_next_header() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Empty:\r\nX-Next: 1\r\nContent-Length: 0\r\n\r\n"
    async with connected(answering(answer, then=stay)) as connection:
        response = await connection.send(HEAD, BODY)
        assert response.headers == [(b"x-empty", b""), (b"x-next", b"1"), (b"content-length", b"0")]


# --- the end of a connection


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
async def test_a_body_may_end_with_the_connection(head: bytes) -> None:
    async with connected(answering(head + b"all there is")) as connection:
        response = await connection.send(HEAD, BODY)
        assert not response.keep_alive
        assert await response.body() == b"all there is"
        assert response.complete
        assert (connection.healthy, connection.single_shot) == (False, True)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_server_that_closes_after_one_exchange_is_single_shot(version: bytes) -> None:
    answer = b"HTTP/" + version + b" 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    async with connected(answering(answer)) as connection:
        assert not connection.single_shot
        assert await exchange(connection) == (200, b"{}")
        assert (connection.healthy, connection.single_shot) == (False, True)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        OK.replace(b"Content-T", b"Connection: close\r\nContent-T"),
    ],
)
async def test_a_connection_that_the_server_is_about_to_close_is_not_reused(answer: bytes) -> None:
    """Its word counts, not the FIN, which here never comes."""
    async with connected(answering(answer, then=stay)) as connection:
        await exchange(connection)
        assert (connection.healthy, connection.single_shot) == (False, True)


async def test_a_server_that_closes_after_two_exchanges_is_not_single_shot() -> None:
    async with connected(
        answering(OK, OK.replace(b"Content-T", b"Connection: close\r\nContent-T"))
    ) as connection:
        await exchange(connection)
        await exchange(connection)
        assert (connection.healthy, connection.single_shot) == (False, False)


async def test_http_1_0_may_keep_alive() -> None:
    answer = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}"
    async with connected(answering(answer, OK, then=stay)) as connection:
        assert await exchange(connection) == (200, b"{}")
        assert connection.healthy
        assert await exchange(connection) == (200, b"{}")


async def test_an_idle_connection_that_the_server_closes_is_not_healthy() -> None:
    async with connected(answering(OK)) as connection:
        await exchange(connection)
        await readable(connection)
        assert not connection.healthy
        assert not connection.single_shot


async def test_an_idle_connection_that_was_reset_is_not_healthy() -> None:
    async with connected(answering(OK, then=reset)) as connection:
        await exchange(connection)
        await readable(connection)
        assert not connection.healthy


async def test_stray_bytes_on_an_idle_connection_end_it() -> None:
    """They would be taken for the answer to the next request, perhaps another client's."""
    idle = anyio.Event()

    async def stray(stream: Peer) -> None:
        await idle.wait()
        await stream.send(b"\r\n")
        await stay(stream)

    async with connected(answering(OK, then=stray)) as connection:
        await exchange(connection)
        assert connection.healthy
        idle.set()
        assert not await healthy_once_readable(connection)
        with pytest.raises(UpstreamClosed, match="used again") as caught:
            await connection.send(HEAD, BODY)
        assert caught.value.data == {"sent": False, "received": 0}


@pytest.mark.parametrize("trailing", [b"H", b"HTTP/1.1 2", OK, CHUNKED, b"garbage", b"\x00"])
@pytest.mark.parametrize("answer", [OK, CHUNKED, OK.replace(b"200", b"204").replace(b"{}", b"")])
async def test_bytes_behind_an_answer_end_the_connection_and_do_not_touch_the_answer(
    answer: bytes, trailing: bytes
) -> None:
    async with connected(answering(answer + trailing, then=stay)) as connection:
        response = await connection.send(HEAD, BODY)
        headers = list(response.headers)
        assert await response.body() == {OK: b"{}", CHUNKED: b"abcdefg"}.get(answer, b"")
        assert response.headers == headers
        assert response.complete
        assert not connection.healthy


@pytest.mark.parametrize("size", [100, 70_000, 300_000, 1_000_000])
async def test_bytes_behind_a_large_answer_end_the_connection(size: int) -> None:
    """However the loop reads in advance, none of them is hidden from `healthy`."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    async with connected(answering(answer + OK, then=stay)) as connection:
        assert await exchange(connection) == (200, b"x" * size)
        if connection.healthy:
            await readable(connection)
        assert not connection.healthy


# --- a server that goes away


@pytest.mark.parametrize("ending", [stay, reset], ids=["FIN", "RST"])
async def test_the_end_before_any_byte_of_an_answer_says_that_the_request_was_sent(ending: Handler) -> None:
    async with connected(answering(b"", then=None if ending is stay else ending)) as connection:
        with pytest.raises(UpstreamClosed, match="without an answer") as caught:
            await connection.send(HEAD, BODY)
        assert caught.value.data == {"sent": True, "received": 0}
        assert f"{connection.origin}" in str(caught.value)
        assert f"local port {connection.local_port}" in str(caught.value)
        assert not connection.healthy


async def test_a_request_on_a_connection_that_was_reset_before_was_not_sent() -> None:
    """So that the caller may repeat any request, not only those that are safe to repeat."""
    async with connected(reset) as connection:
        await readable(connection)
        with pytest.raises(UpstreamClosed, match="had broken it before") as caught:
            await connection.send(HEAD, BODY)
        assert caught.value.data == {"sent": False, "received": 0}
        assert not connection.sent


@pytest.mark.parametrize("ending", [None, reset], ids=["FIN", "RST"])
@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        (b"H", "after 1 bytes of an unfinished head"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "after 27 bytes of an unfinished head"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "after 25 bytes of an unfinished head"),
        (OK[:-2], "after 0 of 2 bytes of the body"),
        (OK[:-1], "after 1 of 2 bytes of the body"),
        (CHUNKED[:-18], "after 4 bytes of an unfinished body"),
        (CHUNKED[:-2], "after 7 bytes of an unfinished body"),
    ],
)
async def test_the_end_in_the_middle_of_an_answer_tells_how_far_it_came(
    answer: bytes, missing: str, ending: Handler | None
) -> None:
    async def when_parsed(stream: Peer) -> None:
        while connection._received < len(answer):
            await checkpoint()
        if ending is not None:
            await ending(stream)

    async with connected(answering(answer, then=when_parsed)) as connection:
        with pytest.raises(UpstreamClosed, match=missing) as caught:
            await exchange(connection)
        assert caught.value.data == {"sent": True, "received": len(answer)}
        assert ("closed it" if ending is None else "broke it") in str(caught.value)
        assert not connection.healthy


async def test_a_reset_does_not_end_a_body_in_good_order() -> None:
    async def when_parsed(stream: Peer) -> None:
        while connection._received < len(answer):
            await checkpoint()
        await reset(stream)

    answer = b"HTTP/1.1 200 OK\r\n\r\nhalf"
    async with connected(answering(answer, then=when_parsed)) as connection:
        with pytest.raises(UpstreamClosed, match="after 4 bytes of an unfinished body"):
            await exchange(connection)


# --- a server that does not speak HTTP


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n" + b"z" * 100, r"b'SSH-2.0-OpenSSH_9.6\\r\\nz{39}'; check that 'url'"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "use https:// in 'url'"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "HTTP/1.1 2x0 OK"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk size"),
    ],
)
async def test_what_is_not_http_is_shown(answer: bytes, words: str) -> None:
    async with connected(answering(answer, then=stay)) as connection:
        with pytest.raises(UpstreamProtocolError, match=words) as caught:
            await exchange(connection)
        assert str(caught.value).startswith(f"{connection.origin} does not speak HTTP/1.1")
        assert not connection.healthy


async def test_garbage_that_comes_in_pieces_is_shown_from_its_start() -> None:
    async def handler(stream: Peer) -> None:
        await read_request(stream)
        await stream.send(b"HTTP/1.1 200")
        while connection._received < 12:
            await checkpoint()
        await stream.send(b"\x00\x01")
        await stay(stream)

    async with connected(handler) as connection:
        with pytest.raises(UpstreamProtocolError, match=r"b'HTTP/1\.1 200'"):
            await connection.send(HEAD, BODY)


# --- limits


def endless(start: bytes, piece: bytes) -> Handler:
    async def handler(stream: Peer) -> None:
        await read_request(stream)
        await stream.send(start)
        while True:
            await stream.send(piece)

    return handler


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"b" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        (CHUNKED[:-2], b"X-A: b\r\n" * 100),
        (CHUNKED[:45] + b"\r\n1;", b"b" * 1000),
    ],
    ids=["headers", "one header", "1xx", "trailers", "chunk extension"],
)
async def test_a_head_or_trailer_without_end_is_cut_at_the_limit(start: bytes, piece: bytes) -> None:
    async with connected(endless(start, piece), max_head_bytes=20_000) as connection:
        with pytest.raises(UpstreamProtocolError, match=r"20000 bytes \(max_head_bytes\)"):
            await exchange(connection)
        assert not connection.healthy


async def test_a_head_above_the_limit_is_refused_even_if_it_comes_at_once() -> None:
    answer = OK.replace(b"OK\r\n", b"OK\r\nX-A: " + b"b" * 600 + b"\r\n")
    async with connected(answering(answer, then=stay), max_head_bytes=512) as connection:
        with pytest.raises(UpstreamProtocolError, match="max_head_bytes"):
            await connection.send(HEAD, BODY)
        assert not connection.healthy


async def test_the_limit_of_the_head_does_not_count_the_body() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000
    async with connected(answering(answer, then=stay), max_head_bytes=512) as connection:
        assert await exchange(connection) == (200, b"x" * 2000)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", "a body of 1001 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, "a larger body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + b"x" * 1024, "a larger body"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001, "a larger body"),
    ],
)
async def test_a_body_above_the_limit_names_the_setting(answer: bytes, words: str) -> None:
    async with connected(answering(answer, then=stay), max_body_bytes=1000) as connection:
        response = await connection.send(HEAD, BODY)
        with pytest.raises(UpstreamProtocolError, match=f"{words}.*1000 bytes.*raise max_message_bytes"):
            await response.body()


async def test_a_body_of_exactly_the_limit_passes() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
    async with connected(answering(answer, then=stay), max_body_bytes=1000) as connection:
        assert await exchange(connection) == (200, b"x" * 1000)


async def test_a_stream_read_by_chunks_has_no_limit() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000
    async with connected(answering(answer, then=stay), max_body_bytes=1000) as connection:
        response = await connection.send(HEAD, BODY)
        received = 0
        while data := await response.chunk():
            received += len(data)
        assert received == 5000


# --- large requests


async def test_a_large_request_arrives_whole_and_the_connection_is_reused() -> None:
    async with connected(answering(OK, OK, then=stay)) as connection:
        assert await exchange(connection, BIG_HEAD, BIG) == (200, b"{}")
        assert connection.healthy
        assert await exchange(connection) == (200, b"{}")


async def read_head(stream: ByteStream) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive(1)


REFUSAL = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig"


async def test_an_answer_without_reading_the_body_is_heard() -> None:
    """No deadlock: the server neither reads nor closes, so the body can never be sent."""

    async def handler(stream: Peer) -> None:
        await read_head(stream)
        await stream.send(REFUSAL.replace(b"Connection: close\r\n", b""))
        await anyio.sleep_forever()

    async with connected(handler) as connection:
        assert await exchange(connection, BIG_HEAD, BIG) == (413, b"big")
        assert not connection.healthy
        assert not connection.single_shot


@pytest.mark.parametrize(
    "answer", [REFUSAL, b"HTTP/1.1 413 Too Large\r\n\r\nbig"], ids=["fixed", "until close"]
)
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_early_refusal_with_close_is_heard(answer: bytes, how: str) -> None:
    """Closing with the request unread sends RST; the answer is in our kernel already and is not lost."""

    async def handler(stream: Peer) -> None:
        await read_head(stream)
        await stream.send(answer)
        if how == "reset":
            await reset(stream)

    async with connected(handler) as connection:
        assert await exchange(connection, BIG_HEAD, BIG) == (413, b"big")
        assert (connection.healthy, connection.single_shot) == (False, True)


async def test_a_reset_that_the_unsent_body_provoked_ends_the_refusal_in_good_order() -> None:
    """Either the write or the read is told of a reset, as the kernel likes; here it is the read."""
    answer = b"HTTP/1.1 413 Too Large\r\n\r\nbig"

    async def handler(stream: Peer) -> None:
        await read_head(stream)
        await stream.send(answer)
        while connection._received < len(answer):
            await checkpoint()
        connection._socket_recv = broken
        await stream.send(b"!")
        await anyio.sleep_forever()

    def broken(size: int) -> bytes:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    async with connected(handler) as connection:
        assert await exchange(connection, BIG_HEAD, BIG) == (413, b"big")
        assert not connection.healthy


async def test_a_server_that_breaks_a_large_request_without_an_answer_closed_it() -> None:
    async def handler(stream: Peer) -> None:
        await read_head(stream)
        await reset(stream)

    async with connected(handler) as connection:
        with pytest.raises(UpstreamClosed, match="without an answer") as caught:
            await connection.send(BIG_HEAD, BIG)
        assert caught.value.data == {"sent": True, "received": 0}


async def test_a_server_that_answers_while_it_reads_does_not_block_the_request() -> None:
    """It stops reading until we read: 8 MiB in both directions fit into no socket buffer."""

    async def handler(stream: Peer) -> None:
        await read_head(stream)
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BIG))
        missing = len(BIG)
        while missing:
            data = await stream.receive()
            missing -= len(data)
            await stream.send(data)
        await stay(stream)

    async with connected(handler) as connection:
        assert await exchange(connection, BIG_HEAD, BIG) == (200, BIG)
        assert connection.healthy


async def test_an_early_answer_is_not_collected_without_limit() -> None:
    async def handler(stream: Peer) -> None:
        await read_head(stream)
        await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send(b"x" * 1000)

    async with connected(handler, max_body_bytes=10_000) as connection:
        with pytest.raises(UpstreamProtocolError, match="before it had read the request"):
            await connection.send(BIG_HEAD, BIG)
        assert not connection.healthy


async def test_a_small_request_that_the_socket_does_not_take_at_once_arrives_whole() -> None:
    """The send buffer is filled beforehand with what the server drops."""
    full = anyio.Event()

    async def handler(stream: Peer) -> None:
        await full.wait()
        data = b""
        while not data.endswith(BODY):
            data = (data + await stream.receive()).lstrip(b"-")
        assert data == HEAD + BODY
        await stream.send(OK)
        await stay(stream)

    async with connected(handler) as connection:
        with suppress(BlockingIOError):
            while connection._sock.send(b"-" * 1000):
                pass
        full.set()
        assert await exchange(connection) == (200, b"{}")
        assert connection.healthy


async def test_a_send_of_which_the_socket_takes_a_part_continues_there() -> None:
    async with connected(answering(OK, then=stay)) as connection:
        send = connection._socket_send
        connection._socket_send = lambda data: send(data[:7])
        assert await exchange(connection) == (200, b"{}")
        assert connection.healthy


# --- cancelling and closing


async def test_a_request_cancelled_before_its_answer_leaves_the_connection_unhealthy() -> None:
    async with connected(stay) as connection:
        async with anyio.create_task_group() as group:
            group.start_soon(connection.send, HEAD, BODY)
            while not connection.sent:
                await checkpoint()
            group.cancel_scope.cancel()
        assert (connection.sent, connection.healthy, connection.single_shot) == (True, False, False)
        assert "busy, 1 requests" in repr(connection)
        await connection.aclose()


async def test_a_large_request_that_is_cancelled_leaves_the_connection_unhealthy() -> None:
    stuck = anyio.Event()

    async def handler(stream: Peer) -> None:
        await read_head(stream)
        stuck.set()
        await anyio.sleep_forever()

    async with connected(handler) as connection:
        async with anyio.create_task_group() as group:
            group.start_soon(connection.send, BIG_HEAD, BIG)
            await stuck.wait()
            group.cancel_scope.cancel()
        assert not connection.healthy


async def test_a_cancelled_body_leaves_the_connection_unhealthy() -> None:
    async with connected(answering(OK[:-1], then=stay)) as connection:
        response = await connection.send(HEAD, BODY)
        with CancelScope() as scope:
            scope.cancel()
            await response.body()
        assert scope.cancelled_caught
        assert not connection.healthy
        await connection.aclose()


async def test_an_abandoned_response_leaves_the_connection_unhealthy() -> None:
    async with connected(answering(OK[:-1], then=stay)) as connection:
        await connection.send(HEAD, BODY)
        assert not connection.healthy
        with pytest.raises(UpstreamClosed, match="used again") as caught:
            await connection.send(HEAD, BODY)
        assert caught.value.data == {"sent": False, "received": 0}


async def test_an_unread_body_that_has_arrived_does_not_hinder_reuse_and_stays_readable() -> None:
    async with connected(answering(OK, CHUNKED, then=stay)) as connection:
        first = await connection.send(HEAD, BODY)
        assert await exchange(connection) == (200, b"abcdefg")
        assert await first.body() == b"{}"


async def test_closing_is_idempotent_and_the_server_sees_it() -> None:
    seen = anyio.Event()

    async def handler(stream: Peer) -> None:
        try:
            await stay(stream)
        finally:
            seen.set()

    async with connected(handler) as connection:
        await connection.aclose()
        await connection.aclose()
        await connection.aclose(force=True)
        assert not connection.healthy
        assert "closed, 0 requests" in repr(connection)
        await seen.wait()
        with pytest.raises(UpstreamClosed, match="used again"):
            await connection.send(HEAD, BODY)


@pytest.mark.parametrize(("head", "body"), [(HEAD, BODY), (BIG_HEAD, BIG)], ids=["small", "large"])
async def test_closing_ends_the_exchange_in_flight(head: bytes, body: bytes) -> None:
    begun = anyio.Event()
    ended: list[Exception] = []

    async def handler(stream: Peer) -> None:
        await read_head(stream)
        begun.set()
        await anyio.sleep_forever()

    async with connected(handler) as connection:

        async def send() -> None:
            with pytest.raises(UpstreamClosed, match="the proxy closed it") as caught:
                await connection.send(head, body)
            ended.append(caught.value)

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await begun.wait()
            await connection.aclose()
    assert len(ended) == 1


async def test_reading_on_after_closing_is_a_typed_error() -> None:
    async with connected(answering(OK[:-1], then=stay)) as connection:
        response = await connection.send(HEAD, BODY)
        await connection.aclose()
        with pytest.raises(UpstreamClosed, match="closed it"):
            await response.body()


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def listening_tls(
    handler: Callable[[TLSStream], Awaitable[None]], certificate: trustme.LeafCert, host: str = "127.0.0.1"
) -> AsyncIterator[Origin]:
    context = server_context(certificate)

    async def over_tls(stream: Peer) -> None:
        tls = await TLSStream.wrap(stream, server_side=True, ssl_context=context, standard_compatible=False)
        await handler(tls)

    async with listening(over_tls) as origin:
        yield Origin("https", host, origin.port)


@asynccontextmanager
async def connected_tls(
    handler: Callable[[TLSStream], Awaitable[None]], authority: trustme.CA
) -> AsyncIterator[Http1Connection]:
    async with listening_tls(handler, authority.issue_cert("127.0.0.1")) as origin:
        connection = await Http1Connection.open(origin, ssl_context=client_context(authority))
        try:
            yield connection
        finally:
            with CancelScope(shield=True):
                await connection.aclose(force=True)


def answering_tls(*answers: bytes) -> Callable[[TLSStream], Awaitable[None]]:
    async def handler(stream: TLSStream) -> None:
        for answer in answers:
            await read_request(stream)
            await stream.send(answer)
        await stay(stream)

    return handler


async def test_tls_carries_exchanges_over_http_1_1(authority: trustme.CA) -> None:
    async with connected_tls(answering_tls(OK, CHUNKED, OK), authority) as connection:
        assert isinstance(connection._sock, ssl.SSLSocket)
        assert connection._sock.selected_alpn_protocol() == "http/1.1"
        assert connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for body in (b"{}", b"abcdefg", b"{}"):
            assert await exchange(connection) == (200, body)
            assert connection.healthy


async def test_the_session_tickets_of_tls_do_not_make_a_fresh_connection_unhealthy(
    authority: trustme.CA,
) -> None:
    """TLS 1.3 servers send them behind the handshake: the socket is readable although nothing was said."""
    async with connected_tls(answering_tls(OK), authority) as connection:
        assert connection._tls is not None
        assert connection._tls.version() == "TLSv1.3"
        await readable(connection)
        assert connection.healthy
        assert await exchange(connection) == (200, b"{}")


@pytest.mark.parametrize("how", ["bytes", "garbage", "goodbye", "FIN", "RST"])
async def test_an_idle_tls_connection_that_is_no_longer_idle_is_unhealthy(
    authority: trustme.CA, how: str
) -> None:
    idle = anyio.Event()

    async def handler(stream: TLSStream) -> None:
        await read_request(stream)
        await stream.send(OK)
        await idle.wait()
        transport = stream.transport_stream
        assert isinstance(transport, Peer)
        if how == "bytes":
            await stream.send(b"x")
            await stay(stream)
        elif how == "garbage":
            await transport.send(b"not a record of TLS")
            await stay(transport)
        elif how == "goodbye":
            await stream.unwrap()
        elif how == "RST":
            await reset(transport)

    async with connected_tls(handler, authority) as connection:
        await exchange(connection)
        assert connection.healthy
        idle.set()
        assert not await healthy_once_readable(connection)
        assert not connection.healthy


async def test_a_large_request_over_tls_arrives_whole(authority: trustme.CA) -> None:
    async def handler(stream: TLSStream) -> None:
        await read_head(stream)
        missing = len(BIG)
        while missing:
            data = await stream.receive()
            assert data.strip(b"x") == b""
            missing -= len(data)
        await stream.send(OK)
        await stay(stream)

    async with connected_tls(handler, authority) as connection:
        assert await exchange(connection, BIG_HEAD, BIG) == (200, b"{}")
        assert connection.healthy


async def test_an_early_refusal_over_tls_is_heard(authority: trustme.CA) -> None:
    async def handler(stream: TLSStream) -> None:
        await read_head(stream)
        await stream.send(REFUSAL)
        await anyio.sleep_forever()

    async with connected_tls(handler, authority) as connection:
        assert await exchange(connection, BIG_HEAD, BIG) == (413, b"big")
        assert not connection.healthy


async def test_a_request_on_a_broken_tls_connection_may_have_been_sent(authority: trustme.CA) -> None:
    async def handler(stream: TLSStream) -> None:
        await read_request(stream)
        await stream.send(OK)
        transport = stream.transport_stream
        assert isinstance(transport, Peer)
        await reset(transport)

    async with connected_tls(handler, authority) as connection:
        await exchange(connection)
        await readable(connection)
        with pytest.raises(UpstreamClosed) as caught:
            await connection.send(HEAD, BODY)
        assert caught.value.data == {"sent": True, "received": 0}


async def test_a_certificate_for_another_host_is_refused(authority: trustme.CA) -> None:
    async with listening_tls(stay, authority.issue_cert("other.test")) as origin:
        with pytest.raises(
            ConnectError, match=r"certificate problem .*not for '127\.0\.0\.1': correct the host"
        ):
            await Http1Connection.open(origin, ssl_context=client_context(authority))


async def test_a_certificate_of_an_unknown_authority_is_refused_by_default(authority: trustme.CA) -> None:
    async with listening_tls(stay, authority.issue_cert("127.0.0.1")) as origin:
        with pytest.raises(ConnectError, match=f"no TLS with {origin}: certificate problem .*SSL_CERT_FILE"):
            await Http1Connection.open(origin)


async def test_an_expired_certificate_is_refused(authority: trustme.CA) -> None:
    old = authority.issue_cert(
        "127.0.0.1", not_before=datetime(2000, 1, 1, tzinfo=UTC), not_after=datetime(2001, 1, 1, tzinfo=UTC)
    )
    async with listening_tls(stay, old) as origin:
        with pytest.raises(ConnectError, match=r"certificate has expired\); renew"):
            await Http1Connection.open(origin, ssl_context=client_context(authority))


async def test_https_to_a_port_without_tls_names_the_other_scheme() -> None:
    async def handler(stream: Peer) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listening(handler) as origin:
        with pytest.raises(ConnectError, match="does not speak TLS on this port; use http://"):
            await Http1Connection.open(Origin("https", "127.0.0.1", origin.port))


@pytest.mark.parametrize("ending", [None, reset], ids=["FIN", "RST"])
async def test_a_handshake_that_the_server_breaks_off_is_a_connect_error(ending: Handler | None) -> None:
    async def handler(stream: Peer) -> None:
        await stream.receive()
        if ending is not None:
            await ending(stream)

    async with listening(handler) as origin:
        with pytest.raises(ConnectError, match="the handshake failed"):
            await Http1Connection.open(Origin("https", "127.0.0.1", origin.port))


async def test_settings_that_tls_refuses_are_a_connect_error() -> None:
    async with listening(stay) as origin:
        with pytest.raises(ConnectError, match="the handshake failed .*check the TLS settings"):
            await Http1Connection.open(
                Origin("https", "127.0.0.1", origin.port), ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            )


async def test_a_cancelled_handshake_leaves_no_socket() -> None:
    begun = anyio.Event()

    async def handler(stream: Peer) -> None:
        await stream.receive()
        begun.set()
        await stay(stream)

    async with listening(handler) as origin, anyio.create_task_group() as group:
        group.start_soon(Http1Connection.open, Origin("https", "127.0.0.1", origin.port))
        await begun.wait()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("force", [False, True])
async def test_tls_says_goodbye_unless_forced(authority: trustme.CA, force: bool) -> None:
    """Without it, a server cannot tell the end from an attacker's cut."""
    ends: list[str] = []
    seen = anyio.Event()

    async def handler(stream: TLSStream) -> None:
        stream.standard_compatible = True  # now an end without a goodbye raises
        try:
            await stay(stream)
        except anyio.EndOfStream:
            ends.append("goodbye")
            await stream.unwrap()
        except anyio.BrokenResourceError:
            ends.append("cut")
        finally:
            seen.set()

    async with connected_tls(handler, authority) as connection:
        await connection.aclose(force=force)
        await seen.wait()
        assert ends == ["cut" if force else "goodbye"]
        assert connection._sock.fileno() == -1


async def test_a_server_that_does_not_answer_the_goodbye_is_not_waited_for_long(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialing, "GOODBYE_TIMEOUT", 0.01)

    async def handler(stream: TLSStream) -> None:
        await anyio.sleep_forever()

    async with connected_tls(handler, authority) as connection:
        await connection.aclose()
        assert connection._sock.fileno() == -1


async def test_a_forced_close_ends_a_goodbye_that_waits(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialing, "GOODBYE_TIMEOUT", 3600.0)

    async def handler(stream: TLSStream) -> None:
        await anyio.sleep_forever()

    async with connected_tls(handler, authority) as connection:
        async with anyio.create_task_group() as group:
            group.start_soon(connection.aclose)
            for _ in range(10):  # its close_notify is out, and it waits for the server's
                await checkpoint()
            await connection.aclose(force=True)
        assert connection._sock.fileno() == -1


async def test_a_step_of_tls_waits_for_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []

    async def wait_writable(sock: socket.socket) -> None:
        waited.append("writable")

    async def wait_readable(sock: socket.socket) -> None:
        waited.append("readable")

    monkeypatch.setattr(dialing, "wait_writable", wait_writable)
    monkeypatch.setattr(dialing, "wait_readable", wait_readable)
    asks = iter([ssl.SSLWantWriteError(), ssl.SSLWantReadError(), None])

    def step() -> None:
        if (error := next(asks)) is not None:
            raise error

    sock = cast("ssl.SSLSocket", None)
    await dialing._finish(sock, dialing.AnyReadable(sock), step)
    assert waited == ["writable", "readable"]
