"""memray windows of a real proxy: what they see, who may open one, and what a killed server leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import memray
import pandas as pd
import pytest
from anyio import to_thread

import mcpdiag
from mcpdiag.embedded import COMMAND
from mcpdiag.errors import HeapBusy, HeapError, HeapUnavailable
from mcpdiag.hooks import Event, ExchangeDone
from mcpdiag.samples import heap_upstream
from mcpdiag.samples.heap import Heap
from mcpdiag.samples.heap_upstream import captured, under_memray
from mcpdiag.samples.schema import SCHEMA
from tests.conftest import RawClient, own_descriptors
from tests.proxy import client
from tests.proxy.client import Client, Recorder, proxied, until
from tests.servers import mini

pytestmark = pytest.mark.anyio
MEGABYTE = 1024 * 1024
# Calls a tool over one connection until its stdin closes, in a process of its own: what it allocates is not the proxy's.
LOAD = """
import http.client, json, select, sys, urllib.parse
url, session = sys.argv[1:]
parts = urllib.parse.urlsplit(url)
line = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
headers = {"content-type": "application/json", "accept": "application/json, text/event-stream",
           "mcp-session-id": session}
body = json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/call",
                   "params": {"name": "echo", "arguments": {"text": "hello"}}})
while not select.select([sys.stdin], [], [], 0)[0]:
    line.request("POST", parts.path, body, headers)
    line.getresponse().read()
"""


@pytest.fixture
def anyio_backend() -> Any:
    return client.UVLOOP


class Counting:
    """A hook that keeps nothing."""

    def __init__(self) -> None:
        self.requests = 0
        self.at_close: Callable[[], object] = dict  # of a heap window

    def emit(self, event: Event, /) -> None:
        if isinstance(event, ExchangeDone):
            self.requests += 1
        elif event.kind == "heap_window" and event.detail.startswith("close "):
            self.at_close()


class Leaking(Counting):
    """A hook that leaks `size` bytes a request, in the line after the one that says so."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.leaked: list[bytes] = []

    def emit(self, event: Event, /) -> None:
        super().emit(event)
        if isinstance(event, ExchangeDone):
            self.leaked.append(bytes(self.size))  # the leak


LEAK_LINE = next(
    number
    for number, text in enumerate(Path(__file__).read_text().splitlines(), 1)
    if text.endswith("# the leak")
)


@asynccontextmanager
async def under_load(hook: Counting) -> AsyncIterator[mcpdiag.Recorder]:
    """A proxy with this hook, and calls from another process, which has made some hundreds already.

    At the end of a run's last third the load stops, so that it does not take the processor from the one who reads.
    """
    async with proxied(COMMAND, hook=hook) as proxy, Client.session(proxy.url) as session:
        load = subprocess.Popen(
            [sys.executable, "-I", "-c", LOAD, proxy.url, session.session_id], stdin=subprocess.PIPE
        )
        stdin = load.stdin
        assert stdin is not None
        hook.at_close = stdin.close
        try:
            await until(lambda: hook.requests >= 300)
            yield proxy.recorder
        finally:
            stdin.close()
            assert await to_thread.run_sync(load.wait) == 0


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


@contextmanager
def no_memray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "memray", None)
        yield


# -- windows ------------------------------------------------------------------------------------------------


def keep(kept: list[bytearray], count: int) -> None:
    for _ in range(count):
        kept.append(bytearray(MEGABYTE))  # noqa: PERF401


def test_a_window_has_both_kinds_of_rows_with_the_dtypes_of_the_frame() -> None:
    heap = Heap()
    kept: list[bytearray] = []
    with heap.window("steady"):
        keep(kept, 5)
        kept[2:] = []
    frame = heap.frame
    assert list(frame.columns) == list(SCHEMA["heap"])
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        name: about.dtype for name, about in SCHEMA["heap"].items()
    }
    ours = {row["kind"]: row for row in rows(frame) if row["function"] == "keep"}
    assert 5 * MEGABYTE <= ours["high_watermark"]["size_bytes"] < 6 * MEGABYTE
    assert 2 * MEGABYTE <= ours["leaked"]["size_bytes"] < 3 * MEGABYTE
    assert {row["file"] for row in ours.values()} == {__file__}
    first, second = ours["leaked"]["stack"].splitlines()[:2]
    assert first.startswith("keep (")
    assert "test_a_window" in second
    assert set(frame["window"]) == {"steady"}


def test_an_empty_frame_has_the_same_columns_and_dtypes() -> None:
    frame = Heap().frame
    assert len(frame) == 0
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        name: about.dtype for name, about in SCHEMA["heap"].items()
    }


