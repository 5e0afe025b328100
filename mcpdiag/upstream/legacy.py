"""A named server of the transport HTTP+SSE (2024-11-05). Its sessions are shared and recovered as processes are.

A stdio upstream whose connections are `LegacyConnection`s: pool modes, ids, pinning and the journal are those of
`stdio.py` and `stdio_session.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import anyio
from anyio.abc import TaskGroup

from mcpdiag.config import UpstreamConfig
from mcpdiag.connection.base import MessageConnection
from mcpdiag.errors import McpDiagError, UpstreamError
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.pool.pool import Clock, Lease
from mcpdiag.protocol.headers import is_event_stream
from mcpdiag.protocol.message import Message
from mcpdiag.protocol.revisions import known_names
from mcpdiag.protocol.sse import Decoder, SseError
from mcpdiag.upstream.base import TransportName
from mcpdiag.upstream.client import Client
from mcpdiag.upstream.dialer import Dialer
from mcpdiag.upstream.exchange import Exchange
from mcpdiag.upstream.legacy_connection import LegacyConnection
from mcpdiag.upstream.link import Link
from mcpdiag.upstream.router import Router
from mcpdiag.upstream.stdio import StdioUpstream
from mcpdiag.upstream.stdio_session import StdioSession


class LegacyUpstream(StdioUpstream):
    """A named HTTP+SSE server.

    Args:
        dialer: opens its HTTP connections; made from the settings if not given.
    """

    LOST = "session_lost"
    RESTARTED = "began a new session at the server"
    transport: TransportName = "sse"

    def __init__(
        self,
        name: str,
        config: UpstreamConfig,
        *,
        dialer: Dialer | None = None,
        hook: Hook = NO_HOOK,
        on_starved: Callable[[], None] | None = None,
        clock: Clock = anyio.current_time,
    ) -> None:
        super().__init__(name, config, hook=hook, on_starved=on_starved, clock=clock)
        self.dialer = dialer or Dialer(name, config)
        self.persistent = True  # nothing ends after one answer here
        self.learned.versions = known_names("handshake")  # the transport is older than the stateless era

    async def start(self, task_group: TaskGroup) -> None:
        self.dialer.tasks = task_group
        await super().start(task_group)

    def session(self, client: Client) -> LegacySession:
        self.clients.add(client)
        return LegacySession(self, client)

    def _new_connection(self, capacity: int) -> LegacyConnection:
        return LegacyConnection(
            self.name, self.config, self.dialer, capacity=capacity, hook=self.hook, clock=self.clock
        )

    def _router(self, connection: MessageConnection) -> Router:
        router = super()._router(connection)
        assert isinstance(connection, LegacyConnection)
        connection.on_refused = partial(self._refused, router)
        return router

    def _refused(self, router: Router, message: Message, error: McpDiagError) -> None:
        """A message that the server did not take: the exchange that it began ends, anything else is undelivered."""
        if not router.refuse(message, error):
            what = message.method or "response"
            self.hook.emit(Happened("undelivered", self.name, detail=f"{what}: {error.message}"))


class LegacySession(StdioSession):
    """One client's session at an HTTP+SSE server. While an event stream is being opened again, calls wait for it."""

    async def _borrow(self, exchange: Exchange) -> Lease[Link]:
        while True:
            lease = await super()._borrow(exchange)
            try:
                if await self._steady(exchange, lease.connection):
                    return lease
            except BaseException:
                lease.release(reusable=lease.connection.healthy)
                raise
            lease.release(reusable=False)

    async def _own(self, exchange: Exchange) -> Lease[Link]:
        if self._lease is not None:
            await self._steady(exchange, self._lease.connection)
        return await super()._own(exchange)

    async def _steady(self, exchange: Exchange, link: Link) -> bool:
        connection = link.connection
        assert isinstance(connection, LegacyConnection)
        if connection.is_steady:
            return True
        with self._connecting(exchange):
            return await connection.steady()
        raise self._upstream.not_ready(connection)


async def speaks_legacy(dialer: Dialer, timeout: float, max_bytes: int) -> bool:
    """Whether a GET of the URL opens an event stream whose first event is an endpoint.

    2025-11-25, basic/transports, "Backwards Compatibility".

    Args:
        timeout: seconds until the first event.
        max_bytes: of that event.
    """
    with anyio.move_on_after(timeout), suppress(UpstreamError, SseError):
        connection = await dialer.open()
        try:
            head = dialer.head(b"GET", dialer.target, b"accept: text/event-stream\r\n")
            response = await connection.send(head, b"")
            if response.status != 200 or not is_event_stream(response.header(b"content-type")):
                return False
            decoder = Decoder(max_bytes)
            while chunk := await response.chunk():
                for event in decoder.feed(chunk):
                    if event.has_data:
                        return event.event == b"endpoint"
        finally:
            with anyio.CancelScope(shield=True):
                await connection.aclose(force=True)
    return False
