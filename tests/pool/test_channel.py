"""The return channel: bounded, closable, and it hides nothing from whoever drains it."""

from __future__ import annotations

import anyio
import pytest

from mcpdiag.pool.channel import ReturnChannel


def test_items_come_out_in_the_order_of_return() -> None:
    channel: ReturnChannel[int] = ReturnChannel(3)
    assert [channel.put(number) for number in range(3)] == [True, True, True]
    assert [channel.take() for _ in range(4)] == [0, 1, 2, None]


def test_a_full_channel_refuses_and_keeps_what_it_has() -> None:
    channel: ReturnChannel[str] = ReturnChannel(1)
    assert channel.put("first")
    assert not channel.put("second")
    assert channel.take() == "first"
    assert channel.put("third")


def test_a_closed_channel_refuses_and_closing_again_does_nothing() -> None:
    channel: ReturnChannel[str] = ReturnChannel(1)
    channel.close()
    channel.close()
    assert not channel.put("late")


@pytest.mark.anyio
async def test_a_put_wakes_the_reader_but_stays_on_the_channel_for_whoever_comes_first() -> None:
    channel: ReturnChannel[str] = ReturnChannel(2)
    woken: list[bool] = []

    async def reader() -> None:
        woken.append(await channel.wait())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader)
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        channel.put("here")
        assert channel.take() == "here"
    assert woken == [True]


@pytest.mark.anyio
async def test_closing_wakes_the_reader_with_the_end() -> None:
    channel: ReturnChannel[str] = ReturnChannel(2)
    woken: list[bool] = []

    async def reader() -> None:
        woken.append(await channel.wait())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader)
        await anyio.wait_all_tasks_blocked()
        channel.close()
    assert woken == [False]
    assert not await channel.wait()


@pytest.mark.anyio
async def test_a_reader_does_not_sleep_while_something_is_there() -> None:
    channel: ReturnChannel[str] = ReturnChannel(2)
    channel.put("here")
    with anyio.fail_after(1):
        assert await channel.wait()
