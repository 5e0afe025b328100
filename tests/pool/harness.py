"""A running pool on a scripted server, what it told its hook, and the invariants of its books."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeAlias

import anyio
from anyio.abc import TaskGroup

from mcpdiag.config import PoolLimits
from mcpdiag.connection.base import ConnectionState
from mcpdiag.connection.scripted import Script, ScriptedConnection, ScriptedServer
from mcpdiag.hooks import Event, Happened
from mcpdiag.pool.ledger import Ledger
from mcpdiag.pool.pool import Lease, Pool
from mcpdiag.pool.stats import PoolStats

ScriptedPool: TypeAlias = Pool[ScriptedConnection]
ScriptedLease: TypeAlias = Lease[ScriptedConnection]
GAUGES = {"max", "size", "idle", "busy", "opening", "closing", "waiting", "returning"}


class Heard(list[Event]):
    """A hook that keeps what it was told."""

    def emit(self, event: Event, /) -> None:
        self.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self if isinstance(event, Happened)]


@asynccontextmanager
async def running(
    server: ScriptedServer | Script | None = None, *, drain_timeout: float = 0.0, **settings: Any
) -> AsyncIterator[ScriptedPool]:
    """A started pool. Settings that PoolLimits knows are limits. Afterwards it is closed and nothing is open."""
    if not isinstance(server, ScriptedServer):
        server = ScriptedServer(*[server] if server else [])
    limits = PoolLimits(**{key: settings.pop(key) for key in [*settings] if key in PoolLimits.model_fields})
    async with anyio.create_task_group() as tasks:
        pool = Pool("demo", server.connect, limits, **settings)
        await pool.start(tasks)
        yield pool
        check(pool)
        await pool.aclose(drain_timeout=drain_timeout)
    stats = check(pool)
    assert (stats.size, stats.closing, stats.waiting) == (0, 0, 0)
    assert server.open == []


async def take_all(pool: ScriptedPool) -> list[ScriptedLease]:
    """Lease whatever the pool may open."""
    return [await pool.acquire() for _ in range(pool.stats().max)]


class Caller:
    """A task that acquires, and what came of it."""

    def __init__(self, pool: ScriptedPool, **how: Any) -> None:
        self.scope = anyio.CancelScope()
        self.lease: ScriptedLease | None = None
        self.error: Exception | None = None
        self.done = anyio.Event()
        self._pool, self._how = pool, how

    async def run(self) -> None:
        try:
            with self.scope:
                self.lease = await self._pool.acquire(**self._how)
        except Exception as error:
            self.error = error
        finally:
            self.done.set()


async def call(tasks: TaskGroup, pool: ScriptedPool, **how: Any) -> Caller:
    """Start a caller and return once it has the connection, or waits and nothing else happens."""
    caller = Caller(pool, **how)
    tasks.start_soon(caller.run)
    await anyio.wait_all_tasks_blocked()
    return caller


def ledger_of(pool: ScriptedPool) -> Ledger[ScriptedConnection]:
    return pool._upkeep.ledger


def check(pool: ScriptedPool, before: PoolStats | None = None) -> PoolStats:
    """Assert every invariant that holds between two steps of any task; `before` is an earlier record."""
    stats = pool.stats()
    check_books(ledger_of(pool))
    ledger = ledger_of(pool)
    if not ledger.shutting:
        for waiter in ledger.waiters:
            assert waiter.opening or stats.size == stats.max, "a caller waits while a place is free"
    if before is not None:
        now, then = asdict(stats), asdict(before)
        for name in now.keys() - GAUGES:
            assert now[name] >= then[name], f"the counter {name} went back"
    return stats


def check_books(ledger: Ledger[Any]) -> None:
    """The invariants of the ledger alone."""
    stats = ledger.stats()
    assert stats.size == stats.idle + stats.busy + stats.opening + stats.returning
    assert stats.acquires == stats.acquires_ready + stats.acquires_waited
    assert 0 <= stats.size <= stats.max
    assert stats.returns_bad <= stats.returns <= stats.acquires
    assert stats.reuses <= stats.acquires
    for state in ConnectionState:
        assert ledger.number(state) == len(ledger.slots(state)), f"the number of {state.value} is wrong"
    idle = ledger.slots(ConnectionState.IDLE)
    assert len(ledger._idle) == len(idle) == len({*map(id, ledger._idle)} & {*map(id, idle)})
    assert not (idle and ledger.waiters), "a caller waits while a connection is idle"
    for slot in ledger.slots(ConnectionState.BUSY):
        assert slot.connection is not None
        assert 1 <= slot.inflight <= slot.connection.capacity
    for slot in ledger._shared:
        assert slot.state is ConnectionState.BUSY
        assert slot.connection is not None
        assert slot.connection.capacity > 1
