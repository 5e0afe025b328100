"""An MCP client over raw HTTP that keeps every message it ever gets, and answers what the server asks.

For the tests in which several clients and streams are open at once; `tests/conftest.py` has one for a single call.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import anyio
import httpx
import pytest

from mcpdiag.hooks import Event, ExchangeDone, Happened
from mcpdiag.serve import Proxy
from mcpdiag.upstream.stdio import StdioUpstream

LIMIT = 30.0  # seconds: nothing here takes that long unless it hangs
UVLOOP = ("asyncio", {"use_uvloop": True})
STOCK = ("asyncio", {"use_uvloop": False})
# A mark for what an event loop may do differently: on uvloop, which serves, and on the one a notebook has.
on_both_loops = pytest.mark.parametrize(
    "anyio_backend",
    [pytest.param(UVLOOP, id="uvloop"), pytest.param(STOCK, id="asyncio", marks=pytest.mark.slow)],
)
HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
CAPABILITIES: dict[str, Any] = {"sampling": {}, "elicitation": {}, "roots": {}}
Json = dict[str, Any]


class Recorder:
    """A hook that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event, /) -> None:
        self.events.append(event)

    def happened(self, kind: str) -> list[Happened]:
        return [event for event in self.events if isinstance(event, Happened) and event.kind == kind]

    @property
    def done(self) -> list[ExchangeDone]:
        return [event for event in self.events if isinstance(event, ExchangeDone)]


