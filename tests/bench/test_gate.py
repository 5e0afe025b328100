"""Targets: what is met, missed, unclear or not measured, and which of it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from mcpdiag.bench.gate import Status, against_baseline, check, newest_baseline, read_targets
from mcpdiag.bench.isolation import Isolation
from mcpdiag.bench.result import folder_for, write
from mcpdiag.errors import ConfigError
from tests.bench import made

SHIPPED = Path(__file__).parents[2] / "benchmarks" / "targets.toml"


def judged(tmp_path: Path, target: str) -> Status:
    file = tmp_path / "targets.toml"
    file.write_text(f"[[target]]\n{target}")
    (finding,) = check(made.result(1), read_targets(file))
    assert finding.failed == (finding.status in ("missed", "not measured"))
    return finding.status


@pytest.mark.parametrize(
    ("target", "status"),
    [
        # With reuse and 8 clients a made result does 1,000 requests a second, give or take 2 %.
        ('metric = "throughput_rps"\ntransport = "stdio"\nreuse = "on"\nclients = 8\nabove = 900', "met"),
        (
            'metric = "throughput_rps"\ntransport = "stdio"\nreuse = "on"\nclients = 8\nabove = 1000',
            "unclear",
        ),
        ('metric = "throughput_rps"\ntransport = "stdio"\nreuse = "on"\nclients = 8\nabove = 1100', "missed"),
        ('metric = "throughput_rps"\nabove = 900', "missed"),  # without reuse it is 20, and every cell counts
        ('metric = "p95_ms"\nreuse = "on"\nclients = 1\nbelow = 20', "met"),
        ('metric = "p95_ms"\nreuse = "on"\nclients = 1\nmax_connections = 4\nbelow = 20', "not measured"),
        ('metric = "reuse_throughput"\nclients = 8\nat_least = 10', "met"),
        ('metric = "reuse_throughput"\nclients = 8\nat_least = 100', "missed"),
        ('metric = "sampling_overhead"\nat_most = 0.05', "not measured"),
        ('metric = "cross_talk"\nat_most = 0', "met"),
        ('metric = "errors"\nat_most = 0', "met"),
    ],
)
def test_a_target_is_judged_on_the_interval(tmp_path: Path, target: str, status: Status) -> None:
    assert judged(tmp_path, target) == status


def test_the_shipped_targets_are_met_by_a_good_result_and_missed_by_a_bad_one() -> None:
    targets = read_targets(SHIPPED)
    assert targets.limits == {"p95": 0.05, "throughput": 0.05, "rss": 0.1}
    good = check(made.result(1, slowdown=0.5), targets)
    assert [each.status for each in good if each.required] == ["met"] * 5
    assert not any(each.failed for each in good)
    leak = Isolation(verdict="cross-talk", exchanges=10, foreign=1)
    bad = made.result(1, slowdown=4)
    bad = replace(bad, isolation=(replace(bad.isolation[0], isolation=leak),))
    missed = [each.name for each in check(bad, targets) if each.failed]
    assert len(missed) == 3
    assert "no message reaches the wrong client" in missed


def test_falling_behind_the_baseline_is_a_finding() -> None:
    limits = {"p95": 0.05, "throughput": 0.05, "rss": 0.1}
    same = against_baseline(made.result(1), made.result(1), limits)
    assert {each.status for each in same} == {"unclear", "met"}  # 2 % of noise leave the 5 % open
    assert not any(each.failed for each in same)
    wide = against_baseline(made.result(1), made.result(2), dict.fromkeys(limits, 0.5))
    assert [each.status for each in wide] == ["met", "met", "met"]
    slower = against_baseline(made.result(1, slowdown=1.2), made.result(2), limits)
    assert [each.status for each in slower[:2]] == ["missed", "missed"]
    assert not slower[2].failed
    assert "+2" in slower[0].detail


def test_a_baseline_of_another_machine_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="the machines differ"):
        against_baseline(made.result(1), made.elsewhere(made.result(2)), {"p95": 0.05})


def test_the_newest_result_of_the_same_kind_is_the_baseline(tmp_path: Path) -> None:
    """Not the result itself, not one of another workload, not one of another machine."""
    result = made.result(1)
    assert newest_baseline(result, tmp_path / "own", tmp_path) is None
    folders = []
    other_pool = replace(result, config=replace(result.config, max_connections=9))
    for each in (result, made.result(2), other_pool, made.elsewhere(result), made.result(3)):
        folders.append(folder_for(each.environment, "matrix", tmp_path))
        write(each, folders[-1])
    assert newest_baseline(result, folders[-1], tmp_path) == folders[1]
    assert newest_baseline(result, folders[-1] / "result.json", tmp_path) == folders[1]
    assert newest_baseline(result, folders[0], tmp_path) == folders[-1]


def test_all_mistakes_of_a_targets_file_are_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "targets.toml"
    file.write_text(
        """
        [[target]]
        metric = "p96_ms"
        below = "fast"
        [[target]]
        metric = "p95_ms"
        above = 1
        below = 2
        transprt = "http"
        [baseline]
        p95 = "five"
        latency = "5%"
        """
    )
    with pytest.raises(ConfigError) as error:
        read_targets(file)
    said = [problem.removeprefix(f"{file}: ") for problem in error.value.problems]
    assert said[0].startswith('target.1.metric: found "p96_ms"; allowed: "throughput_rps"')
    assert said[1:] == [
        'target.1.below: found "fast"; allowed: a number',
        "target.2.transprt: found an unknown key; did you mean transport?",
        "target.2.at_least: found above and below; allowed: one of at_least, above, at_most, below",
        "baseline.latency: found an unknown key; allowed: throughput, p50, p95, rss",
        'baseline.p95: found "five"; allowed: a percentage such as "5%"',
    ]
