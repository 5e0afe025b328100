"""A Streamable HTTP server whose streams break and go on with Last-Event-ID, and a forwarder that stops and starts.

Both run in the test's own event loop, be it asyncio, uvloop or trio, over bare sockets, so that they can break a
connection in each way there is: `async with FlakyServer(events=100, drop_every=7) as server: ... server.url`.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import anyio
from anyio import CancelScope, create_task_group, wait_readable, wait_writable
from anyio.abc import TaskGroup

Json = dict[str, Any]
# How a connection ends: in good order, by FIN between two events or in the middle of one, by RST.
Drop = Literal["end", "cut", "half", "reset"]


@dataclass
class Request:
    """One HTTP request, and the number of the connection that it came over, from 1."""

    method: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def message(self) -> Json:
        found: Json = json.loads(self.body)
        return found


@dataclass(frozen=True)
class Refusal:
    """An answer instead of a stream. `length` is what Content-Length promises, if that is not the truth."""

    status: int
    headers: Json = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None


HANG_UP: Final = Refusal(0)  # the connection closes without an answer
EMPTY: Final = Refusal(200, {"content-type": "text/event-stream"})  # a stream that ends at once


def head(status: int, headers: Json) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{key}: {value}" for key, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def note(data: Any) -> Json:
    """The message that carries a number, or whatever else."""
    return {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": data}}


def answer_to(request: Request, text: str) -> Json:
    result = {"content": [{"type": "text", "text": text}]}
    return {"jsonrpc": "2.0", "id": request.message["id"], "result": result}


class Wire:
    """The server's end of a connection."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.number = number

    async def receive(self) -> bytes:
        """The next bytes; none at the end."""
        while True:
            await wait_readable(self.sock)
            with suppress(BlockingIOError):
                return self.sock.recv(65536)

    async def send(self, *parts: bytes) -> None:
        rest = memoryview(b"".join(parts))
        while rest:
            try:
                rest = rest[self.sock.send(rest) :]
            except BlockingIOError:
                await wait_writable(self.sock)

    def reset(self) -> None:
        """Let it close with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def request(self) -> Request | None:
        """The next request, None at the end. Requests are not pipelined."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := await self.receive()):
                return None
            data += more
        text, _, body = data.partition(b"\r\n\r\n")
        first, *lines = text.decode("latin-1").split("\r\n")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            if not (more := await self.receive()):
                return None
            body += more
        return Request(first.split()[0], headers, body, self.number)

    async def end(self, scope: CancelScope) -> None:
        """Wait for the other side to go, and cancel."""
        with suppress(OSError):
            while await self.receive():
                pass
        scope.cancel()


