"""A client of the HTTP+SSE transport of 2024-11-05 that keeps every event of its stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import urljoin

import anyio
import httpx

from tests.proxy.client import LIMIT, Json, text_of, until


class SseClient:
    """Attributes:
    url: of the stream.
    endpoint: where to post, once the first event has come.
    messages: what came in `message` events.
    comments: how many keep-alives have come.
    ended: whether the stream has ended.
    """

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url, self.http = url, http
        self.events: list[tuple[str, str]] = []
        self.messages: list[Json] = []
        self.comments = 0
        self.ended = False
        self._last_id = 0

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, **headers: str) -> AsyncIterator[Self]:
        """A client with an open stream, which leaving the block breaks off."""
        async with httpx.AsyncClient(timeout=LIMIT, trust_env=False, headers=headers) as http:
            client = cls(url, http)
            async with http.stream("GET", url, headers={"accept": "text/event-stream"}) as response:
                assert response.status_code == 200, (response.status_code, await response.aread())
                assert response.headers["content-type"] == "text/event-stream"
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client._read, response)
                    await until(lambda: client.events, "the endpoint event")
                    yield client
                    tasks.cancel_scope.cancel()

    @classmethod
    @asynccontextmanager
    async def session(cls, url: str, **capabilities: Any) -> AsyncIterator[Self]:
        """A client that has initialized."""
        async with cls.connected(url) as client:
            await client.initialize(**capabilities)
            yield client

    async def _read(self, response: httpx.Response) -> None:
        name = ""
        try:
            async for line in response.aiter_lines():
                if line.startswith(":"):
                    self.comments += 1
                elif line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    self.events.append((name, line[6:]))
                    if name == "message":
                        self.messages.append(json.loads(line[6:]))
        finally:
            self.ended = True

    @property
    def endpoint(self) -> str:
        name, data = self.events[0]
        assert name == "endpoint"
        return urljoin(self.url, data)

    @property
    def session_id(self) -> str:
        return self.endpoint.partition("session_id=")[2]

    async def post(self, body: Any, **headers: str) -> httpx.Response:
        """`body` is bytes, or a value to send as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.http.post(
            self.endpoint, content=content, headers={"content-type": "application/json", **headers}
        )

    async def send(self, method: str, params: Json | None = None) -> int:
        """A request, whose answer is not waited for; returns its id."""
        self._last_id += 1
        message = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params or {}}
        response = await self.post(message)
        assert (response.status_code, response.content) == (202, b"")
        return self._last_id

    async def send_call(self, tool: str, *, token: Any = None, **arguments: Any) -> int:
        params: Json = {"name": tool, "arguments": arguments}
        if token is not None:
            params["_meta"] = {"progressToken": token}
        return await self.send("tools/call", params)

    async def answer(self, request_id: int) -> Json:
        """The response to a request, once it has come on the stream."""

        def found() -> list[Json]:
            return [each for each in self.messages if "method" not in each and each["id"] == request_id]

        await until(found, f"the answer to {request_id}")
        (answer,) = found()
        return answer

    async def request(self, method: str, params: Json | None = None) -> Json:
        return await self.answer(await self.send(method, params))

    async def say(self, tool: str, **arguments: Any) -> str:
        """The text that a tool answers."""
        return text_of(await self.answer(await self.send_call(tool, **arguments)))

    async def initialize(self, **capabilities: Any) -> Json:
        info = {"name": "sse", "version": "1"}
        params = {"protocolVersion": "2024-11-05", "capabilities": capabilities, "clientInfo": info}
        answer = await self.request("initialize", params)
        if "result" in answer:
            await self.notify("notifications/initialized")
        return answer

    async def notify(self, method: str, params: Json | None = None) -> None:
        response = await self.post({"jsonrpc": "2.0", "method": method, "params": params or {}})
        assert response.status_code == 202

    def heard(self, method: str) -> list[Json]:
        """The params of the messages of the server with this method."""
        return [message["params"] for message in self.messages if message.get("method") == method]
