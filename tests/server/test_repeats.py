"""Requests whose head came before: they are not parsed again, and nobody can tell."""

from __future__ import annotations

import random
import socket
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from mcpdiag.protocol.heads import KNOWN_HEADS
from mcpdiag.server import connection
from tests.server.test_server import HOST, OK, anyio_backend, serving, to_the_end, whole_body

pytestmark = pytest.mark.anyio
__all__ = ["anyio_backend"]  # the fixture


async def mirror(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it saw, at once where the body is there."""
    cycle = scope["extensions"]["mcpdiag.direct"]
    body = cycle.whole_body()
    if body is None:
        body = await whole_body(receive)
    headers = b" ".join(name + b"=" + value for name, value in scope["headers"])
    seen = b"<%b %b %b>" % (scope["method"].encode(), scope["path"].encode(), headers)
    cycle.whole(200, [(b"content-type", b"text/plain")], seen + body)


def post(body: bytes, path: bytes = b"/mcp", extra: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n%b" % (path, HOST, extra, len(body), body)


def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts, from now on, what the parser is given."""
    fed: list[int] = []
    feed = connection.ServerConnection._renew

    def renew(self: Any) -> None:
        feed(self)
        real = self._feed

        def counted(data: bytes) -> None:
            fed.append(len(data))
            real(data)

        self._feed = counted

    monkeypatch.setattr(connection.ServerConnection, "_renew", renew)
    return fed


async def answers(client: SocketStream, count: int) -> list[bytes]:
    """The bodies of so many whole answers."""
    data, bodies = b"", list[bytes]()
    with anyio.fail_after(20):
        while len(bodies) < count:
            head, found, rest = data.partition(b"\r\n\r\n")
            if found:
                assert head.startswith(OK.strip())
                length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                if len(rest) >= length:
                    bodies.append(rest[:length])
                    data = rest[length:]
                    continue
            data += await client.receive()
    assert data == b""
    return bodies


async def test_the_parser_sees_a_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = parsed(monkeypatch)
    async with serving(mirror) as (_, connect), await connect() as client:
        for number in range(5):
            await client.send(post(b"body %d" % number))
            (answer,) = await answers(client, 1)
            assert answer == b"<POST /mcp host=a content-length=6>body %d" % number
        await client.send(post(b"another length"))
        assert (await answers(client, 1))[0].endswith(b">another length")
    assert fed == [len(post(b"body 0")), len(post(b"another length"))]


async def test_a_body_that_comes_later_is_waited_for() -> None:
    """Many clients send head and body apart."""
    async with serving(mirror) as (server, connect), await connect() as client:
        client.extra(anyio.abc.SocketAttribute.raw_socket).setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        for number in range(4):
            head, body = post(b"x" * 100)[:-100], b"%d" % number * 100
            await client.send(head)
            with anyio.fail_after(20):
                while not server.cycles:
                    await anyio.sleep(0.001)
            await client.send(body[:50])
            await anyio.sleep(0.005)
            await client.send(body[50:])
            assert (await answers(client, 1))[0].endswith(b">" + body)


@pytest.mark.parametrize("seed", range(12))
async def test_any_slicing_of_any_requests_gives_their_answers_in_order(seed: int) -> None:
    chance = random.Random(seed)
    sent, wanted = b"", list[bytes]()
    for number in range(40):
        body, path = b"%d" % number * chance.choice([0, 1, 1, 30]), chance.choice([b"/a", b"/a", b"/b"])
        extra = chance.choice([b"", b"", b"x-a: b\r\n", b"connection: keep-alive\r\n"])
        if chance.random() < 0.2:  # a body that only the parser can tell the end of
            coded = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
            sent += b"POST %b HTTP/1.1\r\n%btransfer-encoding: chunked\r\n\r\n%b" % (path, HOST, coded)
            wanted.append(b"<POST %b host=a transfer-encoding=chunked>%b" % (path, body))
            continue
        sent += post(body, path, extra)
        shown = extra.strip().replace(b": ", b"=")
        names = b" ".join(filter(None, (b"host=a", shown, b"content-length=%d" % len(body))))
        wanted.append(b"<POST %b %b>%b" % (path, names, body))
    async with serving(mirror) as (_, connect), await connect() as client, anyio.create_task_group() as tasks:

        async def send() -> None:
            rest = sent
            while rest:
                size = chance.choice([1, 10, len(post(b"")), 200, 1000])
                await client.send(rest[:size])
                rest = rest[size:]
                await anyio.sleep(0)

        tasks.start_soon(send)
        assert await answers(client, 40) == wanted


async def test_a_head_that_is_no_longer_the_same_is_parsed() -> None:
    """The last byte of a token is wrong; and bytes behind a body are the next request, whatever they are."""
    good = post(b"{}", extra=b"authorization: Bearer good\r\n")
    async with serving(mirror) as (_, connect), await connect() as client:
        for extra in (b"good", b"good", b"goof"):
            await client.send(good.replace(b"good", extra))
            assert b"authorization=Bearer " + extra in (await answers(client, 1))[0]
        await client.send(good + b"GARBAGE\r\n\r\n")
        answer = await to_the_end(client)
        assert answer.startswith(OK)
        assert b"<POST" in answer


async def test_a_connection_remembers_few_and_short_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[connection.ServerConnection] = []
    init = connection.ServerConnection.__init__

    def noted(self: Any, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(connection.ServerConnection, "__init__", noted)
    async with serving(mirror) as (_, connect), await connect() as client:
        for number in range(50):
            await client.send(post(b"", b"/%d" % number))
            await answers(client, 1)
        assert 0 < len(made[0]._known) <= KNOWN_HEADS
        before = {*made[0]._known}
        await client.send(post(b"", extra=b"x-a: %b\r\n" % (b"y" * connection.KNOWN_BYTES)))
        await answers(client, 1)
        assert {*made[0]._known} == before


async def test_notes_are_found_again_behind_the_same_head_of_the_same_connection() -> None:
    async def counting(scope: Any, receive: Any, send: Any) -> None:
        cycle = scope["extensions"]["mcpdiag.direct"]
        cycle.notes["seen"] = cycle.notes.get("seen", 0) + 1
        cycle.whole(200, [], b"%d" % cycle.notes["seen"])

    async with serving(counting) as (_, connect), await connect() as client, await connect() as other:
        for expected in (b"1", b"2", b"3"):
            await client.send(post(b"same"))
            assert await answers(client, 1) == [expected]
        await client.send(post(b"longer"))
        assert await answers(client, 1) == [b"1"]
        await other.send(post(b"same"))
        assert await answers(other, 1) == [b"1"]
