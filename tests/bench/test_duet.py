"""Base and new in turn: whose turn it is, what counts, what is said of it."""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from mcpdiag.bench.alternate import alternate
from mcpdiag.bench.columns import OK
from mcpdiag.bench.compare import Comparison, parse_limits, regressions, sentences, sides
from mcpdiag.bench.duet import DuetRun
from mcpdiag.bench.generate import run_loop
from mcpdiag.bench.result import Cell, Duet, Result, Target, read
from mcpdiag.bench.significance import ALPHA, least_p, paired_p_values
from mcpdiag.bench.spec import Call, DuetSpec, Endpoint, LoadSpec
from mcpdiag.bench.statistics import summarize
from mcpdiag.errors import ConfigError
from tests.bench import made
from tests.bench.double import Double
from tests.bench.test_cli import bench
from tests.conftest import own_processes

COMPUTING = Path(__file__).parents[2] / "benchmarks/computing.py"
ECHO = Call(method="tools/call", params={"name": "echo", "arguments": {"message": "hi"}})


# -- one round ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
def test_only_one_side_is_called_at_a_time_in_an_order_that_a_drift_cannot_tell(first: int) -> None:
    turns: list[str] = []

    def server(name: str) -> Double:
        def call(params: dict[str, object], session: str) -> str:
            turns.append(name)
            return "hi"

        return Double(call)

    with server("base") as base, server("new") as new:
        loads = [LoadSpec(url=each.url, calls=(ECHO,), warmup_s=0.1, seconds=0.3) for each in (base, new)]
        found = run_loop(alternate(DuetSpec(sides=(loads[0], loads[1]), slice_s=0.05, first=first)))
    changes = [turns[0], *(name for before, name in pairwise(turns) if name != before)]
    one, other = ("base", "new") if first == 0 else ("new", "base")
    # ABBA: the two in the middle run into one another.
    assert changes == [one, *([other, one] * len(changes))][: len(changes)]
    assert len(changes) >= 5
    for measurement in found:
        summary, columns = summarize(measurement), measurement.columns
        measured = [row for row in range(len(columns)) if columns.intended_ns[row] >= 0]
        assert measurement.report.window_ns >= 0.3e9
        assert summary.calls == summary.ok == len(measured)
        assert len(columns) > len(measured)  # the warm-up
        # The time of a side is that of its slices: there is no gap in it for the other one's.
        assert max(columns.done_ns[row] for row in measured) == measurement.report.window_ns
        assert summary.throughput_rps == pytest.approx(
            len(measured) / measurement.report.window_ns * 1e9, rel=0.02
        )
        assert {columns.outcome[row] for row in measured} == {OK}


# -- what is said of many ------------------------------------------------------------------------------------------


def duet(seed: int, *, slowdown: float = 1.0, rounds: int = 16, unlucky: float = 0.25) -> Result:
    """Noise as it was measured: 1.5 % a round, and some processes slower by a seventh for all of their life."""
    chance = random.Random(seed)

    def one(slower: float) -> Cell:
        luck = [1.15 if chance.random() < unlucky / 2 else 1.0 for _ in range(rounds)]
        found = tuple(made.repetition(chance, 5, slower * each, noise=0.015) for each in luck)
        return Cell(transport="stdio", reuse="on", clients=1, repetitions=found)

    base, new = replace(one(1.0), way="base"), replace(one(slowdown), way="new")
    against = Duet(base=Target(kind="command", shown="old"), slice_s=0.05)
    return replace(made.result(1), cells=(base, new), pairs=(), isolation=(), duet=against)


def test_ten_percent_are_found_although_processes_differ_by_more() -> None:
    found = [sides(duet(seed, slowdown=1.1)) for seed in range(20)]
    said = [{each.verdict for each in comparison.significant} for comparison in found]
    assert said.count({"worse"}) >= 18
    assert {*map(frozenset, said)} <= {frozenset({"worse"}), frozenset()}
    assert sentences(found[0])[0].startswith("New is slower than base over stdio x1: throughput -")
    slow, fast = duet(0, slowdown=1.1), duet(1, slowdown=0.9)
    eight = tuple(replace(cell, clients=8) for cell in fast.cells)
    each_its_own = sentences(sides(replace(slow, cells=(*slow.cells, *eight))))
    assert each_its_own[0].startswith("New is slower than base over stdio x1: ")
    assert each_its_own[1].startswith("New is faster than base over stdio x8: ")
    faster = sides(duet(1, slowdown=0.9))
    assert sentences(faster)[0].startswith("New is faster than base over stdio x1: ")


def test_the_same_is_called_different_at_most_once_in_a_hundred() -> None:
    alarms = [bool(sides(duet(seed)).significant) for seed in range(200)]
    assert sum(alarms) <= 5  # 2 are to be expected; more than 5 come once in 60 times
    assert "no difference beyond noise in 3 comparisons (16 rounds)" in sentences(sides(duet(3)))[0]


def test_pairs_are_compared_not_medians() -> None:
    """Rounds that differ five times from each other, by the same on both sides: 3 % are seen all the same."""
    chance = random.Random(2)
    base = [chance.uniform(1, 5) for _ in range(16)]
    new = [each * chance.lognormvariate(0.03, 0.01) for each in base]
    assert paired_p_values([(base, new)])[0] <= ALPHA
    assert paired_p_values([(base, base)]) == [1.0]
    assert paired_p_values([(base, new)]) == paired_p_values([(base, new)])
    with pytest.raises(ValueError, match="same number of rounds"):
        paired_p_values([(base, new[:3])])


