"""How a pool ends: admit nobody, fail the waiters, drain, force, stop upkeep; once, however often it is asked."""

from __future__ import annotations

import anyio
import pytest

from mcpdiag.config import PoolLimits
from mcpdiag.connection.scripted import Script, ScriptedConnection, ScriptedServer
from mcpdiag.errors import ShuttingDown
from mcpdiag.pool.pool import Pool
from tests.pool.harness import call, check, running, take_all

pytestmark = pytest.mark.anyio
settle = anyio.wait_all_tasks_blocked


async def test_close_follows_its_order() -> None:
    """Stop admitting, fail the waiters, drain until drain_timeout, close what is left hard, stop upkeep."""
    server = ScriptedServer(Script(close_s=1.0, force_s=1.0))
    async with running(server, max_connections=3) as pool, anyio.create_task_group() as tasks:
        quick, slow, idle = await take_all(pool)
        idle.release()
        await settle()
        again = await pool.acquire()
        waiting = await call(tasks, pool, timeout=99.0)
        again.release()
        await waiting.done.wait()
        assert waiting.lease is not None
        waiting.lease.release()
        await settle()
        filler = await pool.acquire()
        waiting = await call(tasks, pool, timeout=99.0)
        assert check(pool).waiting == 1
        began = anyio.current_time()

        async def close() -> None:
            await pool.aclose(drain_timeout=10.0)

        tasks.start_soon(close)
        await waiting.done.wait()
        assert isinstance(waiting.error, ShuttingDown)
        with pytest.raises(ShuttingDown):
            await pool.acquire()
        await anyio.sleep(3.0)
        quick.release()
        filler.release()
        await anyio.sleep(3.0)
        assert quick.connection.closes == ["nice"]
        assert slow.connection.closes == []
        assert (check(pool).busy, pool.stats().returning) == (1, 0)
        await anyio.sleep(5.0)
        assert slow.connection.closes == ["force"]
        await pool._upkeep.stopped.wait()
        assert anyio.current_time() - began == pytest.approx(11.0, abs=0.5)
        slow.release()
        assert (check(pool).returns, pool.stats().acquires) == (6, 6)


async def test_draining_ends_as_soon_as_the_last_lease_is_back() -> None:
    async with running() as pool, anyio.create_task_group() as tasks:
        leases = [await pool.acquire() for _ in range(2)]
        tasks.start_soon(pool.aclose)
        began = anyio.current_time()
        for lease in leases:
            await anyio.sleep(2.0)
            lease.release()
        await pool._upkeep.stopped.wait()
        assert anyio.current_time() - began == pytest.approx(4.0)
        assert [lease.connection.closes for lease in leases] == [["nice"], ["nice"]]


async def test_closing_drains_the_return_channel() -> None:
    async with running() as pool:
        lease = await pool.acquire()
        lease.release()
        assert check(pool).returning == 1
        await pool.aclose()
        assert lease.connection.closes == ["nice"]


async def test_closing_again_does_nothing() -> None:
    async with running() as pool:
        (await pool.acquire()).release()
        for _ in range(3):
            await pool.aclose()
        assert check(pool).size == 0


async def test_who_closes_second_waits_for_the_first() -> None:
    async with running(Script(close_s=3.0)) as pool, anyio.create_task_group() as tasks:
        (await pool.acquire()).release()
        await settle()
        began = anyio.current_time()
        tasks.start_soon(pool.aclose)
        await settle()
        await pool.aclose()
        assert anyio.current_time() - began == pytest.approx(3.0, abs=0.3)
        assert pool._upkeep.stopped.is_set()


async def test_all_who_wait_for_the_drain_see_its_end() -> None:
    async with running() as pool, anyio.create_task_group() as tasks:
        leases = [await pool.acquire() for _ in range(3)]
        began = anyio.current_time()
        for _ in range(2):
            tasks.start_soon(lambda: pool.aclose(drain_timeout=1000.0))
        for lease in leases:
            await anyio.sleep(1.0)
            lease.release()
        await pool._upkeep.stopped.wait()
        assert anyio.current_time() - began == pytest.approx(3.0)


async def test_force_closes_leased_connections_at_once() -> None:
    async with running() as pool:
        lease = await pool.acquire()
        began = anyio.current_time()
        await pool.aclose(force=True)
        assert anyio.current_time() - began < 0.5
        assert lease.connection.closes == ["force"]
        lease.release()
        assert check(pool).returns == 1


async def test_force_during_a_drain_ends_it_for_both() -> None:
    async with running() as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()

        async def close() -> None:
            await pool.aclose(drain_timeout=1000.0)

        tasks.start_soon(close)
        await anyio.sleep(5.0)
        assert lease.connection.closes == []
        began = anyio.current_time()
        await pool.aclose(force=True)
        assert anyio.current_time() - began < 0.5
        assert lease.connection.closes == ["force"]


