"""What the pool does by itself: opening, the return channel, expiry, warm connections, single-shot servers."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Awaitable

import anyio
import pytest

from mcpdiag.config import PoolLimits
from mcpdiag.connection.scripted import Script, ScriptedConnection, ScriptedServer
from mcpdiag.errors import ConnectError, ConnectTimeout, McpDiagError, ShuttingDown, UpstreamError
from mcpdiag.hooks import Happened
from mcpdiag.pool.pool import Pool
from tests.pool.harness import Heard, call, check, ledger_of, running, take_all
from tests.pool.virtual_time import VirtualLoop

pytestmark = pytest.mark.anyio
settle = anyio.wait_all_tasks_blocked


# -- the return channel ------------------------------------------------------------------------------------


async def test_a_full_return_channel_closes_the_connection_frees_the_place_and_tells_it() -> None:
    server, heard = ScriptedServer(), Heard()
    async with running(server, max_connections=3, channel_size=2, hook=heard) as pool:
        for lease in await take_all(pool):
            lease.release()
        stats = check(pool)
        assert (stats.returning, stats.closing, stats.return_overflows, stats.size) == (2, 1, 1, 2)
        await settle()
        assert server.opened[2].closes == ["nice"]
        assert (check(pool).idle, pool.stats().closing) == (2, 0)
        assert heard == [Happened("return_overflow", "demo")]
        assert len(await take_all(pool)) == 3


async def test_the_place_of_an_overflowed_connection_goes_to_the_first_who_waits() -> None:
    async with running(max_connections=1, channel_size=0) as pool, anyio.create_task_group() as tasks:
        lease = await pool.acquire()
        caller = await call(tasks, pool)
        lease.release()
        await caller.done.wait()
        assert caller.lease is not None
        assert caller.lease.connection.number == 1
        caller.lease.release()
        assert check(pool).return_overflows == 2


async def test_by_default_the_channel_holds_return_channel_multiplier_times_max_connections() -> None:
    async with running(max_connections=3, return_channel_multiplier=4) as pool:
        assert pool._upkeep.returns.size == 12


# -- opening -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConnectError("refused"), ConnectTimeout("slow"), UpstreamError("odd")])
async def test_a_failed_open_fails_exactly_its_caller_and_the_next_gets_a_new_open(
    error: McpDiagError,
) -> None:
    server, heard = ScriptedServer(Script(open_s=1.0, open_error=error), Script(open_s=1.0)), Heard()
    async with running(server, max_connections=1, hook=heard) as pool, anyio.create_task_group() as tasks:
        first, second, third = [await call(tasks, pool) for _ in range(3)]
        await first.done.wait()
        assert first.error is error
        await second.done.wait()
        assert second.lease is not None
        second.lease.release()
        await third.done.wait()
        assert third.lease is not None
        stats = check(pool)
        assert (stats.open_errors, stats.opens, server.attempts) == (1, 1, 2)
        assert heard == [Happened("connect_failed", "demo", detail=str(error))]
        third.lease.release()


async def test_an_opener_may_raise_anything_and_its_caller_gets_an_error_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    surprise = ExceptionGroup("two at once", [OSError("a"), ZeroDivisionError()])
    server = ScriptedServer(Script(open_error=surprise), Script())
    async with running(server, max_connections=1) as pool:
        with pytest.raises(ConnectError, match="connecting to 'demo' failed: ExceptionGroup") as caught:
            await pool.acquire()
        assert caught.value.__cause__ is surprise
        assert "connecting to 'demo' failed in an unexpected way" in caplog.text
        (await pool.acquire()).release()
        assert check(pool).open_errors == 1


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})])
async def test_an_opener_that_lets_a_cancellation_of_its_own_escape_fails_its_caller_and_not_the_pool() -> (
    None
):
    server = ScriptedServer(Script(open_error=asyncio.CancelledError()), Script())
    async with running(server, max_connections=1) as pool:
        with pytest.raises(ConnectError, match="CancelledError"):
            await pool.acquire()
        (await pool.acquire()).release()
        assert check(pool).open_errors == 1


async def test_an_opener_that_answers_a_cancellation_with_an_error_of_its_own_does_not_upset_the_close() -> (
    None
):
    async def connect() -> ScriptedConnection:
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("while cleaning up")

    async with anyio.create_task_group() as tasks:
        pool = Pool("demo", connect)
        await pool.start(tasks)
        caller = await call(tasks, pool)
        await pool.aclose()
        assert isinstance(caller.error, ShuttingDown)
        assert check(pool).size == 0


async def test_an_opener_that_raises_what_ends_programs_frees_its_place_and_ends_the_pool() -> None:
    class Exit(BaseException):
        pass

    server = ScriptedServer(Script(open_s=1.0, open_error=Exit()))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with anyio.create_task_group() as tasks:
            pool = Pool("demo", server.connect)
            await pool.start(tasks)
            await pool.acquire()
    assert caught.group_contains(Exit)
    assert (check(pool).size, pool.stats().waiting) == (0, 0)
    await pool.aclose()


async def test_a_connection_that_is_dead_on_arrival_fails_its_caller_instead_of_being_opened_for_ever() -> (
    None
):
    server, heard = ScriptedServer(Script(exchanges=0)), Heard()
    server.scripts = [Script(capacity=1)]

    async def connect() -> ScriptedConnection:
        connection = await server.connect()
        connection.lose()
        return connection

    async with anyio.create_task_group() as tasks:
        pool = Pool("demo", connect, PoolLimits(max_connections=1), hook=heard)
        await pool.start(tasks)
        callers = [await call(tasks, pool) for _ in range(2)]
        for caller in callers:
            await caller.done.wait()
            assert str(caller.error) == "the connection to 'demo' was lost as soon as it was open"
        await settle()
        stats = check(pool)
        assert (stats.opens, stats.closed_lost, stats.size) == (2, 2, 0)
        assert server.open == []
        assert heard.kinds == ["connect_failed"] * 2
        await pool.aclose()


# -- expiry ------------------------------------------------------------------------------------------------


async def test_idle_connections_are_closed_after_idle_timeout() -> None:
    server = ScriptedServer()
    async with running(server, idle_timeout=60.0, upkeep_interval=5.0) as pool:
        (await pool.acquire()).release()
        await anyio.sleep(59.0)
        assert check(pool).idle == 1
        await anyio.sleep(10.0)
        stats = check(pool)
        assert (stats.size, stats.closed_idle) == (0, 1)
        assert server.open == []


async def test_a_connection_in_use_does_not_grow_idle() -> None:
    async with running(idle_timeout=60.0) as pool:
        lease = await pool.acquire()
        await anyio.sleep(100.0)
        lease.release()
        await anyio.sleep(50.0)
        assert (check(pool).idle, pool.stats().closed_idle) == (1, 0)


async def test_idle_cleanup_never_waits_while_it_edits_the_books() -> None:
    """Closes that take long or hang hold up neither the next tick nor a caller, and the places are free at once."""
    server = ScriptedServer(Script(close_s=float("inf"), force_s=20.0))
    async with running(server, max_connections=3, idle_timeout=60.0) as pool:
        for lease in await take_all(pool):
            lease.release()
        await anyio.sleep(66.0)
        stats = check(pool)
        assert (stats.size, stats.idle, stats.closing, stats.closed_idle) == (0, 0, 3, 3)
        began = anyio.current_time()
        leases = await take_all(pool)
        assert anyio.current_time() == pytest.approx(began, abs=0.01)
        assert (check(pool).busy, pool.stats().closing) == (3, 3)
        for lease in leases:
            lease.release()
        await anyio.sleep(50.0)
        assert check(pool).closing == 0


async def test_old_connections_are_replaced_and_not_all_at_the_same_moment() -> None:
    server = ScriptedServer()
    async with running(server, max_connections=20, max_lifetime=1000.0, idle_timeout=9999.0) as pool:
        for lease in await take_all(pool):
            lease.release()
        await anyio.sleep(899.0)
        assert check(pool).closed_lifetime == 0
        sizes = set()
        for _ in range(22):
            await anyio.sleep(5.0)
            sizes.add(check(pool).size)
        assert (pool.stats().closed_lifetime, pool.stats().size) == (20, 0)
        assert len(sizes) > 4, "the jitter spreads them"


async def test_a_connection_that_is_always_busy_when_upkeep_looks_still_ends_with_its_lifetime() -> None:
    async with running(max_connections=1, max_lifetime=100.0) as pool:
        lease = await pool.acquire()
        first = lease.connection
        for _ in range(4):
            await anyio.sleep(30.0)
            lease.release()
            lease = await pool.acquire()
        assert lease.connection is not first
        assert check(pool).closed_lifetime == 1
        lease.release()


async def test_idle_connections_that_were_lost_are_found_by_upkeep() -> None:
    server = ScriptedServer()
    async with running(server, upkeep_interval=5.0) as pool:
        (await pool.acquire()).release()
        await settle()
        server.opened[0].lose()
        await anyio.sleep(6.0)
        assert (check(pool).size, pool.stats().closed_lost) == (0, 1)


async def test_min_connections_are_opened_at_the_start_and_kept_warm() -> None:
    server = ScriptedServer()
    limits = {"min_connections": 2, "idle_timeout": 60.0, "max_lifetime": 500.0, "upkeep_interval": 5.0}
    async with running(server, **limits) as pool:
        await settle()
        assert check(pool).idle == 2
        await anyio.sleep(300.0)
        assert (check(pool).idle, pool.stats().closed_idle, len(server.opened)) == (2, 0, 2)
        server.opened[0].lose()
        pool.lost(server.opened[0])
        await anyio.sleep(6.0)
        assert (check(pool).idle, len(server.opened)) == (2, 3)
        await anyio.sleep(300.0)
        assert (check(pool).idle, pool.stats().closed_lifetime, len(server.opened)) == (2, 1, 4)


async def test_a_warm_connection_that_cannot_be_opened_is_told_and_tried_again_at_the_next_tick() -> None:
    server, heard = ScriptedServer(Script(open_error=ConnectError("refused")), Script()), Heard()
    async with running(server, min_connections=1, upkeep_interval=5.0, hook=heard) as pool:
        await settle()
        assert (check(pool).size, heard.kinds) == (0, ["connect_failed"])
        await anyio.sleep(6.0)
        assert check(pool).idle == 1


# -- single-shot servers -----------------------------------------------------------------------------------


async def test_a_single_shot_server_is_served_never_reused_counted_and_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, heard = ScriptedServer(Script(single_shot=True)), Heard()
    with caplog.at_level(logging.WARNING, logger="mcpdiag.pool"):
        async with running(server, max_connections=2, hook=heard) as pool:
            for _ in range(5):
                lease = await pool.acquire()
                with lease.connection.exchange():
                    pass
                lease.release()
            await settle()
            stats = check(pool)
            assert (stats.opens, stats.acquires, stats.reuses) == (5, 5, 0)
            assert (stats.closed_single_shot, stats.closed_lost, stats.size) == (5, 0, 0)
            assert server.open == []
    assert heard.kinds == ["single_shot"]
    (record,) = caplog.records
    assert "'demo' ends after a single exchange" in record.getMessage()
    assert "run a persistent server" in record.getMessage()


# -- closing a connection ----------------------------------------------------------------------------------


async def test_a_nice_close_that_hangs_is_followed_by_a_forced_one(caplog: pytest.LogCaptureFixture) -> None:
    server = ScriptedServer(Script(close_s=float("inf")))
    async with running(server) as pool:
        (await pool.acquire()).release(reusable=False)
        await anyio.sleep(29.0)
        assert server.opened[0].closes == ["nice"]
        await anyio.sleep(2.0)
        assert server.opened[0].closes == ["nice", "force"]
        assert check(pool).closing == 0
    assert "a connection of 'demo' did not close within 30 s" in caplog.text


async def test_a_nice_close_that_raises_is_followed_by_a_forced_one(caplog: pytest.LogCaptureFixture) -> None:
    server = ScriptedServer(Script(close_error=OSError("broken pipe")))
    async with running(server) as pool:
        (await pool.acquire()).release(reusable=False)
        await settle()
        assert server.opened[0].closes == ["nice", "force"]
        assert server.opened[0].closed.is_set()
    assert "closing a connection of 'demo' failed" in caplog.text


@pytest.mark.parametrize(
    "script", [{"force_s": float("inf")}, {"force_error": OSError("no")}], ids=["hangs", "raises"]
)
async def test_a_connection_that_resists_even_force_leaves_the_books(script: dict[str, object]) -> None:
    server = ScriptedServer(Script(close_error=OSError("no"), **script))  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        pool = Pool("demo", server.connect)
        await pool.start(tasks)
        (await pool.acquire()).release(reusable=False)
        await anyio.sleep(31.0)
        assert check(pool).closing == 0
        await pool.aclose()


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})])
async def test_a_close_that_lets_a_cancellation_of_its_own_escape_does_not_end_the_pool() -> None:
    async with running(Script(close_error=asyncio.CancelledError())) as pool:
        (await pool.acquire()).release(reusable=False)
        await settle()
        (await pool.acquire()).release()
        assert check(pool).closing == 0


# -- a forgotten pool --------------------------------------------------------------------------------------


def forgettable(server: ScriptedServer, **limits: int) -> Pool[ScriptedConnection]:
    return Pool("demo", server.connect, PoolLimits.model_validate(limits))


async def test_a_pool_that_is_merely_forgotten_closes_its_connections_and_its_task_ends() -> None:
    server = ScriptedServer()
    async with anyio.create_task_group() as tasks:
        pool = forgettable(server)
        await pool.start(tasks)
        leases = [await pool.acquire() for _ in range(3)]
        for lease in leases:
            lease.release()
        await settle()
        assert len(server.open) == 3
        del pool, lease, leases
        gc.collect()
    assert [connection.closes for connection in server.opened] == [["nice"]] * 3


async def test_a_lease_keeps_its_pool() -> None:
    server = ScriptedServer()
    async with anyio.create_task_group() as tasks:
        pool = forgettable(server)
        await pool.start(tasks)
        lease = await pool.acquire()
        del pool
        gc.collect()
        await settle()
        assert server.open == [lease.connection]
        lease.release()
        del lease
        gc.collect()
    assert server.open == []


async def test_a_pool_and_a_lease_that_are_forgotten_together_leak_nothing() -> None:
    server = ScriptedServer()
    async with anyio.create_task_group() as tasks:
        pool = forgettable(server)
        await pool.start(tasks)
        lease = await pool.acquire()
        del pool, lease
        gc.collect()
    assert server.opened[0].closes == ["force"]


async def test_a_pool_held_only_by_the_object_whose_method_opens_its_connections_can_be_forgotten() -> None:
    """As every upstream does it: upkeep must not keep that object, and with it the pool, alive."""

    class Upstream:
        def __init__(self, server: ScriptedServer) -> None:
            self.server = server
            self.pool = Pool("demo", self.connect)

        async def connect(self) -> ScriptedConnection:
            return await self.server.connect()

    server = ScriptedServer()
    async with anyio.create_task_group() as tasks:
        upstream = Upstream(server)
        await upstream.pool.start(tasks)
        (await upstream.pool.acquire()).release()
        await settle()
        gone = weakref.ref(upstream)
        del upstream
        gc.collect()
        assert gone() is None
    assert server.open == []


async def test_a_pool_keeps_its_opener_whatever_it_is() -> None:
    class Opener:
        __slots__ = ("server",)

        def __init__(self, server: ScriptedServer) -> None:
            self.server = server

        def __call__(self) -> Awaitable[ScriptedConnection]:
            return self.server.connect()

    server = ScriptedServer()
    async with anyio.create_task_group() as tasks:
        pool = Pool("demo", Opener(server))
        await pool.start(tasks)
        (await pool.acquire()).release()
        await pool.aclose()
    assert server.open == []


async def test_an_open_that_is_due_when_the_pool_is_forgotten_is_not_begun(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = ScriptedServer()
    async with anyio.create_task_group() as tasks:
        pool = forgettable(server, min_connections=1)
        await pool.start(tasks)
        await settle()
        server.opened[0].lose()
        pool.lost(server.opened[0])
        pool._upkeep._keep_warm()
        assert pool.stats().opening == 1
        del pool
        gc.collect()
    assert (server.attempts, server.open, caplog.text) == (1, [], "")


async def test_a_pool_that_is_forgotten_before_it_was_started_leaves_nothing() -> None:
    pool = forgettable(ScriptedServer())
    upkeep = pool._upkeep
    del pool
    gc.collect()
    assert upkeep.stopped.is_set()


async def test_a_garbage_collection_in_another_thread_is_noticed_at_the_next_tick() -> None:
    """It must not touch the event loop from there."""
    server = ScriptedServer()
    async with anyio.create_task_group() as tasks:
        pools = [forgettable(server)]
        await pools[0].start(tasks)
        (await pools[0].acquire()).release()
        upkeep = pools[0]._upkeep
        await settle()
        thread = threading.Thread(target=pools.clear)
        thread.start()
        thread.join()
        assert not upkeep.returns.closed
        await anyio.sleep(6.0)
        assert upkeep.stopped.is_set()
    assert server.open == []


async def test_the_task_ends_with_its_task_group_and_closes_everything() -> None:
    """The host was cancelled: leased connections are closed hard, idle ones nicely, who waits is told."""
    server = ScriptedServer(Script(), Script(), Script(open_s=50.0))
    async with anyio.create_task_group() as callers, anyio.create_task_group() as tasks:
        pool = Pool("demo", server.connect, PoolLimits(max_connections=3))
        await pool.start(tasks)
        idle, lease = await pool.acquire(), await pool.acquire()
        idle.release()
        await settle()
        leased = await pool.acquire()
        assert leased.connection is idle.connection
        leased.release()
        await settle()
        opening = await call(callers, pool, exclusive=True)
        assert opening.lease is not None
        opening.lease.release()
        await settle()
        tasks.cancel_scope.cancel()
    assert server.open == []
    assert server.opened[lease.connection.number].closes == ["force"]
    assert server.opened[idle.connection.number].closes == ["nice"]
    assert ledger_of(pool).size == 0
    lease.release()
    await pool.aclose()
