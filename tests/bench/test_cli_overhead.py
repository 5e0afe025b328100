"""`mcpdiag bench overhead` and `mcpdiag bench break` as a person uses them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcpdiag.bench.result import read
from mcpdiag.embedded import COMMAND
from tests.bench.double import Double, Json, Refused
from tests.bench.test_cli import MCPDIAG, bench
from tests.conftest import own_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
TINY = ["--clients", "1", "--seconds", "0.2", "--warmup", "0.05", "--repeat", "1"]
SHORT = ["--seconds", "0.3", "--warmup", "0.1", "--start", "20", "--most", "40", "--p99-factor", "1000"]


def test_the_embedded_server_in_both_ways(tmp_path: Path) -> None:
    """Table, sentence, artifact; an environment that would overrule the proxy's settings does not."""
    before = own_processes()
    found = bench("overhead", *TINY, cwd=tmp_path, environ={"MCPDIAG_PORT": "1"})
    assert (found.returncode, found.stderr) == (0, ""), found.stderr
    lines = found.stdout.splitlines()
    assert lines[1].split() == [
        "ms", "direct", "proxied", "ratio", "added", "queue", "conn.", "first", "relay", "hop",
    ]  # fmt: skip
    assert [" ".join(line.split()[:3]) for line in lines[2:6]] == [
        "stdio x1 p50", "stdio x1 p95", "http x1 p50", "http x1 p95",
    ]  # fmt: skip
    assert max(map(len, lines[1:6])) <= 100
    assert "Over stdio at 1 client the proxy adds" in found.stdout
    assert "Over http at 1 client the proxy adds" in found.stdout
    (folder,) = (tmp_path / "mcpdiag-results").glob("*/*_overhead")
    result = read(folder)
    assert [cell.name for cell in result.cells] == [
        "stdio x1 direct", "stdio x1 reuse on", "http x1 direct", "http x1 reuse on",
    ]  # fmt: skip
    assert len(result.overhead) == 2
    assert own_processes() == before


def test_a_command_in_formats_for_programs(tmp_path: Path) -> None:
    for format_, words in (
        ("json", '"overhead"'), ("md", "| ms | direct |"), ("junit", "<testsuite"), ("csv", "transport,reuse")
    ):  # fmt: skip
        args = ["--output", format_, "--format", format_, "--", *COMMAND]
        found = bench("overhead", *TINY, *args, cwd=tmp_path)
        assert found.returncode == 0, found.stderr
        assert words in found.stdout
    assert json.loads((tmp_path / "json" / "result.json").read_text())["target"]["kind"] == "command"


@pytest.mark.parametrize("verb", ["overhead", "break"])
def test_a_server_that_cannot_be_measured_is_one_line(tmp_path: Path, verb: str) -> None:
    def refuse(params: Json, session: str) -> str:
        raise Refused("out of tokens")

    for args, words in (
        (["--", "no-such-program"], "no-such-program"),
        (["--", sys.executable, "-c", "import sys; sys.exit('no API key')"], "no API key"),
        (["--url", "http://127.0.0.1:1/mcp"], "127.0.0.1:1"),
    ):
        found = bench(verb, *args, cwd=tmp_path)
        assert (found.returncode, found.stdout) == (3, ""), found.stderr
        assert words in found.stderr
        assert len(found.stderr.splitlines()) == 1
    with Double(refuse) as server:
        found = bench(verb, "--url", server.url, cwd=tmp_path)
    assert found.returncode == 3
    assert "every call fails: tools/call echo: out of tokens" in found.stderr
    assert [*tmp_path.iterdir()] == []


