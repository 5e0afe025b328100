"""`mcpdiag top`: what a running proxy does now, fetched row by row, through restarts, in a terminal and in a pipe."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

import mcpdiag
from mcpdiag.cli.top_watch import Watch
from mcpdiag.embedded import COMMAND
from tests.conftest import RawClient
from tests.samples.test_remote import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # each starts processes that import pandas
TOP = [sys.executable, "-m", "mcpdiag", "top"]
ENTERS, LEAVES = "\x1b[?1049h", "\x1b[?1049l"  # the terminal's other screen


@contextmanager
def proxy(admin_port: int, **settings: Any) -> Iterator[tuple[mcpdiag.BackgroundProxy, RawClient]]:
    with mcpdiag.serve(
        {"demo": COMMAND}, port=0, admin_port=admin_port, sample_every="100ms", **settings
    ) as running:
        headers = {"authorization": "Bearer secret-token"} if "token" in settings else {}
        client = RawClient(running.url)
        client.headers |= headers
        yield running, client.initialize()


@contextmanager
def watching(*args: str) -> Iterator[subprocess.Popen[str]]:
    """A running `mcpdiag top` whose blocks come through a pipe."""
    process = subprocess.Popen(
        [*TOP, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The lines up to the first one with these words. Fails at the end of the output."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"{words!r} is not in\n{seen}\n{process.stderr and process.stderr.read()}")


def once(url: str, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TOP, url, "--once", *args],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, **environ},
    )


def test_a_look_shows_calls_pools_processes_and_events_and_what_fails_is_on_top() -> None:
    with proxy(free_port()) as (running, client):
        for number in range(20):
            client.call("echo", text=str(number))
        client.call("nothing-of-that-name")
        client.call("exit", code=7)
        client.call("sleep", seconds=0.01)
        while not len(running.recorder.memory) or not len(running.recorder.events):
            time.sleep(0.05)
        done = once(running.admin_url, "--window", "5m")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert re.match(
        rf"{running.admin_url}  up \d+ s  1 sessions  0 calls in flight  proxy [\d,]+ MiB", lines[0]
    )
    calls = [line.split() for line in lines if line.startswith("demo ") and len(line.split()) == 8]
    assert {call[1] for call in calls[:2]} == {"nothing-of-that-name", "exit"}
    assert [call[-1] for call in calls] == ["1", "1", *["0"] * (len(calls) - 2)]
    assert {call[1] for call in calls} >= {"echo", "sleep", "initialize"}
    (event,) = [line for line in lines if "child_exit" in line]
    assert "demo" in event
    (pool,) = [line.split() for line in lines if re.match("demo +session", line)]
    assert pool[6] == "10"


def test_only_new_rows_are_asked_for_and_old_ones_leave_the_window() -> None:
    class Listening(Watch):
        """Keeps the paths that it asks for."""

        def _get(self, path: str, accept: str) -> tuple[bytes, dict[str, str]]:
            asked.append(path)
            return super()._get(path, accept)

    asked: list[str] = []
    with proxy(free_port()) as (running, client):
        for _ in range(3):
            client.call("echo", text="x")
        watch = Listening(running.admin_url, window=300.0)
        watch.look()
        (row,) = [row for row in watch.rows() if row.call == "echo"]
        assert (row.count, row.errors) == (3, 0)
        assert row.p50_ms <= row.p95_ms <= row.p99_ms <= row.max_ms
        seen = running.recorder.written["requests"]
        client.call("echo", text="y")
        asked.clear()
        watch.look()
        (row,) = [row for row in watch.rows() if row.call == "echo"]
        assert row.count == 4
        assert f"/frames/requests?since={seen}" in asked
        watch.window = 0.0
        client.call("add", a=1, b=1)
        watch.look()
        assert len(watch.rows()) <= 1


def test_a_restart_is_said_and_counts_begin_anew() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        with proxy(port) as (_, client):
            client.call("echo", text="x")
            watch = Watch(url, window=300.0)
            watch.look()
            process = stack.enter_context(watching(url, "--every", "100ms", "--window", "5m"))
            read_until(process, " echo ")
        assert "no answer for" in read_until(process, "no answer for")
        with proxy(port) as (_, client):
            client.call("add", a=1, b=2)
            watch.look()
            assert watch.restarts == 1
            assert {row.call for row in watch.rows()} >= {"add"}
            assert "echo" not in {row.call for row in watch.rows()}
            read_until(process, "the proxy was restarted; everything is counted anew")
            assert " echo " not in read_until(process, " add ")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""


def test_a_proxy_that_stays_away_is_given_up_after_the_time_given() -> None:
    port = free_port()
    with ExitStack() as stack:
        with proxy(port):
            process = stack.enter_context(
                watching(f"http://127.0.0.1:{port}", "--every", "100ms", "--retry-for", "500ms")
            )
            read_until(process, "calls")
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 3
        (line,) = stderr.splitlines()
        assert line.startswith(f"mcpdiag: no proxy at http://127.0.0.1:{port} (")
        assert line.endswith("(--retry-for)")


@pytest.mark.parametrize(
    ("options", "number", "code"),
    [([], signal.SIGINT, 0), ([], signal.SIGTERM, 0), (["--for", "1h"], signal.SIGINT, 130)],
)
def test_a_signal_ends_it_in_order(options: list[str], number: signal.Signals, code: int) -> None:
    with proxy(free_port()) as (running, _), watching(running.admin_url, *options) as process:
        read_until(process, "calls")
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == code
        assert stderr == ""


def test_it_ends_by_itself_and_piped_blocks_have_no_codes_of_a_terminal() -> None:
    with (
        proxy(free_port()) as (running, _),
        watching(running.admin_url, "--every", "200ms", "--for", "600ms") as each,
    ):
        stdout, stderr = each.communicate(timeout=30)
    assert each.returncode == 0, stderr
    assert 2 <= stdout.count(running.admin_url) <= 4  # fewer if looks take longer than that
    assert "\x1b" not in stdout


def test_a_reader_that_has_enough_ends_it() -> None:
    with proxy(free_port()) as (running, _), watching(running.admin_url, "--every", "100ms") as process:
        read_until(process, "calls")
        assert process.stdout is not None
        process.stdout.close()
        process.wait(20)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_token_is_asked_for_and_never_shown() -> None:
    with proxy(free_port(), token="secret-token") as (running, _):
        refused = once(running.admin_url)
        by_option = once(running.admin_url, "--token", "secret-token")
        by_variable = once(running.admin_url, MCPDIAG_TOKEN="secret-token")
    assert refused.returncode == 3
    assert "401" in refused.stderr
    for done in (by_option, by_variable):
        assert done.returncode == 0, done.stderr
        assert "secret-token" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["http://127.0.0.1:1", "--once"], 3, "no proxy at http://127.0.0.1:1"),
        (
            ["http://127.0.0.1:1", "--every", "often"],
            2,
            "--every: found 'often'; allowed: a duration from 0.1s",
        ),
        (
            ["http://127.0.0.1:1", "--window", "1h"],
            2,
            "--window: found '1h'; allowed: a duration from 1s to 300s",
        ),
        (["http://127.0.0.1:1", "--once", "--for", "1s"], 2, "--once: found it beside --for"),
        (["ftp://x", "--once"], 3, "is not the URL of an admin port"),
    ],
)
def test_a_mistake_is_one_line(args: list[str], code: int, words: str) -> None:
    done = subprocess.run([*TOP, *args], capture_output=True, text=True, timeout=50)
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert words in line


def test_in_a_terminal_it_fits_gives_the_terminal_back_and_leaves_the_last_view() -> None:
    with proxy(free_port()) as (running, client):
        client.call("echo", text="x")
        here, there = pty.openpty()
        termios.tcsetwinsize(there, (24, 80))
        process = subprocess.Popen(
            [*TOP, running.admin_url, "--every", "100ms", "--window", "5m"],
            stdin=there,
            stdout=there,
            stderr=there,
        )
        os.close(there)
        seen = b""
        while seen.count(b"calls of the last") < 2:
            seen += os.read(here, 65536)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # EIO: the other side is closed
            while chunk := os.read(here, 65536):
                seen += chunk
        os.close(here)
        assert process.wait(20) == 0
    live, last = seen.decode().split(LEAVES)
    assert ENTERS in live
    assert "Traceback" not in last
    assert " echo " in last
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
