"""`recorder.heap` of a proxy: its windows in frames, captures, over the admin port; periodic ones; servers under memray."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import pandas as pd
import pytest
from anyio import to_thread

import mcpdiag
from mcpdiag.embedded import COMMAND
from mcpdiag.errors import ConfigError, HeapBusy, HeapError, HeapUnavailable, StartError
from mcpdiag.samples.heap import Heap
from mcpdiag.samples.heap_servers import HeapServers
from mcpdiag.samples.schema import SCHEMA
from tests.conftest import RawClient
from tests.proxy import client
from tests.proxy.client import Client, Recorder, proxied, until
from tests.samples.test_heap import MEGABYTE, no_memray, rows
from tests.samples.test_remote import free_port

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return client.UVLOOP


def told_of(kept: Recorder, calls: int) -> bool:
    return len(kept.done) == calls


def edges(kept: Recorder) -> list[str]:
    return [event.detail.split(":")[0] for event in kept.happened("heap_window")]


async def test_a_window_of_a_proxy_is_in_its_frame_capture_and_events(tmp_path: Path) -> None:
    """The capture and the live recorder give the same windows and differences, by the requests that they counted."""
    folder = tmp_path / "run"
    kept = Recorder()
    async with (
        proxied(COMMAND, hook=kept, capture=str(folder)) as proxy,
        Client.session(proxy.url) as session,
    ):
        heap = proxy.recorder.heap
        await until(lambda: len(kept.done) == 1)
        for name, calls, told in (("a", 2, 3), ("b", 4, 7)):
            with heap.window(name, python_allocators=True):
                for _ in range(calls):
                    await session.say("echo", text="hello")
                await until(partial(told_of, kept, told))
        frame = heap.frame
        assert len(proxy.recorder.frame("heap")) == len(frame)
    capture = mcpdiag.load(folder)
    assert {*frame["upstream"]} == {""}
    assert frame.groupby("window", observed=True)["requests"].first().to_dict() == {"a": 2, "b": 4}
    assert frame["seconds"].min() > 0
    assert edges(kept) == ["open a", "close a", "open b", "close b"]
    events = capture.events[capture.events["kind"] == "heap_window"]
    assert [*events["detail"]] == [event.detail for event in kept.happened("heap_window")]
    assert capture.heap.windows == heap.windows == ["a", "b"]
    found = capture.heap.diff("a", "b")
    pd.testing.assert_frame_equal(found, heap.diff("a", "b"))
    pd.testing.assert_frame_equal(found, heap.diff("a", "b", per_request=(2, 4)))
    assert found["growth_bytes_per_request"].notna().all()


async def test_windows_reach_who_attaches_and_who_streams() -> None:
    async with proxied(COMMAND, admin_port=free_port()) as proxy:
        pieces = []

        async def listen() -> None:
            rows_of_heap = proxy.recorder.stream("heap", every=0.01, since=0)
            async with aclosing(cast("Any", rows_of_heap)) as stream:
                async for piece in stream:
                    pieces.append(piece)
                    return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            taken = await proxy.recorder.heap.snapshot(0.05, name="one")
        pd.testing.assert_frame_equal(pieces[0], taken, check_categorical=False)

        def look() -> pd.DataFrame:
            remote = mcpdiag.attach(proxy.admin_url)
            assert remote.heap.windows == ["one"]
            assert len(remote.heap.diff("one", "one")) > 0
            return remote.heap.frame

        pd.testing.assert_frame_equal(await to_thread.run_sync(look), taken, check_categorical=False)


def test_a_window_of_a_notebook_cell_tells_the_proxy_s_loop_and_is_read_beside_it() -> None:
    kept = Recorder()
    with mcpdiag.serve({"up": COMMAND}, port=0, hook=kept) as proxy:
        session = RawClient(proxy.url).initialize()
        heap = proxy.recorder.heap
        held = []
        with heap.window("cell"):
            held.append(bytearray(MEGABYTE))
            session.call("echo", text="hello")
    ours = [row for row in rows(heap.frame) if row["file"] == __file__ and row["kind"] == "leaked"]
    assert sum(row["size_bytes"] for row in ours) >= MEGABYTE
    assert edges(kept) == ["open cell", "close cell"]
    with heap.window("after the end"):
        pass
    assert heap.windows == ["cell", "after the end"]


async def test_a_periodic_window_refuses_a_second_one_and_gives_way_to_a_first() -> None:
    kept = Recorder()
    async with proxied(COMMAND, hook=kept, heap_every=0.3, heap_for=0.2) as proxy:
        heap = proxy.recorder.heap
        await until(lambda: "open periodic-1" in edges(kept))
        with pytest.raises(HeapBusy, match="'mine' cannot be opened: the window 'periodic-1' is open"):
            await heap.snapshot(0.01, name="mine")
        await until(lambda: proxy.recorder.written["heap"])
        while True:  # whichever of the two comes first
            try:
                taken = heap.window("mine")
                taken.__enter__()
            except HeapBusy:
                await anyio.sleep(0.01)
            else:
                break
        await until(lambda: any(text.startswith("skip periodic-") for text in edges(kept)))
        taken.__exit__(None, None, None)
        before = proxy.recorder.written["heap"]
        await until(lambda: proxy.recorder.written["heap"] > before)
    skipped = [text for text in proxy.recorder.events["detail"] if text.startswith("skip ")]
    assert "the window 'mine' is open" in skipped[0]


async def test_whatever_a_periodic_window_raises_the_proxy_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(Heap, "_timed", fail)
    kept = Recorder()
    async with (
        proxied(COMMAND, hook=kept, heap_every=0.02, heap_for=0.01) as proxy,
        Client.session(proxy.url) as session,
    ):
        await until(lambda: len(edges(kept)) >= 2)
        assert await session.say("echo", text="hello") == "hello"
    assert kept.happened("heap_window")[1].detail == "skip periodic-2: MemoryError: no more"
    assert "MemoryError: no more" in caplog.text


async def test_a_window_that_is_open_when_the_proxy_stops_is_kept_in_the_capture(tmp_path: Path) -> None:
    kept = Recorder()
    run = str(tmp_path / "run")
    async with proxied(COMMAND, hook=kept, heap_every=100, heap_for=99.9, capture=run):
        await until(lambda: "open periodic-1" in edges(kept))
    assert mcpdiag.load(tmp_path / "run").heap.windows == ["periodic-1"]


async def test_a_snapshot_whose_caller_has_gone_ends_as_cancelled_also_if_it_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise HeapError("cannot be read")

    heap = Heap(hook := Recorder())
    monkeypatch.setattr(heap, "_read", fail)
    task = asyncio.create_task(heap.snapshot(3600))
    await until(lambda: hook.happened("heap_window"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "cannot be read" in caplog.text
    with pytest.raises(HeapError, match="cannot be read"):
        await heap.snapshot(0.01)


def test_windows_say_where_the_dataframe_is() -> None:
    recorder = mcpdiag.Recorder()
    with pytest.raises(AttributeError, match="heap windows have no 'groupby'; the DataFrame is .frame"):
        _ = recorder.heap.groupby  # type: ignore[attr-defined]
    assert repr(recorder.heap) == "<Heap; the DataFrame is .frame>"
    assert "<table" in (recorder.heap._repr_html_() or "")


# -- what is missing is said at the start -------------------------------------------------------------------


async def test_without_memray_a_proxy_with_periodic_windows_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with no_memray(monkeypatch):
        with pytest.raises(StartError, match=r"heap windows need memray.*pip install 'mcpdiag\[heap\]'"):
            async with proxied(COMMAND, heap_every=60):
                pass
        async with proxied(COMMAND) as proxy:
            with pytest.raises(HeapUnavailable):
                await proxy.recorder.heap.snapshot(1)


def test_heap_settings_need_a_recorder_and_fit_together() -> None:
    with pytest.raises(ConfigError) as found:
        mcpdiag.Proxy({"up": [*COMMAND]}, record=False, heap_every=60, heap_upstream=True, capture="x")
    assert [text.split(" without")[0] for text in found.value.problems] == [
        "found capture",
        "found heap_every",
        "found heap_upstream",
    ]
    for settings, says in (
        ({"heap_for": 3}, "without 'heap_every'"),
        ({"heap_every": 1}, "windows of 2 s .* every 1 s"),
        ({"heap_every": "1m", "heap_for": "60s"}, "leaves no time without one"),
    ):
        with pytest.raises(ConfigError, match=says):
            mcpdiag.Proxy({"up": [*COMMAND]}, **settings)
    with pytest.raises(ConfigError, match="heap_upstream: found it for http://x/mcp, which is no process"):
        mcpdiag.Proxy({"up": "http://x/mcp"}, heap_upstream=True)


# -- servers under memray -----------------------------------------------------------------------------------


def of(frame: pd.DataFrame, pid: int) -> pd.DataFrame:
    return frame[(frame["window"] == f"pid {pid}") & (frame["kind"] == "leaked")]


async def test_servers_under_memray_are_in_the_frame_while_they_run_and_after_a_kill(tmp_path: Path) -> None:
    """The other upstream has no memray about it, and is told of nothing."""
    named = {
        "traced": {"command": [*COMMAND], "heap_upstream": True},
        "plain": {"command": [*COMMAND]},
    }
    folder = tmp_path / "run"
    async with (
        proxied(named=named, capture=str(folder)) as proxy,
        Client.session(proxy.urls["traced"]) as killed,
        Client.session(proxy.urls["traced"]) as lives,
        Client.session(proxy.urls["plain"]) as plain,
    ):
        pids = [int(await each.say("whoami")) for each in (killed, lives, plain)]
        await killed.say("remember", text="x" * MEGABYTE)
        running = await proxy.recorder.heap.servers()
        assert {*running["window"]} == {f"pid {pid}" for pid in pids[:2]}
        assert {*running["upstream"]} == {"traced"}
        assert of(running, pids[0])["size_bytes"].max() >= MEGABYTE
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: proxy.recorder.written["heap"] > len(running), "its file is read again")
        assert await lives.say("echo", text="still here") == "still here"
        assert await plain.say("echo", text="still here") == "still here"
    frame = mcpdiag.load(folder).heap.frame
    assert list(frame.columns) == list(SCHEMA["heap"])
    counts = frame[["ts", "window"]].drop_duplicates()["window"].value_counts()
    assert counts.to_dict() == {f"pid {pid}": 2 for pid in pids[:2]}, (
        "each once while it ran, once at its end"
    )
    last = of(frame, pids[0])
    assert last[last["ts"] == last["ts"].max()]["size_bytes"].max() >= MEGABYTE
    with pytest.raises(HeapError, match="--heap-upstream"):
        await Heap().servers()


async def test_every_upstream_that_cannot_run_under_memray_is_named_at_the_start() -> None:
    named = {
        "shell": {"command": ["sh", "-c", "true"], "heap_upstream": True},
        "bare": {"command": [sys.executable, "-"], "heap_upstream": True},
        "fine": {"command": [*COMMAND], "heap_upstream": True},
    }
    with pytest.raises(
        StartError, match=r"server 'shell': .*no Python program.*; the server 'bare': .*no file"
    ):
        async with proxied(named=named):
            pass


async def test_the_files_of_servers_are_gone_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    async with proxied(COMMAND, heap_upstream=True) as proxy, Client.session(proxy.url) as session:
        await session.say("echo", text="hello")
        assert [*tmp_path.glob("mcpdiag-heap-*/up/*.bin")]
    assert [*tmp_path.glob("mcpdiag-heap-*")] == []
    assert len(proxy.recorder.heap.windows) == 1


async def test_a_forced_stop_does_not_wait_for_heaps(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = anyio.Event()

    async def hang(*_: object, **__: object) -> None:
        reading.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(HeapServers, "finish", hang)
    async with proxied(COMMAND, heap_upstream=True) as proxy:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(proxy.aclose)
            await reading.wait()
            await proxy.aclose(force=True)