def test_the_newest_windows_and_largest_sites_are_kept_and_the_rest_is_summed() -> None:
    recorder = mcpdiag.Recorder(heap=10)  # a window has 4 rows here, so two are whole
    heap = Heap(rows=recorder.heap.rows, sites=1)
    kept: list[bytearray] = []
    for name in ("a", "b", "c"):
        with heap.window(name):
            keep(kept, 2)
            kept.append(bytearray(MEGABYTE))
    assert heap.windows == ["a", "b", "c"]
    leaked = [row for row in rows(heap.frame) if (row["window"], row["kind"]) == ("c", "leaked")]
    assert [row["function"] for row in leaked] == ["keep", "(other)"]
    assert leaked[1]["size_bytes"] >= MEGABYTE
    assert (recorder.written["heap"], recorder.dropped["heap"]) == (12, 2)
    assert len(heap.diff("b", "c"))
    with pytest.raises(KeyError, match="of the heap window 'a' the first rows are overwritten"):
        heap.diff("a", "c")


def test_a_block_that_fails_closes_its_window_and_keeps_it() -> None:
    heap = Heap()
    with pytest.raises(ZeroDivisionError), heap.window("fails"):
        raise ZeroDivisionError
    with heap.window("next"):
        pass
    assert heap.windows == ["fails", "next"]


def test_windows_leave_no_file_and_no_descriptor(tmp_path: Path) -> None:
    heap = Heap(directory=tmp_path)
    with heap.window("first"):
        assert list(tmp_path.iterdir())
    before = own_descriptors()
    with heap.window("second"):
        pass
    assert own_descriptors() == before
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(HeapError, match="need a folder"), Heap(directory=tmp_path / "no").window("a"):
        pass


def test_a_second_window_is_refused_whoever_asks() -> None:
    """It says which one is open; the first goes on."""
    heap = Heap()
    with heap.window("first"):
        with pytest.raises(HeapBusy, match="'second' cannot .* 'first' is open.* notebook's own"):
            with Heap().window("second"):
                pass
    assert heap.windows == ["first"]


def test_a_tracker_of_a_notebook_is_named_as_the_reason(tmp_path: Path) -> None:
    heap = Heap()
    with memray.Tracker(tmp_path / "notebook"):
        with pytest.raises(HeapBusy, match="'mine' cannot .* notebook's own"), heap.window("mine"):
            pass
    with heap.window("mine"):
        pass
    assert heap.windows == ["mine"]


def test_a_window_of_another_thread_sees_the_proxy() -> None:
    """As from a notebook cell."""
    heap, hook = Heap(), Leaking(MEGABYTE)
    with mcpdiag.serve({"up": COMMAND}, port=0, hook=hook) as proxy:
        session = RawClient(proxy.url).initialize()
        session.call("echo", text="warm")
        before = len(hook.leaked)
        with heap.window("cell"):
            for _ in range(3):
                session.call("echo", text="hello")
        calls = len(hook.leaked) - before
    found = [
        row
        for row in rows(heap.frame)
        if (row["kind"], row["file"], row["line"]) == ("leaked", __file__, LEAK_LINE)
    ]
    assert calls >= 2  # the last is told after its answer
    assert sum(row["size_bytes"] for row in found) >= 2 * MEGABYTE


async def test_the_hook_is_told_of_the_edges_in_its_own_loop() -> None:
    class Where(Recorder):
        threads: set[int] = set()  # noqa: RUF012

        def emit(self, event: Event, /) -> None:
            self.threads.add(threading.get_ident())
            super().emit(event)

    hook = Where()
    heap = Heap(hook, loop=asyncio.get_running_loop())

    def cell() -> None:
        with heap.window("cell"):
            pass

    await to_thread.run_sync(cell)
    await until(lambda: len(hook.events) == 2)
    assert [event.detail.split(":")[0] for event in hook.happened("heap_window")] == [
        "open cell",
        "close cell",
    ]
    assert hook.threads == {threading.get_ident()}


async def test_a_snapshot_gives_the_rows_of_its_window() -> None:
    heap = Heap()
    async with proxied(COMMAND) as proxy, Client.session(proxy.url) as session:
        async with anyio.create_task_group() as tasks:
            frames = []

            async def look() -> None:
                frames.append(await heap.snapshot(0.2, python_allocators=True))
                tasks.cancel_scope.cancel()

            tasks.start_soon(look)
            while True:
                await session.say("echo", text="hello")
    assert set(frames[0]["window"]) == {"snapshot-1"}
    assert any(row["allocator"].startswith("pymalloc") for row in rows(frames[0]))


