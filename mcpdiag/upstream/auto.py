"""An HTTP server whose transport is found out: Streamable HTTP, or the HTTP+SSE of 2024-11-05 that came before it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from mcpdiag.config import UpstreamConfig
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.pool.pool import Clock
from mcpdiag.pool.stats import PoolStats
from mcpdiag.protocol.message import Message, MessageError, decode
from mcpdiag.upstream.base import Answer, UpstreamSession
from mcpdiag.upstream.client import Client, Inbox
from mcpdiag.upstream.exchange import Exchange, Phase
from mcpdiag.upstream.http import HttpUpstream
from mcpdiag.upstream.legacy import LegacyUpstream, speaks_legacy

# 2025-11-25, basic/transports, "Backwards Compatibility": what a server of the old transport answers to a POST.
OLD_ANSWERS = frozenset({400, 404, 405})
PATIENCE = 3.0  # seconds for the first event: a server of the old transport sends it at once


class AutoUpstream(HttpUpstream):
    """An HTTP server that turns out to be one of HTTP+SSE if it refuses the first `initialize` in the old way.

    Until then, and if it does not, it is a Streamable HTTP server.
    """

    def __init__(
        self,
        name: str,
        config: UpstreamConfig,
        *,
        hook: Hook = NO_HOOK,
        on_starved: Callable[[], None] | None = None,
        clock: Clock = anyio.current_time,
    ) -> None:
        super().__init__(name, config, hook=hook, clock=clock)
        self.legacy: LegacyUpstream | None = None
        self.decided = False
        self._on_starved = on_starved
        self._deciding = anyio.Lock()

    def session(self, client: Client) -> UpstreamSession:
        if self.legacy is not None:
            return self.legacy.session(client)
        session = super().session(client)
        return session if self.decided else _UndecidedSession(self, client, session)

    def stateless_session(self, client: Client) -> UpstreamSession:
        if self.legacy is not None:
            return self.legacy.stateless_session(client)
        return super().stateless_session(client)

    async def turns_out_legacy(self) -> bool:
        """Ask the server with a GET, unless that is known already; from then on it is what the answer says."""
        async with self._deciding:
            if self.decided:
                return self.legacy is not None
            timeout = min(PATIENCE, self.config.timeouts.connect_timeout)
            if not await speaks_legacy(self.dialer, timeout, self.config.max_message_bytes):
                return False  # neither, for now: perhaps the URL is wrong
            legacy = LegacyUpstream(
                self.name,
                self.config,
                dialer=self.dialer,
                hook=self.hook,
                on_starved=self._on_starved,
                clock=self.clock,
            )
            assert self.tasks is not None
            await legacy.start(self.tasks)
            self.transport, self.mode, self.learned = legacy.transport, legacy.mode, legacy.learned
            self.legacy, self.decided = legacy, True
            self.hook.emit(Happened("transport", self.name, detail="HTTP+SSE of 2024-11-05"))
            return True

    def stats(self) -> PoolStats:
        return super().stats() if self.legacy is None else self.legacy.stats()

    async def aclose(self, *, drain_timeout: float, force: bool = False) -> None:
        async with anyio.create_task_group() as tasks:
            if self.legacy is not None:
                legacy = self.legacy
                tasks.start_soon(lambda: legacy.aclose(drain_timeout=drain_timeout, force=force))
            await super().aclose(drain_timeout=drain_timeout, force=force)


class _UndecidedSession:
    """A session that begins before it is known what it is."""

    def __init__(self, upstream: AutoUpstream, client: Client, session: UpstreamSession) -> None:
        self._upstream = upstream
        self._client = client
        self._session = session

    def exchange(self, exchange: Exchange) -> Coroutine[Any, Any, Answer]:
        if exchange.message.method == "initialize":
            return self._initialize(exchange)
        return self._session.exchange(exchange)

    async def _initialize(self, exchange: Exchange) -> Answer:
        upstream = self._upstream
        answer = await self._session.exchange(exchange)
        if answer.status not in OLD_ANSWERS or _is_json_rpc(answer.body):
            upstream.decided = upstream.decided or answer.status in {200, *OLD_ANSWERS}
            return answer
        exchange.enter(Phase.CONNECT)
        exchange.scope.deadline = exchange.deadline_at  # asking keeps `connect_timeout` itself
        if not await upstream.turns_out_legacy():
            return answer
        assert upstream.legacy is not None
        self._session = upstream.legacy.session(self._client)
        exchange.again()
        exchange.outcome = "ok"
        return await self._session.exchange(exchange)

    @property
    def holds_connection(self) -> bool:
        return self._session.holds_connection

    def evidence(self) -> dict[str, object]:
        evidence: Callable[[], dict[str, object]] | None = getattr(self._session, "evidence", None)
        return {} if evidence is None else evidence()

    async def tell(self, message: Message) -> Answer:
        return await self._session.tell(message)

    async def cancel(self, exchange: Exchange, message: Message) -> None:
        await self._session.cancel(exchange, message)

    async def listen(self, inbox: Inbox) -> Answer:
        return await self._session.listen(inbox)

    async def aclose(self) -> None:
        await self._session.aclose()


def _is_json_rpc(body: bytes) -> bool:
    try:
        decode(body)
    except MessageError:
        return False
    return True
