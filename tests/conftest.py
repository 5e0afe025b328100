"""What every test may use: a client that speaks raw HTTP, and a look at this process's children and descriptors."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

import mcpdiag
from mcpdiag.embedded import COMMAND

HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}


@dataclass
class RawClient:
    """A client session over plain http.client, for tests that look at status, headers and bytes."""

    url: str
    headers: dict[str, str] = field(default_factory=lambda: dict(HEADERS))
    last_id: int = 0

    def http(
        self, method: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One HTTP exchange; returns status, headers (lower-case names) and the whole body."""
        parts = urlsplit(self.url)
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        try:
            sent = {**self.headers, **{key.replace("_", "-"): value for key, value in headers.items()}}
            connection.request(method, parts.path, body, sent)
            response = connection.getresponse()
            found = {key.lower(): value for key, value in response.getheaders()}
            return response.status, found, response.read()
        finally:
            connection.close()

    def post(self, message: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.http("POST", json.dumps(message).encode(), **headers)

    def request(self, method: str, params: Any = None) -> dict[str, Any]:
        """A JSON-RPC request; returns the response message, of a JSON answer or the last event of a stream."""
        self.last_id += 1
        message = {"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params or {}}
        status, headers, body = self.post(message)
        assert status == 200, (status, body)
        if headers["content-type"] == "text/event-stream":
            body = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")][-1]
        answer: dict[str, Any] = json.loads(body)
        assert answer["id"] == self.last_id
        return answer

    def call(self, tool: str, **arguments: Any) -> str:
        """The text that a tool answers; an error's message if it failed."""
        answer = self.request("tools/call", {"name": tool, "arguments": arguments})
        if "error" in answer:
            return str(answer["error"]["message"])
        return str(answer["result"]["content"][0]["text"])

    def initialize(self, version: str = "2025-11-25", **capabilities: Any) -> RawClient:
        params = {
            "protocolVersion": version,
            "capabilities": capabilities,
            "clientInfo": {"name": "raw", "version": "1"},
        }
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        status, headers, body = self.post(message)
        assert status == 200, body
        assert "result" in json.loads(body), body
        self.headers["mcp-session-id"] = headers["mcp-session-id"]
        self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self


def own_processes() -> set[int]:
    """Pids of all children and grandchildren of this process that are not zombies."""
    alive = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                alive.add(child.pid)
    return alive


def own_descriptors() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="session")
def warmed() -> None:
    """One proxy has run: what the interpreter and the event loop keep for good (a signal pipe) is there."""
    with mcpdiag.serve({"warm": COMMAND}, port=0) as proxy:
        RawClient(proxy.url).initialize()


@pytest.fixture
def nothing_left(warmed: None) -> Iterator[None]:
    """Afterwards this process has the children and file descriptors that it had before."""
    processes, descriptors = own_processes(), own_descriptors()
    yield
    assert own_processes() == processes
    assert own_descriptors() <= descriptors


def pytest_collection_finish() -> None:
    """What the collected tests are made of stays; a collection that looks at it all takes most of a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Hypothesis asks the collector who refers to what, and may be imported for the summary alone."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _little_garbage() -> Iterator[None]:
    """A recorder takes 40 MB and is part of cycles; the collector counts objects, not bytes, and comes too late."""
    yield
    if next(_ended) % 50 == 0:
        gc.collect()


_ended = itertools.count(1)
