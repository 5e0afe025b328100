"""A Streamable HTTP server, byte by byte, that answers each call in the way the called tool is named after.

Runs in the test's own event loop: `async with HttpFaults() as server: ... server.url`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

Json = dict[str, Any]


@dataclass
class Request:
    """One HTTP request. `gone` is set when the connection has closed before it was answered."""

    method: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def message(self) -> Json:
        found: Json = json.loads(self.body)
        return found


def answer_to(request: Request, text: str) -> Json:
    result = {"content": [{"type": "text", "text": text}]}
    return {"jsonrpc": "2.0", "id": request.message["id"], "result": result}


def head(status: int, headers: Json, reason: str = "X") -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{key}: {value}" for key, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def event(message: Json) -> bytes:
    return b"event: message\ndata: " + json.dumps(message).encode() + b"\n\n"


class HttpFaults:
    """Every tool is a way to answer. `requests` holds what came, in order; `tls` makes it an https server."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.requests: list[Request] = []
        self.streams: list[Request] = []  # open GETs
        self.polled = b""  # the answer to `poll`, for who comes back
        self.sessions: set[str] = set()
        self.answers: dict[Any, asyncio.Future[Json]] = {}
        self.refuse_initialize = 0  # the status to refuse it with
        self.get_status = 200
        self.get_headers: Json = {"connection": "close"}
        self.hang_on: set[str] = set()  # methods that are never answered
        self.delays: dict[str, list[float]] = {}  # seconds before each answer to a method, in order
        self.drops: dict[str, int] = {}  # how often the connection is closed instead of answering a method
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, ssl=self.tls)

    async def stop(self) -> None:
        """Accept none and drop all that are open."""
        assert self._server is not None
        self._server.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        assert self._server is not None
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/mcp"

    def posted(self, method: str) -> list[Json]:
        """The messages with this method, in the order in which they came."""
        messages = [request.message for request in self.requests if request.method == "POST"]
        return [message for message in messages if message.get("method") == method]

    # -- connections --------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (request := await self._read(reader, writer)) is not None:
                self.requests.append(request)
                if not await self._answer(request, reader):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
        try:
            text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        first, *lines = text.rstrip().split("\r\n")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Request(first.split()[0], headers, body, writer)

    async def _answer(self, request: Request, reader: asyncio.StreamReader) -> bool:
        """Answer; True if the connection can be used again."""
        if request.method == "GET":
            return await self._listen(request, reader)
        if request.method == "DELETE":
            self.sessions.discard(request.headers.get("mcp-session-id", ""))
            return await self._write(request, head(200, {"content-length": 0}))
        message = request.message
        method = message.get("method", "")
        if method in self.hang_on:
            return await self._wait(request, reader)
        if self.delays.get(method):
            await asyncio.sleep(self.delays[method].pop(0))
        if self.drops.get(method, 0) > 0:
            self.drops[method] -= 1
            return False
        if method == "initialize":
            return await self._initialize(request)
        if request.headers.get("mcp-session-id") not in self.sessions:
            return await self._json(request, {"jsonrpc": "2.0", "id": None, "error": {"code": 1}}, status=404)
        if "id" not in message:
            return await self._write(request, head(202, {"content-length": 0}))
        if not method:
            self.answers[message["id"]].set_result(message)
            return await self._write(request, head(202, {"content-length": 0}))
        if method != "tools/call":
            return await self._json(request, {"jsonrpc": "2.0", "id": message["id"], "result": {}})
        arguments = message["params"].get("arguments", {})
        tool = getattr(self, f"tool_{message['params']['name']}")
        again: bool = await tool(request, reader, **arguments)
        return again

    async def _write(self, request: Request, *parts: bytes) -> bool:
        if request.writer.is_closing():  # uvloop's answer to a write would be a RuntimeError
            raise ConnectionResetError("the proxy has closed the connection")
        request.writer.write(b"".join(parts))
        await request.writer.drain()
        return True

    async def _json(
        self, request: Request, message: Json, headers: Json | None = None, *, status: int = 200
    ) -> bool:
        body = json.dumps(message).encode()
        fields = {"content-type": "application/json", "content-length": len(body)}
        return await self._write(request, head(status, {**fields, **(headers or {})}), body)

    async def _wait(self, request: Request, reader: asyncio.StreamReader) -> bool:
        """Say nothing more; note when the other side has gone."""
        with contextlib.suppress(ConnectionError):
            await reader.read()
        request.gone.set()
        return False

    async def _stream(self, request: Request, *events: bytes) -> None:
        """The head of an event stream that ends with the connection, and its first events."""
        fields = {"content-type": "text/event-stream", "connection": "close"}
        await self._write(request, head(200, fields), *events)

    async def _initialize(self, request: Request) -> bool:
        if self.refuse_initialize:
            return await self._write(request, head(self.refuse_initialize, {"content-length": 0}))
        session = f"server-session-{len(self.sessions) + 1}"
        self.sessions.add(session)
        result = {
            "protocolVersion": request.message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "faults", "version": "1"},
        }
        answer = {"jsonrpc": "2.0", "id": request.message["id"], "result": result}
        return await self._json(request, answer, {"mcp-session-id": session})

    async def _listen(self, request: Request, reader: asyncio.StreamReader) -> bool:
        if self.get_status != 200:
            return await self._write(request, head(self.get_status, {"content-length": 0, "allow": "POST"}))
        fields = {"content-type": "text/event-stream", **self.get_headers}
        if request.headers.get("last-event-id") == "p1":  # of `poll`
            return await self._write(
                request, head(200, {**fields, "connection": "close"}), b"id: p2\n", self.polled
            )
        await self._write(request, head(200, fields))
        self.streams.append(request)
        try:
            return await self._wait(request, reader)
        finally:
            self.streams.remove(request)

    def push(self, data: bytes) -> None:
        """Bytes for every open listening stream."""
        for stream in self.streams:
            stream.writer.write(data)

    # -- the ways to answer -------------------------------------------------------------------------------

    async def tool_echo(self, request: Request, reader: asyncio.StreamReader, text: str) -> bool:
        return await self._json(request, answer_to(request, text))

    async def tool_make(self, request: Request, reader: asyncio.StreamReader, size: int) -> bool:
        return await self._json(request, answer_to(request, "x" * size))

    async def tool_stream_make(self, request: Request, reader: asyncio.StreamReader, size: int) -> bool:
        """A large message on a stream, and then an answer as large."""
        note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "y" * size}}
        await self._stream(request, event(note), event(answer_to(request, "x" * size)))
        return False

    async def tool_hang(self, request: Request, reader: asyncio.StreamReader) -> bool:
        return await self._wait(request, reader)

    async def tool_half_head(self, request: Request, reader: asyncio.StreamReader) -> bool:
        await self._write(request, b"HTTP/1.1 200 OK\r\ncontent-ty")
        return await self._wait(request, reader)

    async def tool_half_body(self, request: Request, reader: asyncio.StreamReader) -> bool:
        fields = {"content-type": "application/json", "content-length": 1000}
        await self._write(request, head(200, fields), b'{"jsonrpc":"2.0",')
        return await self._wait(request, reader)

    async def tool_silent_stream(self, request: Request, reader: asyncio.StreamReader) -> bool:
        """The head of a stream, and no event."""
        await self._stream(request)
        return await self._wait(request, reader)

    async def tool_stalled_stream(self, request: Request, reader: asyncio.StreamReader) -> bool:
        """One whole event, then silence."""
        await self._stream(
            request, event({"jsonrpc": "2.0", "method": "notifications/message", "params": {}})
        )
        return await self._wait(request, reader)

    async def tool_half_event(self, request: Request, reader: asyncio.StreamReader) -> bool:
        """One whole event and half of another, then silence."""
        whole = event({"jsonrpc": "2.0", "method": "notifications/message", "params": {}})
        await self._stream(request, whole, whole[:30])
        return await self._wait(request, reader)

    async def tool_drip(
        self, request: Request, reader: asyncio.StreamReader, steps: int, every_ms: int
    ) -> bool:
        """An event at a steady pace, then the answer."""
        await self._stream(request)
        for step in range(steps):
            await asyncio.sleep(every_ms / 1000)
            params = {"progressToken": 1, "progress": step}
            await self._write(
                request, event({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
            )
        await self._write(request, event(answer_to(request, "dripped")))
        return False

    async def tool_drop(self, request: Request, reader: asyncio.StreamReader) -> bool:
        return False

    async def tool_drop_body(self, request: Request, reader: asyncio.StreamReader) -> bool:
        fields = {"content-type": "application/json", "content-length": 1000}
        await self._write(request, head(200, fields), b'{"jsonrpc":"2.0",')
        return False

    async def tool_drop_stream(self, request: Request, reader: asyncio.StreamReader) -> bool:
        await self._stream(
            request, event({"jsonrpc": "2.0", "method": "notifications/message", "params": {}})
        )
        return False

    async def tool_status(
        self, request: Request, reader: asyncio.StreamReader, status: int, body: str, headers: Json
    ) -> bool:
        data = body.encode()
        return await self._write(request, head(status, {**headers, "content-length": len(data)}), data)

    async def tool_raw(self, request: Request, reader: asyncio.StreamReader, text: str) -> bool:
        """Bytes instead of HTTP."""
        await self._write(request, text.encode("latin-1"))
        return False

    async def tool_ask(self, request: Request, reader: asyncio.StreamReader) -> bool:
        """Asks the client on the stream of its call, and answers with what it said."""
        number = f"ask-{len(self.answers)}"
        self.answers[number] = asyncio.get_running_loop().create_future()
        question = {
            "jsonrpc": "2.0",
            "id": number,
            "method": "elicitation/create",
            "params": {"message": "?"},
        }
        await self._stream(request, event(question))
        said = await self.answers[number]
        await self._write(request, event(answer_to(request, said["result"]["content"]["mark"])))
        return False

    async def tool_poll(self, request: Request, reader: asyncio.StreamReader) -> bool:
        """A priming event with an id, then the end of the connection: the client is to come back for the answer."""
        self.polled = event(answer_to(request, "polled"))
        await self._stream(request, b"id: p1\nretry: 10\ndata: \n\n")
        return False


@contextmanager
def blackhole() -> Iterator[str]:
    """The URL of a listener whose backlog is full: further connections are not even refused."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):  # the kernel takes in one more than the backlog; the rest wait for ever
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}/mcp"


@asynccontextmanager
async def mute() -> AsyncIterator[str]:
    """The URL of a server that accepts connections and never says a word."""
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