async def test_force_cuts_a_nice_close_short() -> None:
    server = ScriptedServer(Script(close_s=float("inf")))
    async with running(server) as pool, anyio.create_task_group() as tasks:
        (await pool.acquire()).release()
        await settle()
        tasks.start_soon(pool.aclose)
        await anyio.sleep(1.0)
        assert server.opened[0].closes == ["nice"]
        began = anyio.current_time()
        await pool.aclose(force=True)
        assert anyio.current_time() - began < 0.5
        assert server.opened[0].closes == ["nice", "force"]


async def test_force_closes_hard_what_was_about_to_be_closed_nicely() -> None:
    server = ScriptedServer(Script(close_s=float("inf")))
    async with running(server) as pool:
        (await pool.acquire()).release()
        await settle()
        await pool.aclose(force=True)  # the idle connection's nice close has not begun yet
        assert server.opened[0].closes == ["force"]


async def test_force_over_a_forced_close_changes_nothing() -> None:
    server = ScriptedServer(Script(force_s=2.0))
    async with running(server) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        for _ in range(2):
            tasks.start_soon(lambda: pool.aclose(force=True))
            await anyio.sleep(0.5)
        await pool._upkeep.stopped.wait()
        assert server.opened[0].closes == ["force"]
        lease.release()


@pytest.mark.parametrize("force", [False, True])
async def test_an_open_under_way_is_cancelled_and_its_caller_told(force: bool) -> None:
    server = ScriptedServer(Script(open_s=1000.0))
    async with running(server) as pool, anyio.create_task_group() as tasks:
        caller = await call(tasks, pool)
        began = anyio.current_time()
        await pool.aclose(force=force)
        assert anyio.current_time() - began < 0.5
        await caller.done.wait()
        assert isinstance(caller.error, ShuttingDown)
        stats = check(pool)
        assert (stats.opening, stats.open_errors, server.opened) == (0, 0, [])


async def test_an_open_under_way_is_cancelled_before_the_leases_are_drained() -> None:
    server = ScriptedServer(Script(), Script(open_s=1000.0))
    async with running(server) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        await call(tasks, pool)
        tasks.start_soon(pool.aclose)
        await anyio.sleep(1.0)
        assert (check(pool).opening, pool.stats().busy) == (0, 1)
        lease.release()


async def test_an_open_that_has_not_begun_yet_is_not_begun() -> None:
    server = ScriptedServer(Script(), Script(open_s=1000.0))
    async with running(server, max_connections=1) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        caller = await call(tasks, pool)
        lease.release(reusable=False)
        assert pool.stats().opening == 1  # its task has had no turn yet
        await pool.aclose(drain_timeout=5.0)
        assert server.attempts == 1
        assert isinstance(caller.error, ShuttingDown)


async def test_an_open_that_ends_during_the_drain_although_it_was_cancelled_is_closed() -> None:
    server = ScriptedServer(Script(open_s=3.0))

    async def stubborn() -> ScriptedConnection:
        with anyio.CancelScope(shield=True):
            await server.connect()
        return server.opened[0]

    async with anyio.create_task_group() as tasks:
        pool = Pool("demo", stubborn, PoolLimits(max_connections=1))
        await pool.start(tasks)
        caller = await call(tasks, pool)
        await pool.aclose(drain_timeout=1.0)
        assert server.opened[0].closes == ["nice"]
        assert isinstance(caller.error, ShuttingDown)


async def test_a_caller_that_is_itself_cancelled_still_closes_everything() -> None:
    async with running() as pool:
        lease = await pool.acquire()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.aclose(drain_timeout=1.0)
        assert lease.connection.closes == ["force"]
        assert pool._upkeep.stopped.is_set()


async def test_a_pool_that_was_never_started_closes() -> None:
    pool = Pool("demo", ScriptedServer().connect)
    with anyio.fail_after(1):
        await pool.aclose()
        await pool.aclose(force=True)
    async with anyio.create_task_group() as tasks:
        await pool.start(tasks)  # its task sees that and ends at once
    with pytest.raises(ShuttingDown):
        await pool.acquire()


async def test_a_lease_that_comes_back_after_everything_was_closed_is_counted_and_harms_nothing() -> None:
    async with running() as pool:
        lease = await pool.acquire()
        bad = await pool.acquire()
        await pool.aclose(force=True)
        lease.release()
        bad.release(reusable=False)
        assert (check(pool).returns, pool.stats().returns_bad) == (2, 1)
