"""A run as a folder: the same frames as live, whole parts at any time, no secrets, open to other tools."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import dask.dataframe as dd
import duckdb
import pandas as pd
import pyarrow.dataset as ds
import pytest

import mcpdiag
from mcpdiag.embedded import COMMAND
from mcpdiag.errors import StartError
from mcpdiag.hooks import ExchangeDone, Happened
from mcpdiag.pool.stats import PoolStats
from mcpdiag.samples.frame import empty
from mcpdiag.samples.processes import Usage
from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.schema import SCHEMA
from mcpdiag.samples.writer import Writer
from tests.conftest import RawClient
from tests.proxy.client import Client, proxied, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def done(target: str, session: str = "s") -> ExchangeDone:
    return ExchangeDone("up", "stdio", "tools/call", target, session, "2025-11-25", "ok", total_ms=1.0)


def filled(targets: int = 3) -> Recorder:
    recorder = Recorder()
    for number in range(targets):
        recorder.emit(done(f"tool{number}"))
    recorder.emit(Happened("child_exit", "up", detail="exit code 1"))
    recorder.pool_row("up", "session", "handshake", PoolStats(max=10))
    recorder.memory_row("up", "server", *Usage(1, 2, float("nan"), 4.0, 5, 6, 7, 8.0))
    return recorder


def same(one: mcpdiag.Recorder | mcpdiag.Capture, other: mcpdiag.Recorder | mcpdiag.Capture) -> None:
    for name in SCHEMA:
        pd.testing.assert_frame_equal(one.frame(name), other.frame(name), check_categorical=False)
    assert (one.written, one.dropped) == (other.written, other.dropped)
    pd.testing.assert_frame_equal(one.summary(), other.summary())


def test_a_saved_recorder_loads_as_the_same_frames(tmp_path: Path) -> None:
    recorder = filled()
    folder = recorder.save(tmp_path / "run")
    capture = mcpdiag.load(folder)
    same(recorder, capture)
    assert capture.complete
    assert repr(capture) == repr(recorder).replace("Recorder", "Capture")
    tables = recorder._repr_html_().partition("<table")[2]
    assert tables
    assert capture._repr_html_().partition("<table")[2] == tables
    same(capture, mcpdiag.load(capture.save(tmp_path / "copy")))


def test_an_empty_recorder_saves_and_loads_with_all_dtypes(tmp_path: Path) -> None:
    capture = mcpdiag.load(Recorder().save(tmp_path))
    for name in SCHEMA:
        pd.testing.assert_frame_equal(capture.frame(name), empty(name), check_categorical=False)
        assert len(ds.dataset(tmp_path / name).schema) == len(SCHEMA[name])


def test_parts_with_other_and_more_categories_are_one_frame(tmp_path: Path) -> None:
    """pandas numbers few categories with 8 bits and many with 16: the parts have one type nevertheless."""
    recorder = filled(2)
    writer = Writer(recorder, tmp_path)
    writer.flush()
    for number in range(300):
        recorder.emit(done(f"other{number}", session=f"s{number}"))
    writer.flush()
    writer.flush()
    writer.close()
    assert len([*(tmp_path / "requests").iterdir()]) == 2
    same(recorder, mcpdiag.load(tmp_path))


def test_rows_that_were_overwritten_before_they_could_be_written_are_counted(tmp_path: Path) -> None:
    recorder = Recorder(requests=10)
    writer = Writer(recorder, tmp_path)
    for number in range(25):
        recorder.emit(done(f"tool{number}"))
    writer.flush()
    writer.close()
    capture = mcpdiag.load(tmp_path)
    assert (capture.dropped["requests"], capture.written["requests"], len(capture.requests)) == (15, 25, 10)


async def test_a_capture_streams_its_parts(tmp_path: Path) -> None:
    recorder = filled(2)
    writer = Writer(recorder, tmp_path)
    writer.flush()
    recorder.emit(done("third"))
    writer.flush()
    assert [len(frame) async for frame in mcpdiag.load(tmp_path).stream("requests")] == [2, 1]


async def test_a_proxy_captures_all_that_happens_until_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    async with proxied(COMMAND, capture=str(folder)) as proxy, Client.session(proxy.url) as client:
        await client.call("echo", text="x")
        await until(lambda: proxy.recorder.written["requests"] == 2)
        assert not mcpdiag.load(folder).complete
    capture = mcpdiag.load(folder)
    assert capture.complete
    same(proxy.recorder, capture)
    assert len(capture.requests) == 2
    assert "session_end" in {*capture.events["kind"]}


async def test_secrets_are_not_in_a_capture(tmp_path: Path) -> None:
    named = {
        "program": {
            "command": COMMAND[0],
            "args": [COMMAND[1], "--token", "hush-argument"],
            "env": {"API_KEY": "hush-variable"},
        },
        "remote": {
            "url": "http://127.0.0.1:9/mcp?key=hush-query",
            "headers": {"Authorization": "Bearer hush-header"},
        },
    }
    folder = tmp_path / "run"
    async with (
        proxied(named=named, capture=str(folder), token="hush-token") as proxy,
        Client.bare(proxy.urls["program"]) as client,
    ):
        client.headers["authorization"] = "Bearer hush-token"
        await client.initialize()
        await client.call("echo", text="hush-payload")
    capture = mcpdiag.load(folder)
    assert len(capture.requests) == 2
    meta = (folder / "meta.json").read_text()
    config = json.loads(meta)["config"]
    assert config["upstreams"]["program"]["env"] == {"API_KEY": "**********"}
    assert config["upstreams"]["remote"]["url"] == "http://127.0.0.1:9/mcp?***"
    assert config["max_sessions"] == 1000
    assert "hush" not in meta
    frames = "".join(capture.frame(name).to_csv() for name in SCHEMA)
    assert "child_exit" in frames
    assert "hush" not in frames


def test_meta_says_what_one_needs_to_know_of_a_run(tmp_path: Path) -> None:
    recorder = filled()
    meta = mcpdiag.load(recorder.save(tmp_path)).meta
    assert (meta["format"], meta["format_version"]) == ("mcpdiag-capture", 1)
    assert meta["mcpdiag"] == mcpdiag.__version__
    assert {"pandas", "pyarrow", "uvloop"} <= {*meta["libraries"]}
    assert meta["clock"]["started_ns"] == recorder.started_ns <= meta["ended_ns"]
    assert abs(pd.Timestamp(meta["clock"]["started"]).value - recorder.started_ns) <= 1000
    assert {*meta["platform"]} == {"system", "release", "machine", "cpus"}, "not the host's name"


CAPTURING = """
import sys
from pathlib import Path
from mcpdiag.hooks import ExchangeDone
from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.writer import Writer