class Host:
    """Accepts connections on one port of 127.0.0.1. Stopped, it keeps the port, and refuses connections.

    Attributes:
        connections: accepted so far.
        open: how many are, at this moment.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.open = 0
        self._wires: set[Wire] = set()
        self._accepting: CancelScope | None = None
        self._stopped = anyio.Event()

    async def __aenter__(self) -> Self:
        self._reserved = self._bound(0)
        self._tasks: TaskGroup = create_task_group()
        await self._tasks.__aenter__()
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        # The group is not told of an exception in the block: it would come out of it in an ExceptionGroup.
        with CancelScope(shield=True):
            await self.stop()
        await self._tasks.__aexit__(None, None, None)
        self._reserved.close()

    async def start(self) -> None:
        """Accept connections, at the same port each time."""
        assert self._accepting is None
        listener = self._bound(self.port)
        listener.setblocking(False)
        listener.listen(1024)
        self._accepting, self._stopped = CancelScope(), anyio.Event()
        self._tasks.start_soon(self._accept, listener, self._accepting, self._stopped)

    async def stop(self, *, reset: bool = False) -> None:
        """Refuse connections and close all that are open, with RST if so wanted."""
        if self._accepting is None:
            return
        if reset:
            for wire in self._wires:
                wire.reset()
        self._accepting.cancel()
        self._accepting = None
        await self._stopped.wait()

    @property
    def port(self) -> int:
        port: int = self._reserved.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    @staticmethod
    def _bound(port: int) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
        return sock

    async def _accept(self, listener: socket.socket, scope: CancelScope, stopped: anyio.Event) -> None:
        try:
            with listener, scope:
                async with create_task_group() as tasks:
                    while True:
                        await wait_readable(listener)
                        with suppress(BlockingIOError, ConnectionError):
                            sock, _ = listener.accept()
                            self.connections += 1
                            tasks.start_soon(self._serve, Wire(sock, self.connections))
        finally:
            stopped.set()

    async def _serve(self, wire: Wire) -> None:
        self.open += 1
        self._wires.add(wire)
        try:
            with suppress(OSError):
                await self._connected(wire)
        finally:
            self.open -= 1
            self._wires.remove(wire)
            wire.sock.close()

    async def _connected(self, wire: Wire) -> None:
        raise NotImplementedError


class Forwarder(Host):
    """Passes bytes on to a server and back. `stop` kills the connections and refuses others, until `start`."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._to = urlsplit(url).port

    async def _connected(self, wire: Wire) -> None:
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", self._to))
            await wait_writable(sock)
            other = Wire(sock, wire.number)
            async with create_task_group() as tasks:
                tasks.start_soon(self._pass, wire, other, tasks.cancel_scope)
                tasks.start_soon(self._pass, other, wire, tasks.cancel_scope)

    async def _pass(self, one: Wire, other: Wire, scope: CancelScope) -> None:
        with suppress(OSError):
            while data := await one.receive():
                await other.send(data)
        scope.cancel()


class Log:
    """The events of one stream, kept for those who come back. An id is the stream's name and a number from 1."""

    def __init__(self, name: str, *, ids: bool = True) -> None:
        self.name = name
        self.events: list[bytes] = []
        self.ended = False
        self.more = anyio.Event()
        self._ids = ids

    def add(self, message: Json) -> None:
        fields = f"id: {self.name}-{len(self.events) + 1}\n" if self._ids else ""
        self.events.append(f"{fields}data: {json.dumps(message)}\n\n".encode())
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self.more.set()
        self.more = anyio.Event()


