"""A Streamable HTTP server: each exchange is one POST over a pooled connection.

A client's session here is one session of the server, so ids and messages pass through untouched and the server
itself keeps clients apart; the connections carry no state and are shared. A client's listening stream has a
connection of its own, outside the pool, so that streams cannot starve calls.
"""

from __future__ import annotations

import anyio
from anyio.abc import TaskGroup

from mcpdiag.config import UpstreamConfig
from mcpdiag.config.types import PoolMode
from mcpdiag.connection.base import HttpConnection
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.pool.pool import Clock, Pool
from mcpdiag.pool.stats import PoolStats
from mcpdiag.upstream.base import TransportName, UpstreamSession
from mcpdiag.upstream.client import Client
from mcpdiag.upstream.dialer import Dialer
from mcpdiag.upstream.http_session import HttpSession
from mcpdiag.upstream.http_stateless import StatelessHttpSession
from mcpdiag.upstream.learned import Learned

_JSON_BODY = (
    b"content-type: application/json\r\naccept: application/json, text/event-stream\r\ncontent-length: %d\r\n"
)
STAGGERED = 1.0  # seconds: streams that are opened within it count as opened together


class HttpUpstream:
    """A named HTTP server and the pool of connections to it."""

    transport: TransportName = "http"
    mode: PoolMode = "request"

    def __init__(
        self, name: str, config: UpstreamConfig, *, hook: Hook = NO_HOOK, clock: Clock = anyio.current_time
    ) -> None:
        self.name = name
        self.config = config
        self.hook = hook
        self.clock = clock
        self.learned = Learned(name)
        self.tasks: TaskGroup | None = None
        self._opened_at = -STAGGERED
        self._opening = 0  # streams since then
        dialer = self.dialer = Dialer(name, config)
        self._target, self._fixed = dialer.target, dialer.fixed
        self._sends_authorization = dialer.sends_authorization
        self.pool: Pool[HttpConnection] = Pool(
            name,
            self.connect,
            config.pool,
            acquire_timeout=config.timeouts.acquire_timeout,
            connect_timeout=config.timeouts.connect_timeout,
            hook=hook,
            clock=clock,
        )

    async def start(self, task_group: TaskGroup) -> None:
        """Start the pool; warm connections begin to open."""
        self.tasks = self.dialer.tasks = task_group
        await self.pool.start(task_group)

    def session(self, client: Client) -> UpstreamSession:
        return HttpSession(self, client)

    def stateless_session(self, client: Client) -> UpstreamSession:
        return StatelessHttpSession(self, client)

    def opening(self) -> int:
        """How many other streams were opened within the last second; this one is counted from now on."""
        now = self.clock()
        if now - self._opened_at > STAGGERED:
            self._opened_at, self._opening = now, 0
        self._opening += 1
        return self._opening - 1

    def stats(self) -> PoolStats:
        return self.pool.stats()

    def pids(self) -> list[int]:
        return []

    async def aclose(self, *, drain_timeout: float, force: bool = False) -> None:
        await self.pool.aclose(drain_timeout=drain_timeout, force=force)

    async def connect(self) -> HttpConnection:
        """A new connection within `connect_timeout`."""
        return await self.dialer.open()

    def head(
        self, method: bytes, client: Client, session_id: bytes, length: int | None, extra: bytes = b""
    ) -> bytes:
        """The request head. The client's Authorization goes along unless the configuration has one."""
        parts = [method, b" ", self._target, b" HTTP/1.1\r\n", self._fixed]
        if session_id:
            parts.append(b"mcp-session-id: %b\r\n" % session_id)
        if client.protocol:
            parts.append(b"mcp-protocol-version: %b\r\n" % client.protocol)
        if client.authorization and not self._sends_authorization:
            parts.append(b"authorization: %b\r\n" % client.authorization)
        if length is not None:
            parts.append(_JSON_BODY % length)
        parts += [client.extra_headers, extra, b"\r\n"]
        return b"".join(parts)
