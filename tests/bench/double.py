"""An HTTP MCP server in a thread of the test, whose every answer the test decides."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any, Self

Json = dict[str, Any]
ECHO: Json = {
    "name": "echo",
    "inputSchema": {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]},
}


class Refused(Exception):
    """The answer is a JSON-RPC error, or an HTTP status without a body."""

    def __init__(self, message: str = "no", status: int = 200) -> None:
        super().__init__(message)
        self.status = status


class Hang(Exception):
    """There is no answer."""


class Gone(Exception):
    """The connection is closed instead of an answer."""


class Double:
    """`with Double() as server: server.url`.

    Args:
        call: what `tools/call` answers: given the params and the session id, a text.
        tools: what `tools/list` answers.
        sse: answers are event streams, with a comment, a notification and a priming event before them.
        keep_alive: if not, each answer ends its connection.
        stall: seconds of each period during which nothing is answered, and the period.
    """

    def __init__(
        self,
        call: Callable[[Json, str], str] = lambda params, session: str(params["arguments"]["message"]),
        *,
        tools: tuple[Json, ...] = (ECHO,),
        sse: bool = False,
        keep_alive: bool = True,
        stall: tuple[float, float] | None = None,
    ) -> None:
        self.call, self.tools, self.sse, self.keep_alive, self.stall = call, tools, sse, keep_alive, stall
        self.requests: list[tuple[Json, dict[str, str]]] = []
        self.verbs: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    @property
    def methods(self) -> list[str]:
        return [message["method"] for message, _ in self.requests]

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, Gone):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        verb = first.split()[0]
        self.verbs.append(verb)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if verb != "POST":
            writer.write(b"HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n")
            return True
        message = json.loads(body)
        self.requests.append((message, headers))
        if "id" not in message:
            writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
            return True
        if self.stall is not None and message["method"] == "tools/call":
            length, period = self.stall
            into = self._loop.time() % period
            if into < length:
                await asyncio.sleep(length - into)
        try:
            answer: Json = {"result": self._result(message, headers.get("mcp-session-id", ""))}
        except Refused as refusal:
            if refusal.status != 200:
                writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % refusal.status)
                return True
            answer = {"error": {"code": -32000, "message": str(refusal)}}
        except Hang:
            return True
        self._write(writer, {"jsonrpc": "2.0", "id": message["id"], **answer}, message["method"])
        return self.keep_alive

    def _result(self, message: Json, session: str) -> Json:
        if message["method"] == "initialize":
            version = message["params"]["protocolVersion"]
            return {
                "protocolVersion": version,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "double", "version": "1"},
            }
        if message["method"] == "tools/list":
            return {"tools": [*self.tools]}
        if message["method"] == "tools/call":
            return {"content": [{"type": "text", "text": self.call(message["params"], session)}]}
        return {}

    def _write(self, writer: asyncio.StreamWriter, answer: Json, method: str) -> None:
        data, kind = json.dumps(answer).encode(), b"application/json"
        if self.sse:
            noise = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "noise"}}
            data = b": hi\n\nid: 1\ndata:\n\ndata: %b\n\nevent: message\ndata: %b\n\n" % (
                json.dumps(noise).encode(),
                data,
            )
            kind = b"text/event-stream"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n" % kind
        if method == "initialize":
            head += b"mcp-session-id: s%d\r\n" % len(self.requests)
        if not self.keep_alive:
            head += b"connection: close\r\n"
        if self.sse:
            chunks = [data[:20], data[20:]]
            framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
            writer.write(head + b"transfer-encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n")
        else:
            writer.write(head + b"content-length: %d\r\n\r\n" % len(data) + data)
