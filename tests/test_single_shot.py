"""Programs that end after one answer are served, never reused, never left behind, and said once; others are reused."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

import mcpdiag
from mcpdiag.embedded import COMMAND
from tests.conftest import RawClient, own_processes
from tests.servers.mini import command

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize("mode", ["session", "request", "multiplex"])
@pytest.mark.parametrize("shots", [1, 2], ids=["no handshake wanted", "one call after the handshake"])
def test_a_single_shot_program_is_served_not_reused_and_said_once(
    mode: str, shots: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With one answer in all it cannot even take the handshake before its request; it is served all the same."""
    caplog.set_level(logging.WARNING, "mcpdiag.pool")
    program = command("single_shot", "--requests", str(shots))
    with mcpdiag.serve({"tool": program}, port=0, pool_mode=mode, max_connections=2) as proxy:
        client = RawClient(proxy.url).initialize()
        answers = [
            client.request("tools/call", {"name": "echo", "arguments": {"text": str(n)}}) for n in range(5)
        ]
        assert all("result" in answer for answer in answers), answers
        pool = proxy.stats()["upstreams"]["tool"]["pool"]
        assert pool["opens"] >= 5
        assert pool["closed_single_shot"] >= 3
    warnings = [record for record in caplog.records if "single exchange" in record.getMessage()]
    assert len(warnings) == 1
    assert "'tool'" in warnings[0].getMessage()
    assert "transport-compatibility" in warnings[0].getMessage()


@pytest.mark.parametrize("mode", ["request", "multiplex"])
def test_a_program_that_takes_its_time_to_end_loses_one_call_at_most(mode: str) -> None:
    """It is taken for a persistent one at first; its end tells, and later ones are given more time."""
    program = command("single_shot", "--requests", "2", "--linger", "0.25")
    with mcpdiag.serve({"tool": program}, port=0, pool_mode=mode, max_connections=2) as proxy:
        client = RawClient(proxy.url).initialize()
        answers = [
            client.request("tools/call", {"name": "echo", "arguments": {"text": str(n)}}) for n in range(6)
        ]
        assert sum("result" not in answer for answer in answers) <= 1, answers
        assert all("result" in answer for answer in answers[2:]), answers
        assert proxy.stats()["upstreams"]["tool"]["pool"]["closed_single_shot"] >= 2


@pytest.mark.parametrize(("mode", "clients"), [("session", 1), ("request", 4), ("multiplex", 4)])
def test_a_persistent_server_with_one_connection_is_spawned_once(mode: str, clients: int) -> None:
    """For N requests; in the shared modes also for N clients."""
    with mcpdiag.serve({"demo": COMMAND}, port=0, pool_mode=mode, max_connections=1) as proxy:
        sessions = [RawClient(proxy.url).initialize() for _ in range(clients)]
        pids = {session.call("whoami") for session in sessions for _ in range(10)}
        assert len(pids) == 1
        pool = proxy.stats()["upstreams"]["demo"]["pool"]
        assert pool["opens"] == 1
        assert pool["closed_single_shot"] == pool["closed_lost"] == 0


class Closing(BaseHTTPRequestHandler):
    """One answer a connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = b""
        if "id" in message:
            arguments = message["params"].get("arguments", {})
            result = {
                "protocolVersion": "2025-11-25",
                "content": [{"type": "text", "text": arguments.get("text")}],
            }
            answer = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
        self.send_response(200 if answer else 202)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        return None


@contextmanager
def closing_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Closing) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/mcp"
        finally:
            server.shutdown()
            thread.join()


def test_an_http_server_that_closes_after_each_answer_is_served_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "mcpdiag.pool")
    with closing_server() as url, mcpdiag.serve({"web": url}, port=0) as proxy:
        client = RawClient(proxy.url).initialize()
        assert [client.call("echo", text=str(n)) for n in range(4)] == ["0", "1", "2", "3"]
        pool = proxy.stats()["upstreams"]["web"]["pool"]
        assert pool["reuses"] == 0
        assert pool["closed_single_shot"] >= 5
    assert len([record for record in caplog.records if "single exchange" in record.getMessage()]) == 1


def test_an_http_server_s_connections_are_reused() -> None:
    with (
        mcpdiag.serve({"inner": COMMAND}, port=0) as inner,
        mcpdiag.serve({"web": inner.url}, port=0) as proxy,
    ):
        client = RawClient(proxy.url).initialize()
        for number in range(10):
            client.call("echo", text=str(number))
        pool = proxy.stats()["upstreams"]["web"]["pool"]
        assert pool["opens"] == 1
        assert pool["reuses"] == pool["acquires"] - 1 >= 11


@pytest.mark.slow
def test_short_lived_processes_do_not_pile_up() -> None:
    before = own_processes()
    with mcpdiag.serve(
        {"tool": command("single_shot", "--requests", "2")}, port=0, pool_mode="request", max_connections=2
    ) as proxy:
        client = RawClient(proxy.url).initialize()
        for number in range(40):
            client.call("echo", text=str(number))
            assert len(own_processes() - before) <= 5  # two in the pool, two on their way out, the reaper


def test_a_wedged_process_in_multiplex_mode_is_replaced() -> None:
    """It answered nobody while a call timed out: the next call gets a process that works."""
    with mcpdiag.serve(
        {"demo": COMMAND}, port=0, pool_mode="multiplex", max_connections=1, request_timeout=1.0
    ) as proxy:
        client = RawClient(proxy.url).initialize()
        first = client.call("whoami"), client.call("whoami"), client.call("whoami")
        assert len(set(first)) == 1
        assert "request_timeout" in client.call("sleep", seconds=30)
        assert client.call("whoami") != first[0]
