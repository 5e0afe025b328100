"""The summary says what the rows say."""

from __future__ import annotations

from itertools import count

import pytest

from mcpdiag.hooks import ExchangeDone
from mcpdiag.samples.phases import phases
from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.summary import PHASES, QUANTILES


def done(target: str, total_ms: float, outcome: str = "ok", queue_ms: float = 0.0) -> ExchangeDone:
    return ExchangeDone(
        "up", "stdio", "tools/call", target, "s", "2025-11-25", outcome,
        queue_ms=queue_ms, connect_ms=1.0, first_ms=2.0, total_ms=total_ms,
    )  # fmt: skip


def test_counts_errors_throughput_and_percentiles_of_each_target() -> None:
    ticks = count(10**18, 10**8)  # an exchange ends every 100 ms
    recorder = Recorder(clock=lambda: next(ticks))
    for number in range(101):
        recorder.emit(done("slow", total_ms=100.0 + number, queue_ms=float(number)))
    recorder.emit(done("broken", 5.0, "request_timeout"))
    recorder.emit(done("broken", 5.0, "cancelled"))
    summary = recorder.summary()
    assert [*summary.index] == [("up", "tools/call", "slow"), ("up", "tools/call", "broken")]
    slow, broken = summary.iloc[0], summary.iloc[1]
    assert (slow["count"], slow["errors"], slow["error_rate"]) == (101, 0, 0)
    assert (broken["count"], broken["errors"], broken["error_rate"]) == (2, 1, 0.5)
    assert slow["rps"] == pytest.approx(101 / 10.3)  # from 0.1 s before the first end, 103 of them
    assert [slow[f"total_{name}_ms"] for name in QUANTILES] == pytest.approx([150, 190, 195, 199, 200])
    assert [slow[f"queue_{name}_ms"] for name in QUANTILES] == pytest.approx([50, 90, 95, 99, 100])
    assert [slow[f"{phase}_max_ms"] for phase in ("connect", "first", "relay")] == pytest.approx([1, 2, 97])


def test_without_rows_there_is_a_summary_without_rows() -> None:
    summary = Recorder().summary()
    assert len(summary) == 0
    assert {f"{phase}_{name}_ms" for phase in PHASES for name in QUANTILES} <= {*summary.columns}


def test_what_ended_while_it_waited_spent_its_time_there() -> None:
    """A caller that got no connection, one whose server did not start, one that a server hung on, one that left."""
    ended = {"pool_timeout": 0.0, "connect_timeout": 0.0, "request_timeout": 1.0, "cancelled": 0.0}
    recorder = Recorder()
    for outcome, sent_ms in ended.items():
        recorder.emit(
            ExchangeDone("up", "stdio", "ping", "", "s", "", outcome, total_ms=90.0, sent_ms=sent_ms)
        )
    # The client's own `initialize` is sent while its process starts, so it may have been sent and not be connected.
    recorder.emit(
        ExchangeDone("up", "stdio", "ping", "", "s", "", "connect_timeout", 4.0, total_ms=90.0, sent_ms=5.0)
    )
    # An answer, and one that broke after its first byte: what is left is the rest of it.
    recorder.emit(ExchangeDone("up", "stdio", "ping", "", "s", "", "ok", total_ms=90.0))
    recorder.emit(
        ExchangeDone(
            "up", "stdio", "ping", "", "s", "", "upstream_closed", first_ms=9.0, total_ms=90.0, sent_ms=1.0
        )
    )
    assert phases(recorder.requests).to_numpy().tolist() == [
        [90, 0, 0, 0], [0, 90, 0, 0], [0, 0, 90, 0], [90, 0, 0, 0], [4, 86, 0, 0], [0, 0, 0, 90], [0, 0, 9, 81],
    ]  # fmt: skip


def test_the_relay_is_never_negative() -> None:
    recorder = Recorder()
    recorder.emit(done("t", total_ms=2.0))
    assert recorder.summary()["relay_max_ms"].iloc[0] == 0
