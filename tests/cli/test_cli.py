"""The command line as a person uses it: help, mistakes, the ready line, signals, exit codes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mcpdiag import __version__
from mcpdiag.embedded import COMMAND
from tests.conftest import RawClient

MCPDIAG = [sys.executable, "-m", "mcpdiag"]


def run(*args: str, timeout: float = 50) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MCPDIAG, *args], capture_output=True, text=True, timeout=timeout)


@contextmanager
def proxy(*args: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A running `mcpdiag proxy`, and the URLs of its ready lines."""
    process = subprocess.Popen([*MCPDIAG, "proxy", "--port", "0", *args], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        yield process, re.findall(r"http://\S+", line)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()


def test_version() -> None:
    assert run("--version").stdout == f"mcpdiag {__version__}\n"


@pytest.mark.parametrize(
    ("verb", "example"),
    [
        ("proxy", "mcpdiag proxy -- npx -y @modelcontextprotocol/server-everything"),
        ("demo", "mcpdiag demo --clients 8 --calls 25"),
        ("bench run", "mcpdiag bench --url http://127.0.0.1:3001/mcp --clients 1,8 --workload calls.toml"),
        ("bench duet", "mcpdiag bench duet --base 'node old/server.js' -- node new/server.js"),
        ("bench compare", "mcpdiag bench compare mcpdiag-results/base mcpdiag-results/new"),
    ],
)
def test_help_shows_an_example(verb: str, example: str) -> None:
    found = run(*verb.split(), "--help")
    assert found.returncode == 0
    assert example in " ".join(found.stdout.split())


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["proxy", "--port", "0"], 2, "upstream"),
        (["proxy", "--url", "ftp://x", "--port", "0"], 2, "http:// or https://"),
        (["proxy", "--url", "http://x/mcp", "--", "cat"], 2, "not both"),
        (["proxy", "--pool-mode", "shared", "--", "cat"], 2, "multiplex"),
        (["proxy", "--port", "99999", "--", "cat"], 2, "65535"),
        (["proxy", "--log-level", "loud", "--", "cat"], 2, "warning"),
        (["proxy", "--config", "no-such.toml"], 2, "no-such.toml"),
        (["proxy", "--host", "0.0.0.0", "--", "cat"], 2, "--insecure"),
        (["proxy", "--port", "0", "--", "no-such-program"], 3, "no program 'no-such-program' on PATH"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_a_mistake_is_said_without_a_traceback(args: list[str], code: int, words: str) -> None:
    found = run(*args)
    assert found.returncode == code, found.stderr
    assert words in found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout == ""


def test_all_mistakes_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mcpdiag.toml"
    file.write_text('port = "x"\n[upstreams.a]\ncommand = "cat"\npool_mode = "pool"\n')
    found = run("proxy", "--config", str(file))
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 2
    assert "upstreams.a.pool_mode" in found.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_a_signal_and_leaves_nothing(number: signal.Signals) -> None:
    with proxy("--", *COMMAND) as (process, urls):
        assert len(urls) == 1
        client = RawClient(urls[0]).initialize()
        child = psutil.Process(int(client.call("whoami")))
        process.send_signal(number)
        assert process.wait(20) == 0
        assert not child.is_running()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_second_signal_forces() -> None:
    """A server that ignores EOF and SIGTERM, and a call of a minute: the second signal ends it at once."""
    stubborn = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.argv = ['x', 'y']\n"
    stubborn += f"sys.path.insert(0, {str(Path(COMMAND[1]).parent)!r})\nimport embedded, time\nembedded.main()\ntime.sleep(60)"
    with proxy("--", sys.executable, "-c", stubborn) as (process, urls):
        client = RawClient(urls[0]).initialize()
        child = psutil.Process(int(client.call("whoami")))
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not child.is_running()


def test_an_mcp_servers_file_serves_each_server_by_name(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    server = {"command": COMMAND[0], "args": [COMMAND[1]]}
    file.write_text(json.dumps({"mcpServers": {"one": server, "two": server}}))
    with proxy("--config", str(file)) as (_, urls):
        assert urls[0].endswith("/one/mcp")
        client = RawClient(urls[0].replace("/one/", "/two/")).initialize()
        assert client.call("echo", text="x") == "x"


def test_a_server_that_exits_at_once_is_said_in_one_line_to_operator_and_client() -> None:
    broken = "import sys; print('no API key', file=sys.stderr); sys.exit(4)"
    with proxy("--", sys.executable, "-c", broken) as (process, urls):
        status, _, body = RawClient(urls[0]).post(
            {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
        )
        message = json.loads(body)["error"]["message"]
        assert status == 200
        assert "exited with code 4" in message
        assert "no API key" in message
        assert process.stderr is not None
        assert message in process.stderr.readline()


@pytest.mark.slow
def test_the_demo_prints_what_it_found() -> None:
    found = run("demo", "--clients", "2", "--calls", "5")
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    text = " ".join(found.stdout.split())
    assert re.search(r"session │ 10 │ 2 │", text)
    assert re.search(r"multiplex │ 10 │ 1 │", text)
    assert "(request_timeout)" in text
    assert "exited with code 7" in text
    assert "processes left behind: 0 of 2" in text
