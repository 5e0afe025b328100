"""The soak: when it goes on, what it says, and the command line on servers with planted habits."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mcpdiag.bench.readings import Reading
from mcpdiag.bench.result import read, schema
from mcpdiag.bench.soak import Soak, every_of, judge_readings
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.bench.vitals import Vitals
from tests.bench.double import Double
from tests.conftest import own_processes
from tests.servers.leaky import command

CALL = Call(method="tools/call", params={"name": "echo", "arguments": {"message": "hello"}})
MCPDIAG = [sys.executable, "-m", "mcpdiag", "bench", "soak"]


def soaked(blocks: Callable[[int], float], *, extend: bool = True) -> Soak:
    """A soak of 1.5 s at 400 calls a second, of a server of which so many blocks are read after so many calls."""
    with Double() as server:

        def look() -> tuple[Mapping[str, Vitals], float, float]:
            calls = server.methods.count("tools/call")
            one = Vitals(processes=1, pids=(5,), blocks=1e6 + blocks(calls), heap_bytes=1e7)
            return {"server": one}, 4.0, 1.0

        spec = LoadSpec(
            url=server.url, calls=(CALL,), clients=4, loop="open", rate=400, warmup_s=0, seconds=1.5
        )
        soak = Soak(spec, look, every_s=0.05, extend=extend)
        soak.run()
    return soak


@pytest.mark.slow
def test_a_leak_is_confirmed_over_twice_the_requests() -> None:
    soak = soaked(lambda calls: 3.0 * calls)
    found = soak.soaked()
    assert (found.verdict, found.extended, found.failed) == ("leak", True, 0)
    (leak,) = [each for each in found.findings if each.verdict == "leak"]
    assert (leak.process, leak.metric) == ("server", "blocks")
    assert leak.slope == pytest.approx(3, rel=0.1)
    half = next(each for each in soak.readings if each.at_s >= 1.45)
    assert found.requests >= 1.9 * half.requests or found.took_s >= 2.5 * 1.5


@pytest.mark.slow
def test_what_does_not_grow_has_no_second_look() -> None:
    found = soaked(lambda calls: calls % 50).soaked()
    assert (found.verdict, found.extended) == ("none", False)


@pytest.mark.slow
def test_a_cache_that_was_filling_is_cleared_by_the_second_look() -> None:
    began: list[float] = []
    full: list[float] = []

    def cache(calls: int) -> float:
        began.append(time.monotonic())
        if began[-1] - began[0] > 1.7 and not full:  # after the first look, at 1.5 s
            full.append(3.0 * calls)
        return full[0] if full else 3.0 * calls

    found = soaked(cache).soaked()
    assert (found.verdict, found.extended) in (("none", True), ("inconclusive", True))


@pytest.mark.slow
def test_without_a_second_look_a_suspicion_is_inconclusive() -> None:
    found = soaked(lambda calls: 3.0 * calls, extend=False).soaked()
    assert (found.verdict, found.extended) == ("inconclusive", False)
    assert [each.suspected for each in found.findings if each.metric == "blocks"] == [True]


def test_readings_amid_a_stall_do_not_count_for_memory() -> None:
    """Of 60 readings, ten near the end with 100 calls more under way, 70 blocks each; nothing else grows."""
    readings = [
        Reading(
            at_s=at,
            requests=500 * at,
            vitals={"proxy": Vitals(processes=1, pids=(5,), blocks=1e5 + at % 7 + 70 * busy, fds=50 + busy)},
            busy=busy,
            waiting=busy * 10,
        )
        for at in range(60)
        for busy in [100 if 45 <= at < 55 else 0]
    ]
    found = {each.metric: each for each in judge_readings(readings, connections=100)}
    assert (found["blocks"].verdict, found["blocks"].readings) == ("none", 50)
    assert found["fds"].readings == 60


@pytest.mark.parametrize(
    ("seconds", "every"), [(5, 0.5), (20, 0.5), (60, 1.0), (600, 10.0), (3600, 60.0), (86400, 60.0)]
)
def test_there_are_twenty_readings_or_more(seconds: float, every: float) -> None:
    assert every_of(seconds) == every
    assert seconds / every_of(seconds) >= 20 or seconds < 10


# -- the command line ----------------------------------------------------------------------------------------


def bench(*args: str, cwd: Path, timeout: float = 110) -> subprocess.CompletedProcess[str]:
    found = subprocess.run([*MCPDIAG, *args], capture_output=True, text=True, timeout=timeout, cwd=cwd)
    assert "Traceback" not in found.stderr, found.stderr
    return found


def test_explain_prints_the_method(tmp_path: Path) -> None:
    found = bench("--explain", cwd=tmp_path)
    assert found.returncode == 0
    assert "Theil-Sen" in found.stdout


def test_mistakes_are_said_all_at_once(tmp_path: Path) -> None:
    found = bench(
        "--for", "soon", "--rate", "fast", "--probe", "--connections", "0", "--pid", "3", cwd=tmp_path
    )
    assert found.returncode == 2
    said = found.stderr.splitlines()
    assert {line.split(": ")[1] for line in said} == {"--for", "--rate", "--probe", "--connections", "--pid"}
    assert [*tmp_path.iterdir()] == []


def test_a_run_too_short_for_a_verdict_is_refused(tmp_path: Path) -> None:
    found = bench("--for", "3s", cwd=tmp_path)
    assert found.returncode == 2
    assert "--for: found 3s, fewer than 14 readings 0.5 s apart; allowed: 7s or longer" in found.stderr


def test_too_few_files_are_one_line(tmp_path: Path) -> None:
    """A hard limit of 512 open files is not enough for 1,000 connections."""
    limited = ["/bin/sh", "-c", 'ulimit -n 512 && exec "$@"', "sh"]
    found = subprocess.run(
        [*limited, *MCPDIAG, "--connections", "1000"], capture_output=True, text=True, cwd=tmp_path
    )
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert "the hard limit is 512" in line


def test_a_probe_is_for_python_only(tmp_path: Path) -> None:
    found = bench("--probe", "--", "node", "server.js", cwd=tmp_path)
    assert (found.returncode, len(found.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("target", [["--", "no-such-program"], ["--url", "http://127.0.0.1:1/mcp"]])
def test_a_server_that_does_not_start_is_one_line(tmp_path: Path, target: list[str]) -> None:
    found = bench("--for", "10s", *target, cwd=tmp_path)
    assert (found.returncode, len(found.stderr.splitlines())) == (3, 1)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_planted_leak_is_found_and_exits_with_1(tmp_path: Path) -> None:
    """1 KiB a request, of a stdio server behind the proxy: as much, and what malloc and the list take."""
    before = own_processes()
    args = ["--for", "12s", "--connections", "5", "--rate", "60", "--max-connections", "1", "--probe"]
    found = bench(*args, "--output", "out", "--", *command("bytes:1024"), cwd=tmp_path, timeout=170)
    assert found.returncode == 1, (found.stdout, found.stderr)
    assert "Verdict: LEAK" in found.stdout
    tables = found.stdout.partition("Verdict")[0].splitlines()[1:]
    assert max(map(len, tables)) <= 100
    result = read(tmp_path / "out")
    assert result.soak is not None
    leaks = {each.metric: each for each in result.soak.findings if each.verdict == "leak"}
    assert {each.process for each in leaks.values()} == {"server"}
    if sys.platform == "linux":
        assert leaks["heap_bytes"].slope == pytest.approx(1050, rel=0.2)
    validator: Any = importlib.import_module("jsonschema")
    validator.validate(json.loads((tmp_path / "out" / "result.json").read_text()), schema())
    assert {each.name for each in (tmp_path / "out").iterdir()} & {"readings.parquet", "readings.csv.gz"}
    assert own_processes() == before


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("format_", ["json", "junit", "md"])
def test_the_embedded_server_in_a_format_for_programs(tmp_path: Path, format_: str) -> None:
    args = ["--for", "8s", "--every", "0.5s", "--connections", "20", "--rate", "100", "--output", "out"]
    found = bench(*args, "--transport", "http", "--format", format_, cwd=tmp_path)
    assert found.returncode == 0, (found.stdout, found.stderr)
    result = read(tmp_path / "out")
    assert result.soak is not None
    assert result.soak.failed == 0
    assert {each.process for each in result.soak.findings} == {"proxy", "server"}
    assert {"blocks", "heap_bytes", "fds"} <= {
        each.metric for each in result.soak.findings
    } or sys.platform != "linux"
    if format_ == "json":
        assert json.loads(found.stdout) == json.loads((tmp_path / "out" / "result.json").read_text())
    else:
        assert ("<testsuite" if format_ == "junit" else "| process |") in found.stdout


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    before = own_processes()
    args = ["--for", "10m", "--every", "0.5s", "--connections", "20", "--rate", "100", "--output", "out"]
    process = subprocess.Popen([*MCPDIAG, *args], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        while len(own_processes() - before) < 4:  # soak, load, proxy, its server: the load is on
            assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(5)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Interrupted" in said
    result = read(tmp_path / "out")
    assert not result.complete
    assert result.soak is not None
    assert result.soak.requests > 0
    assert re.search(r"^Result: out$", said, re.MULTILINE)
    assert own_processes() == before
