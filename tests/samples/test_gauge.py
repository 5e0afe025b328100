"""Every second there is a row for each pool and each process."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from typing import Any

import pandas as pd
import psutil
import pytest

from mcpdiag.embedded import COMMAND
from mcpdiag.pool.stats import PoolStats
from mcpdiag.samples.gauge import Gauge, PoolReading
from mcpdiag.samples.processes import ProcessReader
from mcpdiag.samples.recorder import Recorder
from tests.proxy.client import Client, pool, proxied, text_of, until

pytestmark = pytest.mark.anyio
# A server as `npx` makes one: the process that was started has the server as its child.
WRAPPED = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))", *COMMAND]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def rows_of(frame: pd.DataFrame) -> dict[str, Any]:
    """The rows by their upstream."""
    return {row["upstream"]: row for row in frame.to_dict("records")}


async def test_pools_and_processes_are_read_while_the_proxy_runs() -> None:
    named = {"plain": COMMAND, "wrapped": WRAPPED}
    async with (
        proxied(named=named, sample_every=0.02) as proxy,
        Client.session(proxy.urls["plain"]) as plain,
        Client.session(proxy.urls["wrapped"]) as wrapped,
    ):
        pid = int(text_of(await plain.call("whoami")))
        inner = int(text_of(await wrapped.call("whoami")))
        recorder = proxy.recorder

        def seen() -> bool:
            last = recorder.memory.tail(3)
            whole = {*last["upstream"]} == {"", "plain", "wrapped"} and last["children"].sum() == 4
            return whole and bool((last["cpu_s"] > 0).all())

        for client in (
            plain,
            wrapped,
        ):  # processor time is counted in ticks of 10 ms, and a server starts in one
            for _ in range(500):
                await client.call("echo", text="x" * 1000)
        await until(seen)
        memory = rows_of(recorder.memory.tail(3))
        proxys, plains, wrappeds = memory[""], memory["plain"], memory["wrapped"]
        assert (proxys["process"], proxys["pid"], proxys["children"]) == ("proxy", os.getpid(), 3)
        assert (plains["process"], plains["pid"], plains["children"]) == ("server", pid, 0)
        assert (wrappeds["pid"], wrappeds["children"]) == (psutil.Process(inner).ppid(), 1)
        assert wrappeds["rss_bytes"] > psutil.Process(inner).memory_info().rss
        assert wrappeds["threads"] == 2
        for row in memory.values():
            assert all(row[column] > 0 for column in ("rss_bytes", "fds", "threads", "cpu_s"))
        last = recorder.pool.tail(2)
        assert {name: row["busy"] for name, row in rows_of(last).items()} == {
            name: pool(proxy, name)["busy"] for name in named
        }
        assert {*last["mode"]} == {"session"}
        assert {*last["era"]} == {"handshake"}
    end = recorder.pool.tail(2)
    assert [*end["size"]] == [0, 0], "the last reading is of closed pools"


async def test_an_http_upstream_has_a_pool_and_no_processes() -> None:
    async with proxied("http://127.0.0.1:9/mcp", sample_every=0.01) as proxy:
        await until(lambda: proxy.recorder.written["memory"] >= 3)
        assert {*proxy.recorder.memory["upstream"]} == {""}
        assert {*proxy.recorder.pool["era"]} == {"both"}


def test_what_costs_milliseconds_is_read_seldom() -> None:
    reader = ProcessReader(dear_every=3)
    rows = [reader.read({})[0][2] for _ in range(7)]
    assert [usage.uss_bytes > 0 for usage in rows] == [True, False, False, True, False, False, True]


def test_a_process_that_has_ended_is_left_out() -> None:
    reader = ProcessReader()
    gone = psutil.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert [process for _, process, _ in reader.read({"up": [gone.pid]})] == ["proxy"]


def test_what_another_user_s_process_hides_is_left_out_and_the_rest_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    server = psutil.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        monkeypatch.setattr(psutil.Process, "num_fds", denied)
        monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
        usage = ProcessReader().read({"up": [server.pid]})[1][2]
    finally:
        server.communicate(b"\n")
    assert (usage.pid, usage.fds, usage.threads) == (server.pid, 0, 1)
    assert math.isnan(usage.uss_bytes)


async def test_a_reading_that_fails_is_said_once_and_the_pools_are_read_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> dict[str, list[int]]:
        return {"up": None}  # type: ignore[dict-item]

    recorder = Recorder()
    gauge = Gauge(recorder, lambda: [PoolReading("up", "session", "handshake", PoolStats())], broken)
    with caplog.at_level(logging.WARNING):
        await gauge.tick()
        await gauge.tick()
    assert [record.message for record in caplog.records] == ["what the processes use cannot be read"]
    assert recorder.written["pool"] == 2