recorder = Recorder()
writer = Writer(recorder, Path(sys.argv[1]))
number = 0
while True:
    for _ in range(100):
        recorder.emit(ExchangeDone("up", "stdio", "ping", "", "s", "", "ok", messages=number))
        number += 1
    writer.flush()
    print(number, flush=True)
"""


def test_a_crash_loses_at_most_the_last_part(tmp_path: Path) -> None:
    """Killed at whatever it was doing: what had been written is there, whole and without a gap."""
    process = subprocess.Popen(
        [sys.executable, "-c", CAPTURING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        for _ in range(5):
            finished = int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        rest = process.stdout.read().split()
        process.stdout.close()
    finished = int(rest[-1]) if rest else finished
    capture = mcpdiag.load(tmp_path)
    assert not capture.complete
    messages = [*capture.requests["messages"]]
    assert messages == [*range(len(messages))]
    assert finished <= len(messages) <= finished + 100


def test_half_a_part_is_passed_over(tmp_path: Path) -> None:
    recorder = filled()
    recorder.save(tmp_path)
    (tmp_path / "requests" / ".part-000002.parquet.tmp").write_bytes(b"PAR1half")
    same(recorder, mcpdiag.load(tmp_path))
    assert ds.dataset(tmp_path / "requests").count_rows() == 3


async def test_a_disk_that_fails_is_said_once_and_nothing_is_lost_by_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = filled()
    writer = Writer(recorder, tmp_path)
    (tmp_path / "requests").rename(tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        await writer.flush_aside()
        await writer.flush_aside()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path) in caplog.text
    (tmp_path / "gone").rename(tmp_path / "requests")
    await writer.finish()
    same(recorder, mcpdiag.load(tmp_path))


async def test_the_writer_writes_by_itself(tmp_path: Path) -> None:
    recorder = filled()
    writer = Writer(recorder, tmp_path, every=0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.run)
        await until(lambda: mcpdiag.load(tmp_path).written["requests"] == 3)
        recorder.emit(done("later"))
        await until(lambda: mcpdiag.load(tmp_path).written["requests"] == 4)
        tasks.cancel_scope.cancel()


async def test_a_folder_with_a_capture_is_not_written_over(tmp_path: Path) -> None:
    filled().save(tmp_path)
    with pytest.raises(ValueError, match="there is a capture in .* already"):
        Recorder().save(tmp_path)
    with pytest.raises(StartError, match="nothing can be captured: there is a capture"):
        async with proxied(COMMAND, capture=str(tmp_path)):
            pass


@pytest.mark.parametrize(
    ("meta", "kind", "says"),
    [
        (None, FileNotFoundError, "it has no meta.json"),
        ("{", ValueError, "is no JSON"),
        ("[]", ValueError, "is not of a capture"),
        ('{"format": "else"}', ValueError, "is not of a capture"),
        ('{"format": "mcpdiag-capture", "format_version": 99}', ValueError, "version 99, .* knows up to 1"),
    ],
)
def test_what_is_no_capture_of_ours_is_refused(
    tmp_path: Path, meta: str | None, kind: type[Exception], says: str
) -> None:
    if meta is not None:
        (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(kind, match=says):
        mcpdiag.load(tmp_path)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    capture = mcpdiag.load(filled().save(tmp_path))
    (tmp_path / "requests" / "part-000001.parquet").write_bytes(b"PAR1 rubbish PAR1")
    with pytest.raises(ValueError, match="requests cannot be read"):
        _ = capture.requests


def test_the_command_line_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        f"sys.argv = ['mcpdiag', 'proxy', '--port', '0', '--capture', {str(tmp_path / 'run')!r}, '--', 'cat']\n"
        "from mcpdiag.cli import main\nmain()"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 3
    assert found.stderr == (
        "mcpdiag: nothing can be captured: captures need pyarrow; pip install 'mcpdiag[notebook]'\n"
    )


def test_the_command_line_captures_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """The folder in a configuration file is relative to the file."""
    (tmp_path / "mcpdiag.toml").write_text(
        f"port = 0\ncapture = 'runs/one'\n[upstreams.up]\ncommand = {json.dumps(COMMAND)}\n"
    )
    command = [sys.executable, "-m", "mcpdiag", "proxy", "--config", str(tmp_path / "mcpdiag.toml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        client = RawClient(process.stderr.readline().split()[-1]).initialize()
        assert client.call("echo", text="x") == "x"
    finally:
        process.terminate()
        rest = process.communicate()[1]
    assert (process.returncode, rest) == (0, "")
    capture = mcpdiag.load(tmp_path / "runs" / "one")
    assert capture.complete
    assert [*capture.requests["method"]] == ["initialize", "tools/call"]
    assert len(capture.memory) > 0


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of two captures, as docs/captures.md has it."""
    for name, targets in (("monday", 3), ("tuesday", 5)):
        filled(targets).save(tmp_path / "runs" / name)
    return tmp_path


