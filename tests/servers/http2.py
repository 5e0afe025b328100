"""An MCP server over HTTP/2 and TLS, on the `h2` package: for connections that carry many exchanges at once.

`async with Http2Server(context) as server: ... server.url`, on any event loop. The called tool is how it answers.
"""

from __future__ import annotations

import json
import ssl
from contextlib import AsyncExitStack
from typing import Any, Self

import anyio
import h2.config
import h2.connection
import h2.events
import h2.exceptions
from anyio.abc import SocketAttribute, TaskGroup
from anyio.streams.tls import TLSListener, TLSStream

Json = dict[str, Any]
Headers = list[tuple[str, str]]
CLOSED = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, ssl.SSLError)


class Http2Server:
    """What came is in `requests`; `connections` counts all, `inflight_max` the calls that were open at once."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.requests: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self.inflight = self.inflight_max = 0
        self.go = anyio.Event()  # lets the answers of `wait` go
        self.resets: list[int] = []
        self.url = ""
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        tcp = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        listener = TLSListener(tcp, self.context, standard_compatible=False)
        port = tcp.extra(SocketAttribute.local_port)
        self.url = f"https://127.0.0.1:{port}/mcp"
        self._tasks.start_soon(self._serve, listener)
        return self

    async def _serve(self, listener: TLSListener) -> None:
        async with listener:
            await listener.serve(self._connected)

    async def __aexit__(self, *_: object) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        await self._stack.aclose()

    async def _connected(self, stream: TLSStream) -> None:
        self.connections += 1
        async with stream, anyio.create_task_group() as tasks:
            try:
                await _Connection(self, stream, tasks).run()
            except (*CLOSED, OSError, h2.exceptions.ProtocolError):
                pass
            tasks.cancel_scope.cancel()


class _Connection:
    def __init__(self, server: Http2Server, stream: TLSStream, tasks: TaskGroup) -> None:
        self.server = server
        self.stream = stream
        self.tasks = tasks
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.bodies: dict[int, bytes] = {}
        self.heads: dict[int, dict[str, str]] = {}
        self.window = anyio.Event()
        self.sending = anyio.Lock()

    async def run(self) -> None:
        self.state.initiate_connection()
        await self.flush()
        while True:
            for event in self.state.receive_data(await self.stream.receive()):
                self.take(event)
            await self.flush()

    def take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            pairs = [(_text(name), _text(value)) for name, value in event.headers]
            self.heads[event.stream_id] = dict(pairs)
            self.bodies[event.stream_id] = b""
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] += event.data
            self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.tasks.start_soon(self.answer, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.server.resets.append(event.stream_id)
        elif isinstance(event, h2.events.WindowUpdated):
            self.window.set()

    async def flush(self) -> None:
        async with self.sending:
            if data := self.state.data_to_send():
                await self.stream.send(data)

    async def answer(self, stream: int) -> None:
        server = self.server
        message: Json = json.loads(self.bodies.pop(stream) or b"{}")
        server.requests.append(message)
        server.headers.append(self.heads.pop(stream))
        server.inflight += 1
        server.inflight_max = max(server.inflight_max, server.inflight)
        try:
            await self._answer(stream, message)
        except (*CLOSED, OSError, h2.exceptions.ProtocolError):
            pass
        finally:
            server.inflight -= 1

    async def _answer(self, stream: int, message: Json) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        if "id" not in message:
            await self.whole(stream, 202, b"")
        elif method == "initialize":
            result = {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "h2", "version": "1"},
            }
            await self.result(stream, message, result, [("mcp-session-id", "h2-session")])
        elif method == "tools/call":
            tool = getattr(self, f"tool_{params['name']}")
            await tool(stream, message, **params.get("arguments", {}))
        else:
            await self.result(stream, message, {})

    async def result(self, stream: int, message: Json, result: Json, headers: Headers | None = None) -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
        await self.whole(stream, 200, body, [("content-type", "application/json"), *(headers or [])])

    async def whole(self, stream: int, status: int, body: bytes, headers: Headers | None = None) -> None:
        self.state.send_headers(stream, [(":status", str(status)), *(headers or [])], end_stream=not body)
        await self.flush()
        while body:
            room = min(
                self.state.local_flow_control_window(stream), self.state.max_outbound_frame_size, len(body)
            )
            if not room:
                self.window = anyio.Event()
                await self.window.wait()
                continue
            part, body = body[:room], body[room:]
            self.state.send_data(stream, part, end_stream=not body)
            await self.flush()

    async def text(self, stream: int, message: Json, text: str) -> None:
        await self.result(stream, message, {"content": [{"type": "text", "text": text}]})

    # -- the ways to answer -------------------------------------------------------------------------------

    async def tool_echo(self, stream: int, message: Json, text: str) -> None:
        await self.text(stream, message, text)

    async def tool_make(self, stream: int, message: Json, size: int) -> None:
        await self.text(stream, message, "x" * size)

    async def tool_wait(self, stream: int, message: Json, text: str) -> None:
        await self.server.go.wait()
        await self.text(stream, message, text)

    async def tool_hang(self, stream: int, message: Json) -> None:
        await anyio.sleep_forever()

    async def tool_stream(self, stream: int, message: Json) -> None:
        """A progress event, then the answer, as an event stream."""
        self.state.send_headers(stream, [(":status", "200"), ("content-type", "text/event-stream")])
        note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "first"}}
        result = {"content": [{"type": "text", "text": "streamed"}]}
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        for each in (note, answer):
            self.state.send_data(stream, b"event: message\ndata: " + json.dumps(each).encode() + b"\n\n")
            await self.flush()
        self.state.end_stream(stream)
        await self.flush()

    async def tool_reset(self, stream: int, message: Json) -> None:
        self.state.reset_stream(stream)
        await self.flush()

    async def tool_leave(self, stream: int, message: Json) -> None:
        """The connection ends instead of an answer."""
        self.state.close_connection()
        await self.flush()
        await self.stream.aclose()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
