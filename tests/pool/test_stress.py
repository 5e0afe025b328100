"""Random callers, cancellations, failures and closes; every invariant is checked after every step of any task.

Each round is one seed on virtual time. STRESS_SECONDS says how long to go on with new seeds (2 seconds by
default, both loops together). A failure names its seed, and STRESS_SEED plays that round alone; only the
order in which a loop runs tasks that are ready together is not the seed's.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

import anyio
import pytest
import trio

from mcpdiag.config import PoolLimits
from mcpdiag.connection.base import ConnectionState
from mcpdiag.connection.scripted import Script, ScriptedConnection, ScriptedServer
from mcpdiag.errors import CapacityError, ConnectError
from mcpdiag.pool.pool import Pool
from mcpdiag.pool.stats import PoolStats
from tests.pool.harness import ScriptedLease, check, ledger_of
from tests.pool.virtual_time import VirtualLoop, backend_options

SECONDS = float(os.environ.get("STRESS_SECONDS", "2"))
SEED = os.environ.get("STRESS_SEED")


class Round:
    """One pool, a few callers, a server that misbehaves: all of it decided by the seed."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.steps = 0
        self.leases: set[ScriptedLease] = set()
        self.alone: set[ScriptedConnection] = set()
        self.open_pool: Pool[ScriptedConnection] | None = None
        self.before = PoolStats()
        most = dice.choice([1, 1, 2, 3, 8])
        self.limits = PoolLimits(
            max_connections=most,
            min_connections=dice.randint(0, min(most, 2)),
            max_waiting=dice.choice([0, 2, 1000]),
            idle_timeout=dice.choice([0.5, 20.0]),
            max_lifetime=dice.choice([1.0, 1000.0]),
            upkeep_interval=dice.choice([0.1, 5.0]),
        )
        self.channel_size = dice.choice([None, None, 0, 1])
        self.capacity = dice.choice([1, 1, 2, 5])
        self.trouble = dice.choice([0.0, 0.1, 0.5])
        self.server = ScriptedServer(*[self.a_script() for _ in range(50)])

    def a_script(self) -> Script:
        dice = self.dice
        return Script(
            capacity=self.capacity,
            open_s=dice.choice([0.0, 0.0, 0.3, 2.0]),
            open_error=self.maybe(ConnectError("refused"), ZeroDivisionError()),
            exchanges=self.maybe(1, 3),
            single_shot=self.capacity == 1 and dice.random() < self.trouble / 4,
            close_s=dice.choice([0.0, 0.0, 1.0, float("inf")]),
            close_error=self.maybe(OSError("broken")),
            force_s=dice.choice([0.0, 0.5]),
        )

    def maybe(self, *things: Any) -> Any:
        return self.dice.choice(things) if self.dice.random() < self.trouble else None

    # -- the invariants ------------------------------------------------------------------------------------

    def check(self) -> None:
        pool = self.open_pool
        if pool is None:
            return
        self.steps += 1
        self.before = stats = check(pool, self.before)
        assert stats.acquires == stats.returns + len(self.leases)
        ledger = ledger_of(pool)
        slots = [slot for state in ConnectionState for slot in ledger.slots(state)]
        held = {slot.connection for slot in slots if slot.connection is not None}
        assert {*self.server.open} == held, (
            "a connection is open that is not in the books, or the other way round"
        )
        for connection in self.alone:
            assert connection.inflight <= 1, "an exclusive connection is shared"

    # -- the tasks -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        dice = self.dice
        with anyio.fail_after(3600):
            async with anyio.create_task_group() as tasks:
                pool = self.open_pool = Pool(
                    "stress",
                    self.server.connect,
                    self.limits,
                    acquire_timeout=dice.choice([0.2, 5.0]),
                    connect_timeout=1.0,
                    channel_size=self.channel_size,
                )
                ledger_of(pool).jitter = dice.random
                await pool.start(tasks)
                async with anyio.create_task_group() as callers:
                    for _ in range(dice.choice([2, 5, 15])):
                        callers.start_soon(self.caller, pool)
                    callers.start_soon(self.rude_server, pool)
                    if dice.random() < 0.5:
                        await anyio.sleep(dice.uniform(0, 10))
                        for _ in range(dice.randint(1, 3)):
                            callers.start_soon(self.close, pool)
                await pool.aclose()
                self.check()
        assert not self.leases
        assert self.server.open == []
        stats = pool.stats()
        assert (stats.size, stats.closing, stats.waiting) == (0, 0, 0)
        self.open_pool = None

    async def caller(self, pool: Pool[ScriptedConnection]) -> None:
        dice = self.dice
        for _ in range(dice.randint(1, 12)):
            with anyio.CancelScope() as scope:
                if dice.random() < 0.3:
                    scope.deadline = anyio.current_time() + dice.choice([0.0, 0.0, 0.3, 1.0])
                try:
                    await self.use(pool)
                except CapacityError:
                    await anyio.sleep(dice.uniform(0, 0.5))
                except ConnectError:
                    continue

    async def use(self, pool: Pool[ScriptedConnection]) -> None:
        dice = self.dice
        exclusive = dice.random() < 0.2
        timeout = dice.choice([None, None, 0.0, 3.0])
        lease = await pool.acquire(exclusive=exclusive, timeout=timeout)
        self.leases.add(lease)
        connection = lease.connection
        if exclusive:
            self.alone.add(connection)
        reusable = False
        try:
            if connection.healthy:  # it may have been lost, or closed by force, on its way here
                with connection.exchange():
                    if dice.random() < 0.8:
                        await anyio.sleep(dice.choice([0.0, 0.0, 0.1, 1.0]))
                    reusable = dice.random() >= self.trouble / 2
        finally:
            self.alone.discard(connection)
            self.leases.discard(lease)
            lease.release(reusable=reusable)
            if dice.random() < 0.1:
                lease.release(reusable=dice.random() < 0.5)

    async def rude_server(self, pool: Pool[ScriptedConnection]) -> None:
        dice = self.dice
        for _ in range(10):
            await anyio.sleep(dice.uniform(0, 1))
            if self.server.open and dice.random() < self.trouble:
                connection = dice.choice(self.server.open)
                connection.lose()
                if dice.random() < 0.7:
                    pool.lost(connection)

    async def close(self, pool: Pool[ScriptedConnection]) -> None:
        dice = self.dice
        await anyio.sleep(dice.choice([0.0, 1.0]))
        await pool.aclose(drain_timeout=dice.choice([0.0, 0.5, 50.0]), force=dice.random() < 0.3)


