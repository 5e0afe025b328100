"""What others take of the processors is seen, and doubts what it could explain."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest
from msgspec.structs import replace

from mcpdiag.bench import neighbours, report
from mcpdiag.bench.compare import Comparison, compare, parse_limits, regressions, sentences
from mcpdiag.bench.neighbours import Neighbours, Reading, others
from mcpdiag.bench.result import Cell, Repetition, Result, Target
from tests.bench import made

BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
BUSY = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
LIMITS = parse_limits("p95=5%,throughput=5%,rss=10%")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose time it was")


def with_others(result: Result, *, cpus: float | None) -> Result:
    """The same, measured while others kept so many processors busy."""

    def rounds(cell: Cell) -> tuple[Repetition, ...]:
        return tuple(replace(each, others_cpus=cpus) for each in cell.repetitions)

    return replace(result, cells=tuple(replace(each, repetitions=rounds(each)) for each in result.cells))


def test_what_is_neither_idle_nor_ours_is_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processors for a second: 1.2 s were used, 0.9 s of it by us, so others had 0.3 of one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    start = Reading(100.0, 50.0, 40.0, 10.0)
    assert others(start, Reading(102.0, 50.7, 41.2, 10.9)) == pytest.approx(0.3)
    assert others(start, Reading(102.0, 51.0, 40.9, 10.1)) == 0.0  # one was idle: nobody waited
    assert others(start, start) == 0.0


@linux
def test_children_that_have_ended_are_still_ours() -> None:
    before = neighbours.read()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    after = neighbours.read()
    assert before is not None
    assert after is not None
    assert after.ours_s - before.ours_s >= 0.29
    assert after.used_s > before.used_s


@linux
def test_processes_that_are_not_ours_count_as_others() -> None:
    """Their parent has ended, so they are nobody's children; they take at least their share of each processor."""
    orphans = 2 * (os.cpu_count() or 1)
    script = f"import subprocess, sys\nfor _ in range({orphans}): subprocess.Popen([sys.executable, '-c', {BUSY!r}])"
    subprocess.run([sys.executable, "-c", script], check=True)
    with Neighbours() as found:
        end = time.monotonic() + 0.8
        while time.monotonic() < end:  # so that no processor is idle
            pass
    assert found.others_cpus is not None
    assert found.others_cpus > 0.3


def significant(base: float | None, new: float | None, *, slowdown: float, seed: int = 1) -> Comparison:
    return compare(
        with_others(made.result(seed), cpus=base),
        with_others(made.result(seed + 50, slowdown=slowdown), cpus=new),
    )


@pytest.mark.parametrize(("base", "new"), [(None, None), (0.0, 0.0), (0.01, 0.02)])
def test_a_quiet_machine_costs_no_power(base: float | None, new: float | None) -> None:
    found = significant(base, new, slowdown=1.1)
    assert {"throughput", "p50", "p95"} <= {each.metric for each in found.significant}
    assert {each.verdict for each in found.significant} == {"worse"}


def test_what_others_can_explain_is_not_significant() -> None:
    """With half a processor gone a call takes up to twice as long; a slowdown of 1.8 proves nothing, one of 3 does."""
    doubtful = significant(0.0, 0.5, slowdown=1.8)
    assert doubtful.significant == []
    assert regressions(doubtful, LIMITS) == []
    assert "0.50 with new" in sentences(doubtful)[-1]
    sure = significant(0.0, 0.5, slowdown=3.0)
    assert {each.metric for each in sure.significant} == {"throughput", "p50"}
    assert all(each.ratio.low > 1.3 for each in sure.significant if each.metric == "p50")


def test_a_tail_that_others_can_have_made_is_not_judged() -> None:
    """When they take more than 1 of 20 of a processor, the slowest 1 of 20 calls may be those that waited for them."""
    found = significant(0.0, 0.08, slowdown=1.5)
    assert {each.metric for each in found.significant} == {"throughput", "p50"}


def test_a_result_says_that_it_was_disturbed_and_a_quiet_one_does_not() -> None:
    assert "kept 0.40 processors busy" in report.sentences(with_others(made.result(1), cpus=0.4))[-1]
    for quiet in (None, 0.0, 0.03):
        assert not any("busy" in each for each in report.sentences(with_others(made.result(1), cpus=quiet)))


def test_memory_is_not_doubted() -> None:
    base, new = made.result(1), made.result(2)
    found = compare(with_others(base, cpus=0.9), with_others(new, cpus=0.9))
    plain = compare(base, new)
    assert [e.ratio for e in found.differences if e.metric == "rss"] == [
        e.ratio for e in plain.differences if e.metric == "rss"
    ]


def test_drift_that_others_cause_raises_no_alarm() -> None:
    """12 comparisons of the same with the same, while others take up to 0.4 of a processor, another share each time.

    Where they take it from the one that everything waits for, a run is slower by that: without allowing for it nearly
    every comparison would be an alarm.
    """
    chance = random.Random(11)
    alarms = blind = 0
    for seed in range(12):
        base, new = chance.uniform(0, 0.4), chance.uniform(0, 0.4)
        slower = [
            made.result(seed + at, slowdown=1 / (1 - lost), clients=(8,))
            for at, lost in ((0, base), (999, new))
        ]
        told = compare(*(with_others(r, cpus=lost) for r, lost in zip(slower, (base, new), strict=True)))
        alarms += bool(told.significant) or bool(regressions(told, LIMITS))
        blind += bool(compare(*slower).significant)
    assert alarms <= 1
    assert blind >= 6


def test_the_server_at_a_url_is_not_taken_for_a_neighbour() -> None:
    target = Target(kind="url", shown="http://127.0.0.1:3001/mcp")
    base, new = (replace(with_others(made.result(n), cpus=0.8), target=target) for n in (1, 2))
    assert compare(base, new).new_lost == 0.0
