"""`mcpdiag bench check` as CI uses it: it passes a good server, fails a slow one, and does without a baseline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from mcpdiag.bench.gate import check, read_extra, read_targets
from mcpdiag.bench.result import read, write
from mcpdiag.errors import ConfigError
from tests.bench import made
from tests.bench.test_neighbours import with_others

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "benchmarks" / "targets.toml"
SLOW = [sys.executable, str(ROOT / "benchmarks" / "computing.py")]


def mcpdiag(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MCPDIAG_")}
    found = subprocess.run(
        [sys.executable, "-m", "mcpdiag", "bench", *args],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        env=environ,
    )
    assert "Traceback" not in found.stderr, found.stderr
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_gate_fails_a_server_that_is_too_slow(tmp_path: Path) -> None:
    """A call that waits 60 ms through one connection: 17 a second, and even if others took all they could, no 1,000."""
    run = ["run", "--clients", "8", "--repeat", "3", "--seconds", "0.3", "--max-connections", "1"]
    found = mcpdiag(*run, "--timeout", "5", "--output", "slow", "--", *SLOW, "60ms", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    result = read(tmp_path / "slow")
    assert all(each.others_cpus is not None for cell in result.cells for each in cell.repetitions) or (
        sys.platform != "linux"
    )
    found = mcpdiag("check", "slow", "--targets", str(SHIPPED), cwd=tmp_path)
    assert found.returncode == 1
    assert "missed:        stdio with reuse serves over 1,000 requests a second" in found.stdout
    assert "no baseline of this machine: no stored result of" in found.stdout


@pytest.mark.slow
def test_a_missing_baseline_is_said_and_does_not_fail(tmp_path: Path) -> None:
    write(made.result(1, slowdown=0.5), tmp_path / "good")
    found = mcpdiag("check", "good", "--targets", str(SHIPPED), cwd=tmp_path)
    assert found.returncode == 0, found.stdout
    assert "no baseline of this machine" in found.stdout
    (tmp_path / "extra.json").write_text('{"sampling_overhead": [0.2, 0.21, 0.22, 0.2, 0.21]}')
    found = mcpdiag("check", "good", "--targets", str(SHIPPED), "--extra", "extra.json", cwd=tmp_path)
    assert found.returncode == 1
    assert "missed:        sampling costs at most 5 %: 0.21" in found.stdout


@pytest.mark.parametrize(
    ("lost", "status"),
    [
        ([0.01, 0.02, 0.015, 0.01, 0.02], "met"),
        ([0.01, 0.09, 0.05, 0.03, 0.07], "unclear"),
        ([0.08, 0.085, 0.079, 0.081, 0.08], "missed"),
        (None, "not measured"),
    ],
)
def test_what_another_program_has_measured_is_judged_on_its_interval(
    tmp_path: Path, lost: list[float] | None, status: str
) -> None:
    file = tmp_path / "extra.json"
    file.write_text(json.dumps({"sampling_overhead": lost} if lost else {}))
    findings = check(made.result(1), read_targets(SHIPPED), read_extra(file))
    (found,) = [each for each in findings if each.name == "sampling costs at most 5 %"]
    assert found.status == status
    assert found.failed == (status == "missed")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"sampling": [1]}', 'found "sampling"; allowed: sampling_overhead'),
        ('{"sampling_overhead": []}', "found no metrics"),
        ('{"sampling_overhead": ["much"]}', "found no metrics"),
        ("never", "found no metrics"),
    ],
)
def test_a_file_of_other_metrics_that_is_none_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "extra.json"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_extra(file)
    assert problem in error.value.problems[0]
    with pytest.raises(ConfigError, match="found no file"):
        read_extra(tmp_path / "gone.json")


def test_a_miss_that_others_can_explain_is_unclear() -> None:
    """8 ms a call makes 667 a second; with a third of a processor gone it may have been 1,000, with a tenth it cannot."""
    slow = made.result(1, slowdown=1.5)
    slow = replace(slow, cells=tuple(cell for cell in slow.cells if cell.clients == 8))
    first = [
        check(with_others(slow, cpus=lost), read_targets(SHIPPED))[0].status for lost in (None, 0.1, 0.4, 0.9)
    ]
    assert first == ["missed", "missed", "unclear", "unclear"]