def test_contradictions_are_all_said_at_once(tmp_path: Path) -> None:
    found = bench(
        "overhead", "--transports", "http", "--header", "a: b", "--clients", "0", "--era", "bronze",
        "--pool-mode", "x", "--repeat", "0", "--name", "a/b", "--format", "csv", "--quiet", "--", "cat",
        cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 2
    said = [line.removeprefix("mcpdiag: ").partition(":")[0] for line in found.stderr.splitlines()]
    assert said == [
        "--header", "--transports", "--clients", "--era", "--pool-mode", "--repeat", "--name", "--quiet",
    ]  # fmt: skip
    found = bench(
        "break", "--proxied", "--by", "clients", "--poisson", "--start", "0.5", "--most", "3", "--p99-factor",
        "1", "--max-errors", "5", "--precision", "x", "--max-time", "soon", "--", "cat", cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 2
    said = [line.removeprefix("mcpdiag: ").partition(":")[0] for line in found.stderr.splitlines()]
    assert said == [
        "--proxied", "--poisson", "--start", "--p99-factor", "--max-errors", "--precision", "--max-time",
    ]  # fmt: skip


def test_break_has_table_plot_and_artifact(tmp_path: Path) -> None:
    before = own_processes()
    with Double() as server:
        args = ["--url", server.url, "--output", "out"]
        found = bench("break", *SHORT, *args, cwd=tmp_path)
        proxied = bench(
            "break", *SHORT, "--url", server.url, "--proxied", "--poisson", "--output", "p", cwd=tmp_path
        )
    assert (found.returncode, found.stderr) == (0, ""), found.stderr
    assert max(map(len, found.stdout.splitlines()[1:4])) <= 100
    assert "It did not break up to 40 calls a second." in found.stdout
    assert "Plot: out/breaking.png" in found.stdout
    assert (tmp_path / "out" / "breaking.png").stat().st_size > 5000
    result = read(tmp_path / "out")
    assert result.breaking is not None
    assert [(cell.rate, cell.way) for cell in result.cells] == [(20.0, "direct"), (40.0, "direct")]
    assert proxied.returncode == 0, proxied.stderr
    assert {cell.way for cell in read(tmp_path / "p").cells} == {"proxied"}
    assert own_processes() == before


def test_break_of_a_command_goes_through_the_proxy(tmp_path: Path) -> None:
    args = ["--by", "clients", "--seconds", "0.2", "--warmup", "0.05", "--most", "2", "--quiet"]
    found = bench("break", *args, "--output", "out", "--", *COMMAND, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (0, "out\n"), found.stderr
    assert {(cell.transport, cell.way) for cell in read(tmp_path / "out").cells} == {("stdio", "proxied")}


@pytest.mark.parametrize("verb", ["overhead", "break"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, verb: str, number: signal.Signals) -> None:
    """Interrupted in a later round or step: the earlier ones are in the result, and nothing is left running."""
    before = own_processes()
    args = {
        "overhead": ["--clients", "1", "--seconds", "0.2", "--warmup", "0", "--repeat", "1000"],
        "break": ["--seconds", "1", "--start", "20", "--most", "1000000", "--p99-factor", "1000", "--max-time", "1h"],
    }[verb]  # fmt: skip
    process = subprocess.Popen(
        [*MCPDIAG, "bench", verb, *args, "--output", "out", "--", *COMMAND],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        end, sizes = time.monotonic() + 90, {0}
        while time.monotonic() < end and len(sizes) <= 7:  # it grows with each run
            sizes |= {each.stat().st_size for each in (tmp_path / "out").glob("samples.*")}
            time.sleep(0.05)
        assert len(sizes) > 7, "no sample was written"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (130, ""), out
    assert "Interrupted" in out
    result = read(tmp_path / "out")
    assert not result.complete
    assert result.overhead or result.breaking is not None
    assert own_processes() == before


@pytest.mark.parametrize(("verb", "words"), [("overhead", "recorder"), ("break", "--p99-factor")])
def test_explain_prints_the_method(tmp_path: Path, verb: str, words: str) -> None:
    found = bench(verb, "--explain", cwd=tmp_path)
    assert found.returncode == 0
    assert words in found.stdout
    assert [*tmp_path.iterdir()] == []
