"""The load of a soak: at its rate, in intervals, with sessions that are replaced, until it is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpdiag.bench.columns import CLOSED, OK, Columns
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.bench.steady_load import Interval, SteadyLoad
from mcpdiag.bench.tally import Tally
from tests.bench.double import Double

CALL = Call(method="tools/call", params={"name": "echo", "arguments": {"message": "hello"}})


def until(load: SteadyLoad, calls: int) -> Iterator[Interval]:
    """The intervals until there were so many calls; then the load is stopped, and those that are left."""
    seen = 0
    for ended in load.intervals():
        yield from ended
        seen += sum(len(each.measurement.columns) for each in ended)
        if seen >= calls:
            load.stop()
            break
    for ended in load.intervals():
        yield from ended


@pytest.mark.parametrize("rate", [200.0, 0.0])
def test_every_call_is_told_once_and_reaches_the_server(rate: float) -> None:
    """Open and closed loop: no call is lost between two intervals, or at the end."""
    with Double() as server:
        spec = LoadSpec(
            url=server.url,
            calls=(CALL,),
            clients=4,
            loop="open" if rate else "closed",
            rate=rate,
            warmup_s=0.0,
            seconds=60.0,
        )
        with SteadyLoad(spec, every_s=0.1) as load:
            assert load.wait_begin() == 4
            found = [*until(load, 100)]
        calls = sum(len(each.measurement.columns) for each in found)
        assert calls == server.methods.count("tools/call") >= 100
        assert all(each.open == 4 for each in found[:-1])
        assert {outcome for each in found for outcome in each.measurement.columns.outcome[: len(each.measurement.columns)]} == {OK}  # fmt: skip
    assert [each.at_s for each in found] == sorted(each.at_s for each in found)
    if rate:  # they were due at equal distances, whatever the server did
        due = sorted(
            each.measurement.columns.intended_ns[at]
            for each in found
            for at in range(len(each.measurement.columns))
        )
        assert {after - before for before, after in pairwise(due)} <= {4_999_999, 5_000_000, 5_000_001}  # fmt: skip


def test_sessions_are_replaced_one_after_the_other() -> None:
    """10 sessions of 20 calls: after 200 calls each has been replaced once, and not all of them at once."""
    with Double() as server:
        spec = LoadSpec(
            url=server.url, calls=(CALL,), clients=10, session_calls=20, loop="open", rate=400, warmup_s=0, seconds=60
        )  # fmt: skip
        with SteadyLoad(spec, every_s=0.1) as load:
            load.wait_begin()
            found = [*until(load, 200)]
        calls = server.methods.count("tools/call")
        opened = server.methods.count("initialize")
        assert opened == found[-1].measurement.report.sessions_opened
        assert abs(opened - 10 - calls // 20) <= 1
        at = [number for number, method in enumerate(server.methods) if method == "initialize"][10:]
    gaps = [after - before for before, after in pairwise(at)]
    assert min(gaps) > 5  # requests between two of them: calls, and the notification of the first


def test_calls_that_find_no_client_free_are_counted_as_waiting() -> None:
    with Double(stall=(30.0, 60.0)) as server:
        spec = LoadSpec(
            url=server.url, calls=(CALL,), clients=2, loop="open", rate=200, warmup_s=0, seconds=60, timeout_s=0.5
        )  # fmt: skip
        with SteadyLoad(spec, every_s=0.2) as load:
            load.wait_begin()
            waiting = 0
            for ended in load.intervals():
                waiting = max(waiting, ended[-1].waiting)
                if waiting >= 20:
                    load.stop()
                    break
            assert waiting >= 20
            assert [*load.intervals()]  # it ends all the same


def test_a_server_that_is_not_there_is_one_line() -> None:
    spec = LoadSpec(url="http://127.0.0.1:1/mcp", calls=(CALL,), seconds=60.0)
    with SteadyLoad(spec, every_s=0.1) as load, pytest.raises(SessionError, match="no connection"):
        load.wait_begin()


def columns_of(latencies: list[int], outcome: int = OK) -> Columns:
    columns = Columns()
    for each in latencies:
        columns.add(0, 0, each, 0, outcome)
    return columns


@settings(deadline=None)
@given(st.lists(st.integers(1_000, 10**10), min_size=1, max_size=200), st.integers(1, 5))
def test_quantiles_are_true_to_one_percent_however_the_calls_are_cut(
    latencies: list[int], parts: int
) -> None:
    tally = Tally()
    for part in range(parts):
        tally.add(columns_of(latencies[part::parts]))
    summary = tally.summary(2.0)
    assert (summary.calls, summary.ok, summary.errors) == (len(latencies), len(latencies), {})
    assert summary.throughput_rps == pytest.approx(len(latencies) / 2)
    assert summary.max_ms == pytest.approx(max(latencies) / 1e6, abs=1e-6)
    ordered = sorted(latencies)
    for share in (0.5, 0.95, 0.99):
        below = ordered[int(share * (len(ordered) - 1))]
        above = ordered[min(len(ordered) - 1, int(share * (len(ordered) - 1)) + 1)]
        found = summary.quantiles_ms[f"{share:g}"] * 1e6
        assert 0.98 * below - 1 <= found <= 1.02 * above + 1


def test_failed_calls_are_counted_by_kind_and_have_no_latency() -> None:
    tally = Tally()
    tally.add(columns_of([1000] * 3))
    tally.add(columns_of([10**9] * 2, CLOSED))
    summary = tally.summary(1.0)
    assert (summary.calls, summary.ok, summary.errors) == (5, 3, {"closed": 2})
    assert tally.failed == 2
    assert summary.max_ms < 0.01
