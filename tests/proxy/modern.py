"""A client of revision 2026-07-28 over raw HTTP, and the server of that revision as either kind of upstream."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import httpx

from mcpdiag.protocol.mirror import META_CAPABILITIES, META_SUBSCRIPTION, META_VERSION, NAMED_BY, encode_value
from tests.proxy.client import HEADERS, LIMIT, until
from tests.servers import stateless

Json = dict[str, Any]
VERSION = "2026-07-28"
META: Json = {META_VERSION: VERSION, META_CAPABILITIES: {}}
ALL: Json = {"toolsListChanged": True}


class Stream:
    """A response that is still being read: its messages, comments and whether it has ended."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.messages: list[Json] = []
        self.comments = 0
        self.ended = False

    async def read(self) -> None:
        try:
            async for line in self.response.aiter_lines():
                if line.startswith("data:"):
                    self.messages.append(json.loads(line.removeprefix("data:")))
                elif line.startswith(":"):
                    self.comments += 1
        except httpx.RemoteProtocolError:
            pass
        self.ended = True

    @property
    def methods(self) -> list[str]:
        return [str(message.get("method")) for message in self.messages]


class Modern:
    """Each request stands for itself; ids count up."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url, self.http = url, http
        self._last_id = 0

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator[Self]:
        limits = httpx.Limits(max_connections=None)
        plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the system's certificates take 20 ms to read
        async with httpx.AsyncClient(timeout=LIMIT, limits=limits, trust_env=False, verify=plain) as http:
            yield cls(url, http)

    def message(self, method: str, params: Json | None = None, request_id: Any = None) -> Json:
        self._last_id += 1
        params = {"_meta": META, **(params or {})}
        number = self._last_id if request_id is None else request_id
        return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}

    def headers(self, message: Json, more: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """What the specification wants beside `message`; a value of None in `more` leaves a header out."""
        method, params = message["method"], message["params"]
        found: dict[str, str | None] = {**HEADERS, "mcp-protocol-version": VERSION, "mcp-method": method}
        if method in NAMED_BY:
            found["mcp-name"] = encode_value(params[NAMED_BY[method]]).decode()
        found |= more or {}
        return {key: value for key, value in found.items() if value is not None}

    async def send(self, message: Any, headers: Mapping[str, str | None] | None = None) -> httpx.Response:
        """A POST and all of its answer."""
        return await self.http.post(
            self.url, content=json.dumps(message), headers=self.headers(message, headers)
        )

    async def request(self, method: str, params: Json | None = None) -> Json:
        """The last message of the answer, whatever its form."""
        response = await self.send(self.message(method, params))
        if response.headers["content-type"] == "text/event-stream":
            lines = [line for line in response.text.splitlines() if line.startswith("data:")]
            last: Json = json.loads(lines[-1].removeprefix("data:"))
            return last
        answer: Json = response.json()
        return answer

    def call(self, tool: str, *, meta: Json | None = None, **arguments: Any) -> Json:
        """A tools/call."""
        params = {"name": tool, "arguments": arguments, "_meta": {**META, **(meta or {})}}
        return self.message("tools/call", params)

    async def say(self, tool: str, **arguments: Any) -> str:
        """The text that a tool answers."""
        answer = await self.request("tools/call", {"name": tool, "arguments": arguments})
        assert "result" in answer, answer
        return str(answer["result"]["content"][0]["text"])

    @asynccontextmanager
    async def open(
        self, message: Json, headers: Mapping[str, str | None] | None = None
    ) -> AsyncIterator[Stream]:
        """A POST that is read meanwhile; leaving the block closes its connection."""
        sent = self.headers(message, headers)
        async with self.http.stream("POST", self.url, content=json.dumps(message), headers=sent) as response:
            stream = Stream(response)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.read)
                yield stream
                tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def listen(self, request_id: Any = None, notifications: Json = ALL) -> AsyncIterator[Stream]:
        """A subscription that has been acknowledged."""
        message = self.message("subscriptions/listen", {"notifications": notifications}, request_id)
        async with self.open(message) as stream:
            assert stream.response.status_code == 200
            await until(lambda: stream.messages)
            assert stream.methods == ["notifications/subscriptions/acknowledged"]
            assert stream.messages[0]["params"]["_meta"][META_SUBSCRIPTION] == message["id"]
            yield stream


class Journal:
    """What a server has noted in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def __contains__(self, line: str) -> bool:
        return line in self.lines

    def says(self, part: str) -> bool:
        """Whether a line has this in it."""
        return any(part in line for line in self.lines)


class HttpServer:
    """The server over HTTP; `restart` comes back on the same port."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self.url = ""
        self._start("0")

    def _start(self, port: str) -> None:
        command = stateless.command("--port", port, *self._options)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the server did not start"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def restart(self) -> None:
        self.stop()
        self._start(self.url.rpartition(":")[2].partition("/")[0])


@contextmanager
def upstream(kind: str, *options: str) -> Iterator[Any]:
    """The server as `kind` of upstream: `stdio`, `multiplex` (stdio too) or `http`."""
    if kind == "http":
        server = HttpServer(*options)
        try:
            yield server.url
        finally:
            server.stop()
    else:
        yield {
            "command": stateless.command()[0],
            "args": [*stateless.command(*options)[1:]],
            "pool_mode": "multiplex" if kind == "multiplex" else "session",
        }
