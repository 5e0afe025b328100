"""What an upstream is to the proxy.

`Exchange` is one request under way, `Client` the session that asks, `Answer` what came back. The proxy makes
the first two and consumes the third; an upstream never looks above these files.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mcpdiag.config import UpstreamConfig
from mcpdiag.config.types import PoolMode
from mcpdiag.pool.stats import PoolStats
from mcpdiag.protocol.message import Message
from mcpdiag.protocol.sse import Event
from mcpdiag.upstream.client import Client, Inbox
from mcpdiag.upstream.exchange import Exchange
from mcpdiag.upstream.learned import Learned

TransportName = Literal["stdio", "http", "sse"]  # sse: HTTP+SSE of 2024-11-05


@dataclass(slots=True)
class Answer:
    """What goes back to the client: a whole JSON body, or a stream of events.

    Of an event the proxy relays data, name and `retry`; its id was for the one who reads the server's stream. An event
    without any field tells that the server has ended the stream for now, and its rest will come later ("polling").
    """

    status: int = 200
    body: bytes = b""
    content_type: bytes = b"application/json"
    events: AsyncIterator[Event] | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class UpstreamSession(Protocol):
    """What one client session has at one upstream."""

    @property
    def holds_connection(self) -> bool:
        """Whether it keeps a connection to itself, which ending it would free."""

    async def exchange(self, exchange: Exchange) -> Answer:
        """Run one request. The caller holds `exchange.scope` and calls `exchange.end` when it is over."""

    async def tell(self, message: Message) -> Answer:
        """Relay a notification of the client, or its response to a request of the server; 202 if accepted."""

    async def cancel(self, exchange: Exchange, message: Message) -> None:
        """The client cancelled an exchange with this notification: stop it here and at the server."""

    async def listen(self, inbox: Inbox) -> Answer:
        """The stream of messages that belong to no exchange, until `inbox` is closed."""

    async def aclose(self) -> None:
        """End the session at the upstream and free what it holds."""


class Upstream(Protocol):
    """A named server."""

    name: str
    transport: TransportName
    mode: PoolMode
    config: UpstreamConfig
    learned: Learned

    def session(self, client: Client) -> UpstreamSession:
        """A client's session here; nothing is opened before its first exchange."""

    def stateless_session(self, client: Client) -> UpstreamSession:
        """What one request of the stateless era has here."""

    def stats(self) -> PoolStats:
        """The pool's numbers."""

    def pids(self) -> list[int]:
        """The processes that were started for it and run now; their descendants are not among them."""

    async def aclose(self, *, drain_timeout: float, force: bool = False) -> None:
        """Close the pool and everything in it."""
