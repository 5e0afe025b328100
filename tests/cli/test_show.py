"""`mcpdiag show`: tables of a capture and of a running proxy; a wrong source is one line."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import mcpdiag
from mcpdiag.embedded import COMMAND
from tests.conftest import RawClient
from tests.samples.test_remote import free_port


def show(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mcpdiag", "show", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_a_capture_and_the_proxy_itself_show_the_same_calls(tmp_path: Path) -> None:
    with mcpdiag.serve({"demo": COMMAND}, port=0, admin_port=free_port(), sample_every="100ms") as proxy:
        client = RawClient(proxy.url).initialize()
        for _ in range(3):
            client.call("echo", text="x")
        for child in psutil.Process().children(recursive=True):
            if "embedded" in " ".join(child.cmdline()):
                child.kill()
        while not len(proxy.recorder.events):
            time.sleep(0.05)
        while not len(proxy.recorder.memory) or not len(proxy.recorder.pool):
            time.sleep(0.05)
        proxy.recorder.save(tmp_path / "run")
        live = show(proxy.admin_url)
    capture = show(str(tmp_path / "run"))
    for done in (live, capture):
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if " echo " in line]
        assert line.split()[:3] == ["demo", "echo", "3"]
        (event,) = [line for line in done.stdout.splitlines() if "child_exit" in line]
        assert event.split()[:4] == ["1", "child_exit", "demo", "the"]
        for title in ("calls", "pools, at the end", "processes", "events"):
            assert title in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("nowhere", 2, "there is no capture in nowhere"),
        ("http://127.0.0.1:1", 3, "no proxy at http://127.0.0.1:1"),
        ("ftp://x", 3, "is not the URL of an admin port"),
    ],
)
def test_a_wrong_source_is_one_line(source: str, code: int, words: str) -> None:
    done = show(source)
    assert done.returncode == code
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["show", "top"])
def test_what_is_not_installed_is_named_with_what_to_install(verb: str) -> None:
    """The proxy has it; whoever looks at it has not."""
    with mcpdiag.serve({"demo": COMMAND}, port=0, admin_port=0) as proxy:
        code = (
            "import sys; sys.modules['pyarrow'] = None; from mcpdiag.cli import main; "
            f"sys.argv = ['mcpdiag', {verb!r}, {proxy.admin_url!r}]; main()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "mcpdiag: frames of a running proxy need pyarrow; pip install 'mcpdiag[notebook]'\n"
