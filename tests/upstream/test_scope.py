"""The exchange's cancel scope does what anyio's does; every test runs on both, and on trio."""

from __future__ import annotations

import asyncio
import gc
import weakref

import anyio
import pytest
from anyio.lowlevel import checkpoint

from mcpdiag.upstream.scope import Scope, open_scope

pytestmark = pytest.mark.anyio
NEVER = float("inf")


@pytest.fixture(
    params=[("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})],
    ids=["asyncio", "uvloop", "trio"],
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


def after(seconds: float) -> Scope:
    return open_scope(anyio.current_time() + seconds)


async def test_a_deadline_ends_what_waits() -> None:
    with anyio.fail_after(10):
        with after(0.02) as scope:
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_deadline_that_is_moved_in_time_does_not_end_it() -> None:
    with after(0.02) as scope:
        scope.deadline = NEVER
        await anyio.sleep(0.15)
    assert not scope.cancelled_caught


async def test_what_ends_in_time_is_left_alone_afterwards() -> None:
    with after(0.02) as scope:
        await checkpoint()
    await anyio.sleep(0.15)
    assert not scope.cancelled_caught


async def test_cancel_ends_what_waits_and_again_does_nothing() -> None:
    async with anyio.create_task_group() as tasks:
        with open_scope(NEVER) as scope:

            async def cancel_twice() -> None:
                scope.cancel()
                scope.cancel()

            tasks.start_soon(cancel_twice)
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        await checkpoint()  # the task is not cancelled any more


async def test_a_scope_cancelled_before_it_was_entered_ends_at_the_first_wait() -> None:
    scope = open_scope(NEVER)
    scope.cancel()
    with scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_cancellation_from_outside_goes_on_outwards() -> None:
    inner: list[bool] = []
    with anyio.CancelScope() as outer:
        with open_scope(NEVER) as scope:
            outer.cancel()
            try:
                await anyio.sleep_forever()
            finally:
                inner.append(scope.cancelled_caught)
    assert outer.cancelled_caught
    assert not scope.cancelled_caught
    assert inner == [False]


async def test_an_error_inside_passes_through() -> None:
    with pytest.raises(ValueError, match="mine"), open_scope(NEVER):
        raise ValueError("mine")


async def test_anyio_s_own_scopes_and_task_groups_work_inside() -> None:
    """A cancelled scope ends a task group inside it, and the children with it; a timeout inside stays inside."""
    ended: list[str] = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("child")

    with after(0.05) as scope:
        with anyio.move_on_after(0.001) as inside:
            await anyio.sleep_forever()
        assert inside.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
    assert scope.cancelled_caught
    assert ended == ["child"]


async def test_clean_up_after_the_cancellation_may_wait() -> None:
    cleaned = False
    with after(0.01) as scope:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.12)
                cleaned = True
    assert scope.cancelled_caught
    assert cleaned


async def test_many_scopes_end_each_at_its_own_deadline() -> None:
    ended: list[int] = []

    async def wait(number: int) -> None:
        with after(0.1 * number) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        ended.append(number)

    async with anyio.create_task_group() as tasks:
        for number in (3, 1, 2):
            tasks.start_soon(wait, number)
    assert ended == [1, 2, 3]


def test_an_event_loop_that_is_gone_is_not_kept() -> None:
    kept: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        kept.append(weakref.ref(asyncio.get_running_loop()))
        with open_scope(NEVER):
            await checkpoint()

    anyio.run(main)
    gc.collect()
    assert kept[0]() is None
