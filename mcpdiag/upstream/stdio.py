"""A named stdio server, and how its processes are made ready in each pool mode of the handshake era.

`session`: the client's own handshake goes to a process of its own, which it keeps until it ends.
`request` and `multiplex`: the proxy makes the handshake; processes are shared, one exchange at a time or many.
What a client's session does with them is `stdio_session.py`; requests of the stateless era are `stdio_stateless.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import anyio
import msgspec

from mcpdiag.config import UpstreamConfig
from mcpdiag.connection.base import MessageConnection
from mcpdiag.connection.reaper import Reaper
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.pool.pool import Clock
from mcpdiag.protocol.revisions import LATEST_HANDSHAKE
from mcpdiag.upstream.base import TransportName
from mcpdiag.upstream.client import Client
from mcpdiag.upstream.learned import Learned
from mcpdiag.upstream.link import Link
from mcpdiag.upstream.processes import CLIENT_INFO, Processes
from mcpdiag.upstream.router import Router
from mcpdiag.upstream.stdio_session import StdioSession
from mcpdiag.upstream.stdio_stateless import StatelessProcesses, StatelessStdioSession


class StdioUpstream(Processes):
    """A named stdio server.

    Attributes:
        stateless: its processes of the stateless era, once a request of that era has come.
    """

    transport: TransportName = "stdio"

    def __init__(
        self,
        name: str,
        config: UpstreamConfig,
        *,
        reaper: Reaper | None = None,
        hook: Hook = NO_HOOK,
        on_starved: Callable[[], None] | None = None,
        clock: Clock = anyio.current_time,
    ) -> None:
        super().__init__(
            name, config, config.pool_mode, reaper=reaper, hook=hook, on_starved=on_starved, clock=clock
        )
        self.learned = Learned(name)
        self.stateless: StatelessProcesses | None = None

    def session(self, client: Client) -> StdioSession:
        self.clients.add(client)
        return StdioSession(self, client)

    def stateless_session(self, client: Client) -> StatelessStdioSession:
        if self.stateless is None:
            self.stateless = StatelessProcesses(self, self.learned)
        return StatelessStdioSession(self.stateless, client)

    def pids(self) -> list[int]:
        return super().pids() + (self.stateless.pids() if self.stateless is not None else [])

    async def aclose(self, *, drain_timeout: float, force: bool = False) -> None:
        async with anyio.create_task_group() as tasks:
            if self.stateless is not None:
                tasks.start_soon(partial(self.stateless.aclose, drain_timeout=drain_timeout, force=force))
            await super().aclose(drain_timeout=drain_timeout, force=force)

    def _router(self, connection: MessageConnection) -> Router:
        router = super()._router(connection)
        router.audience = lambda: [*self.clients]
        return router

    async def _connect(self) -> Link:
        if self.mode == "session" or self.bare:
            return await self._spawn()
        link = await self._spawn(self._own_params())
        try:
            if not await self.settled(link):
                if link.healthy:
                    return link
                raise await link.gone()
        except BaseException:
            await self._discard(link)
            raise
        # It answered the handshake and ended: next time it gets the request itself.
        self.bare_result = link.result
        await self._discard(link)
        return await self._spawn()

    def _own_params(self) -> bytes:
        capabilities: dict[str, object] = {}
        if self.mode == "request":
            capabilities = {"sampling": {}, "elicitation": {}, "roots": {}}
        return msgspec.json.encode(
            {"protocolVersion": LATEST_HANDSHAKE, "capabilities": capabilities, "clientInfo": CLIENT_INFO}
        )