class FlakyServer(Host):
    """An MCP server with sessions, a listening stream (GET) and streamed answers (POST).

    The tool `echo` answers with its `text` as JSON. The tool `count` answers on a stream of `events` notes, numbered
    from 1, and the response; it is resumed with a GET. A GET without `Last-Event-ID` is the listening stream: it
    begins with the notes 1 to `events` and stays open for what `push` brings.

    Args:
        events: the notes that every listening stream begins with.
        drop_every: how many events a connection carries before it breaks, 0 for all of them. A list has a number
            for each connection; those after its last do not break.
        drop: how it breaks.
        sessions: whether requests must carry the id of a session that it knows.
        ids: whether events have any.
        forgetful: replay from the start, whatever `Last-Event-ID` says.
        retry_ms: a `retry` field at the start of every stream.
        chunked: frame streams by chunks; otherwise only the end of the connection ends them.

    Attributes:
        requests: all that came, in order.
        streams: the names of the streams that are open, each as often as it is.
        refusals: what the next GETs are answered, each once, before they get a stream.
        news: URIs that subscriptions are told of, each once.
        refused_posts: the same for the next POSTs of a session.
        speaks: the revision it answers `initialize` with; the client's if empty.
        refused_initializes: statuses for the next `initialize` requests, before one succeeds.
        down: what every GET is answered as long as it is set.
    """

    def __init__(
        self,
        *,
        events: int = 0,
        drop_every: int | Iterable[int] = 0,
        drop: Drop = "cut",
        sessions: bool = True,
        ids: bool = True,
        forgetful: bool = False,
        retry_ms: int | None = None,
        chunked: bool = True,
    ) -> None:
        super().__init__()
        self.events = events
        self.drop_every = drop_every if isinstance(drop_every, int) else [*drop_every]
        self.drop: Drop = drop
        self.ids = ids
        self.forgetful = forgetful
        self.retry_ms = retry_ms
        self.chunked = chunked
        self.requests: list[Request] = []
        self.streams: list[str] = []
        self.refusals: list[Refusal] = []
        self.refused_posts: list[Refusal] = []
        self.news: list[str] = []
        self.refused_initializes: list[int] = []
        self.speaks = ""
        self.down: Refusal | None = None
        self.sessions: set[str] = set()
        self._stateless = not sessions
        self._made = 0  # sessions and calls, to name them
        self._logs: dict[str, Log] = {}

    def push(self, data: Any) -> None:
        """A note for every listening stream, those that come later too if a session is known."""
        for name in self.sessions or {"all"}:
            self._listening(name).add(note(data))

    def forget_sessions(self) -> None:
        """As if restarted: no session is known, no event is kept, open streams end."""
        self.sessions.clear()
        logs, self._logs = self._logs, {}
        for log in logs.values():
            log.end()

    def asked(self, method: str) -> list[Request]:
        """The requests with this HTTP method, in order."""
        return [request for request in self.requests if request.method == method]

    def posted(self, method: str) -> list[Json]:
        """The messages with this MCP method, in order."""
        messages = [request.message for request in self.asked("POST")]
        return [message for message in messages if message.get("method") == method]

    @property
    def last_event_ids(self) -> list[int]:
        """The numbers in the `Last-Event-ID` of each GET, 0 for none."""
        ids = [request.headers.get("last-event-id", "0") for request in self.asked("GET")]
        return [int(each.rpartition("-")[2]) for each in ids]

    def _listening(self, session: str) -> Log:
        if session not in self._logs:
            log = self._logs[session] = Log(session, ids=self.ids)
            for number in range(1, self.events + 1):
                log.add(note(number))
        return self._logs[session]

    # -- requests -----------------------------------------------------------------------------------------

    async def _connected(self, wire: Wire) -> None:
        while (request := await wire.request()) is not None:
            self.requests.append(request)
            if not await self._answer(wire, request):
                return

    async def _answer(self, wire: Wire, request: Request) -> bool:
        """Answer; True if the connection can be used again."""
        message = request.message if request.method == "POST" else {}
        if message.get("method") == "initialize":
            return await self._initialize(wire, request)
        refusal = self.down
        if request.method == "GET" and refusal is None and self.refusals:
            refusal = self.refusals.pop(0)
        if request.method == "GET" and refusal is not None:
            return await self._refuse(wire, refusal)
        session = "all" if self._stateless else request.headers.get("mcp-session-id", "")
        if not self._stateless and session not in self.sessions:
            return await self._refuse(wire, Refusal(404 if session else 400))
        if request.method == "GET":
            return await self._get(wire, request, session)
        if request.method == "DELETE":
            self.sessions.discard(session)
            return await self._refuse(wire, Refusal(200))
        if self.refused_posts:
            return await self._refuse(wire, self.refused_posts.pop(0))
        if "id" not in message or "method" not in message:
            return await self._refuse(wire, Refusal(202))
        if message["method"] == "subscriptions/listen":
            return await self._subscription(wire, request)
        if message["method"] != "tools/call":
            return await self._json(wire, {"jsonrpc": "2.0", "id": message["id"], "result": {}})
        arguments = message["params"].get("arguments", {})
        if message["params"]["name"] == "echo":
            return await self._json(wire, answer_to(request, arguments["text"]))
        return await self._count(wire, request, session, **arguments)

    async def _refuse(self, wire: Wire, refusal: Refusal) -> bool:
        if refusal is HANG_UP:
            return False
        length = len(refusal.body) if refusal.length is None else refusal.length
        await wire.send(head(refusal.status, {"content-length": length, **refusal.headers}), refusal.body)
        return True

    async def _json(self, wire: Wire, message: Json, headers: Json | None = None) -> bool:
        fields = {"content-type": "application/json", **(headers or {})}
        return await self._refuse(wire, Refusal(200, fields, json.dumps(message).encode()))

    async def _initialize(self, wire: Wire, request: Request) -> bool:
        if self.refused_initializes:
            return await self._refuse(wire, Refusal(self.refused_initializes.pop(0)))
        message, headers = request.message, {}
        if not self._stateless:
            self._made += 1
            session = f"flaky-session-{self._made}"
            self.sessions.add(session)
            headers["mcp-session-id"] = session
        result: Json = {
            "protocolVersion": self.speaks or message["params"]["protocolVersion"],
            "capabilities": {"tools": {}, "logging": {}},
            "serverInfo": {"name": "flaky", "version": "1"},
        }
        return await self._json(wire, {"jsonrpc": "2.0", "id": message["id"], "result": result}, headers)

    async def _count(self, wire: Wire, request: Request, session: str, events: int) -> bool:
        self._made += 1
        log = Log(f"{session}-call-{self._made}", ids=self.ids)
        self._logs[log.name] = log
        for number in range(1, events + 1):
            log.add(note(number))
        log.add(answer_to(request, f"counted to {events}"))
        log.end()
        return await self._stream(wire, log, 0)

    async def _subscription(self, wire: Wire, request: Request) -> bool:
        """Revision 2026-07-28: no ids and nothing to resume; what one stream had not sent goes out on the next."""
        meta = {"io.modelcontextprotocol/subscriptionId": request.message["id"]}
        wanted = request.message["params"]["notifications"]
        await wire.send(head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}))
        said: Json = {
            "method": "notifications/subscriptions/acknowledged",
            "params": {"notifications": wanted},
        }
        left = self._length()
        while True:
            said["params"]["_meta"] = meta
            await self._send(wire, b"data: %b\n\n" % json.dumps({"jsonrpc": "2.0", **said}).encode())
            if not self.news:
                break
            if left <= 0:
                return False
            left -= 1
            said = {"method": "notifications/resources/updated", "params": {"uri": self.news.pop(0)}}
        with CancelScope() as scope:
            await wire.end(scope)
        return False

    async def _get(self, wire: Wire, request: Request, session: str) -> bool:
        name, _, number = request.headers.get("last-event-id", "").rpartition("-")
        log = self._logs.get(name)
        if log is None:
            log, number = self._listening(session), ""
        return await self._stream(wire, log, 0 if self.forgetful else int(number or 0))

    # -- streams ------------------------------------------------------------------------------------------

    async def _stream(self, wire: Wire, log: Log, position: int) -> bool:
        """Send what the log has from there on. True if the stream ended in good order."""
        fields = {"content-type": "text/event-stream"}
        fields |= {"transfer-encoding": "chunked"} if self.chunked else {"connection": "close"}
        await wire.send(head(200, fields))
        if self.retry_ms is not None:
            await self._send(wire, b"retry: %d\n\n" % self.retry_ms)
        self.streams.append(log.name)
        in_order = False
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(wire.end, tasks.cancel_scope)
                with suppress(OSError):
                    in_order = await self._write(wire, log, position)
                tasks.cancel_scope.cancel()
        finally:
            self.streams.remove(log.name)
        return in_order and self.chunked

    async def _write(self, wire: Wire, log: Log, position: int) -> bool:
        left: float = self._length()
        while left > 0:
            while position == len(log.events):
                if log.ended:
                    return await self._finish(wire)
                await log.more.wait()
            await self._send(wire, log.events[position])
            position += 1
            left -= 1
        if self.drop == "end":
            return await self._finish(wire)
        if self.drop == "half" and position < len(log.events):
            half = log.events[position]
            await self._send(wire, half[: len(half) // 2])
        if self.drop == "reset":
            wire.reset()
        return False

    def _length(self) -> float:
        """How many events this connection carries."""
        if isinstance(self.drop_every, list):
            return self.drop_every.pop(0) if self.drop_every else math.inf
        return self.drop_every or math.inf

    async def _send(self, wire: Wire, event: bytes) -> None:
        await wire.send(b"%x\r\n%b\r\n" % (len(event), event) if self.chunked else event)

    async def _finish(self, wire: Wire) -> bool:
        if self.chunked:
            await wire.send(b"0\r\n\r\n")
        return True
