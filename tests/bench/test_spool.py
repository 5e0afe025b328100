"""What Locust's workers store comes back as one measurement, and mistakes in the folder are one line each."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from mcpdiag.bench import columns, spool
from mcpdiag.bench.columns import NEVER, OK, TIMEOUT, Columns
from mcpdiag.bench.spec import Call
from mcpdiag.bench.spool import Master, Spool
from mcpdiag.bench.statistics import summarize
from mcpdiag.bench.workload import Workload
from mcpdiag.cli.bench_locust_run import collect
from mcpdiag.errors import ConfigError, StartError
from tests.bench import made

S = 1_000_000_000
LOAD = Workload(source="default", calls=(Call(method="tools/list"), Call(method="ping")))
START = 1_700_000_000 * S
ABOUT = Spool(
    locust="2.47.0", environment=made.machine(), workload=LOAD, target="http://127.0.0.1:1/mcp", era="handshake",
    timeout_s=30.0, users=3, started_ns=START, spawned_ns=START + 2 * S, stopped_ns=START + 12 * S, cpu_share=0.5,
    sessions_opened=3,
)  # fmt: skip


def worker(folder: Path, name: str, *, late_ns: int = 0, about: Spool = ABOUT, outcome: int = OK) -> None:
    """A call a second for 13 s, each of 0.1 s, on a clock that began `late_ns` after the other one's."""
    found = Columns()
    for second in range(13):
        at = second * S + S // 2 - late_ns
        found.add(at, at, at + S // 10, second % 2, outcome)
    spool.write(folder, name, replace(about, started_ns=START + late_ns), found)


def test_workers_become_one_measurement_of_the_time_when_all_were_there(tmp_path: Path) -> None:
    worker(tmp_path, "a")
    worker(tmp_path, "b", late_ns=S // 4, about=replace(ABOUT, spawned_ns=START + 3 * S, users=4))
    (tmp_path / spool.MASTER).write_bytes(msgspec.json.encode(Master(calls=26, failures=0, workers=2)))
    run = spool.read(tmp_path)
    assert (run.stored, run.seconds, run.warmup_s) == (26, 9.0, 3.0)
    summary = summarize(run.measurement)
    assert summary.calls == 18  # of both: from 3 s on, when the last user had come, to 12 s
    assert summary.throughput_rps == pytest.approx(2.0, rel=0.01)
    assert summary.p50_ms == pytest.approx(100.0)
    assert run.master is not None
    assert spool.read(tmp_path, warmup_s=4.0).seconds == 5.0


def test_a_result_of_locust_is_one_like_any_other(tmp_path: Path) -> None:
    worker(tmp_path / "run", "a")
    worker(tmp_path / "run", "b")
    result, folder, warning = collect(tmp_path / "run", warmup_s=0.0, name="x", output=tmp_path / "out")
    assert warning == ""
    assert folder == tmp_path / "out"
    assert {each.name.partition(".")[0] for each in folder.iterdir()} == {"result", "samples"}
    (cell,) = result.cells
    assert (cell.clients, cell.way, cell.repetitions[0].summary.ok) == (6, "direct", 20)
    assert result.locust is not None
    assert result.locust.stored == 26


def test_missing_workers_are_noticed(tmp_path: Path) -> None:
    worker(tmp_path / "run", "a")
    for number, (master, words) in enumerate(
        [
            (Master(calls=26, failures=0, workers=2), "counted 26 calls, its workers stored 13"),
            (Master(calls=13, failures=0, workers=2), "had 2 workers, found the samples of 1"),
            (Master(calls=12, failures=0, workers=1), ""),  # its last reports came too late
        ]
    ):
        (tmp_path / "run" / spool.MASTER).write_bytes(msgspec.json.encode(master))
        _, _, warning = collect(tmp_path / "run", warmup_s=0, name="x", output=tmp_path / f"{number}")
        assert words in warning
        assert bool(warning) == bool(words)


def test_a_run_whose_every_call_failed_is_no_result(tmp_path: Path) -> None:
    worker(tmp_path / "run", "a", about=replace(ABOUT, first_error="no route"), outcome=TIMEOUT)
    with pytest.raises(StartError, match="every call failed: no route"):
        collect(tmp_path / "run", warmup_s=0.0, name="x", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_in_the_folder_are_said(tmp_path: Path) -> None:
    def refused(folder: Path, words: str, warmup_s: float = 0.0) -> None:
        with pytest.raises(ConfigError, match=words):
            spool.read(folder, warmup_s=warmup_s)

    refused(tmp_path, r"found no \*\.samples")
    worker(tmp_path / "late", "a", about=replace(ABOUT, spawned_ns=0))
    refused(tmp_path / "late", "users were never all there")
    worker(tmp_path / "short", "a")
    refused(tmp_path / "short", "found 10.0 s with all users, 11 s of it warm-up", warmup_s=11.0)
    worker(tmp_path / "mixed", "a")
    worker(tmp_path / "mixed", "b", about=replace(ABOUT, target="http://elsewhere/mcp"))
    refused(tmp_path / "mixed", "workers of different loads")
    worker(tmp_path / "cut", "a")
    file = tmp_path / "cut" / "a.samples"
    file.write_bytes(file.read_bytes()[:-10])
    refused(tmp_path / "cut", "a.samples: found no samples of McpUser: a measurement is cut short")
    file.write_bytes(b"garbage")
    refused(tmp_path / "cut", "found no samples of McpUser")
    worker(tmp_path / "short", "a")
    (tmp_path / "short" / spool.MASTER).write_text("{}")
    refused(tmp_path / "short", "found no counts of a Locust master")


def test_calls_that_were_never_sent_stay_so(tmp_path: Path) -> None:
    found = Columns()
    found.add(3 * S, NEVER, 4 * S, 0, columns.NOT_SENT)
    spool.write(tmp_path, "a", ABOUT, found)
    assert spool.read(tmp_path).measurement.columns.sent_ns[0] == NEVER


def test_a_locustfile_is_python_and_holds_the_workload_and_no_secret() -> None:
    text = spool.locustfile(
        LOAD, url="http://127.0.0.1:1/mcp", era="stateless", timeout_s=5.0, headers=["X-Api-Key", "Authorization"]
    )  # fmt: skip
    compile(text, "locustfile.py", "exec")
    assert "os.environ['MCP_HEADER_X_API_KEY']" in text
    body = text[text.index("workload = ") + len("workload = ") :]
    assert msgspec.convert(ast.literal_eval(body), type=Workload) == LOAD
    assert "import os" not in spool.locustfile(LOAD, url="", era="handshake", timeout_s=5.0, headers=[])


def test_without_locust_the_user_says_what_to_install() -> None:
    code = "import sys; sys.modules['locust'] = None\nimport mcpdiag.bench.locust"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert found.returncode == 1
    assert "McpUser needs locust; pip install 'mcpdiag[locust]'" in found.stderr
