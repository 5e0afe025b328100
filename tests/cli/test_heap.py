"""`mcpdiag proxy --heap-every --heap-for --heap-upstream`: what a person sees, and what is in the capture."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mcpdiag
from mcpdiag.embedded import COMMAND
from tests.cli.test_cli import proxy, run
from tests.conftest import RawClient

pytestmark = pytest.mark.slow  # each starts processes that import a lot


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--heap-for", "3s"], ["--heap-for: found it without 'heap_every'"]),
        (["--heap-every", "1s"], ["--heap-every: found windows of 2 s (heap_for) every 1 s (heap_every)"]),
        (
            ["--heap-every", "60s", "--heap-for", "1m"],
            ["--heap-for: found windows of 60 s (heap_for) every 60 s"],
        ),
        (
            ["--heap-every", "often", "--heap-for", "0s"],
            ['--heap-every: found "often"', '--heap-for: found "0s"'],
        ),
    ],
)
def test_mistakes_of_both_durations_are_said_at_once(options: list[str], says: list[str]) -> None:
    found = run("proxy", "--port", "0", *options, "--", "cat")
    assert found.returncode == 2
    lines = found.stderr.splitlines()
    assert len(lines) == len(says)
    for line, words in zip(lines, says, strict=True):
        assert line.startswith(f"mcpdiag: command line: {words}")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["--", "sh", "-c", "true"], 3, "the server 'default': sh -c true cannot run under memray"),
        (["--url", "http://127.0.0.1:9/mcp"], 2, "which is no process of this proxy"),
    ],
)
def test_what_cannot_run_under_memray_is_refused(command: list[str], code: int, words: str) -> None:
    found = run("proxy", "--port", "0", "--heap-upstream", *command)
    assert (found.returncode, found.stdout) == (code, "")
    assert words in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_without_memray_the_command_line_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['memray'] = None\n"
        "sys.argv = ['mcpdiag', 'proxy', '--port', '0', '--heap-every', '60s', '--', 'cat']\n"
        "from mcpdiag.cli import main\nmain()"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 3
    assert found.stderr.startswith("mcpdiag: heap windows need memray, which cannot be imported here")
    assert "pip install 'mcpdiag[heap]'" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_windows_and_a_killed_server_are_in_the_capture_and_in_show(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--heap-every", "500ms", "--heap-for", "200ms", "--heap-upstream", "--capture", str(folder)]
    with proxy(*options, "--", *COMMAND) as (process, urls):
        client = RawClient(urls[0]).initialize()
        pid = int(client.call("whoami"))
        assert client.call("remember", text="x" * 1_000_000)
        os.kill(pid, signal.SIGKILL)
        client = RawClient(urls[0]).initialize()
        until = time.monotonic() + 30
        while (
            f"pid {pid}" not in (windows := mcpdiag.load(folder).heap.windows) or "periodic-1" not in windows
        ):
            assert time.monotonic() < until, windows
            client.call("echo", text="x")
            time.sleep(0.1)
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    capture = mcpdiag.load(folder)
    assert capture.complete
    held = capture.heap.frame.query("upstream == 'default' and kind == 'leaked'")
    assert held["size_bytes"].max() >= 1_000_000
    assert {"open periodic-1"} <= {*capture.events["detail"]}
    shown = run("show", str(folder))
    assert shown.returncode == 0, shown.stderr
    (title,) = [line for line in shown.stdout.splitlines() if line.startswith("heap, live at the end")]
    assert "candidates" in title
    assert "default: pid " in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 100
