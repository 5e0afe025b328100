"""`mcpdiag bench` as a person uses it, with runs so short that only their shape can be looked at."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mcpdiag.bench.result import read, write
from mcpdiag.embedded import COMMAND
from tests.bench import made
from tests.bench.double import ECHO, Double, Json, Refused
from tests.bench.test_isolation import Leaky
from tests.conftest import own_processes

MCPDIAG = [sys.executable, "-m", "mcpdiag"]
TINY = ["--clients", "2", "--seconds", "0.1", "--warmup", "0.02", "--repeat", "1"]
SHIPPED = Path(__file__).parents[2] / "benchmarks" / "targets.toml"

pytestmark = pytest.mark.slow  # each starts several proxies


def bench(*args: str, cwd: Path, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [*MCPDIAG, "bench", *args],
        capture_output=True,
        text=True,
        timeout=55,
        cwd=cwd,
        env={**os.environ, **(environ or {})},
    )
    assert "Traceback" not in found.stderr, found.stderr
    return found


def test_the_embedded_matrix_end_to_end(tmp_path: Path) -> None:
    """Table, sentence, artifact, the next command; and nothing is left running."""
    before = own_processes()
    found = bench(
        *TINY, cwd=tmp_path, environ={"MCPDIAG_PORT": "1"}
    )  # which would overrule the proxies' settings
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    lines = found.stdout.splitlines()
    assert max(map(len, lines[1:6])) <= 100
    assert [line.split()[:3] for line in lines[2:6]] == [
        ["stdio", "2", "on"],
        ["stdio", "2", "off"],
        ["http", "2", "on"],
        ["http", "2", "off"],
    ]
    assert "Reusing connections gives" in found.stdout
    folder = tmp_path / re.findall(r"^Result: (.*)$", found.stdout, re.MULTILINE)[0]
    assert folder.parts[-3] == "mcpdiag-results"
    assert f"mcpdiag bench compare {folder.relative_to(tmp_path)} NEW" in found.stdout
    assert {each.name for each in folder.iterdir()} in (
        {"result.json", "samples.csv.gz"},
        {"result.json", "samples.parquet"},
    )
    result = read(folder)
    assert result.complete
    assert result.workload.shown == "tools/call echo"
    assert all(each.isolation.verdict == "isolated" for each in result.isolation)
    assert len(result.isolation) == 4
    for cell in result.cells:
        assert cell.repetitions[0].summary.errors == {}
        assert cell.repetitions[0].memory.rss_bytes > 10_000_000
    assert own_processes() == before


def test_a_stdio_target_and_a_format_for_programs(tmp_path: Path) -> None:
    found = bench(*TINY, "--output", "out", "--format", "json", "--", *COMMAND, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    shown = json.loads(found.stdout)
    assert shown == json.loads((tmp_path / "out" / "result.json").read_text())
    assert [cell["transport"] for cell in shown["cells"]] == ["stdio", "stdio"]
    assert shown["target"]["kind"] == "command"
    assert shown["config"]["max_connections"] == 10
    again = bench(*TINY, "--output", "out", "--", *COMMAND, cwd=tmp_path)
    assert again.returncode == 2
    assert "never overwritten" in again.stderr


def test_a_leak_between_clients_fails_the_run(tmp_path: Path) -> None:
    """The server behind --url gives one session what another has sent; the result is kept all the same."""
    with Double(Leaky()) as server:
        found = bench(*TINY, "--url", server.url, "--output", "out", cwd=tmp_path)
    assert found.returncode == 1, found.stderr
    assert "CROSS-TALK over http" in found.stdout
    assert read(tmp_path / "out").crossed


def test_quiet_prints_the_path_only_and_headers_reach_the_server(tmp_path: Path) -> None:
    with Double() as server:
        args = ["--url", server.url, "--header", "Authorization: Bearer s3cr3t", "--quiet", "--output", "out"]
        found = bench("run", *TINY, *args, cwd=tmp_path)
        assert all(headers["authorization"] == "bearer s3cr3t" for _, headers in server.requests)
    assert (found.returncode, found.stdout, found.stderr) == (0, "out\n", "")
    assert "s3cr3t" not in (tmp_path / "out" / "result.json").read_text()


def test_destructive_tools_are_never_called_unless_named(tmp_path: Path) -> None:
    destructive: Json = {**ECHO, "annotations": {"destructiveHint": True}}
    (tmp_path / "calls.toml").write_text('[[call]]\ntool = "echo"\narguments = { message = "x" }\n')
    with Double(tools=(destructive,)) as server:
        bench(*TINY, "--url", server.url, "--output", "a", cwd=tmp_path)
        assert "tools/call" not in server.methods
        refused = bench(*TINY, "--url", server.url, "--generate-arguments", cwd=tmp_path)
        assert (refused.returncode, "tools/call" in server.methods) == (2, False)
        bench(*TINY, "--url", server.url, "--workload", "calls.toml", "--output", "b", cwd=tmp_path)
        assert "tools/call" in server.methods


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--", "no-such-program"], "no program 'no-such-program' on PATH"),
        (["--", sys.executable, "-c", "import sys; sys.exit('no API key')"], "no API key"),
        (["--url", "http://127.0.0.1:1/mcp"], "refused, nothing listens on port 1"),
    ],
)
def test_a_server_that_does_not_start_is_one_line(tmp_path: Path, args: list[str], words: str) -> None:
    found = bench(*TINY, *args, cwd=tmp_path)
    assert found.returncode == 3
    assert words in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


def test_a_server_without_tools_or_whose_every_call_fails_is_one_line(tmp_path: Path) -> None:
    def refuse(params: Json, session: str) -> str:
        raise Refused("out of tokens")

    for server, words in (
        (Double(tools=()), "it has no tools"),
        (Double(refuse), "every call fails: tools/call echo: out of tokens"),
    ):
        with server:
            found = bench(*TINY, "--url", server.url, cwd=tmp_path)
        assert (found.returncode, found.stdout) == (3, "")
        assert words in found.stderr
        assert len(found.stderr.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


def test_contradictions_are_all_said_at_once(tmp_path: Path) -> None:
    found = bench(
        "--url", "http://x/mcp", "--transports", "http", "--clients", "0", "--quiet", "--format", "csv",
        "--era", "bronze", "--repeat", "0", "--", "cat", cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 2
    said = [line.removeprefix("mcpdiag: ").partition(":")[0] for line in found.stderr.splitlines()]
    assert said == ["--url", "--transports", "--quiet", "--era", "--clients", "--repeat"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, number: signal.Signals) -> None:
    """Interrupted in a later round: the earlier ones are in the result, and nothing is left running."""
    before = own_processes()
    args = ["--clients", "1", "--seconds", "0.05", "--warmup", "0", "--repeat", "1000", "--output", "out"]
    process = subprocess.Popen(
        [*MCPDIAG, "bench", *args, "--", *COMMAND],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        end = time.monotonic() + 40
        folder = tmp_path / "out"
        while time.monotonic() < end and not _measured(folder):
            time.sleep(0.1)
        assert _measured(folder), "no sample was written"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (130, "")
    assert "Interrupted" in out
    result = read(folder)
    assert not result.complete
    assert 1 <= len(result.cells[0].repetitions) < 1000
    assert own_processes() == before


def test_nothing_is_left_running_when_it_is_killed(tmp_path: Path) -> None:
    """The proxies, their servers and the load generator go with it, however it goes."""
    before = own_processes()
    args = ["--transports", "stdio", "--clients", "1", "--seconds", "60", "--output", "out"]
    process = subprocess.Popen(
        [*MCPDIAG, "bench", *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path
    )
    try:
        end = time.monotonic() + 40
        while len(left := _descendants_under_load(process.pid)) == 0:
            assert time.monotonic() < end, "no proxy has started a server"
            time.sleep(0.1)
    finally:
        process.kill()
        _, err = process.communicate()
    _, alive = psutil.wait_procs(left, timeout=10)
    assert (alive, err) == ([], b"")
    assert own_processes() == before


def test_a_load_that_is_killed_loads_no_longer(tmp_path: Path) -> None:
    """A server at a URL lives on, so that the generator would see no reason to end."""
    with Double() as server:
        args = ["load", "--url", server.url, "--seconds", "60"]
        process = subprocess.Popen([*MCPDIAG, "bench", *args], stdout=subprocess.DEVNULL, cwd=tmp_path)
        try:
            end = time.monotonic() + 40
            while len(server.requests) < 100:
                assert time.monotonic() < end, "no load has come"
                time.sleep(0.1)
            left = psutil.Process(process.pid).children(recursive=True)
            assert any("mcpdiag.bench.load" in each.cmdline() for each in left)
        finally:
            process.kill()
            process.wait()
        _, alive = psutil.wait_procs(left, timeout=10)
        assert alive == []


def _descendants_under_load(pid: int) -> list[psutil.Process]:
    """All processes below, once two proxies run and one of them has started its server; before that, none."""
    found = psutil.Process(pid).children(recursive=True)
    try:
        lines = [each.cmdline() for each in found]
    except psutil.NoSuchProcess:  # one of them has just ended
        return []
    proxies = sum(line[1:4] == ["-m", "mcpdiag", "proxy"] for line in lines)
    return found if proxies == 2 and [*COMMAND] in lines else []


def _measured(folder: Path) -> bool:
    return any(each.stat().st_size > 2000 for each in folder.glob("samples.*"))


@pytest.mark.parametrize(("command", "words"), [("run", "marked clients"), ("compare", "maxT")])
def test_explain_prints_the_method(tmp_path: Path, command: str, words: str) -> None:
    found = bench(command, "--explain", *(["a", "b"] if command == "compare" else []), cwd=tmp_path)
    assert found.returncode == 0
    assert words in found.stdout
    assert [*tmp_path.iterdir()] == []


def test_load_sends_an_open_loop_directly(tmp_path: Path) -> None:
    args = ["--rate", "100", "--poisson", "--seconds", "0.5", "--warmup", "0.1"]
    found = bench("load", *args, "--", *COMMAND, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    shown = json.loads(found.stdout)
    assert shown["load"] == "tools/call echo"
    assert 20 < shown["summary"]["ok"] == shown["summary"]["calls"] < 90
    assert "saturated" in shown
    wrong = bench("load", "--poisson", cwd=tmp_path)
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 2


def test_compare_and_check_set_the_exit_code(tmp_path: Path) -> None:
    base, same, slow = (tmp_path / name for name in ("base", "same", "slow"))
    write(made.result(1, slowdown=0.5), base)
    write(made.result(2, slowdown=0.5), same)
    write(made.result(3, slowdown=0.65), slow)
    limits = ["--max-regression", "p95=5%,throughput=5%,rss=10%"]
    found = bench("compare", "base", "same", *limits, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "Not significant: no difference beyond noise" in found.stdout
    found = bench("compare", "base", "slow", *limits, cwd=tmp_path)
    assert found.returncode == 1
    assert "significantly worse" in found.stdout
    assert "REGRESSION: p95 of stdio x1 reuse on: +" in found.stdout
    assert bench("compare", "base", "slow", cwd=tmp_path).returncode == 0
    assert bench("compare", "base", "gone", cwd=tmp_path).returncode == 2
    found = bench("check", "same", "--targets", str(SHIPPED), cwd=tmp_path)
    assert found.returncode == 0, found.stdout
    assert "no baseline" in found.stdout
    found = bench("check", "slow", "--targets", str(SHIPPED), "--baseline", "base", cwd=tmp_path)
    assert found.returncode == 1
    assert "missed:        p95 within 5% of the baseline" in found.stdout


def test_a_result_of_another_machine_is_refused(tmp_path: Path) -> None:
    write(made.result(1), tmp_path / "here")
    write(made.elsewhere(made.result(2)), tmp_path / "there")
    found = bench("compare", "here", "there", cwd=tmp_path)
    assert found.returncode == 2
    assert "the machines differ" in found.stderr
    assert bench("compare", "here", "there", "--force", cwd=tmp_path).returncode == 0
    found = bench("check", "here", "--targets", str(SHIPPED), "--baseline", "there", cwd=tmp_path)
    assert found.returncode == 2
