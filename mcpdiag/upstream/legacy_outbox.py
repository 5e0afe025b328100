"""The way to a server of HTTP+SSE: each message is a POST, over a few connections that are kept for the next."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Final

import anyio
from anyio.abc import TaskGroup

from mcpdiag.connection.base import HttpConnection
from mcpdiag.errors import McpDiagError, RequestTimeout, UpstreamClosed, UpstreamProtocolError
from mcpdiag.protocol.message import Message, decode
from mcpdiag.protocol.resume import session_is_lost
from mcpdiag.upstream.dialer import Dialer

REQUESTS_AT_ONCE: Final = 32  # that the server has not accepted yet
SPARE: Final = 4  # idle connections that are kept
ORDER_WAIT: Final = 1.0  # seconds that a message waits for the one before it to be accepted
CLOSE_TIMEOUT: Final = 2.0
SHOWN_BYTES: Final = 200


class _Post:
    """One message on its way."""

    __slots__ = ("accepted", "data", "kind", "message")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.message = decode(data)
        self.kind = self.message.kind
        self.accepted = anyio.Event()


class Outbox:
    """
    Args:
        dialer: opens the connections.
        timeout: seconds that the server may take to accept a message.
        refused: told of each message that it did not take, and why.
        forgotten: told that the server does not know the session any more, before `refused`.

    Attributes:
        bytes: of the messages on their way.
        room: set when there are fewer of them.
    """

    def __init__(
        self,
        dialer: Dialer,
        timeout: float,
        refused: Callable[[Message, McpDiagError], None],
        forgotten: Callable[[str], None],
    ) -> None:
        self.bytes = 0
        self.room = anyio.Event()
        self._dialer = dialer
        self._timeout = timeout
        self._refused = refused
        self._forgotten = forgotten
        self._posts: dict[_Post, None] = {}
        self._slots = anyio.Semaphore(REQUESTS_AT_ONCE)
        self._spare: list[HttpConnection] = []

    def post(self, tasks: TaskGroup, endpoint: bytes, data: bytes) -> None:
        """Start a POST. It begins once those that must come before it were accepted.

        A request waits for notifications, a notification for requests too, a response for nothing: some servers accept
        a request only when they have answered it, and may ask something before that.
        """
        post = _Post(data)
        before = {"request": {"notification"}, "notification": {"notification", "request"}}.get(
            post.kind, set()
        )
        earlier = [each for each in self._posts if each.kind in before]
        self._posts[post] = None
        self.bytes += len(data)
        tasks.start_soon(self._deliver, post, endpoint, earlier)

    async def drain(self) -> None:
        """Wait until all are accepted or refused."""
        for post in [*self._posts]:
            await post.accepted.wait()

    async def aclose(self) -> None:
        """Close what is kept; POSTs under way end with their tasks."""
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            while self._spare:
                await self._spare.pop().aclose(force=True)

    async def _deliver(self, post: _Post, endpoint: bytes, earlier: list[_Post]) -> None:
        try:
            with anyio.move_on_after(ORDER_WAIT):
                for each in earlier:
                    await each.accepted.wait()
            async with self._slots if post.kind == "request" else nullcontext():
                await self._send(endpoint, post.data)
        except McpDiagError as error:
            self._refused(post.message, error)
        finally:
            post.accepted.set()
            del self._posts[post]
            self.bytes -= len(post.data)
            self.room.set()

    async def _send(self, endpoint: bytes, data: bytes) -> None:
        """
        Raises:
            UpstreamClosed: it went away, or has forgotten the session.
            UpstreamError: it could not be reached, or did not accept the message.
        """
        extra = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(data)
        head = self._dialer.head(b"POST", endpoint, extra)
        with anyio.move_on_after(self._timeout):
            while True:
                kept = await self._take()
                connection = kept or await self._dialer.open()
                try:
                    response = await connection.send(head, data)
                    text = await response.body()
                except UpstreamClosed:
                    await _close(connection)
                    if kept is not None and not connection.sent:
                        continue
                    raise
                except BaseException:
                    await _close(connection)
                    raise
                await self._keep(connection)
                self._check(response.status, text)
                return
        raise RequestTimeout(
            f"the server '{self._dialer.name}' did not accept a message within {self._timeout:g} s (deadline)",
            data={"phase": "request", "limit_ms": round(self._timeout * 1000)},
        )

    async def _take(self) -> HttpConnection | None:
        while self._spare:
            connection = self._spare.pop()
            if connection.healthy:
                return connection
            await _close(connection)
        return None

    async def _keep(self, connection: HttpConnection) -> None:
        if connection.healthy and len(self._spare) < SPARE:
            self._spare.append(connection)
        else:
            await _close(connection)

    def _check(self, status: int, text: bytes) -> None:
        if 200 <= status < 300:
            return
        shown = text[:SHOWN_BYTES].decode(errors="replace").strip()
        said = f"HTTP {status}" + (f" ({shown})" if shown else "")
        if session_is_lost(status, text) or status == 410:
            why = f"it answered a POST with {said}"
            self._forgotten(why)
            raise UpstreamClosed(
                f"the server '{self._dialer.name}' does not know the session any more: {why}"
            )
        raise UpstreamProtocolError(
            f"the server '{self._dialer.name}' did not accept a message: it answered with {said}",
            data={"status": status},
        )


async def _close(connection: HttpConnection) -> None:
    with anyio.CancelScope(shield=True):
        await connection.aclose(force=True)
