"""Clients for the notebooks, each in a thread: exact numbers of calls, abandoned sessions, listeners.

Load that has to keep a rate comes from `mcpdiag.bench`, in a process of its own.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Self
from urllib.parse import urlsplit

HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
VERSION = "2025-11-25"
PATIENCE_S = 60.0  # of a client for one answer


class Client:
    """A client's session; `call` returns the text of the answer, or of the error."""

    def __init__(self, url: str) -> None:
        self._at = urlsplit(url)
        self._headers = dict(HEADERS)
        self._number = 0
        info = {
            "protocolVersion": VERSION,
            "capabilities": {},
            "clientInfo": {"name": "notebook", "version": "1"},
        }
        self.request("initialize", info)
        self._post({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def call(self, tool: str, **arguments: Any) -> str:
        """A tools/call."""
        answer = self.request("tools/call", {"name": tool, "arguments": arguments})
        return str(
            answer["error"]["message"] if "error" in answer else answer["result"]["content"][0]["text"]
        )

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """A request; the whole response message."""
        self._number += 1
        body = self._post({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        last = [line for line in body.splitlines() if line.startswith((b"data: {", b"{"))][-1]
        answer: dict[str, Any] = json.loads(last.removeprefix(b"data: "))
        return answer

    def _post(self, message: dict[str, Any]) -> bytes:
        connection = http.client.HTTPConnection(self._at.netloc, timeout=PATIENCE_S)
        try:
            connection.request("POST", self._at.path, json.dumps(message), self._headers)
            response = connection.getresponse()
            if session := response.getheader("mcp-session-id"):
                self._headers["mcp-session-id"] = session
            return response.read()
        finally:
            connection.close()

    def never_read(self, tool: str, **arguments: Any) -> http.client.HTTPConnection:
        """A tools/call of which nobody reads the answer; the open connection."""
        connection = http.client.HTTPConnection(self._at.netloc)
        message = {
            "jsonrpc": "2.0",
            "id": "unread",
            "method": "tools/call",
            "params": {"name": tool, "arguments": arguments},
        }
        connection.request("POST", self._at.path, json.dumps(message), self._headers)
        return connection

    def close(self) -> None:
        """End the session, as a good client does."""
        connection = http.client.HTTPConnection(self._at.netloc, timeout=PATIENCE_S)
        with suppress(OSError):
            connection.request("DELETE", self._at.path, headers=self._headers)
            connection.getresponse().read()
        connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(url: str, tool: str, *, clients: int, calls: int, **arguments: Any) -> list[str]:
    """So many clients at once, each with a session and so many calls, one after the other; all answers' texts."""

    def one(_: int) -> list[str]:
        with Client(url) as client:
            return [client.call(tool, **arguments) for _ in range(calls)]

    with ThreadPoolExecutor(clients) as threads:
        return [text for texts in threads.map(one, range(clients)) for text in texts]


def each(clients: list[Client], tool: str, **arguments: Any) -> list[Future[str]]:
    """One call of every client, at once; does not wait for the answers."""
    threads = ThreadPoolExecutor(len(clients))
    calls = [threads.submit(client.call, tool, **arguments) for client in clients]
    threads.shutdown(wait=False)
    return calls


class Listener:
    """A client with an open listening stream; `numbers` holds what came on it."""

    def __init__(self, url: str) -> None:
        self.numbers: list[int] = []
        self._client = Client(url)
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)
        self._connection.request("GET", urlsplit(url).path, headers=self._client._headers)
        self._response = self._connection.getresponse()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError, http.client.HTTPException, ValueError):
            for line in self._response:
                if line.startswith(b"data: {"):
                    self.numbers.append(json.loads(line[6:])["params"]["data"])

    @property
    def lost(self) -> int:
        """Numbers between the first and the last that did not come."""
        return self.numbers[-1] - self.numbers[0] + 1 - len({*self.numbers}) if self.numbers else 0

    @property
    def doubled(self) -> int:
        """Numbers that came more than once."""
        return len(self.numbers) - len({*self.numbers})

    def close(self) -> None:
        self._client.close()  # the proxy ends the stream with its session
        self._thread.join(PATIENCE_S)
        self._connection.close()


@contextmanager
def listening(url: str, clients: int) -> Iterator[list[Listener]]:
    """So many clients with open listening streams."""
    with ThreadPoolExecutor(8) as threads:
        listeners = [*threads.map(lambda _: Listener(url), range(clients))]
        try:
            yield listeners
        finally:
            [*threads.map(Listener.close, listeners)]


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait for it to come true; whether it did in time."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
