"""A waiter accepts one answer, and none after its caller has left."""

from __future__ import annotations

import anyio
import pytest

from mcpdiag.connection.scripted import ScriptedConnection
from mcpdiag.errors import ConnectError
from mcpdiag.pool.ledger import Slot
from mcpdiag.pool.waiter import Waiter


def a_waiter(limit: float = 5.0, open_limit: float = 0.0) -> Waiter[ScriptedConnection]:
    return Waiter(0.0, limit, open_limit=open_limit)


def a_slot() -> Slot[ScriptedConnection]:
    return Slot()


def test_the_first_offer_is_accepted_and_the_second_refused() -> None:
    waiter, first = a_waiter(), a_slot()
    assert waiter.offer(first)
    assert not waiter.offer(a_slot())
    assert waiter.slot is first


def test_an_offer_wins_over_a_later_error() -> None:
    waiter = a_waiter()
    assert waiter.offer(a_slot())
    assert not waiter.fail(ConnectError("late"))
    assert waiter.error is None


def test_an_error_wins_over_a_later_offer() -> None:
    waiter, error = a_waiter(), ConnectError("refused")
    assert waiter.fail(error)
    assert not waiter.offer(a_slot())
    assert (waiter.slot, waiter.error) == (None, error)


def test_after_the_caller_has_left_everything_is_refused() -> None:
    waiter = a_waiter()
    waiter.leave()
    assert not waiter.pending
    assert not waiter.offer(a_slot())
    assert not waiter.fail(ConnectError("late"))
    assert (waiter.slot, waiter.error) == (None, None)


def test_an_open_for_the_caller_extends_its_limit_once_however_many_are_begun() -> None:
    waiter = a_waiter(5.0, open_limit=10.0)
    waiter.expect_open()
    waiter.expect_open()
    assert waiter.opening
    assert waiter.limit == 15.0


@pytest.mark.anyio
async def test_it_waits_for_its_limit_and_then_refuses() -> None:
    waiter, began = a_waiter(5.0), anyio.current_time()
    assert not await waiter.wait()
    assert anyio.current_time() - began == pytest.approx(5.0)
    assert not waiter.offer(a_slot())


@pytest.mark.anyio
async def test_an_open_that_begins_while_it_waits_moves_its_deadline() -> None:
    waiter, began = a_waiter(5.0, open_limit=10.0), anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter.wait)
        await anyio.sleep(4.0)
        waiter.expect_open()
    assert anyio.current_time() - began == pytest.approx(15.0)


@pytest.mark.anyio
async def test_an_offer_that_was_made_before_the_limit_passed_is_not_wasted() -> None:
    waiter = a_waiter(0.0)
    assert waiter.offer(a_slot())
    assert await waiter.wait()


@pytest.mark.anyio
async def test_in_the_turn_of_the_timeout_offer_and_wait_agree_on_who_has_the_slot() -> None:
    waiter = a_waiter(5.0)
    served: list[bool] = []

    async def wait() -> None:
        served.append(await waiter.wait())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.sleep(5.0)
        accepted = waiter.offer(a_slot())
    assert served == [accepted]
