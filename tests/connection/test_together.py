"""Writes that go out together: in order, once, and only if their caller still wants it."""

from __future__ import annotations

import asyncio
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from mcpdiag.connection.http1 import Http1Connection
from mcpdiag.connection.together import TRY, Together, of_this_loop
from mcpdiag.errors import UpstreamClosed
from tests.connection.test_http1 import (
    BODY,
    HEAD,
    OK,
    Peer,
    answering,
    anyio_backend,
    connected,
    exchange,
    listening,
    read_request,
    stay,
)

pytestmark = pytest.mark.anyio
__all__ = ["anyio_backend"]  # the fixture


@pytest.fixture
def not_trio(anyio_backend: tuple[str, object]) -> None:
    if anyio_backend[0] == "trio":
        pytest.skip("there each request goes out at once")


def with_somebody_else() -> Together:
    """As if somebody else had a request under way, so that the next ones wait for the end of the turn."""
    together = of_this_loop()
    assert together is not None
    together.users += 1
    return together


async def test_on_trio_there_is_none(anyio_backend: tuple[str, object]) -> None:
    assert (of_this_loop() is None) == (anyio_backend[0] == "trio")
    assert of_this_loop() is of_this_loop()


@pytest.mark.usefixtures("not_trio")
async def test_writes_go_out_in_the_next_turn_in_their_order() -> None:
    together, written = Together(), list[bytes]()
    together.add(written.append, b"a")
    together.add(written.append, b"b")
    assert written == []
    await checkpoint()
    await checkpoint()
    assert written == [b"a", b"b"]
    together.add(written.append, b"c")
    together.flush()
    together.flush()
    assert written == [b"a", b"b", b"c"]


@pytest.mark.usefixtures("not_trio")
async def test_where_there_is_one_a_turn_it_goes_out_at_once_and_order_is_kept() -> None:
    together, written, at_once = Together(), list[bytes](), list[bool]()
    for number in range(20 * TRY):
        together.add(written.append, b"%d" % number)
        at_once.append(len(written) == number + 1)
        together.flush()
    assert written == [b"%d" % number for number in range(20 * TRY)]
    assert not at_once[0]
    assert sum(at_once[-TRY:]) == TRY - 1  # one of them looks whether there are more by now
    for _ in range(100 * TRY):
        written.clear()
        for number in range(4):
            together.add(written.append, b"%d" % number)
        together.flush()
        assert written == [b"0", b"1", b"2", b"3"]
    together.add(written.append, b"late")
    assert written[-1] == b"3"
    together.flush()


@pytest.mark.usefixtures("not_trio")
async def test_many_at_once_are_all_answered() -> None:
    async def handler(peer: Peer) -> None:
        while True:
            await read_request(peer)
            await peer.send(OK)

    async with listening(handler) as origin:
        connections = [await Http1Connection.open(origin) for _ in range(20)]

        async def use(connection: Http1Connection) -> None:
            for _ in range(20):
                assert await exchange(connection) == (200, b"{}")
                assert connection.sent

        async with anyio.create_task_group() as tasks:
            for connection in connections:
                tasks.start_soon(use, connection)
        together = of_this_loop()
        assert together is not None
        assert together.users == 0
        for connection in connections:
            await connection.aclose(force=True)


@pytest.mark.usefixtures("not_trio")
async def test_a_server_that_leaves_before_it_was_asked_has_not_been_asked() -> None:
    """So the call may be made again on another connection, whatever it does. (asyncio's own loop looks too late.)"""
    if type(asyncio.get_running_loop()).__module__.startswith("asyncio"):
        pytest.skip("this loop sends before it looks")
    seen = bytearray()
    peers: list[Peer] = []

    async def handler(peer: Peer) -> None:
        seen.extend(await read_request(peer))
        await peer.send(OK)
        peers.append(peer)
        seen.extend(await peer.receive())

    async with connected(handler) as connection:
        assert await exchange(connection) == (200, b"{}")
        together, errors = with_somebody_else(), list[UpstreamClosed]()

        async def ask() -> None:
            with pytest.raises(UpstreamClosed) as caught:
                await connection.send(HEAD, BODY)
            errors.append(caught.value)

        async def leave() -> None:
            peers[0].sock.close()

        async with anyio.create_task_group() as tasks:  # in the same turn, and in this order
            tasks.start_soon(ask)
            tasks.start_soon(leave)
        assert errors[0].data["sent"] is False
        assert "before it was asked" in str(errors[0])
        assert (together.users, connection.healthy) == (1, False)
        together.users = 0
    assert bytes(seen) == HEAD + BODY


@pytest.mark.usefixtures("not_trio")
async def test_a_connection_that_was_closed_in_the_same_turn_sends_nothing() -> None:
    seen = bytearray()

    async def handler(peer: Peer) -> None:
        while True:
            seen.extend(await peer.receive())

    async with connected(handler) as connection:
        together, errors = with_somebody_else(), list[UpstreamClosed]()

        async def ask() -> None:
            with pytest.raises(UpstreamClosed, match="the proxy closed it") as caught:
                await connection.send(HEAD, BODY)
            errors.append(caught.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(partial(connection.aclose, force=True))
        assert errors[0].data["sent"] is False
        together.users = 0
    assert not seen


@pytest.mark.usefixtures("not_trio")
async def test_what_the_socket_does_not_take_is_sent_while_the_answer_is_read() -> None:
    async with connected(answering(OK, then=stay)) as connection:
        together = with_somebody_else()
        send = connection._socket_send
        connection._socket_send = lambda data: send(data[:7])
        assert await exchange(connection) == (200, b"{}")
        together.users = 0
        assert connection.healthy


@pytest.mark.usefixtures("not_trio")
async def test_a_socket_that_is_broken_has_taken_nothing() -> None:
    async with connected(answering(OK, then=stay)) as connection:
        together = with_somebody_else()

        def broken(data: bytes | memoryview) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        connection._socket_send = broken
        with pytest.raises(UpstreamClosed, match="the server had broken it before") as caught:
            await connection.send(HEAD, BODY)
        together.users = 0
        assert caught.value.data["sent"] is False
