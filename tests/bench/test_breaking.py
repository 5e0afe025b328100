"""The search finds the capacity of servers whose capacity is known, and ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcpdiag.bench.breaking import BASE_RUNS, Plan, Search
from mcpdiag.bench.knee import Breaking, Limits
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.cli.bench_break_run import draw
from tests.bench.double import Double, Json, Refused
from tests.servers import one_at_a_time

ECHO = Call(method="tools/call", params={"name": "echo", "arguments": {"text": "hi"}})
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def search(url: str, plan: Plan, **options: Any) -> Breaking:
    found = Search(plan, LoadSpec(url=url, calls=(ECHO,), timeout_s=3.0), **options)
    found.run()
    assert all(each.repetitions for each in found.cells)
    return found.breaking


def test_one_call_at_a_time_of_5_ms_breaks_at_200_a_second(tmp_path: Path) -> None:
    """200 a second are all that it can do: below it holds, above the line grows by what is too much."""
    with one_at_a_time.running("--service-ms", "5") as url, RawFile(tmp_path) as raw:
        plan = Plan(start=50, seconds=1.0, warmup_s=0.3, precision=0.15, max_s=120)
        found = search(url, plan, raw=raw)
    assert found.stopped == ""
    assert 140 <= found.held <= 205
    assert 195 <= found.departed <= 290
    assert found.departed <= 1.15 * found.held
    broke = found.step(found.departed)
    assert broke is not None
    assert broke.departed in ("p99", "throughput")
    assert found.steps[0].runs == BASE_RUNS
    assert max(each.answered_rps for each in found.steps) == pytest.approx(200, rel=0.06)
    drawn = Path(draw(found, tmp_path))
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert drawn.stat().st_size > 5000


def test_a_server_that_turns_calls_away_departs_by_errors() -> None:
    """It lets 3 wait: above 200 a second the others are refused, and nobody waits long."""
    with one_at_a_time.running("--service-ms", "5", "--queue", "3") as url:
        plan = Plan(start=100, most=800, seconds=1.0, warmup_s=0.3, precision=1.0)
        found = search(url, plan)
    broke = found.step(found.departed)
    assert broke is not None
    assert broke.departed == "errors"
    assert "503" in broke.first_error
    assert 100 <= found.held < found.departed <= 400


def test_clients_break_it_where_they_wait_too_long() -> None:
    """Each client waits for all others, 10 ms for each: they break it when that is more than p99 may be."""
    with one_at_a_time.running("--service-ms", "10") as url:
        plan = Plan(by="clients", start=1, most=256, seconds=0.8, warmup_s=0.2, precision=0.3)
        found = search(url, plan)
    limit_ms = 5 * found.base.high
    assert found.departed > found.held >= 1
    assert found.held * 10 <= limit_ms
    assert all(each.p50_ms >= 9 * each.load for each in found.steps)
    broke = found.step(found.departed)
    assert broke is not None
    assert broke.departed == "p99"
    assert broke.p99_ms > limit_ms


def test_a_server_that_holds_everything_does_not_break() -> None:
    with Double(lambda params, session: "x") as server:
        found = search(
            server.url, Plan(start=20, most=60, seconds=0.5, warmup_s=0.1, limits=Limits(p99_factor=100))
        )
    assert (found.held, found.departed, found.stopped) == (60, 0.0, "")


def test_the_search_ends_in_time() -> None:
    """The clock says that an hour has passed after each look: the first run is made, and no other."""
    now = iter(range(0, 10**9, 3600))
    clock: Callable[[], float] = lambda: float(next(now))  # noqa: E731
    with Double(lambda params, session: "x") as server:
        found = search(server.url, Plan(start=20, most=1000, seconds=0.3, max_s=60.0), clock=clock)
    assert len(found.steps) == 1
    assert found.steps[0].runs == 1
    assert found.stopped == "its 60 s were over"


def test_a_generator_without_enough_clients_is_the_limit_and_says_so() -> None:
    """Each call takes 100 ms, any number of them at once: with 2 clients no more than 20 a second get through."""
    with one_at_a_time.running("--service-ms", "100", "--lines", "1000") as url:
        plan = Plan(start=5, most=80, seconds=1.0, warmup_s=0.3, max_clients=2, precision=0.5)
        found = search(url, plan)
    assert 10 <= found.held <= 20 < found.departed
    assert "it has 2 clients" in found.generator_bound


def test_a_server_that_does_not_come_back_ends_the_search() -> None:
    calls = 0

    def dies(params: Json, session: str) -> str:
        nonlocal calls
        calls += 1
        if calls > 400:
            raise Refused("out of memory")
        return "x"

    with Double(dies) as server:
        found = search(server.url, Plan(start=40, most=5000, seconds=0.5, warmup_s=0.1))
    assert found.departed > found.held >= 40
    assert found.stopped.startswith("the server did not recover after")
    assert "out of memory" in found.stopped


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SessionError, match="no connection"):
        search("http://127.0.0.1:1/mcp", Plan(start=10))


def test_what_holds_nothing_has_no_lower_load() -> None:
    def refuse(params: Json, session: str) -> str:
        raise Refused("no")

    with Double(refuse) as server:
        found = search(server.url, Plan(start=20, seconds=0.3, warmup_s=0.1))
    assert (found.held, found.departed) == (0.0, 20)
    assert found.steps[0].departed == "errors"