class CheckedLoop(VirtualLoop):
    """Checks after every callback, and so after every step of every task."""

    def after_step(self) -> None: ...

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        def step(*given: Any) -> None:
            callback(*given)
            self.after_step()

        return super().call_soon(step, *args, context=context)


class CheckedSteps(trio.abc.Instrument):
    def __init__(self, round_: Round) -> None:
        self.round = round_
        self.error: BaseException | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.error is None:
            try:
                self.round.check()
            except BaseException as error:
                self.error = error


def play(seed: int, backend: str) -> int:
    """One round; returns how many steps were checked."""
    round_ = Round(seed)
    errors: list[BaseException] = []

    def after_step() -> None:
        try:
            round_.check()
        except BaseException as error:
            errors.append(error)

    if backend == "asyncio":

        def checked_loop() -> CheckedLoop:
            loop = CheckedLoop()
            loop.after_step = after_step  # type: ignore[method-assign]
            return loop

        anyio.run(round_.run, backend="asyncio", backend_options={"loop_factory": checked_loop})
    else:
        steps = CheckedSteps(round_)
        options = {**backend_options("trio"), "instruments": [steps]}
        anyio.run(round_.run, backend="trio", backend_options=options)
        errors += [steps.error] if steps.error else []
    if errors:
        raise errors[0]
    return round_.steps


@pytest.mark.timeout(60 + SECONDS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_every_invariant_holds_after_every_step_whatever_the_callers_do(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "mcpdiag.pool")  # broken closes are part of it
    until = time.monotonic() + SECONDS / 2
    first = seed = int(SEED) if SEED else random.randrange(1_000_000_000)
    steps = 0
    while seed == first or (SEED is None and time.monotonic() < until):
        try:
            steps += play(seed, backend)
        except BaseException as error:
            error.add_note(f"repeat it with STRESS_SEED={seed} on {backend}")
            raise
        seed += 1
    print(f"{backend}: {seed - first} rounds, {steps} steps")
    assert steps > 100
