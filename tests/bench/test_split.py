"""The parts of what a proxy adds: at each percentile they sum up to it, whatever the numbers."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from mcpdiag.bench import overhead_report
from mcpdiag.bench.columns import NEVER, OK, Columns, Measurement, Report
from mcpdiag.bench.overhead import warm_up
from mcpdiag.bench.report import headings, rows, sentences
from mcpdiag.bench.result import Result
from mcpdiag.bench.split import At, Overhead, Parts, Phases, at, difference, lost, parts_at
from mcpdiag.bench.statistics import Estimate
from tests.bench import made


def phases(seed: int = 1, count: int = 1000) -> Phases:
    """Queue 1, connect 0.5, first 3 to 5 ms, the rest 2."""
    chance = random.Random(seed)
    first = [chance.uniform(3, 5) for _ in range(count)]
    return Phases([1.0] * count, [0.5] * count, first, [3.5 + each for each in first])


def parts(**ms: float) -> Parts:
    return Parts(**{"queue_ms": 0.0, "connect_ms": 0.0, "first_ms": 1.0, "relay_ms": 0.0, **ms})


def overhead(clients: int = 1, sampling: Estimate | None = None) -> Overhead:
    found = at([1.0, 1.1, 0.9], [1.6, 1.7, 1.5], [parts(relay_ms=0.2, queue_ms=0.1)] * 3)
    assert found is not None
    return Overhead(
        transport="stdio",
        clients=clients,
        p50=found,
        p95=found,
        throughput=Estimate(0.62, 0.6, 0.64, 3),
        exchanges=300,
        sampling=sampling,
    )


def measured(*overheads: Overhead) -> Result:
    return replace(made.result(1), overhead=overheads, pairs=(), isolation=())


def test_parts_are_means_over_the_calls_around_a_percentile() -> None:
    found = parts_at(phases(), 0.5)
    assert found is not None
    assert (found.queue_ms, found.connect_ms) == (1.0, 0.5)
    assert found.relay_ms == pytest.approx(2.0)
    assert found.first_ms == pytest.approx(4.0, abs=0.1)
    late = parts_at(phases(), 0.95)
    assert late is not None
    assert late.first_ms == pytest.approx(4.9, abs=0.05)
    assert late.total_ms > found.total_ms


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_calls_have_parts_too(count: int) -> None:
    for share in (0.5, 0.95):
        assert parts_at(phases(count=count), share) is not None
    assert parts_at(Phases([], [], [], []), 0.5) is None


def test_what_the_proxy_saw_and_the_hop_are_all_of_the_proxied_time() -> None:
    chance = random.Random(3)
    direct = [chance.uniform(1, 2) for _ in range(7)]
    proxied = [each + chance.uniform(1, 3) for each in direct]
    seen = [parts(relay_ms=chance.random(), queue_ms=chance.random()) for _ in range(7)]
    found = at(direct, proxied, seen)
    assert found is not None
    assert found.parts.total_ms + found.hop_ms == pytest.approx(found.proxied_ms)
    assert found.added.value == pytest.approx(found.proxied_ms - found.direct_ms)
    own = found.parts.total_ms - found.parts.first_ms
    assert own + found.hop_ms + found.server_ms == pytest.approx(found.added.value)
    assert found.added.low <= found.added.value <= found.added.high


def test_a_difference_keeps_its_pairs() -> None:
    """Rounds differ by 10, the two of a pair by 1: the interval is that of the pairs."""
    under = [0.0, 10.0, 20.0, 30.0, 40.0]
    found = difference([each + 1 for each in under], under)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_a_side_without_calls_has_no_overhead() -> None:
    assert at([0.0, 0.0], [1.0, 2.0], [parts()] * 2) is None
    assert at([1.0], [2.0], []) is None


def test_sampling_costs_the_share_that_is_lost() -> None:
    found = lost([95.0, 190.0, 95.0], [100.0, 200.0, 100.0])
    assert found is not None
    assert found.value == pytest.approx(0.05)
    assert found.low <= found.value <= found.high
    assert lost([1.0], [0.0]) is None


def test_calls_of_the_warm_up_are_those_sent_before_the_measured_time() -> None:
    columns = Columns()
    for intended, sent in ((-20, -20), (-10, NEVER), (-5, 3), (0, 0), (7, 7)):
        columns.add(intended, sent, 10, 0, OK)
    assert warm_up(Measurement(Report(), columns)) == 2


def test_the_first_exchanges_can_be_left_out() -> None:
    left = phases(count=10).without(4)
    assert len(left) == 6
    assert left.first_ms == phases(count=10).first_ms[4:]


def test_the_table_fits_a_screen_and_the_sentence_says_what_is_added() -> None:
    result = measured(overhead(1), overhead(32))
    body = rows(result)
    assert headings(result) == overhead_report.HEADINGS
    assert [row[0] for row in body] == ["stdio x1 p50", "stdio x1 p95", "stdio x32 p50", "stdio x32 p95"]
    assert all(len(row) == len(overhead_report.HEADINGS) for row in body)
    widest = [max(len(row[at]) for row in (overhead_report.HEADINGS, *body)) for at in range(len(body[0]))]
    assert sum(widest) + 2 * (len(widest) - 1) <= 100
    (said,) = sentences(result)
    assert said == (
        "Over stdio at 1 client the proxy adds 0.60 ms at p50 and 0.60 ms at p95; at p50: 0.10 ms waiting for a "
        "connection, 0.20 ms relay, 0.30 ms the hop to it and back. Throughput is 0.62x of direct."
    )


def test_wide_numbers_fit_a_screen_too() -> None:
    wide = Estimate(1234.5, 1100.4, 1400.9, 7)
    slow = At(
        direct_ms=123.4,
        proxied_ms=1357.9,
        added=wide,
        ratio=Estimate(11.02, 9.87, 12.3, 7),
        parts=parts(queue_ms=999.9, first_ms=250.0, connect_ms=12.3, relay_ms=5.0),
        hop_ms=90.7,
    )
    result = measured(replace(overhead(32), p50=slow, p95=slow))
    widest = [max(len(row[at]) for row in (overhead_report.HEADINGS, *rows(result))) for at in range(10)]
    assert sum(widest) + 2 * 9 <= 100


def test_what_sampling_costs_is_said() -> None:
    said = sentences(measured(overhead(sampling=Estimate(0.021, 0.012, 0.03, 7))))
    assert said[-1] == "Sampling costs 2.1 % (1.2 to 3.0) of the proxy's throughput over stdio at 1 client."