def test_few_rounds_say_that_they_cannot_tell() -> None:
    found = sides(duet(1, slowdown=2, rounds=7))
    assert not found.significant
    assert sentences(found) == [
        "Not significant: 7 rounds cannot show a difference (the least p is 0.02); run with --repeat 8 or more."
    ]
    assert sides(duet(1, slowdown=2, rounds=8)).significant
    assert least_p(8, 8, paired=True) <= ALPHA < least_p(7, 7, paired=True)


def test_limits_are_judged_on_the_interval() -> None:
    limits = parse_limits("p50=5%,throughput=5%")
    assert {each.metric for each in regressions(sides(duet(1, slowdown=1.2)), limits)} == {
        "p50",
        "throughput",
    }
    assert regressions(sides(duet(1)), limits) == []


def test_what_is_no_duet_or_has_one_round_is_refused() -> None:
    with pytest.raises(ConfigError, match="found one result; give a second one, or one of `bench duet`"):
        sides(made.result(1))
    with pytest.raises(ConfigError, match="found 1 rounds"):
        sides(duet(1, rounds=1))


def test_failed_calls_of_either_side_are_said() -> None:
    found = duet(1)
    lost = [replace(each.summary, errors={"timeout": 2}) for each in found.cells[1].repetitions]
    worse = tuple(
        replace(each, summary=summary) for each, summary in zip(found.cells[1].repetitions, lost, strict=True)
    )
    failing = replace(found, cells=(found.cells[0], replace(found.cells[1], repetitions=worse)))
    said: Comparison = sides(failing)
    assert sentences(said)[-1] == "Failed calls: 0 in base, 32 in new."


def test_a_round_that_was_cut_counts_for_neither_side() -> None:
    found = duet(1)
    run = DuetRun(
        replace(found.config, clients=(1, 8), transports=("stdio",)),
        found.workload,
        (Endpoint(command=("old",)), Endpoint(command=("new",))),
        slice_s=0.05,
    )
    base, new = found.cells
    run._repetitions = {(1, "base"): [*base.repetitions], (1, "new"): [*new.repetitions[:-1]]}
    run._repetitions[8, "base"] = [*base.repetitions[:1]]
    assert [(cell.name, len(cell.repetitions)) for cell in run.cells] == [
        ("stdio x1 base", 15), ("stdio x1 new", 15),
    ]  # fmt: skip


# -- from the command line -----------------------------------------------------------------------------------------


def server(wait: str) -> list[str]:
    return [sys.executable, str(COMPUTING), wait]


@pytest.mark.slow
def test_a_server_that_takes_twice_as_long_is_called_slower(tmp_path: Path) -> None:
    before = own_processes()
    short = ["--repeat", "8", "--seconds", "0.15", "--warmup", "0.05", "--output", "out"]
    found = bench("duet", *short, "--base", " ".join(server("4ms")), "--", *server("8ms"), cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, ""), found.stderr
    lines = found.stdout.splitlines()
    assert lines[1].split()[:4] == ["cell", "metric", "base", "new"]
    assert [line.split()[-1] for line in lines[2:5]] == ["worse"] * 3
    assert max(map(len, lines[1:5])) <= 100
    assert "New is slower than base over stdio x1: throughput -" in found.stdout
    result = read(tmp_path / "out")
    assert [(cell.name, len(cell.repetitions)) for cell in result.cells] == [
        ("stdio x1 base", 8), ("stdio x1 new", 8),
    ]  # fmt: skip
    assert result.duet is not None
    assert result.duet.base.shown.endswith("computing.py 4ms")
    assert own_processes() == before
    again = bench("compare", "out", cwd=tmp_path)
    assert again.stdout.splitlines()[:4] == lines[1:5]
    over = bench("compare", "out", "--max-regression", "p50=50%", cwd=tmp_path)
    assert over.returncode == 1
    assert "REGRESSION: p50 of stdio x1: +" in over.stdout
    wrong = bench("compare", "out", "--max-regression", "rss=5%", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "a duet has throughput, p50 and p95" in wrong.stderr


@pytest.mark.slow
def test_two_urls_and_what_cannot_be_told_of_them(tmp_path: Path) -> None:
    with Double() as base, Double() as new:
        args = ["--base-url", base.url, "--url", new.url, "--repeat", "2", "--seconds", "0.1"]
        found = bench("duet", *args, "--clients", "1,4", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, ""), found.stderr
    assert "2 rounds cannot show a difference" in found.stdout
    assert "Each side is one process" in found.stdout


@pytest.mark.slow
def test_mistakes_are_one_line_each(tmp_path: Path) -> None:
    for args, code, words in (
        ([], 2, "--base: found no new server; allowed: --base 'OLD' -- NEW"),
        (["--", "cat"], 2, "--base: a command is compared with a command"),
        (["--base", "cat", "--url", "http://x/mcp"], 2, "--base-url: a URL is compared with a URL"),
        (["--base", "cat 'x", "--", "cat"], 2, "--base: found a command with no closing quotation"),
        (["--base", "cat", "--slice", "soon", "--", "cat"], 2, '--slice: found "soon"'),
        (
            ["--base", "cat", "--repeat", "1", "--", "cat"],
            2,
            "--repeat: found 1; allowed: a whole number from 2",
        ),
        (["--base", "no-such-program", "--", *server("1ms")], 3, "no-such-program"),
    ):
        found = bench("duet", *args, cwd=tmp_path)
        assert (found.returncode, found.stdout) == (code, ""), found.stderr
        assert words in found.stderr
        assert len(found.stderr.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []
