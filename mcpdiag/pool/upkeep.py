"""The pool's maintenance: it owns the return channel, opens, expires and closes connections.

It holds the books and the channel, never the `Pool`: when the last reference to a pool is dropped its channel
closes, this task sees the end of it, closes every connection and stops.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from mcpdiag.config import PoolLimits
from mcpdiag.connection.base import Connection, ConnectionState
from mcpdiag.errors import ConnectError, McpDiagError, ShuttingDown
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.pool.channel import ReturnChannel
from mcpdiag.pool.ledger import Ledger, Slot
from mcpdiag.pool.waiter import Waiter

C = TypeVar("C", bound=Connection)
log = logging.getLogger("mcpdiag.pool")
Connect = Callable[[], Awaitable[C]]
# Above so many returns a second this task looks only every LINGER seconds: a wake for each costs a tenth of the
# throughput, and whoever needs what is on the channel drains it without this task.
BUSY_RATE = 1000.0
BUSY_LOOK = 0.05  # seconds over which the rate is taken
LINGER = 0.005
CLOSE_LIMIT = 30.0  # a connection bounds its own close; this only guards against one that does not


class Upkeep(Generic[C]):
    """Everything of a pool that does I/O or takes time.

    `connect` gives the pool's opener, or None once the pool is gone.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connect[C] | None],
        limits: PoolLimits,
        *,
        hook: Hook = NO_HOOK,
        channel_size: int | None = None,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self.name = name
        self.limits = limits
        self.ledger: Ledger[C] = Ledger(limits)
        self.clock = clock
        self.stopped = anyio.Event()
        if channel_size is None:
            channel_size = limits.max_connections * limits.return_channel_multiplier
        self.returns: ReturnChannel[Slot[C]] = ReturnChannel(channel_size)
        self._connect = connect
        self._hook = hook
        self._tasks: TaskGroup | None = None
        self._thread = 0
        self._forgotten = False
        self._hurry = False
        self._changed = anyio.Event()
        self._said_single_shot = False
        self._busy, self._looked_at, self._returns = (
            False,
            0.0,
            0,
        )  # how many returns there were when last looked at

    # -- the task ----------------------------------------------------------------------------------------

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run until the channel is closed; then every connection is closed before this returns."""
        if self._thread:
            raise RuntimeError(f"the pool of '{self.name}' was started before; a pool starts once")
        self._thread = threading.get_ident()
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._tick)
                self._keep_warm()
                task_status.started()
                try:
                    while await self.returns.wait():
                        self.drain(look=not self._busy)
                        self.settle()
                        if self._is_busy():
                            await anyio.sleep(LINGER)
                finally:
                    self.shut()
                    self.force()
                    self._tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            self.stopped.set()

    def _is_busy(self) -> bool:
        now, returns = self.clock(), self.ledger.count.returns
        if now - self._looked_at >= BUSY_LOOK:
            self._busy = returns - self._returns > BUSY_RATE * (now - self._looked_at)
            self._looked_at, self._returns = now, returns
        return self._busy

    async def _tick(self) -> None:
        while True:  # the sleep comes first: a new pool has nothing to expire
            await anyio.sleep(self.limits.upkeep_interval)
            if self._forgotten:
                self.returns.close()
            self.ledger.expire(self.clock())
            self.settle()
            self._keep_warm()

    def _keep_warm(self) -> None:
        while self.ledger.size < self.limits.min_connections and (slot := self.ledger.reserve()) is not None:
            self._start(self._open, slot, None)

    # -- called by the pool, never awaiting -------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._tasks is not None

    def settle(self) -> None:
        """Do what the books ask for: close the doomed, share and open for those who wait."""
        ledger = self.ledger
        if ledger.doomed:
            for slot in ledger.take_doomed():
                self._tell_single_shot(slot)
                self._start(self._close, slot, False)
        if ledger.waiters:
            ledger.share()
            while (due := ledger.next_open()) is not None:
                self.open_for(*due)
        if ledger.shutting:
            self._changed.set()

    def give_back(self, slot: Slot[C], *, reusable: bool = True, unused: bool = False) -> None:
        """End a lease: onto the return channel, without waiting; closed if the channel cannot take it."""
        if self.ledger.release(slot, reusable=reusable, unused=unused) and not self.returns.put(slot):
            self.ledger.overflowed(slot)
            self._hook.emit(Happened("return_overflow", self.name))
        elif self.ledger.waiters or self.ledger.shutting:
            self.drain()
        self.settle()

    def drain(self, *, look: bool = True) -> None:
        """Take whatever is on the return channel now (`look`: see `Ledger.returned`)."""
        now = self.clock()
        while (slot := self.returns.take()) is not None:
            self.ledger.returned(slot, now, look=look)

    def open_for(self, slot: Slot[C], waiter: Waiter[C]) -> None:
        """Open a connection into a reserved slot, on behalf of a waiter."""
        waiter.expect_open()
        self._start(self._open, slot, waiter)

    def forget(self) -> None:
        """The pool was garbage-collected. That may happen in any thread, so only the own one ends the channel at
        once; the next tick sees it otherwise."""
        self._forgotten = True
        if self._thread in (0, threading.get_ident()):
            self.abandon()

    def abandon(self) -> None:
        """Nobody needs the pool any more: end the channel, and with it the task."""
        self.returns.close()
        if self._tasks is None:
            self.stopped.set()

    def shut(self) -> None:
        """Admit nobody: fail the waiters, stop what is being opened for them, close what is idle."""
        for waiter in self.ledger.shut():
            waiter.fail(self._shutting_down())
        for slot in self.ledger.slots(ConnectionState.OPENING):
            if slot.scope is not None:
                slot.scope.cancel()
        self.settle()

    async def wait_drained(self) -> None:
        """Wait until no connection is leased or on its way back."""
        number = self.ledger.number
        while number(ConnectionState.BUSY) or number(ConnectionState.RETURNING):
            if self._changed.is_set():
                self._changed = anyio.Event()
            await self._changed.wait()

    def force(self, *, hurry: bool = False) -> None:
        """Close what is leased, at once; with `hurry` nothing is closed nicely any more."""
        if hurry:
            self._hurry = True
            for slot in self.ledger.slots(ConnectionState.CLOSING):
                if slot.scope is not None:
                    slot.scope.cancel()
        self.ledger.doom_leased()
        for slot in self.ledger.take_doomed():
            self._start(self._close, slot, True)
        self.settle()

    # -- I/O ---------------------------------------------------------------------------------------------

    def _start(self, what: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(what, *args)

    async def _open(self, slot: Slot[C], waiter: Waiter[C] | None) -> None:
        ledger = self.ledger
        error: McpDiagError | None = None
        try:
            with anyio.CancelScope() as slot.scope:
                error = await self._connect_into(slot)
        finally:
            if slot.connection is None:
                ledger.open_failed(slot, cancelled=error is None)
            if waiter is not None:
                waiter.opening = False  # its connection may have gone to somebody before it in the queue
                if slot.connection is None or error is not None:
                    waiter.fail(error or self._shutting_down())
                    ledger.leave(waiter)
            if error is not None:
                self._hook.emit(Happened("connect_failed", self.name, detail=error.message))
            self.settle()

    async def _connect_into(self, slot: Slot[C]) -> McpDiagError | None:
        connect, began = self._connect(), self.clock()
        if connect is None or self.ledger.shutting:
            return None
        try:
            connection = await connect()
        except McpDiagError as error:
            return error
        except (Exception, anyio.get_cancelled_exc_class()) as error:
            if not isinstance(error, Exception) and anyio.current_effective_deadline() == -math.inf:
                raise  # we are cancelled; else the opener let a cancellation of its own escape, which is a failure
            log.exception("connecting to '%s' failed in an unexpected way", self.name)
            failure = ConnectError(
                f"connecting to '{self.name}' failed: {error!r}", data={"upstream": self.name}
            )
            failure.__cause__ = error
            return failure
        now = self.clock()
        self.ledger.opened(slot, connection, now, now - began)
        if connection.healthy:
            return None
        # Not tried again on behalf of the same caller: a server that dies at once would be started without end.
        return ConnectError(
            f"the connection to '{self.name}' was lost as soon as it was open", data={"upstream": self.name}
        )

    async def _close(self, slot: Slot[C], force: bool) -> None:
        """Nicely, unless `force`; by force where that hangs or raises. Then it leaves the books in any case."""
        try:
            if force or self._hurry or not await self._closed(slot, force=False):
                await self._closed(slot, force=True)
        finally:
            self.ledger.closed(slot)

    async def _closed(self, slot: Slot[C], *, force: bool) -> bool:
        assert slot.connection is not None
        try:
            with anyio.move_on_after(CLOSE_LIMIT, shield=True) as scope:
                slot.scope = None if force else scope
                await slot.connection.aclose(force=force)
                return True
        # Shielded: a cancellation that arrives here is the connection's own.
        except (Exception, anyio.get_cancelled_exc_class()):
            log.exception("closing a connection of '%s' failed", self.name)
        else:
            if not self._hurry:
                log.error("a connection of '%s' did not close within %g s", self.name, CLOSE_LIMIT)
        return False

    # -- words -------------------------------------------------------------------------------------------

    def _shutting_down(self) -> ShuttingDown:
        return ShuttingDown(f"the pool of '{self.name}' is closing", data={"upstream": self.name})

    def _tell_single_shot(self, slot: Slot[C]) -> None:
        if self._said_single_shot or slot.connection is None or not slot.connection.single_shot:
            return
        self._said_single_shot = True
        self._hook.emit(Happened("single_shot", self.name))
        log.warning(
            "the server '%s' ends after a single exchange, so its connections cannot be reused: every call pays for "
            "a start; run a persistent server, or one that speaks HTTP (docs/transport-compatibility.md)",
            self.name,
        )
