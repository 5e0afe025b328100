"""What callers of the pool see: leases, the queue, its limits, and races frozen in the turn where they happen."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from mcpdiag.config import PoolLimits
from mcpdiag.connection.scripted import Script, ScriptedConnection, ScriptedServer
from mcpdiag.errors import ConnectError, PoolQueueFull, PoolTimeout, ShuttingDown
from mcpdiag.pool.pool import Pool
from tests.pool.harness import Caller, ScriptedLease, call, check, running, take_all
from tests.pool.virtual_time import VirtualLoop

pytestmark = pytest.mark.anyio
settle = anyio.wait_all_tasks_blocked


# -- acquire and release -----------------------------------------------------------------------------------


async def test_a_returned_connection_is_reused_and_the_return_channel_drains() -> None:
    async with running() as pool:
        first = await pool.acquire()
        first.release()
        assert pool.stats().returning == 1
        await settle()
        assert (pool.stats().returning, pool.stats().idle) == (0, 1)
        second = await pool.acquire()
        assert second.connection is first.connection
        assert (first.reused, second.reused) == (False, True)
        second.release()
        stats = check(pool)
        assert (stats.opens, stats.reuses, stats.acquires, stats.returns) == (1, 1, 2, 2)


async def test_a_connection_can_be_acquired_again_in_the_very_turn_in_which_it_was_released() -> None:
    """The upkeep task has had no turn yet: without this a busy caller would open one connection after another."""
    async with running() as pool:
        (await pool.acquire()).release()
        await settle()
        for _ in range(5):
            lease = pool.try_acquire()
            assert lease is not None
            lease.release()
        assert pool.stats().opens == 1


async def test_the_connections_grow_with_the_callers_up_to_max_connections_and_stay() -> None:
    async with running(max_connections=3) as pool:
        for _ in range(4):
            for lease in await take_all(pool):
                lease.release()
            await settle()
        stats = check(pool)
        assert (stats.opens, stats.idle, stats.acquires, stats.reuses) == (3, 3, 12, 9)


async def test_try_acquire_gives_none_and_opens_nothing_if_no_connection_is_idle() -> None:
    async with running() as pool:
        assert pool.try_acquire() is None
        await settle()
        assert pool.stats().opens == 0


async def test_a_lease_can_be_released_once_and_doing_it_again_changes_nothing() -> None:
    async with running() as pool:
        lease = await pool.acquire()
        lease.release()
        lease.release()
        other = await pool.acquire()
        lease.release(reusable=False)
        assert other.connection.closes == []
        stats = check(pool)
        assert (stats.returns, stats.returns_bad, stats.busy) == (1, 0, 1)
        other.release()


async def test_a_connection_that_is_not_reusable_is_closed_and_its_place_is_free_at_once() -> None:
    server = ScriptedServer(Script(close_s=60.0))
    async with running(server, max_connections=1) as pool:
        (await pool.acquire()).release(reusable=False)
        stats = check(pool)
        assert (stats.size, stats.closing, stats.returns_bad) == (0, 1, 1)
        lease = await pool.acquire()
        assert lease.connection is server.opened[1]
        lease.release()


async def test_a_lease_tells_how_long_its_caller_waited() -> None:
    async with running(Script(open_s=3.0)) as pool:
        lease = await pool.acquire()
        assert lease.waited_s == pytest.approx(3.0)
        assert pool.stats().wait_s == pytest.approx(3.0)
        assert pool.stats().open_s == pytest.approx(3.0)
        lease.release()
        again = await pool.acquire()
        assert again.waited_s == 0.0
        again.release()


async def test_a_pinned_lease_is_counted() -> None:
    async with running() as pool:
        lease = await pool.acquire()
        lease.pin()
        assert pool.stats().pins == 1
        lease.release(reusable=False)


async def test_the_repr_shows_the_counts_that_one_debugs_by() -> None:
    async with running(max_connections=2) as pool, anyio.create_task_group() as tasks:
        leases = await take_all(pool)
        caller = await call(tasks, pool)
        assert repr(pool) == "<Pool 'demo' 0 idle, 2 busy, 0 opening of 2, 1 waiting>"
        for lease in leases:
            lease.release()
        await caller.done.wait()
        assert caller.lease is not None
        caller.lease.release()
        await settle()
        assert repr(pool) == "<Pool 'demo' 2 idle, 0 busy, 0 opening of 2, 0 waiting>"


async def test_a_pool_that_was_not_started_says_so_instead_of_letting_its_callers_wait() -> None:
    pool = Pool("demo", ScriptedServer().connect)
    with pytest.raises(RuntimeError, match="the pool of 'demo' is not started"):
        await pool.acquire()
    assert check(pool).size == 0


async def test_a_pool_starts_once() -> None:
    async with running() as pool, anyio.create_task_group() as tasks:
        with pytest.raises(RuntimeError, match="started before"):
            await pool.start(tasks)
        (await pool.acquire()).release()


# -- the queue ---------------------------------------------------------------------------------------------


async def test_callers_are_served_in_the_order_of_arrival_and_newcomers_do_not_overtake() -> None:
    async with running(max_connections=1) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        callers = [await call(tasks, pool) for _ in range(4)]
        for caller in callers:
            lease.release()
            assert pool.try_acquire() is None, "a newcomer took what was the next caller's"
            await caller.done.wait()
            assert caller.lease is not None
            assert [other.done.is_set() for other in callers].count(True) == callers.index(caller) + 1
            lease = caller.lease
        lease.release()
        assert check(pool).opens == 1


async def test_who_meets_the_acquire_timeout_is_told_the_pool_the_numbers_and_the_knobs() -> None:
    async with running(max_connections=2, acquire_timeout=5.0) as pool, anyio.create_task_group() as tasks:
        leases = await take_all(pool)
        patient = await call(tasks, pool, timeout=60.0)
        began = anyio.current_time()
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire()
        assert anyio.current_time() - began == pytest.approx(5.0)
        assert str(caught.value) == (
            "the pool of 'demo' gave no connection within 5.0 s (2 of 2 busy, 1 waiting); "
            "raise max_connections or acquire_timeout"
        )
        assert caught.value.to_data() == {
            "type": "pool_timeout",
            "upstream": "demo",
            "phase": "queue",
            "limit_ms": 5000,
        }
        stats = check(pool)
        assert (stats.acquire_timeouts, stats.acquires, stats.waiting) == (1, 2, 1)
        assert stats.wait_s == pytest.approx(5.0)
        leases.pop().release()
        await patient.done.wait()
        assert patient.lease is not None
        for lease in [*leases, patient.lease]:
            lease.release()


async def test_the_timeout_message_also_counts_what_is_still_being_opened() -> None:
    async with running(Script(open_s=60.0), max_connections=1) as pool, anyio.create_task_group() as tasks:
        await call(tasks, pool, timeout=90.0)
        with pytest.raises(PoolTimeout, match=r"\(0 of 1 busy, 1 opening, 1 waiting\)"):
            await pool.acquire(timeout=1.0)
        tasks.cancel_scope.cancel()


async def test_a_caller_waits_for_its_own_open_in_addition_to_the_acquire_timeout() -> None:
    async with running(Script(open_s=14.0), acquire_timeout=5.0, connect_timeout=10.0) as pool:
        lease = await pool.acquire()
        assert lease.waited_s == pytest.approx(14.0)
        lease.release()


async def test_a_caller_from_the_queue_too_waits_for_an_open_that_began_on_its_behalf() -> None:
    """It must not time out at acquire_timeout, just before the connection that is being opened for it is there."""
    server = ScriptedServer(Script(), Script(open_s=8.0))
    async with (
        running(server, max_connections=1, acquire_timeout=5.0) as pool,
        anyio.create_task_group() as tasks,
    ):
        lease = await pool.acquire()
        caller = await call(tasks, pool)
        await anyio.sleep(4.0)
        lease.release(reusable=False)
        await caller.done.wait()
        assert caller.lease is not None
        assert caller.lease.waited_s == pytest.approx(12.0, abs=0.2)
        caller.lease.release()


async def test_no_more_than_max_waiting_callers_wait() -> None:
    async with running(max_connections=1, max_waiting=2) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        callers = [await call(tasks, pool) for _ in range(2)]
        with pytest.raises(
            PoolQueueFull, match=r"2 callers already wait .* 'demo'; raise max_waiting or max_conn"
        ):
            await pool.acquire()
        assert check(pool).waiting == 2
        for caller in callers:
            lease.release()
            await caller.done.wait()
            assert caller.lease is not None
            lease = caller.lease
        lease.release()


async def test_max_waiting_does_not_refuse_who_can_open_a_connection() -> None:
    async with running(Script(open_s=1.0), max_connections=2, max_waiting=0) as pool:
        leases = await take_all(pool)
        with pytest.raises(PoolQueueFull):
            await pool.acquire()
        for lease in leases:
            lease.release()


async def test_who_must_wait_starves_and_on_starved_can_free_a_lease_for_it() -> None:
    held: list[ScriptedLease] = []

    def end_the_oldest() -> None:
        held.pop(0).release(reusable=False)

    async with running(max_connections=1, on_starved=end_the_oldest) as pool:
        held.append(await pool.acquire())
        lease = await pool.acquire()
        assert held == []
        assert check(pool).opens == 2
        lease.release()


async def test_on_starved_can_hand_the_very_connection_on() -> None:
    held: list[ScriptedLease] = []
    async with running(max_connections=1, on_starved=lambda: held.pop().release()) as pool:
        held.append(await pool.acquire())
        connection = held[0].connection
        lease = await pool.acquire()
        assert lease.connection is connection
        lease.release()


async def test_on_starved_is_not_asked_while_a_place_is_free() -> None:
    asked: list[bool] = []
    async with running(max_connections=2, on_starved=lambda: asked.append(True)) as pool:
        for lease in await take_all(pool):
            lease.release()
        assert asked == []


async def test_an_on_starved_that_raises_leaves_no_caller_behind() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    async with running(max_connections=1, on_starved=broken) as pool:
        lease = await pool.acquire()
        with pytest.raises(ZeroDivisionError):
            await pool.acquire()
        assert check(pool).waiting == 0
        lease.release()


# -- a caller that goes away never swallows a connection -------------------------------------------------


async def test_a_caller_cancelled_in_the_turn_of_the_offer_gives_the_connection_to_the_next() -> None:
    """Its task has been cancelled but has had no turn yet, so it still looks as if it waited."""
    async with running(max_connections=1) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        leaving, next_one = await call(tasks, pool), await call(tasks, pool)
        before = check(pool)
        leaving.scope.cancel()
        lease.release()
        assert pool.try_acquire() is None  # drains the return channel: the connection is offered now
        assert (pool.stats().busy, pool.stats().waiting) == (1, 1)
        await next_one.done.wait()
        assert next_one.lease is not None
        assert next_one.lease.connection is lease.connection
        assert leaving.lease is None
        stats = check(pool, before)
        assert (stats.acquires, stats.returns, stats.acquire_cancelled, stats.opens) == (2, 1, 1, 1)
        next_one.lease.release()


async def test_a_caller_cancelled_after_the_offer_has_the_lease_and_can_give_it_back() -> None:
    """anyio delivers no cancellation to a task that is already on its way, so nothing is lost here either."""
    async with running(max_connections=1) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        leaving = await call(tasks, pool)
        lease.release()
        assert pool.try_acquire() is None
        leaving.scope.cancel()
        await leaving.done.wait()
        assert leaving.lease is not None
        assert (check(pool).acquires, pool.stats().acquire_cancelled) == (2, 0)
        leaving.lease.release()


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})])
async def test_a_task_that_asyncio_itself_cancels_after_the_offer_gives_the_connection_to_the_next() -> None:
    async with running(max_connections=1) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        leaving = asyncio.create_task(pool.acquire())
        await settle()
        next_one = await call(tasks, pool)
        lease.release()
        assert pool.try_acquire() is None
        leaving.cancel()
        await next_one.done.wait()
        assert next_one.lease is not None
        assert next_one.lease.connection is lease.connection
        assert leaving.cancelled()
        stats = check(pool)
        assert (stats.acquires, stats.returns, stats.acquire_cancelled) == (2, 1, 1)
        next_one.lease.release()


async def test_a_caller_cancelled_in_the_turn_of_the_offer_leaves_an_unused_connection_for_later() -> None:
    server = ScriptedServer()
    leaving: list[Caller] = []

    async def connect() -> ScriptedConnection:
        connection = await server.connect()
        leaving[0].scope.cancel()  # the offer follows in the same turn
        return connection

    async with anyio.create_task_group() as tasks:
        pool = Pool("demo", connect, PoolLimits(max_connections=1))
        await pool.start(tasks)
        leaving.append(Caller(pool))
        tasks.start_soon(leaving[0].run)
        await leaving[0].done.wait()
        await settle()
        stats = check(pool)
        assert (stats.acquires, stats.returns, stats.acquire_cancelled, stats.idle) == (0, 0, 1, 1)
        lease = await pool.acquire()
        assert lease.connection is server.opened[0]
        assert not lease.reused, "nobody has used it"
        assert len(server.opened) == 1
        lease.release()
        await pool.aclose()


async def test_the_open_of_a_caller_that_left_goes_on_and_serves_the_next_one() -> None:
    server = ScriptedServer(Script(open_s=5.0))
    async with running(server, max_connections=1) as pool, anyio.create_task_group() as tasks:
        leaving, next_one = await call(tasks, pool), await call(tasks, pool, timeout=60.0)
        leaving.scope.cancel()
        await next_one.done.wait()
        assert next_one.lease is not None
        assert (server.attempts, pool.stats().acquire_cancelled) == (1, 1)
        next_one.lease.release()


async def test_the_open_of_a_caller_that_left_becomes_an_idle_connection_if_nobody_waits() -> None:
    async with running(Script(open_s=5.0)) as pool, anyio.create_task_group() as tasks:
        leaving = await call(tasks, pool)
        leaving.scope.cancel()
        await anyio.sleep(6.0)
        assert (check(pool).idle, pool.stats().waiting) == (1, 0)


async def test_an_open_that_fails_after_its_caller_left_harms_nobody() -> None:
    server = ScriptedServer(Script(open_s=5.0, open_error=ConnectError("refused")), Script())
    async with running(server, max_connections=1) as pool, anyio.create_task_group() as tasks:
        leaving, next_one = await call(tasks, pool), await call(tasks, pool, timeout=60.0)
        leaving.scope.cancel()
        await next_one.done.wait()
        assert next_one.error is None
        assert next_one.lease is not None
        assert check(pool).open_errors == 1
        next_one.lease.release()


async def test_a_connection_that_comes_back_in_the_turn_of_the_timeout_is_not_lost() -> None:
    async with running(max_connections=1, acquire_timeout=5.0) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        caller = Caller(pool)
        tasks.start_soon(caller.run)
        await anyio.sleep(5.0)
        lease.release()
        await caller.done.wait()
        if caller.lease is not None:
            caller.lease.release()
        again = await pool.acquire(timeout=0.0)
        assert again.connection is lease.connection
        again.release()
        stats = check(pool)
        assert (stats.opens, stats.acquires + stats.acquire_timeouts) == (1, 3)


async def test_a_caller_that_is_offered_a_connection_while_its_own_open_is_under_way_takes_it() -> None:
    """And the open, when done, makes an idle connection; when failed, fails nobody."""
    server = ScriptedServer(
        Script(), Script(open_s=5.0), Script(open_s=5.0, open_error=ConnectError("refused"))
    )
    async with running(server, max_connections=3) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        callers = [await call(tasks, pool) for _ in range(2)]
        lease.release()
        await callers[0].done.wait()
        assert callers[0].lease is not None
        assert callers[0].lease.connection is lease.connection
        callers[0].lease.release()
        await callers[1].done.wait()
        assert callers[1].lease is not None
        assert callers[1].lease.connection is lease.connection
        await anyio.sleep(6.0)
        stats = check(pool)
        assert (stats.idle, stats.opens, stats.open_errors) == (1, 2, 1)
        callers[1].lease.release()


async def test_a_connection_opened_for_one_goes_to_the_first_in_the_queue_and_the_other_gets_a_new_open() -> (
    None
):
    server = ScriptedServer(Script(open_s=9.0), Script(open_s=1.0), Script(open_s=1.0))
    async with running(server, max_connections=2) as pool, anyio.create_task_group() as tasks:
        first, second = await call(tasks, pool), await call(tasks, pool)
        await first.done.wait()
        assert first.lease is not None
        assert first.lease.connection is server.opened[0]
        assert first.lease.waited_s == pytest.approx(1.0, abs=0.3)
        first.lease.release(reusable=False)  # a place is free: the second, which lost its open, gets another
        await second.done.wait()
        assert second.lease is not None
        assert second.lease.waited_s == pytest.approx(2.0, abs=0.5)
        second.lease.release()


# -- connections that carry several exchanges --------------------------------------------------------------


async def test_callers_share_a_connection_up_to_its_capacity_and_then_open_another() -> None:
    server = ScriptedServer(Script(capacity=3))
    async with running(server, max_connections=2) as pool:
        leases = [await pool.acquire() for _ in range(6)]
        assert [lease.connection.number for lease in leases] == [0, 0, 0, 1, 1, 1]
        assert check(pool).busy == 2
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.0)
        for lease in leases:
            lease.release()
        await settle()
        assert check(pool).idle == 2


async def test_room_on_a_shared_connection_serves_who_waits() -> None:
    server = ScriptedServer(Script(capacity=2))
    async with running(server, max_connections=1) as pool, anyio.create_task_group() as tasks:
        leases = [await pool.acquire() for _ in range(2)]
        caller = await call(tasks, pool)
        leases[0].release()
        await caller.done.wait()
        assert caller.lease is not None
        assert len(server.opened) == 1
        leases[1].release()
        caller.lease.release()


async def test_an_exclusive_lease_of_a_connection_with_capacity_is_shared_with_nobody() -> None:
    server = ScriptedServer(Script(capacity=3))
    async with running(server, max_connections=2) as pool:
        alone = await pool.acquire(exclusive=True)
        shared = [await pool.acquire() for _ in range(3)]
        assert [lease.connection.number for lease in [alone, *shared]] == [0, 1, 1, 1]
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.0)
        for lease in [alone, *shared]:
            lease.release()


async def test_who_wants_a_connection_alone_is_served_although_others_share_without_a_pause() -> None:
    """Shared exchanges overlap, so the connection would never come empty by itself."""
    server = ScriptedServer(Script(capacity=4))
    async with running(server, max_connections=1, acquire_timeout=60.0) as pool:

        async def keep_busy() -> None:
            for _ in range(20):
                lease = await pool.acquire()
                with lease.connection.exchange():
                    await anyio.sleep(1.0)
                lease.release()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_busy)
            await anyio.sleep(0.5)
            tasks.start_soon(keep_busy)
            await anyio.sleep(0.1)
            alone = await pool.acquire(exclusive=True)
            assert alone.waited_s < 1.5
            with alone.connection.exchange():
                await anyio.sleep(5.0)
                assert alone.connection.inflight == 1
            alone.release()
        assert len(server.opened) == 1


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_those_who_share_go_on_when_who_wanted_it_alone_goes_away(how: str) -> None:
    async with running(Script(capacity=9), max_connections=1) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        alone = await call(tasks, pool, exclusive=True, timeout=10.0)
        sharing = await call(tasks, pool, timeout=60.0)
        assert not sharing.done.is_set()
        if how == "cancelled":
            alone.scope.cancel()
        await sharing.done.wait()
        assert sharing.lease is not None
        assert sharing.lease.connection is lease.connection
        assert isinstance(alone.error, PoolTimeout) == (how == "timed out")
        assert sharing.lease.waited_s == pytest.approx(0.0 if how == "cancelled" else 10.0, abs=0.5)
        lease.release()
        sharing.lease.release()


# -- connections that end ----------------------------------------------------------------------------------


async def test_a_connection_that_was_lost_is_closed_when_it_comes_back_and_never_handed_out() -> None:
    server = ScriptedServer(Script(exchanges=1), Script())
    async with running(server) as pool:
        lease = await pool.acquire()
        with lease.connection.exchange():
            pass
        lease.release()
        again = await pool.acquire()
        assert again.connection is server.opened[1]
        assert check(pool).closed_lost == 1
        again.release()


async def test_an_idle_connection_that_tells_that_it_was_lost_is_closed_at_once() -> None:
    server = ScriptedServer()
    async with running(server) as pool:
        (await pool.acquire()).release()
        await settle()
        connection = server.opened[0]
        connection.lose()
        pool.lost(connection)
        await settle()
        assert connection.closed.is_set()
        assert (check(pool).size, pool.stats().closed_lost) == (0, 1)


async def test_a_lost_connection_that_is_met_without_waiting_is_closed_too() -> None:
    server = ScriptedServer()
    async with running(server) as pool:
        (await pool.acquire()).release()
        await settle()
        server.opened[0].lose()
        assert pool.try_acquire() is None
        await settle()
        assert server.open == []
        assert check(pool).closed_lost == 1


async def test_an_idle_connection_that_says_nothing_of_its_end_is_found_lost_when_it_is_wanted() -> None:
    server = ScriptedServer()
    async with running(server) as pool:
        (await pool.acquire()).release()
        await settle()
        server.opened[0].lose()
        lease = await pool.acquire()
        assert lease.connection is server.opened[1]
        assert check(pool).closed_lost == 1
        lease.release()


async def test_the_place_of_a_lost_connection_goes_to_the_first_who_waits() -> None:
    server = ScriptedServer()
    async with running(server, max_connections=1) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        caller = await call(tasks, pool)
        lease.connection.lose()
        lease.release()
        await caller.done.wait()
        assert caller.lease is not None
        assert caller.lease.connection is server.opened[1]
        caller.lease.release()


async def test_a_closed_pool_admits_nobody() -> None:
    async with running() as pool:
        await pool.aclose()
        with pytest.raises(ShuttingDown, match="the pool of 'demo' is closing"):
            await pool.acquire()
        with pytest.raises(ShuttingDown):
            pool.try_acquire()