@asynccontextmanager
async def proxied(
    *upstreams: Any, named: Mapping[str, Any] | None = None, proved: bool = True, **settings: Any
) -> AsyncIterator[Proxy]:
    """A proxy in this event loop, which fails if the block hangs.

    Args:
        upstreams: they are called `up`, `up2`, ...
        named: upstreams under names of their own, instead.
        proved: spare the proxy the 0.2 s in which it finds out that a stdio server lives on after an answer.
        settings: fields of `ProxyConfig`, and of `timeouts` and `pool` for all upstreams.
    """
    if named is None:
        named = {"up" if not number else f"up{number + 1}": each for number, each in enumerate(upstreams)}
    with anyio.fail_after(LIMIT):
        async with Proxy(named, **{"port": 0, "drain_timeout": 1, **settings}) as proxy:
            for upstream in proxy._upstreams:
                if isinstance(upstream, StdioUpstream):
                    upstream.persistent = proved
            yield proxy


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Let the loop turn until the condition holds."""
    with anyio.move_on_after(LIMIT / 3):
        while not condition():
            await anyio.sleep(0.005)
        return
    raise AssertionError(f"it never came true: {what or condition}")


def pool(proxy: Proxy, name: str = "up") -> Json:
    """The `PoolStats` of an upstream."""
    stats: Json = proxy.stats()["upstreams"][name]["pool"]
    return stats


def text_of(answer: Json) -> str:
    """The text that a tool answered."""
    assert "result" in answer, answer
    return str(answer["result"]["content"][0]["text"])


class Stream:
    """An open event stream: its response, and what has come over it."""

    def __init__(self, response: httpx.Response, client: Client) -> None:
        self.response = response
        self.messages: list[Json] = []
        self.comments = 0
        self.ended = False
        self._client = client

    async def read(self) -> None:
        """Read to the end, telling the client of each message."""
        try:
            async for line in self.response.aiter_lines():
                if line.startswith("data:"):
                    await self._take(line.removeprefix("data:").strip())
                elif line.startswith(":"):
                    self.comments += 1
        finally:
            self.ended = True

    async def _take(self, data: str) -> None:
        if data:
            self._client.received.append(data)
            message = json.loads(data)
            self.messages.append(message)
            await self._client.meet(message)


class Client:
    """One MCP session. `received` is every JSON text that reached it, over whatever road."""

    def __init__(self, url: str, http: httpx.AsyncClient, mark: str = "mark") -> None:
        self.url, self.http, self.mark = url, http, mark
        self.headers = dict(HEADERS)
        self.received: list[str] = []
        self.messages: list[Json] = []
        self.answers = True  # whether it answers what the server asks
        self.asked: list[Json] = []
        self._last_id = 0

    @classmethod
    @asynccontextmanager
    async def session(cls, url: str, mark: str = "mark", **options: Any) -> AsyncIterator[Self]:
        """A client that has initialized."""
        async with cls.bare(url, mark) as client:
            await client.initialize(**options)
            yield client

    @classmethod
    @asynccontextmanager
    async def bare(cls, url: str, mark: str = "mark") -> AsyncIterator[Self]:
        limits = httpx.Limits(max_connections=None)
        plain = ssl.SSLContext(
            ssl.PROTOCOL_TLS_CLIENT
        )  # reading the system's certificates takes 20 ms a client
        async with httpx.AsyncClient(timeout=LIMIT, verify=plain, limits=limits, trust_env=False) as http:
            yield cls(url, http, mark)

    @property
    def session_id(self) -> str:
        return self.headers["mcp-session-id"]

    # -- requests -----------------------------------------------------------------------------------------

    async def initialize(
        self, version: str = "2025-11-25", capabilities: Json = CAPABILITIES, *, notify: bool = True
    ) -> Json:
        info = {"name": self.mark, "version": "1"}
        params = {"protocolVersion": version, "capabilities": capabilities, "clientInfo": info}
        async with self.post(self.message("initialize", params)) as response:
            answer = await self._answer(response)
        if "result" in answer:
            self.headers["mcp-session-id"] = response.headers["mcp-session-id"]
            if notify:
                await self.notify("notifications/initialized")
        return answer

    def message(self, method: str, params: Json | None = None, request_id: Any = None) -> Json:
        if request_id is None:
            self._last_id += 1
            request_id = self._last_id
        return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}

    @asynccontextmanager
    async def post(
        self, body: Any, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """A POST whose body has not been read yet; `body` is bytes, or a value to send as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {**self.headers, **(headers or {})}
        async with self.http.stream("POST", self.url, content=content, headers=sent) as response:
            yield response

    async def whole(self, body: Any, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """A POST and all of its answer."""
        async with self.post(body, headers) as response:
            await response.aread()
        return response

    async def request(self, method: str, params: Json | None = None, request_id: Any = None) -> Json:
        """A request and the response to it, whether it came as JSON or at the end of a stream."""
        async with self.post(self.message(method, params, request_id)) as response:
            return await self._answer(response)

    async def call(self, tool: str, *, token: Any = None, **arguments: Any) -> Json:
        params: Json = {"name": tool, "arguments": arguments}
        if token is not None:
            params["_meta"] = {"progressToken": token}
        return await self.request("tools/call", params)

    async def say(self, tool: str, **arguments: Any) -> str:
        """The text that a tool answers."""
        return text_of(await self.call(tool, **arguments))

    async def _answer(self, response: httpx.Response) -> Json:
        if response.headers.get("content-type") == "text/event-stream":
            stream = Stream(response, self)
            await stream.read()
            assert stream.messages, "the stream ended without a response"
            return stream.messages[-1]
        body = (await response.aread()).decode()
        assert response.status_code == 200, (response.status_code, body)
        self.received.append(body)
        answer: Json = json.loads(body)
        self.messages.append(answer)
        return answer

    # -- everything else ----------------------------------------------------------------------------------

    async def notify(self, method: str, params: Json | None = None) -> httpx.Response:
        return await self.whole({"jsonrpc": "2.0", "method": method, "params": params or {}})

    async def respond(self, request_id: Any, result: Json) -> httpx.Response:
        return await self.whole({"jsonrpc": "2.0", "id": request_id, "result": result})

    async def cancel(self, request_id: Any) -> httpx.Response:
        return await self.notify(
            "notifications/cancelled", {"requestId": request_id, "reason": "changed my mind"}
        )

    async def delete(self) -> httpx.Response:
        return await self.http.delete(self.url, headers=self.headers)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Stream]:
        """An open GET stream that is read meanwhile; leaving the block closes its socket."""
        async with AsyncExitStack() as stack:
            response = await stack.enter_async_context(
                self.http.stream("GET", self.url, headers=self.headers)
            )
            assert response.status_code == 200, (response.status_code, await response.aread())
            stream = Stream(response, self)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(stream.read)
            yield stream
            tasks.cancel_scope.cancel()

    async def meet(self, message: Json) -> None:
        """Answer what the server asks, with this client's mark in it."""
        self.messages.append(message)
        if "method" not in message or "id" not in message:
            return
        self.asked.append(message)
        if not self.answers:
            return
        results: dict[str, Json] = {
            "sampling/createMessage": {
                "role": "assistant",
                "content": {"type": "text", "text": self.mark},
                "model": "none",
            },
            "elicitation/create": {"action": "accept", "content": {"mark": self.mark}},
            "roots/list": {"roots": [{"uri": "file:///", "name": self.mark}]},
        }
        response = await self.respond(message["id"], results[message["method"]])
        assert response.status_code == 202, (response.status_code, response.text)
