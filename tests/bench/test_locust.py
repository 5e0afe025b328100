"""Locust's own master and workers make the load; what they stored is what the server has counted."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import mcpdiag
from mcpdiag.bench.result import read
from mcpdiag.bench.spool import MASTER
from tests.bench.double import ECHO, Double
from tests.bench.test_cli import bench
from tests.conftest import own_processes
from tests.servers import one_at_a_time

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
LOCUST = [sys.executable, "-m", "locust"]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def served(url: str) -> int:
    """How many calls the server has counted."""
    with urllib.request.urlopen(url.replace("/mcp", "/count"), timeout=10) as response:  # noqa: S310
        return int(response.read())


def test_a_master_and_two_workers_through_the_proxy(tmp_path: Path) -> None:
    """Every call that the server has counted is in the result, once; master, workers and server agree."""
    before = own_processes()
    port = str(free_port())
    (tmp_path / "calls.toml").write_text(
        'think_time = "5ms"\nsession_calls = 20\n[[call]]\ntool = "echo"\narguments = { text = "hi" }\n'
    )
    with (
        one_at_a_time.running("--service-ms", "0.5", "--lines", "8") as url,
        mcpdiag.serve({"counted": url}, port=0) as proxy,
    ):
        made = bench(
            "locustfile", "--url", proxy.url, "--workload", "calls.toml", "-o", "locustfile.py", cwd=tmp_path
        )
        assert made.returncode == 0, made.stderr
        common = [*LOCUST, "-f", "locustfile.py", "--mcpdiag-samples", "samples"]
        workers = [
            subprocess.Popen(
                [*common, "--worker", "--master-port", port],
                cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for _ in range(2)
        ]  # fmt: skip
        try:
            run = ["--headless", "-u", "6", "-r", "50", "-t", "4s", "--expect-workers", "2"]
            master = subprocess.run(
                [*common, "--master", "--master-bind-port", port, *run],
                capture_output=True, text=True, timeout=90, cwd=tmp_path,
            )  # fmt: skip
            said = [each.communicate(timeout=60)[0] for each in workers]
        finally:
            for each in workers:
                each.kill()
                each.wait()
        assert master.returncode == 0, master.stdout + master.stderr
        assert "Traceback" not in "".join([master.stderr, *said])
        counted = served(url)
    found = bench("locust-result", "samples", "--output", "out", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    result = read(tmp_path / "out")
    assert result.locust is not None
    assert len(result.locust.workers) == 2
    assert result.locust.stored == counted > 50
    assert result.locust.master_calls <= counted
    (cell,) = result.cells
    (repetition,) = cell.repetitions
    assert (cell.clients, repetition.summary.errors) == (6, {})
    assert 0 < repetition.summary.calls <= counted
    assert repetition.sessions_opened > 6  # a new one after 20 calls
    assert repetition.summary.p50_ms > 0.5
    assert f"2 workers: {counted:,} calls" in found.stdout
    assert own_processes() == before


def test_one_process_without_a_master_has_users_that_fail_and_go_on(tmp_path: Path) -> None:
    """The server stops in the middle: calls and attempts to connect are kept as what they are."""
    with one_at_a_time.running("--service-ms", "2") as url:
        bench("locustfile", "--url", url, "-o", "locustfile.py", cwd=tmp_path)
        process = subprocess.Popen(
            [*LOCUST, "-f", "locustfile.py", "--headless", "-u", "2", "-r", "50"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        end = time.monotonic() + 60
        while time.monotonic() < end and served(url) < 100:
            time.sleep(0.1)
        counted = served(url)
    assert process.stdout is not None
    try:
        for line in process.stdout:  # Locust shows each kind of error with its count
            if re.search(r"MCP +tools/call echo +\d+ +[1-9]", line):
                break
        process.terminate()  # not SIGINT: Locust loses that if it comes while it prints
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    found = bench("locust-result", "mcpdiag-locust", "--output", "out", "--format", "json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    shown = json.loads(found.stdout)
    summary = shown["cells"][0]["repetitions"][0]["summary"]
    assert summary["errors"]["connect"] >= 1
    assert {*summary["errors"]} <= {"connect", "closed"}
    assert counted <= shown["locust"]["stored"]
    assert json.loads((tmp_path / "mcpdiag-locust" / MASTER).read_text())["workers"] == 0


def test_a_locustfile_is_printed_and_checks_what_it_is_given(tmp_path: Path) -> None:
    with Double(tools=(ECHO,)) as server:
        args = ["--url", server.url, "--header", "Authorization: Bearer s3cr3t"]
        found = bench("locustfile", *args, cwd=tmp_path)
        assert all(headers["authorization"] == "bearer s3cr3t" for _, headers in server.requests)
    assert found.returncode == 0, found.stderr
    assert "s3cr3t" not in found.stdout
    assert "os.environ['MCP_HEADER_AUTHORIZATION']" in found.stdout
    compile(found.stdout, "locustfile.py", "exec")
    neither = bench("locustfile", "--era", "bronze", "--header", "x", cwd=tmp_path)
    assert neither.returncode == 2
    assert [line.split(": ")[1] for line in neither.stderr.splitlines()] == ["--header", "--era", "--url"]
    (tmp_path / "there.py").touch()
    again = bench("locustfile", "--url", "http://127.0.0.1:1/mcp", "-o", "there.py", cwd=tmp_path)
    assert again.returncode == 2
    assert "which is there already" in again.stderr
    gone = bench("locustfile", "--url", "http://127.0.0.1:1/mcp", cwd=tmp_path)
    assert gone.returncode == 3
    assert "no connection to 127.0.0.1:1" in gone.stderr
    assert len(gone.stderr.splitlines()) == 1


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    found = bench("locust-result", "nothing", "--warmup", "-1", cwd=tmp_path)
    assert found.returncode == 2
    assert "--warmup: found -1" in found.stderr
    found = bench("locust-result", "nothing", cwd=tmp_path)
    assert found.returncode == 2
    assert "nothing: found no *.samples" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert bench("locust-result", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("workload = {'calls': 3}", "Client.workload: found no workload"),
        ("workload = {'source': 'x', 'calls': ()}", "Client.workload: found no calls"),
    ],
)
def test_a_wrong_workload_is_said_when_the_locustfile_is_read(tmp_path: Path, words: str, code: str) -> None:
    text = f"from mcpdiag.bench.locust import McpUser\nclass Client(McpUser):\n    {words}\n"
    (tmp_path / "locustfile.py").write_text(text)
    found = subprocess.run(
        [*LOCUST, "-f", "locustfile.py", "--headless", "-t", "1s", "--host", "http://127.0.0.1:1/mcp"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode != 0
    assert code in found.stderr


@pytest.mark.parametrize(
    ("verb", "words"), [("locustfile", "MCP_HEADER_"), ("locust-result", "--stop-timeout")]
)
def test_explain_prints_the_method(tmp_path: Path, verb: str, words: str) -> None:
    found = bench(verb, "--explain", cwd=tmp_path)
    assert found.returncode == 0
    assert words in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 120