def test_duckdb_dask_and_pyarrow_open_a_folder_of_captures_with_the_lines_of_the_page(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    page = (Path(__file__).parents[2] / "docs" / "captures.md").read_text()
    files = "runs/*/requests/*.parquet"
    assert f'files = "{files}"' in page
    lines = [line for line in page.splitlines() if "(files)" in line or "'{files}'\")" in line]
    assert len(lines) == 3
    counts = {}
    for line in lines:
        names: dict[str, Any] = {"files": files}
        library = next(each for each in ("duckdb", "dask", "pyarrow") if each in line or ALIAS[each] in line)
        exec(f"{IMPORTS}\ntable = {line}", names)  # noqa: S102
        counts[library] = ROWS[library](names["table"])
    assert counts == {"duckdb": 8, "dask": 8, "pyarrow": 8}


IMPORTS = "import dask.dataframe as dd, duckdb, glob, pyarrow.dataset as ds"
ALIAS = {"duckdb": "duckdb.", "dask": "dd.", "pyarrow": "ds."}
ROWS: dict[str, Callable[[Any], int]] = {
    "duckdb": len,
    "dask": len,
    "pyarrow": lambda table: table.count_rows(),
}


def test_other_tools_see_the_types(runs: Path) -> None:
    every = str(runs / "runs" / "*" / "requests" / "*.parquet")
    table: Any = duckdb.sql(f"from '{every}'")
    types = dict(zip(table.columns, map(str, table.types), strict=True))
    assert types["ts"].startswith("TIMESTAMP")
    assert (types["target"], types["total_ms"], types["reused"]) == ("VARCHAR", "DOUBLE", "BOOLEAN")
    dtypes: Any = dd.read_parquet(every).dtypes
    assert str(dtypes["ts"]) == "datetime64[ns, UTC]"
    assert dtypes["bytes_in"] == "int64"
