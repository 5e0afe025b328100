"""A named stdio server: its pool of processes, and how they are started and made ready in each pool mode.

`session`: the client's own handshake goes to a process of its own, which it keeps until it ends.
`request` and `multiplex`: the proxy makes the handshake; processes are shared, one exchange at a time or many.
What a client's session does with them is `stdio_session.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Literal

import anyio
import msgspec
from anyio.abc import TaskGroup

from mcpdiag.config import PoolMode, UpstreamConfig
from mcpdiag.connection.reaper import Reaper
from mcpdiag.connection.stdio import StdioConnection
from mcpdiag.errors import ConnectTimeout
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.pool.pool import Clock, Lease, Pool
from mcpdiag.pool.stats import PoolStats
from mcpdiag.protocol.revisions import LATEST_HANDSHAKE
from mcpdiag.upstream.base import Client
from mcpdiag.upstream.link import Link
from mcpdiag.upstream.router import Router
from mcpdiag.upstream.stdio_session import StdioSession

SETTLE = 0.1  # seconds in which a single-shot program has ended after its answer
CLIENT_INFO = {"name": "mcpdiag", "version": "0.1.0"}


class StdioUpstream:
    """A named stdio server and its pool. `start` needs a task group that outlives it: the processes are its tasks."""

    transport: Literal["stdio", "http"] = "stdio"

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
        self.name = name
        self.mode: PoolMode = config.pool_mode
        self.config = config
        self.hook = hook
        self.clients: set[Client] = set()
        self.persistent = False  # a process of it was seen to live on after an answer
        self.bare = False  # a single-shot program that takes no handshake before its one request
        self.bare_result = b""
        self._env = {key: value.get_secret_value() for key, value in config.env.items()}
        self._reaper = reaper
        self._tasks: TaskGroup | None = None
        self.pool: Pool[Link] = Pool(
            name,
            self._connect,
            config.pool,
            acquire_timeout=config.timeouts.acquire_timeout,
            connect_timeout=config.timeouts.connect_timeout,
            hook=hook,
            clock=clock,
            on_starved=on_starved,
        )

    async def start(self, task_group: TaskGroup) -> None:
        """Start the pool; warm connections begin to open."""
        self._tasks = task_group
        await self.pool.start(task_group)

    def session(self, client: Client) -> StdioSession:
        self.clients.add(client)
        return StdioSession(self, client)

    def stats(self) -> PoolStats:
        return self.pool.stats()

    async def aclose(self, *, drain_timeout: float, force: bool = False) -> None:
        await self.pool.aclose(drain_timeout=drain_timeout, force=force)

    async def settled(self, link: Link) -> bool:
        """Until the server has proved persistent: give a process that has answered the time to end.

        Without this, the next request would go to a single-shot program on its way out, and be lost.
        True if it turned out to be a program that takes no handshake before its one request.
        """
        answers = link.connection.answers
        if self.persistent or answers == link.settled_answers:
            return self.bare
        if answers <= 1 + link.handshakes:
            with anyio.move_on_after(SETTLE):
                await link.connection.lost.wait()
        link.settled_answers = answers
        if link.healthy:
            self.persistent = answers > link.handshakes
        elif link.ended_well and answers == link.handshakes == 1:
            self.bare = True
        return self.bare

    def release_settled(self, lease: Lease[Link]) -> None:
        """Give back a lease as soon as it is known whether its process lives on."""

        async def settle() -> None:
            try:
                await self.settled(lease.connection)
            finally:
                lease.release(reusable=lease.connection.healthy)

        assert self._tasks is not None
        self._tasks.start_soon(settle)

    # -- opening ------------------------------------------------------------------------------------------

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

    async def _spawn(self, handshake: bytes = b"") -> Link:
        config, timeout = self.config, self.config.timeouts.connect_timeout
        connection = StdioConnection(
            self.name,
            config.command_line,
            env=self._env,
            cwd=config.cwd,
            capacity=config.pool.max_inflight if self.mode == "multiplex" else 1,
            max_message_bytes=config.max_message_bytes,
            close_timeout=config.close_timeout,
            reaper=self._reaper,
        )
        router = Router(connection.post, self._undelivered)
        router.audience = lambda: [*self.clients]
        link = Link(connection, router, lambda: self.persistent)
        connection.on_message = router.receive
        connection.on_stray = self._stray
        connection.on_oversized = router.oversized
        connection.on_lost = lambda: self._lost(link)
        assert self._tasks is not None
        try:
            with anyio.move_on_after(timeout):
                await self._tasks.start(connection.run)
                if handshake:
                    await link.handshake(handshake)
                return link
        except BaseException:
            await self._discard(link)
            raise
        await self._discard(link)
        raise self.not_ready(connection)

    def not_ready(self, connection: StdioConnection) -> ConnectTimeout:
        """The error of a process that did not answer the handshake in time, with what it said instead."""
        timeout = self.config.timeouts.connect_timeout
        return ConnectTimeout(
            f"the server '{self.name}' ({shlex.join(connection.command)}) was not ready within {timeout:g} s "
            f"(connect_timeout){connection.evidence()}; raise connect_timeout for '{self.name}', or see why it hangs",
            data={**connection.error_data(), "phase": "connect", "limit_ms": round(timeout * 1000)},
        )

    async def _discard(self, link: Link) -> None:
        if link.connection.pid:
            with anyio.CancelScope(shield=True):
                await link.aclose(force=True)

    def _own_params(self) -> bytes:
        capabilities: dict[str, object] = {}
        if self.mode == "request":
            capabilities = {"sampling": {}, "elicitation": {}, "roots": {}}
        return msgspec.json.encode(
            {"protocolVersion": LATEST_HANDSHAKE, "capabilities": capabilities, "clientInfo": CLIENT_INFO}
        )

    # -- what connections tell ----------------------------------------------------------------------------

    def _lost(self, link: Link) -> None:
        connection = link.connection
        connection.single_shot = link.single_shot
        link.router.fail_all(connection.gone)
        self.hook.emit(Happened("child_exit", self.name, detail=connection.describe_end()))
        self.pool.lost(link)

    def _stray(self, line: bytes) -> None:
        self.hook.emit(Happened("stray_output", self.name, detail=line.decode(errors="replace")))

    def _undelivered(self, method: str) -> None:
        self.hook.emit(Happened("undelivered", self.name, detail=method))
