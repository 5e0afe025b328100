"""The pool as its callers see it: acquire, release, close. Decisions are the ledger's, I/O is upkeep's."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from mcpdiag.config import PoolLimits
from mcpdiag.connection.base import Connection
from mcpdiag.errors import PoolQueueFull, PoolTimeout, ShuttingDown
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.pool.ledger import Slot
from mcpdiag.pool.stats import PoolStats
from mcpdiag.pool.upkeep import Connect, Upkeep
from mcpdiag.pool.waiter import Waiter

C = TypeVar("C", bound=Connection)
Clock = Callable[[], float]


class Lease(Generic[C]):
    """A connection handed out by the pool. Give it back exactly once with `release`; further calls do nothing."""

    __slots__ = ("_pool", "_slot", "connection", "reused", "waited_s")

    def __init__(self, pool: Pool[C], slot: Slot[C], waited_s: float) -> None:
        assert slot.connection is not None
        self.connection: C = slot.connection
        self.reused = slot.leased > 1
        self.waited_s = waited_s
        self._slot: Slot[C] | None = slot
        self._pool = pool

    def release(self, *, reusable: bool = True) -> None:
        """Return the connection to the pool without waiting.

        Args:
            reusable: False closes it instead: its state is unknown, or belongs to one client. A connection that
                other exchanges share is kept for them.
        """
        slot, self._slot = self._slot, None
        if slot is not None:
            self._pool._upkeep.give_back(slot, reusable=reusable)

    def pin(self) -> None:
        """Count that this lease became one session's own for good."""
        self._pool._upkeep.ledger.count.pins += 1


