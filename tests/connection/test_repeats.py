"""Answers whose head came before: they are not parsed again, and nobody can tell."""

from __future__ import annotations

import random

import anyio
import pytest

from mcpdiag.errors import UpstreamClosed
from mcpdiag.protocol.heads import KNOWN_HEADS
from tests.connection.test_http1 import (
    GET,
    HEAD,
    OK,
    Peer,
    answering,
    anyio_backend,
    connected,
    exchange,
    healthy_once_readable,
    read_request,
    stay,
)

pytestmark = pytest.mark.anyio
__all__ = ["anyio_backend"]  # the fixture


def ok(body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (extra, len(body), body)


async def test_a_head_is_parsed_once() -> None:
    async with connected(answering(*[OK] * 4, then=stay)) as connection:
        fed: list[bytes] = []
        feed = connection._reader.feed

        def counted(data: bytes) -> None:
            fed.append(data)
            feed(data)

        connection._reader.feed = counted
        for _ in range(4):
            response = await connection.send(HEAD, b"x" * 40)
            assert (response.status, response.header(b"content-length")) == (200, b"2")
            assert await response.body() == b"{}"
            assert connection.healthy
        assert fed == [OK]


@pytest.mark.parametrize("seed", range(8))
async def test_any_slicing_of_any_answers_gives_their_bodies(seed: int) -> None:
    chance = random.Random(seed)
    bodies = [b"%d" % number * chance.choice([0, 1, 1, 500]) for number in range(30)]
    kinds = [chance.choice(["plain", "plain", "plain", "100", "chunked"]) for _ in bodies]

    async def handler(peer: Peer) -> None:
        for body, kind in zip(bodies, kinds, strict=True):
            await read_request(peer)
            answer = ok(body)
            if kind == "100":
                answer = b"HTTP/1.1 100 Continue\r\n\r\n" + answer
            if kind == "chunked":
                coded = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
                answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"
            while answer:
                size = chance.choice([1, 25, len(ok(b"1")) - 1, 1000])
                await peer.send(answer[:size])
                answer = answer[size:]
                await anyio.sleep(0.0005)
        await stay(peer)

    async with connected(handler) as connection:
        for body in bodies:
            assert await exchange(connection) == (200, body)


async def test_what_follows_a_known_answer_is_not_the_next_one() -> None:
    """Stray bytes in the same read, and after it: the connection is not used again."""
    async with connected(answering(OK, OK + b"stray", then=stay)) as connection:
        assert await exchange(connection) == (200, b"{}")
        assert await exchange(connection) == (200, b"{}")
        assert not connection.healthy

    async def later(peer: Peer) -> None:
        await peer.send(OK)
        await stay(peer)

    async with connected(answering(OK, OK, then=later)) as connection:
        assert await exchange(connection) == (200, b"{}")
        assert await exchange(connection) == (200, b"{}")
        assert not connection.healthy or not await healthy_once_readable(connection)


async def test_an_answer_that_breaks_off_says_how_much_of_it_came() -> None:
    half = ok(b"a" * 100)[:-60]
    async with connected(answering(ok(b"a" * 100), half)) as connection:
        assert await exchange(connection) == (200, b"a" * 100)
        response = await connection.send(GET, b"")
        with pytest.raises(UpstreamClosed, match="after 40 of 100 bytes of the body"):
            await response.body()
        assert not connection.healthy


async def test_heads_whose_length_is_not_that_of_a_body_are_not_kept() -> None:
    not_modified = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    async with connected(answering(not_modified, OK, closing)) as connection:
        assert await exchange(connection) == (304, b"")
        response = await connection.send(b"HEAD" + GET[3:], b"")
        assert (response.status, response.header(b"content-length")) == (200, b"2")
        assert await response.body() == b""
    async with connected(answering(not_modified, not_modified, OK, closing)) as connection:
        for wanted in ((304, b""), (304, b""), (200, b"{}"), (200, b"{}")):
            assert await exchange(connection) == wanted
        assert not connection.healthy
        assert [*connection._heads] == [OK[:-2]]


async def test_a_head_of_an_interim_answer_is_not_taken_for_the_last() -> None:
    """The 100 and the head of the answer come in one read, the body in another."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"

    async def handler(peer: Peer) -> None:
        for _ in range(3):
            await read_request(peer)
            await peer.send(interim + ok(b"b" * 400)[:-400])
            await anyio.sleep(0.01)
            await peer.send(b"b" * 400)
        await stay(peer)

    async with connected(handler) as connection:
        for _ in range(3):
            assert await exchange(connection) == (200, b"b" * 400)
        assert interim not in connection._heads


async def test_a_connection_remembers_few_heads() -> None:
    many = [ok(b"{}", b"X-Number: %d\r\n" % number) for number in range(20)]
    async with connected(answering(*many, then=stay)) as connection:
        for _ in many:
            assert await exchange(connection) == (200, b"{}")
        assert 0 < len(connection._heads) <= KNOWN_HEADS
