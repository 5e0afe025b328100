"""Who is idle, busy, opening, closing, and who gets what next.

Every decision of the pool is a plain function here, without `await`: no lock is needed and no race is possible.
What needs I/O (opening, closing) is returned to the async shell (`pool.py`, `upkeep.py`), which does it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio

from mcpdiag.config import PoolLimits
from mcpdiag.connection.base import Connection, ConnectionState, move
from mcpdiag.pool.stats import PoolStats
from mcpdiag.pool.waiter import Waiter

C = TypeVar("C", bound=Connection)
OPENING, IDLE, BUSY = ConnectionState.OPENING, ConnectionState.IDLE, ConnectionState.BUSY
RETURNING, CLOSING, CLOSED = ConnectionState.RETURNING, ConnectionState.CLOSING, ConnectionState.CLOSED


@dataclass(slots=True, eq=False)
class Slot(Generic[C]):
    """One place in the pool and the connection in it."""

    state: ConnectionState = OPENING
    connection: C | None = None
    inflight: int = 0
    leased: int = 0
    exclusive: bool = False  # nobody else may join
    idle_since: float = 0.0
    expires_at: float = float("inf")
    scope: anyio.CancelScope | None = None  # the open or the nice close under way

    @property
    def has_room(self) -> bool:
        connection = self.connection
        return (
            connection is not None
            and not self.exclusive
            and self.inflight < connection.capacity
            and connection.healthy
        )


@dataclass(slots=True)
class Counters:
    """The counters of PoolStats, mutable; names are the same."""

    acquires_ready: int = 0
    acquires_waited: int = 0
    wait_s: float = 0.0
    acquire_timeouts: int = 0
    acquire_cancelled: int = 0
    opens: int = 0
    open_s: float = 0.0
    open_errors: int = 0
    reuses: int = 0
    returns: int = 0
    returns_bad: int = 0
    return_overflows: int = 0
    closed_idle: int = 0
    closed_lifetime: int = 0
    closed_lost: int = 0
    closed_single_shot: int = 0
    pins: int = 0


@dataclass(eq=False)
class Ledger(Generic[C]):
    """The pool's books. The caller passes the time; nothing here reads a clock."""

    limits: PoolLimits
    jitter: Callable[[], float] = random.random
    count: Counters = field(default_factory=Counters)
    waiters: deque[Waiter[C]] = field(default_factory=deque)
    doomed: list[Slot[C]] = field(default_factory=list)  # CLOSING, for the shell to close
    shutting: bool = False

    def __post_init__(self) -> None:
        self._slots: dict[Slot[C], None] = {}  # a set that keeps the order of opening
        self._idle: list[Slot[C]] = []  # a stack: the freshest is used first, the rest can expire
        self._shared: list[Slot[C]] = []  # BUSY, of connections that carry several exchanges
        self._number = dict.fromkeys(ConnectionState, 0)

    # -- looking -----------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        number = self._number
        return number[OPENING] + number[IDLE] + number[BUSY] + number[RETURNING]

    def number(self, state: ConnectionState) -> int:
        """How many slots are in `state`."""
        return self._number[state]

    def slots(self, state: ConnectionState) -> list[Slot[C]]:
        """Every slot in `state`, as a new list."""
        return [slot for slot in self._slots if slot.state is state]

    def stats(self) -> PoolStats:
        """A record of this moment."""
        number, count = self._number, self.count
        return PoolStats(
            max=self.limits.max_connections,
            size=self.size,
            idle=number[IDLE],
            busy=number[BUSY],
            opening=number[OPENING],
            closing=number[CLOSING],
            waiting=len(self.waiters),
            returning=number[RETURNING],
            acquires=count.acquires_ready + count.acquires_waited,
            **{name: getattr(count, name) for name in Counters.__slots__},
        )

    # -- handing out -------------------------------------------------------------------------------------

    def take(self, *, exclusive: bool = False) -> Slot[C] | None:
        """A healthy connection that is free now, leased to the caller, or None.

        Lost connections met on the way are doomed. With `exclusive` nobody else will share it.
        """
        slot = self._least_loaded() if self._shared and not exclusive else None
        while slot is None and self._idle:
            candidate = self._idle.pop()
            connection = candidate.connection
            assert connection is not None
            if connection.healthy:
                slot = candidate
            else:
                self._doom_lost(candidate)
        if slot is None:
            return None
        self._lease(slot, exclusive=exclusive)
        count = self.count
        count.acquires_ready += 1
        if slot.leased:
            count.reuses += 1
        slot.leased += 1
        return slot

    def _least_loaded(self) -> Slot[C] | None:
        best: Slot[C] | None = None
        spared = self._spared() if self.waiters else None
        for slot in self._shared:
            if slot is not spared and (best is None or slot.inflight < best.inflight) and slot.has_room:
                best = slot
        return best

    def _spared(self) -> Slot[C] | None:
        """The emptiest shared connection, if somebody waits for one of its own and none is being opened for it.

        Nobody new joins it, so that it comes empty: those who share could keep the other one waiting for ever.
        """
        if not any(waiter.exclusive and not waiter.opening for waiter in self.waiters):
            return None
        return min(self._shared, key=lambda slot: slot.inflight, default=None)

    def _lease(self, slot: Slot[C], *, exclusive: bool) -> None:
        if slot.state is not BUSY:
            self._move(slot, BUSY)
            connection = slot.connection
            if not exclusive and connection is not None and connection.capacity > 1:
                self._shared.append(slot)
            slot.exclusive = exclusive
        slot.inflight += 1

    def reserve(self) -> Slot[C] | None:
        """A place for a connection about to be opened, or None if the pool is full or closing."""
        if self.shutting or self.size >= self.limits.max_connections:
            return None
        slot: Slot[C] = Slot()
        self._slots[slot] = None
        self._number[OPENING] += 1
        return slot

    def opened(self, slot: Slot[C], connection: C, now: float, took: float) -> None:
        """The connection of a reserved slot is ready: to the first waiter, else idle."""
        slot.connection = connection
        slot.expires_at = now + self.limits.max_lifetime * (1.0 - 0.1 * self.jitter())
        self.count.opens += 1
        self.count.open_s += took
        if self.shutting:
            self._doom(slot)
        elif not connection.healthy:
            self._doom_lost(slot)
        else:
            self._move(slot, IDLE)
            self._settle(slot, now)

    def open_failed(self, slot: Slot[C], *, cancelled: bool = False) -> None:
        """The open of a reserved slot failed, or was `cancelled`, which is no error: the place is free again."""
        if not cancelled:
            self.count.open_errors += 1
        self._move(slot, CLOSED)

    def _settle(self, slot: Slot[C], now: float) -> None:
        """An IDLE slot that is in no list: to the first waiters that accept it, else onto the idle stack."""
        self._offer(slot)
        if slot.state is IDLE:
            slot.idle_since = now
            self._idle.append(slot)

    def _offer(self, slot: Slot[C]) -> None:
        for waiter in [*self.waiters]:
            shared = slot.state is BUSY
            if shared and not slot.has_room:
                return
            if shared and waiter.exclusive:
                if slot is self._spared():
                    return
            elif waiter.offer(slot):
                self.waiters.remove(waiter)
                self._lease(slot, exclusive=waiter.exclusive)

    def share(self) -> None:
        """Offer what room there is on shared connections to whoever waits."""
        if not self._shared:
            return
        spared = self._spared()
        for slot in [*self._shared]:
            if slot is not spared:
                self._offer(slot)

    def accepted(self, waiter: Waiter[C], now: float) -> Slot[C]:
        """The waiter's caller takes the slot that it was offered."""
        slot, count = waiter.slot, self.count
        assert slot is not None
        count.acquires_waited += 1
        count.wait_s += now - waiter.started_at
        if slot.leased:
            count.reuses += 1
        slot.leased += 1
        return slot

    def leave(self, waiter: Waiter[C]) -> None:
        """The waiter's caller goes away, or was failed."""
        waiter.leave()
        if waiter in self.waiters:
            self.waiters.remove(waiter)

    def next_open(self) -> tuple[Slot[C], Waiter[C]] | None:
        """A freed place and the first waiter on whose behalf nothing is being opened yet, or None."""
        waiter = next((w for w in self.waiters if not w.opening), None)
        if waiter is None or (slot := self.reserve()) is None:
            return None
        return slot, waiter

    # -- taking back -------------------------------------------------------------------------------------

    def release(self, slot: Slot[C], *, reusable: bool = True, unused: bool = False) -> bool:
        """End one lease. True if the slot now is RETURNING and belongs on the return channel.

        A slot that was closed under its lease (a forced shutdown) has nothing left to give back. A connection that
        still carries other exchanges stays, whatever `reusable` says of this one. With `unused` the lease was
        offered but never taken, and does not count.
        """
        if not unused:
            self.count.returns += 1
            if not reusable:
                self.count.returns_bad += 1
        if slot.state is not BUSY:
            return False
        slot.inflight -= 1
        if slot.inflight:
            return False
        if not reusable:
            connection = slot.connection
            if connection is not None and connection.single_shot:
                self.count.closed_single_shot += 1
            self._doom(slot)
            return False
        if self._shared:
            self._leave_shared(slot)
        self._move(slot, RETURNING)
        return True

    def returned(self, slot: Slot[C], now: float, *, look: bool = True) -> None:
        """A slot came off the return channel: reuse it, or doom it.

        With `look` false nobody waits and somebody is about to `take`, who asks it for its health anyway.
        """
        connection = slot.connection
        if slot.state is not RETURNING or connection is None:
            return
        if self.shutting:
            self._doom(slot)
        elif (look or self.waiters) and not connection.healthy:
            self._doom_lost(slot)
        elif now >= slot.expires_at:
            self.count.closed_lifetime += 1
            self._doom(slot)
        else:
            self._move(slot, IDLE)
            self._settle(slot, now)

    def overflowed(self, slot: Slot[C]) -> None:
        """The return channel was full or closed: the connection goes, its place comes back."""
        self.count.return_overflows += 1
        self._doom(slot)

    def expire(self, now: float) -> None:
        """Take out idle connections that are lost, too old or idle too long; keep `min_connections` warm ones."""
        keep: list[Slot[C]] = []
        spare = self.size - self.limits.min_connections
        for slot in self._idle:  # the stalest first
            connection = slot.connection
            assert connection is not None
            if not connection.healthy:
                self._doom_lost(slot)
            elif now >= slot.expires_at:
                self.count.closed_lifetime += 1
                self._doom(slot)
            elif now - slot.idle_since >= self.limits.idle_timeout and spare > 0:
                self.count.closed_idle += 1
                self._doom(slot)
            else:
                keep.append(slot)
                continue
            spare -= 1
        self._idle = keep
        for slot in self._shared:  # steady load would keep it for ever: nobody new joins, so it comes back
            if now >= slot.expires_at and self.size < self.limits.max_connections:
                slot.exclusive = True

    def lost(self, connection: C) -> None:
        """The connection says that its server ended it: an idle one is doomed at once, a busy one on return."""
        for slot in self._idle:
            if slot.connection is connection:
                self._idle.remove(slot)
                self._doom_lost(slot)
                return

    def shut(self) -> list[Waiter[C]]:
        """Stop handing out. Idle connections are doomed; the waiters are returned, to be failed."""
        self.shutting = True
        idle, self._idle = self._idle, []
        for slot in idle:
            self._doom(slot)
        waiters, self.waiters = [*self.waiters], deque()
        return waiters

    def closed(self, slot: Slot[C]) -> None:
        """The shell has closed a doomed connection."""
        self._move(slot, CLOSED)

    def take_doomed(self) -> list[Slot[C]]:
        """Whatever must be closed now; the caller closes it and then calls `closed`."""
        doomed, self.doomed = self.doomed, []
        return doomed

    def doom_leased(self) -> None:
        """Close what is leased or on its way back (a forced shutdown)."""
        for slot in [*self.slots(BUSY), *self.slots(RETURNING)]:
            self._doom(slot)

    def _doom_lost(self, slot: Slot[C]) -> None:
        if slot.connection is not None and slot.connection.single_shot:
            self.count.closed_single_shot += 1
        else:
            self.count.closed_lost += 1
        self._doom(slot)

    def _doom(self, slot: Slot[C]) -> None:
        self._leave_shared(slot)
        self._move(slot, CLOSING)
        self.doomed.append(slot)

    def _leave_shared(self, slot: Slot[C]) -> None:
        if slot in self._shared:
            self._shared.remove(slot)

    def _move(self, slot: Slot[C], new: ConnectionState) -> None:
        old = slot.state
        slot.state = move(old, new)
        self._number[old] -= 1
        if new is CLOSED:
            del self._slots[slot]
        else:
            self._number[new] += 1