class Pool(Generic[C]):
    """A bounded pool of connections to one server.

    Args:
        name: the upstream's name, for messages.
        connect: opens one connection; bounds its own time; raises an `UpstreamError`.
        limits: see `PoolLimits`.
        acquire_timeout: seconds that `acquire` waits in the queue.
        connect_timeout: seconds that `connect` may take, which a caller waits in addition for its own open.
        on_starved: called when a caller must wait although nothing is being opened for it; it may free a lease.

    `start` needs a task group that outlives the pool. The pool does not keep itself alive: dropping the last
    reference closes its connections, as `aclose` does.
    """

    def __init__(
        self,
        name: str,
        connect: Connect[C],
        limits: PoolLimits | None = None,
        *,
        acquire_timeout: float = 5.0,
        connect_timeout: float = 10.0,
        hook: Hook = NO_HOOK,
        on_starved: Callable[[], None] | None = None,
        channel_size: int | None = None,
        clock: Clock = anyio.current_time,
    ) -> None:
        self.name = name
        # Upkeep holds this one weakly: `connect` may be a method of whoever holds the pool.
        self._connect: Connect[C] = lambda: connect()
        self._acquire_timeout = acquire_timeout
        self._connect_timeout = connect_timeout
        self._on_starved = on_starved
        self._upkeep: Upkeep[C] = Upkeep(
            name,
            weakref.ref(self._connect),
            limits or PoolLimits(),
            hook=hook,
            channel_size=channel_size,
            clock=clock,
        )
        weakref.finalize(self, self._upkeep.forget).atexit = False

    async def start(self, task_group: TaskGroup) -> None:
        """Start upkeep as a task of `task_group`; warm connections begin to open."""
        await task_group.start(self._upkeep.run)

    def try_acquire(self, *, exclusive: bool = False) -> Lease[C] | None:
        """A lease without waiting, or None. What the hot path calls."""
        upkeep = self._upkeep
        ledger = upkeep.ledger
        if ledger.shutting:
            raise ShuttingDown(f"the pool of '{self.name}' is closing")
        slot = ledger.take(exclusive=exclusive)
        if slot is None:
            upkeep.drain(look=False)
            slot = ledger.take(exclusive=exclusive)
        if ledger.doomed:
            upkeep.settle()
        return None if slot is None else Lease(self, slot, 0.0)

    async def acquire(self, *, exclusive: bool = False, timeout: float | None = None) -> Lease[C]:
        """A lease: at once, or after an open or a release, in the order of arrival.

        Args:
            exclusive: nobody else shares the connection, also where it could carry several exchanges.
            timeout: seconds to wait, instead of `acquire_timeout`.

        Raises:
            PoolTimeout: nothing came free in time.
            PoolQueueFull: `max_waiting` callers wait already.
            ShuttingDown: the pool is closing.
            ConnectError, ConnectTimeout, UpstreamError: what `connect` raised for this caller.
        """
        lease = self.try_acquire(exclusive=exclusive)
        if lease is not None:
            return lease
        upkeep = self._upkeep
        ledger, limits = upkeep.ledger, upkeep.limits
        if not upkeep.running:
            raise RuntimeError(f"the pool of '{self.name}' is not started; call start() first")
        waiter: Waiter[C] = Waiter(
            upkeep.clock(),
            self._acquire_timeout if timeout is None else timeout,
            open_limit=self._connect_timeout,
            exclusive=exclusive,
        )
        opening = ledger.reserve()
        if opening is None and len(ledger.waiters) >= limits.max_waiting:
            raise PoolQueueFull(
                f"{len(ledger.waiters)} callers already wait for a connection to '{self.name}'; "
                "raise max_waiting or max_connections",
                data={"upstream": self.name, "waiting": len(ledger.waiters)},
            )
        ledger.waiters.append(waiter)
        try:
            if opening is not None:
                upkeep.open_for(opening, waiter)
            elif self._on_starved is not None:
                self._on_starved()
            await waiter.wait()
        except BaseException:  # cancelled: what was offered in the same turn goes back, unused
            ledger.leave(waiter)
            ledger.count.acquire_cancelled += 1
            if waiter.slot is not None:
                upkeep.give_back(waiter.slot, unused=True)
            upkeep.settle()  # others may have waited behind this caller
            raise
        now = upkeep.clock()
        if waiter.slot is not None:
            return Lease(self, ledger.accepted(waiter, now), now - waiter.started_at)
        ledger.leave(waiter)
        ledger.count.wait_s += now - waiter.started_at
        upkeep.settle()
        if waiter.error is not None:
            raise waiter.error
        ledger.count.acquire_timeouts += 1
        raise self._timed_out(waiter)

    def _timed_out(self, waiter: Waiter[C]) -> PoolTimeout:
        stats = self.stats()
        opening = f", {stats.opening} opening" if stats.opening else ""
        return PoolTimeout(
            f"the pool of '{self.name}' gave no connection within {waiter.limit:.1f} s ({stats.busy} of {stats.max} "
            f"busy{opening}, {stats.waiting} waiting); raise max_connections or acquire_timeout",
            data={"upstream": self.name, "phase": "queue", "limit_ms": round(waiter.limit * 1000)},
        )

    def lost(self, connection: C) -> None:
        """A connection tells that its server ended it; an idle one is closed now instead of when next looked at."""
        self._upkeep.ledger.lost(connection)
        self._upkeep.settle()

    def stats(self) -> PoolStats:
        """The numbers of this moment."""
        return self._upkeep.ledger.stats()

    async def aclose(self, *, drain_timeout: float = 10.0, force: bool = False) -> None:
        """Close in this order: admit nobody, fail the waiters, let leases come back until `drain_timeout`,
        close what is left by force, stop upkeep. Idempotent; a second caller waits for the first,
        and `force` cuts its draining short."""
        upkeep = self._upkeep
        with anyio.CancelScope(shield=True):
            upkeep.shut()
            if not force:
                with anyio.move_on_after(drain_timeout):
                    await upkeep.wait_drained()
            upkeep.force(hurry=force)
            upkeep.abandon()
            await upkeep.stopped.wait()

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<Pool '{self.name}' {stats.idle} idle, {stats.busy} busy, {stats.opening} opening of {stats.max}, "
            f"{stats.waiting} waiting>"
        )
