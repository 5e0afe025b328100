"""The frames of a proxy in another process, over its admin port."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from http.client import HTTPConnection
from typing import Any, cast

import anyio
import pytest

import mcpdiag
from mcpdiag.embedded import COMMAND
from mcpdiag.errors import AttachError
from mcpdiag.samples.schema import SCHEMA
from tests.conftest import RawClient


@contextmanager
def running(*options: str) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """A proxy of its own process: its MCP URL, its admin URL, and the process."""
    command = [sys.executable, "-m", "mcpdiag", "proxy", "--port", "0", *options, "--", *COMMAND]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline().split() for _ in range(2)]
        yield lines[0][-1], lines[1][-1].removesuffix("/stats"), process
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


def ask(admin: str, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and body of a GET at the admin port."""
    connection = HTTPConnection(admin.split("//")[1], timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_frames_are_those_of_the_proxy() -> None:
    with running("--admin-port", str(free_port())) as (url, admin, _):
        client = RawClient(url).initialize()
        for number in range(5):
            client.call("echo", text=str(number))
        there = mcpdiag.attach(admin)
        requests = there.requests
        assert list(requests.columns) == list(SCHEMA["requests"])
        assert list(requests["target"]).count("echo") == 5
        assert requests.dtypes["ts"] == "datetime64[ns, UTC]"
        assert there.written["requests"] == len(requests)
        assert there.dropped["requests"] == 0
        assert len(there.frame("requests", since=3)) == len(requests) - 3
        assert there.summary().loc[("default", "tools/call", "echo"), "count"] == 5
        assert there.stats()["sessions"] == 1
        with pytest.raises(KeyError):
            there.frame("nothing")  # type: ignore[arg-type]


def test_json_lines_for_who_has_no_arrow() -> None:
    with running("--admin-port", str(free_port())) as (url, admin, _):
        RawClient(url).initialize().call("echo", text="x")
        status, body = ask(admin, "/frames/requests", accept="application/x-ndjson")
        assert status == 200
        rows = [json.loads(line) for line in body.splitlines()]
        assert rows[-1]["target"] == "echo"
        assert [*rows[-1]] == list(SCHEMA["requests"])


@pytest.mark.anyio
async def test_a_stream_brings_new_rows_only() -> None:
    with mcpdiag.serve({"demo": COMMAND}, port=0, admin_port=free_port()) as proxy:
        client = await anyio.to_thread.run_sync(RawClient(proxy.url).initialize)
        there = await anyio.to_thread.run_sync(mcpdiag.attach, proxy.admin_url)
        seen: list[str] = []
        with anyio.fail_after(20):
            await anyio.to_thread.run_sync(lambda: client.call("echo", text="before"))
            stream = there.stream("requests", every=0.05)
            async with anyio.create_task_group() as tasks:

                async def read() -> None:
                    async with aclosing(cast("Any", stream)) as frames:
                        async for frame in frames:
                            seen.extend(frame["target"])
                            if len(seen) == 3:
                                return

                tasks.start_soon(read)
                for _ in range(3):
                    await anyio.sleep(0.3)
                    await anyio.to_thread.run_sync(lambda: client.call("echo", text="x"))
        assert seen == ["echo"] * 3


def test_a_restart_is_noticed_and_said() -> None:
    port = free_port()
    with running("--admin-port", str(port)) as (url, admin, _):
        RawClient(url).initialize().call("echo", text="x")
        there = mcpdiag.attach(admin)
        assert len(there.requests)
    with pytest.raises(AttachError, match="no proxy at"):
        _ = there.requests
    with running("--admin-port", str(port)):
        with pytest.warns(UserWarning, match="was restarted"):
            assert len(there.requests) == 0


@pytest.mark.parametrize("url", ["ftp://x", "", "http://"])
def test_what_is_no_url_is_said(url: str) -> None:
    with pytest.raises(AttachError, match="is not the URL"):
        mcpdiag.attach(url)


def test_the_token_is_needed() -> None:
    with mcpdiag.serve({"demo": COMMAND}, port=0, admin_port=free_port(), token="secret-token") as proxy:
        with pytest.raises(AttachError, match="401"):
            mcpdiag.attach(proxy.admin_url)
        assert mcpdiag.attach(proxy.admin_url, token="secret-token").written["requests"] == 0


@pytest.mark.parametrize(("path", "status"), [("/frames/nothing", 404), ("/frames/requests?since=x", 400)])
def test_bad_questions_get_a_line(path: str, status: int) -> None:
    with mcpdiag.serve({"demo": COMMAND}, port=0, admin_port=free_port()) as proxy:
        found, body = ask(proxy.admin_url, path)
        assert found == status
        assert len(body.splitlines()) == 1


def test_a_proxy_that_is_looked_at_from_elsewhere_needs_no_pandas() -> None:
    """It would take 80 MB and hold up calls for a second."""
    code = """
import sys
from pathlib import Path
from mcpdiag.hooks import ExchangeDone, Happened
from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.schema import SCHEMA
from mcpdiag.samples.wire import answer
recorder = Recorder()
recorder.emit(ExchangeDone("up", "stdio", "ping", "", "s", "", "ok", reused=True))
recorder.emit(Happened("child_exit", "up", detail="gone"))
assert all(answer(recorder, name, 0, "")[0] for name in SCHEMA)
recorder.save(Path(sys.argv[1]))
print("pandas" in sys.modules)
"""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, f"{folder}/run"]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
