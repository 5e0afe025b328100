"""The processes of one stdio server, as the clients of one era share them: the pool, how they start and what they tell.

`stdio.py` is the handshake era, `stdio_stateless.py` the stateless one; each has processes of its own, because a
server may serve a process in one era only (2026-07-28, basic/versioning).
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakSet

import anyio
from anyio.abc import TaskGroup

from mcpdiag.config import UpstreamConfig
from mcpdiag.config.types import PoolMode
from mcpdiag.connection.base import MessageConnection
from mcpdiag.connection.reaper import Reaper
from mcpdiag.connection.stdio import StdioConnection
from mcpdiag.errors import ConnectTimeout
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.pool.pool import Clock, Lease, Pool
from mcpdiag.pool.stats import PoolStats
from mcpdiag.upstream.client import Client
from mcpdiag.upstream.link import Link
from mcpdiag.upstream.router import Router

CLIENT_INFO = {"name": "mcpdiag", "version": "0.1.0"}
SETTLE = 0.1  # seconds in which a single-shot program has ended after its answer, until one takes longer
LONGEST_SETTLE = 3.0


class Processes:
    """A pool of processes. `start` needs a task group that outlives it: the processes are its tasks."""

    LOST = "child_exit"  # the kind of event that tells of the end of one
    RESTARTED = "process restarted"  # the detail of one that tells of a new one in its place

    def __init__(
        self,
        name: str,
        config: UpstreamConfig,
        mode: PoolMode,
        *,
        reaper: Reaper | None = None,
        hook: Hook = NO_HOOK,
        on_starved: Callable[[], None] | None = None,
        clock: Clock = anyio.current_time,
    ) -> None:
        self.name = name
        self.mode: PoolMode = mode
        self.config = config
        self.hook = hook
        self.clock = clock
        self.reaper = reaper
        self.clients: set[Client] = set()
        self.persistent = False  # a process of it was seen to live on after an answer
        self.settle = SETTLE
        self.bare = False  # a single-shot program that takes no handshake before its one request
        self.bare_result = b""
        self.tasks: TaskGroup | None = None
        self._spawned: WeakSet[StdioConnection] = WeakSet()
        self._env = {key: value.get_secret_value() for key, value in config.env.items()}
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
        self.tasks = task_group
        await self.pool.start(task_group)

    def stats(self) -> PoolStats:
        return self.pool.stats()

    def pids(self) -> list[int]:
        """The processes that run now, also those that are just being opened or closed."""
        return [each.pid for each in self._spawned if each.pid and each.returncode is None]

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
            with anyio.move_on_after(self.settle):
                await link.connection.lost.wait()
        link.settled_answers = answers
        if link.healthy:
            self.persistent = self.persistent or answers > link.handshakes
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

        assert self.tasks is not None
        self.tasks.start_soon(settle)

    # -- opening ------------------------------------------------------------------------------------------

    async def _connect(self) -> Link:
        """A new connection for the pool, as ready as its era wants it."""
        return await self._spawn()

    def _router(self, connection: MessageConnection) -> Router:
        return Router(connection.post, self._undelivered)

    def _new_connection(self, capacity: int) -> MessageConnection:
        """A connection that has not been started."""
        config = self.config
        connection = StdioConnection(
            self.name,
            config.command_line,
            env=self._env,
            cwd=config.cwd,
            capacity=capacity,
            max_message_bytes=config.max_message_bytes,
            close_timeout=config.close_timeout,
            reaper=self.reaper,
        )
        self._spawned.add(connection)
        return connection

    async def _spawn(self, handshake: bytes = b"") -> Link:
        timeout = self.config.timeouts.connect_timeout
        connection = self._new_connection(self.config.pool.max_inflight if self.mode == "multiplex" else 1)
        router = self._router(connection)
        link = Link(connection, router, lambda: self.persistent)
        connection.on_message = router.receive
        connection.on_stray = self._stray
        connection.on_oversized = router.oversized
        connection.on_lost = lambda: self._lost(link)
        assert self.tasks is not None
        try:
            with anyio.move_on_after(timeout):
                await self.tasks.start(connection.run)
                if handshake:
                    await link.handshake(handshake)
                return link
        except BaseException:
            await self._discard(link)
            raise
        await self._discard(link)
        raise self.not_ready(connection)

    def not_ready(self, connection: MessageConnection) -> ConnectTimeout:
        """The error of a process that did not answer the handshake in time, with what it said instead."""
        timeout = self.config.timeouts.connect_timeout
        return ConnectTimeout(
            f"the server '{self.name}' ({connection.shown}) was not ready within {timeout:g} s "
            f"(connect_timeout){connection.evidence()}; raise connect_timeout for '{self.name}', or see why it hangs",
            data={**connection.error_data(), "phase": "connect", "limit_ms": round(timeout * 1000)},
        )

    async def _discard(self, link: Link) -> None:
        with anyio.CancelScope(shield=True):
            await link.aclose(force=True)

    # -- what connections tell ----------------------------------------------------------------------------

    def _lost(self, link: Link) -> None:
        connection = link.connection
        if link.ended_late:
            self.persistent = False
            self.settle = min(3 * self.settle, LONGEST_SETTLE)
        connection.single_shot = link.single_shot
        link.router.fail_all(connection.gone)
        self.hook.emit(Happened(self.LOST, self.name, detail=connection.describe_end()))
        self.pool.lost(link)

    def _stray(self, line: bytes) -> None:
        self.hook.emit(Happened("stray_output", self.name, detail=line.decode(errors="replace")))

    def _undelivered(self, method: str) -> None:
        self.hook.emit(Happened("undelivered", self.name, detail=method))