async def test_periodic_windows_come_until_cancelled_and_skip_what_is_taken() -> None:
    hook = Recorder()
    heap = Heap(hook)
    async with anyio.create_task_group() as tasks:
        with Heap().window("mine"):
            tasks.start_soon(heap.periodic, 0.02, 0.01)
            await until(lambda: hook.happened("heap_window"))
        assert hook.happened("heap_window")[0].detail.startswith("skip periodic-1: ")
        await until(lambda: heap.rows.ring.written >= 4)  # two windows, each with both kinds
        tasks.cancel_scope.cancel()
    with heap.window("after"):
        pass
    with pytest.raises(ValueError, match="no time without one"):
        await heap.periodic(1, 1)


async def test_a_cancelled_snapshot_gives_the_tracker_back() -> None:
    heap = Heap(hook := Recorder())
    task = asyncio.create_task(heap.snapshot(3600))
    await until(lambda: hook.happened("heap_window"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with heap.window("after"):
        pass


def test_a_difference_is_by_call_site_and_request() -> None:
    heap = Heap()
    kept: list[bytearray] = []
    for name, count in (("a", 4), ("b", 12)):
        with heap.window(name):
            keep(kept, count)
    found = rows(heap.diff("a", "b", per_request=(4, 6)))[0]
    assert (found["function"], found["file"]) == ("keep", __file__)
    assert found["size_bytes"] == pytest.approx(8 * MEGABYTE, rel=0.01)
    assert found["bytes_per_request_a"] == pytest.approx(MEGABYTE, rel=0.01)
    assert found["growth_bytes_per_request"] == pytest.approx(MEGABYTE, rel=0.01)
    assert found["stack"].startswith("keep (")
    assert heap.diff("a", "b")["growth_bytes_per_request"].isna().all()
    with pytest.raises(KeyError, match="no heap window 'c'; kept are: a, b"):
        heap.diff("a", "c")
    with pytest.raises(ValueError, match="at least 1"):
        heap.diff("a", "b", per_request=(0, 1))
    with pytest.raises(ValueError, match="allowed: high_watermark, leaked"):
        heap.diff("a", "b", kind="live")


# -- growth -------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_growth_tells_what_grows_from_what_turns_over() -> None:
    """In a loop of this process: a list that keeps 100 bytes a turn, and a ring of as many that is full."""
    kept: list[bytes] = []
    ring = [b""] * 50
    turns = 0

    async def work() -> None:
        nonlocal turns
        while True:
            kept.append(bytes(100))
            ring[turns % 50] = bytes(1000)
            turns += 1
            await anyio.sleep(0.0005)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await until(lambda: turns > 100)
        found = await Heap().growth(0.9, requests=lambda: turns)
        tasks.cancel_scope.cancel()
    (here,) = [row for row in rows(found) if row["file"] == __file__]
    assert here["growth_bytes_per_request"] == pytest.approx(133, abs=40)  # and the list that grows
    assert here["live_3_bytes"] > here["live_2_bytes"] > here["live_1_bytes"] > 0
    assert found["growth_bytes_per_request"].is_monotonic_decreasing
    assert len(found.attrs["requests"]) == 3


async def test_growth_needs_requests() -> None:
    with pytest.raises(HeapError, match="give it load"):
        await Heap().growth(0.03, requests=lambda: 5)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of 30 s, and a reader of low priority, on a machine that is busy."""
    monkeypatch.setattr(client, "LIMIT", 180.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.timeout(240)
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 30])
async def test_a_leak_of_100_bytes_a_request_is_among_the_first_three_candidates(seconds: float) -> None:
    hook = Leaking(100)
    async with under_load(hook) as recorder:
        found = await recorder.heap.growth(seconds)
    first = [(row["file"], row["line"]) for row in rows(found)[:3]]
    assert (__file__, LEAK_LINE) in first, found.to_string()


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
@pytest.mark.timeout(240)
async def test_a_clean_proxy_has_no_candidate() -> None:
    hook = Counting()
    async with under_load(hook) as recorder:
        found = await recorder.heap.growth(30)
    assert rows(found) == []


# -- a server under memray ----------------------------------------------------------------------------------


async def test_the_heap_of_a_killed_server_can_be_read(tmp_path: Path) -> None:
    command = await to_thread.run_sync(under_memray, COMMAND, tmp_path / "heap")
    hook = Recorder()
    async with proxied(command, hook=hook) as proxy, Client.session(proxy.url) as session:
        pid = int(await session.say("whoami"))
        assert await session.say("remember", text="x" * MEGABYTE)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: hook.happened("child_exit"))
    (tmp_path / "heap" / "1.bin").write_bytes(b"")  # of one that was killed while it started
    frame = await captured(tmp_path / "heap", "up")
    assert set(frame["upstream"]) == {"up"}
    assert set(frame["window"]) == {f"pid {pid}"}  # the file bears the number of the server itself
    assert set(frame["kind"]) == {"leaked", "high_watermark"}
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        name: about.dtype for name, about in SCHEMA["heap"].items()
    }
    leaked = [row for row in rows(frame) if row["kind"] == "leaked"]
    assert any(row["size_bytes"] >= MEGABYTE and "embedded.py" in row["stack"] for row in leaked)


def script(folder: Path, *head: str) -> str:
    path = folder / "server"
    path.write_text("\n".join((*head, "import sys", "")))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("command", "options", "program"),
    [
        (["python", "s.py", "-m", "x"], [], ["s.py", "-m", "x"]),
        (["python3.12", "-u", "-m", "server", "--port", "1"], ["-u"], ["-m", "server", "--port", "1"]),
        (["python", "-Im", "server"], ["-I"], ["-m", "server"]),
        (["python", "-mserver"], [], ["-m", "server"]),
        (["python", "-c", "pass", "a"], [], ["-c", "pass", "a"]),
        (["python", "-W", "error", "-Xdev", "s.py"], ["-W", "error", "-Xdev"], ["s.py"]),
        (["python", "-X", "-m", "s.py"], ["-X", "-m"], ["s.py"]),
        (
            ["python", "--check-hash-based-pycs", "always", "s.py"],
            ["--check-hash-based-pycs", "always"],
            ["s.py"],
        ),
    ],
)
def test_a_command_is_taken_apart_as_python_does(
    command: list[str],
    options: list[str],
    program: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed: list[list[str]] = []
    monkeypatch.setattr(heap_upstream, "_probe", lambda interpreter, *rest: probed.append(interpreter))
    made = under_memray(command, tmp_path)
    assert probed == [[command[0], *options]]
    assert made[:2] == ["/bin/sh", "-c"]
    assert made[2].startswith("exec " + " ".join([command[0], *options, "-m memray run -q -o "]))
    assert made[4:] == program


@pytest.mark.parametrize(
    "head",
    [
        ["#!/opt/env/bin/python -E"],
        ["#!/usr/bin/env -S python3 -E"],
        ["#!/bin/sh", "'''exec' '/opt/my env/bin/python3' -E \"$0\" \"$@\"", "' '''"],
    ],
)
def test_a_console_script_runs_under_the_interpreter_of_its_first_line(
    head: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[list[str]] = []
    monkeypatch.setattr(heap_upstream, "_probe", lambda interpreter, *rest: probed.append(interpreter))
    path = script(tmp_path, *head)
    assert under_memray(["server", "--a"], tmp_path, env={"PATH": str(tmp_path)})[4:] == [path, "--a"]
    assert under_memray(["./server"], tmp_path, cwd=tmp_path)[4:] == [path]
    assert [word.rsplit("/", 1)[-1] for word in probed[0]] in (["python", "-E"], ["python3", "-E"])


@pytest.mark.parametrize(
    "command", [["sh", "-c", "true"], ["no-such-server"], ["python"], ["python", "-"], ["python", "-m"]]
)
def test_what_is_no_python_program_is_refused(command: list[str], tmp_path: Path) -> None:
    with pytest.raises(HeapUnavailable, match="cannot run under memray"):
        under_memray(command, tmp_path)


def test_an_interpreter_without_memray_is_refused_with_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(HeapUnavailable, match=r"cannot import memray .*-m pip install memray"):
        under_memray(mini.command("noisy"), tmp_path)  # which leaves out site-packages
    with pytest.raises(HeapUnavailable, match="cannot run under memray"):
        under_memray([str(tmp_path / "python3"), "s.py"], tmp_path)


# -- without memray -----------------------------------------------------------------------------------------


def test_nothing_is_imported_before_the_first_window() -> None:
    code = (
        "import sys; from mcpdiag.samples import heap, heap_upstream; heap.Heap();"
        "print([name for name in ('memray', 'pandas', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_without_memray_everything_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says why and what to install; the proxy serves on, and no window is left open."""
    hook = Recorder()
    with no_memray(monkeypatch):
        heap = Heap(hook)
        async with proxied(COMMAND, hook=hook) as proxy, Client.session(proxy.url) as session:
            with pytest.raises(HeapUnavailable, match=r"memray.*pip install 'mcpdiag\[heap\]'"):
                await heap.snapshot(1)
            with pytest.raises(HeapUnavailable), heap.window("a"):
                pass
            with pytest.raises(HeapUnavailable):
                await heap.periodic(60, 2)
            with pytest.raises(HeapUnavailable):
                await heap.growth(1, requests=lambda: 0)
            assert await session.say("echo", text="hello") == "hello"
        assert len(heap.frame) == 0
        assert hook.happened("heap_window") == []
    with heap.window("after"):
        pass
