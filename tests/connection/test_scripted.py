"""The test double does what its script says, and refuses what a real connection could not do."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mcpdiag.connection.scripted import Script, ScriptedConnection, ScriptedServer
from mcpdiag.errors import ConnectError
from tests.pool.virtual_time import backend_options

pytestmark = pytest.mark.anyio
FOREVER = float("inf")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, backend_options(request.param)


async def test_without_a_script_it_opens_at_once_lives_on_and_closes_at_once() -> None:
    server, began = ScriptedServer(), anyio.current_time()
    connection = await server.connect()
    for _ in range(100):
        with connection.exchange():
            pass
    assert (connection.capacity, connection.healthy, connection.single_shot) == (1, True, False)
    await connection.aclose()
    assert (connection.closes, connection.closed.is_set(), connection.healthy) == (["nice"], True, False)
    assert anyio.current_time() == began


async def test_the_server_plays_its_scripts_in_order_repeats_the_last_and_records_what_it_opened() -> None:
    refused = ConnectError("refused")
    server = ScriptedServer(Script(capacity=2), Script(open_s=3.0, open_error=refused), Script(capacity=4))
    first, began = await server.connect(), anyio.current_time()
    with pytest.raises(ConnectError) as caught:
        await server.connect()
    assert caught.value is refused
    assert anyio.current_time() - began == pytest.approx(3.0)
    rest = [await server.connect() for _ in range(2)]
    assert [connection.capacity for connection in [first, *rest]] == [2, 4, 4]
    assert server.opened == [first, *rest]
    assert [connection.number for connection in server.opened] == [0, 1, 2]
    assert server.attempts == 4
    await first.aclose()
    assert server.open == rest
    assert repr(server) == "<ScriptedServer 2 open, 3 opened, 4 attempts>"


async def test_it_carries_as_many_exchanges_at_once_as_its_capacity_and_refuses_one_more() -> None:
    connection = ScriptedConnection(Script(capacity=2))
    with connection.exchange(), connection.exchange():
        with (
            pytest.raises(AssertionError, match="one exchange too many .* 2 of 2 exchanges"),
            connection.exchange(),
        ):
            pass
        assert connection.inflight == 2
    assert (connection.inflight, connection.most_inflight, connection.carried) == (0, 2, 2)


async def test_it_is_lost_after_the_exchanges_of_its_script() -> None:
    connection = ScriptedConnection(Script(exchanges=2))
    healthy = []
    for _ in range(2):
        with connection.exchange():
            pass
        healthy.append(connection.healthy)
    assert healthy == [True, False]
    assert not connection.single_shot
    with pytest.raises(AssertionError, match="an exchange was begun on <ScriptedConnection 0 lost"):
        connection.exchange().__enter__()


async def test_a_single_shot_connection_ends_after_its_first_exchange_and_says_so() -> None:
    connection = ScriptedConnection(Script(single_shot=True))
    said = [connection.single_shot]
    with connection.exchange():
        said.append(connection.single_shot)
    said.append(connection.single_shot)
    assert said == [False, False, True]
    assert not connection.healthy


async def test_it_can_be_told_to_end() -> None:
    connection = ScriptedConnection()
    connection.lose()
    assert not connection.healthy


async def test_a_nice_close_takes_its_time() -> None:
    connection, began = ScriptedConnection(Script(close_s=2.0)), anyio.current_time()
    await connection.aclose()
    assert anyio.current_time() - began == pytest.approx(2.0)


async def test_a_nice_close_that_hangs_ends_when_a_forced_one_comes() -> None:
    connection, began = ScriptedConnection(Script(close_s=FOREVER, force_s=1.0)), anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.aclose)
        await anyio.sleep(5.0)
        assert connection.state == "closing"
        await connection.aclose(force=True)
    assert anyio.current_time() - began == pytest.approx(6.0)
    assert connection.closes == ["nice", "force"]
    assert connection.state == "closed"


@pytest.mark.parametrize("force", [False, True])
async def test_a_close_may_raise_and_then_it_is_still_open(force: bool) -> None:
    error = OSError("broken pipe")
    connection = ScriptedConnection(Script(force_error=error) if force else Script(close_error=error))
    with pytest.raises(OSError, match="broken pipe"):
        await connection.aclose(force=force)
    assert connection.state == "closing"


async def test_closing_again_is_recorded_and_does_no_harm() -> None:
    connection = ScriptedConnection()
    await connection.aclose()
    await connection.aclose(force=True)
    assert connection.closes == ["nice", "force"]
    assert repr(connection) == "<ScriptedConnection 0 closed, 0 of 1 exchanges>"
    assert repr(ScriptedConnection(number=7)) == "<ScriptedConnection 7 open, 0 of 1 exchanges>"
