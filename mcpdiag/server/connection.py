"""One client's HTTP/1.1 connection: httptools parses, each request becomes a `Cycle`, one after the other.

It takes what RFC 9112 allows a client to send and bounds what it may cost: the head, the time, the unread body.
A request whose head is byte for byte that of an earlier one is not parsed again: clients repeat themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote

import httptools

from mcpdiag.protocol.heads import END, Heads
from mcpdiag.server.cycle import Cycle, Message, Notes

if TYPE_CHECKING:
    from mcpdiag.server import Server

KEEP_ALIVE: Final = 75.0  # seconds that a connection may be without a complete request head
HEAD_BYTES: Final = 64 * 1024  # of a request line with its headers
BODY_AHEAD: Final = 64 * 1024  # bytes of a body that are read before the application asks for them
KNOWN_BYTES: Final = 4 * 1024  # of a head that a connection keeps
_OFFER: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})
_UNLIKE: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
_REFUSAL: Final = b"HTTP/1.1 %d %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"


class _Known:
    """What the head of a request said that came whole and left the connection open."""

    __slots__ = ("length", "notes", "scope")

    def __init__(self, scope: Message, length: int, notes: Notes) -> None:
        self.scope = scope
        self.length = length
        self.notes = notes


class ServerConnection(asyncio.Protocol):
    """One connection of a client.

    Attributes:
        drained: set once the client reads again; None while it does.
    """

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.drained: asyncio.Event | None = None
        self._scope: dict[str, Any] = {}
        self._renew()
        self._deaf = False  # nothing that comes is read any more
        self._shut = False  # no further request is taken
        self._paused = False
        self._idle_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._active: Cycle | None = None  # its response is being made
        self._starting = False  # it waits for the end of what has just come
        self._queue: deque[Cycle] = deque()  # pipelined behind it
        self._coming: Cycle | None = None  # its body is being read
        self._last: Cycle | None = None  # whose head was parsed last
        self._replay = b""
        self._in_head = True
        self._head_bytes = 0
        self._between = True  # the parser has seen nothing of the next request
        self._begun = 0  # requests of which the parser has seen the beginning
        self._left = 0  # bytes of a body that the parser does not see
        self._known: Heads[_Known] = Heads(KNOWN_BYTES)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False

    # -- the transport ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.server.connections.add(self)
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "server": _address(transport, "sockname"),
            "client": _address(transport, "peername"),
            "root_path": "",
        }
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(KEEP_ALIVE, self._look)

    def connection_lost(self, error: Exception | None) -> None:
        self.server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        for cycle in (self._active, *self._queue):
            if cycle is not None and not cycle.ended:
                cycle.disconnected = True
                cycle.wake()
        self._queue.clear()
        if self.drained is not None:
            self.drained.set()
        self._deaf = True
        self.server.left()

    def pause_writing(self) -> None:
        self.drained = asyncio.Event()

    def resume_writing(self) -> None:
        drained, self.drained = self.drained, None
        if drained is not None:
            drained.set()

    def resume_reading(self) -> None:
        """Go on to read, if it has stopped."""
        if self._paused and not self._queue:
            self._paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _look(self) -> None:
        """Once in a while: close it if no request has come for long, or only the beginning of one."""
        rest = KEEP_ALIVE if self._active else self._idle_since + KEEP_ALIVE - self.loop.time()
        if rest <= 0:
            self.transport.close()
        else:
            self._timer = self.loop.call_later(rest, self._look)

    # -- what comes ---------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._left:
            self._take_body(data)
            return
        between, begun = self._between, self._begun
        if between:
            end = data.find(END) + len(END)
            known = self._known.get(data[:end])
            if known is not None and len(data) - end <= known.length and not self._shut:
                self._repeated(known, data[end:])
                return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._feed(data)
            if between and self._begun == begun + 1:
                self._remember(data)
        except httptools.HttpParserUpgrade as upgrade:
            head, self._replay = self._replay, b""
            self._renew()
            self.data_received(head + data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, b"Bad Request", b"this is not HTTP/1.1")
        if self._in_head and self._head_bytes > HEAD_BYTES and not self._deaf:
            self._refuse(
                431, b"Request Header Fields Too Large", b"the head of a request may have 65536 bytes"
            )
        if self._starting and self._active is not None:
            self._starting = False
            self._start(self._active)

    def _repeated(self, known: _Known, body: bytes) -> None:
        """A request with a head that is known, and what has come of its body."""
        cycle = Cycle(self, known.scope.copy(), keep_alive=True, notes=known.notes)
        if self._active is None:
            self._active, self._starting = cycle, True
        else:
            self._queue.append(cycle)
            self._pause_reading()
        self._coming, self._left = cycle, known.length
        self._take_body(body)

    def _take_body(self, data: bytes) -> None:
        """Part of a body whose length alone tells its end."""
        cycle, left = self._coming, self._left
        assert cycle is not None
        if left and not cycle.ended:
            cycle.feed(data[:left])
        self._left = max(left - len(data), 0)
        if not self._left:
            self._coming = None
            cycle.received = True
            cycle.wake()
        if self._starting:
            self._starting = False
            self._start(cycle)
        if len(data) > left:
            self.data_received(data[left:])

    def _remember(self, data: bytes) -> None:
        """One request has begun with `data`: keep what its head says, if length alone tells the end of its body."""
        cycle = self._last
        if cycle is None or not cycle.keep_alive or cycle.scope["http_version"] != "1.1":
            return
        length = 0
        for name, value in self._headers:
            if name in _UNLIKE:
                return
            if name == b"content-length":
                length = int(value)
        if length <= BODY_AHEAD:
            scope = {name: value for name, value in cycle.scope.items() if name != "extensions"}
            self._known.keep(data, length, _Known(scope, length, cycle.notes))

    def _renew(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # it may pipeline behind `close`
        self._feed: Callable[[bytes], None] = self._parser.feed_data

    def _refuse(self, status: int, phrase: bytes, words: bytes) -> None:
        """Say what is wrong, unless an answer is under way; then that is the last one."""
        self._deaf = True
        if self._active is None:
            self.server.together.flush()
            self.transport.write(_REFUSAL % (status, phrase, len(words), words))
            self.transport.close()
        else:
            self._active.keep_alive = False
            self._queue.clear()

    # -- called by the parser -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._expects_continue = False
        self._in_head = True
        self._between = False
        self._begun += 1
        self._last = None

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self._shut:
            self._deaf = True
            return
        parser, url = self._parser, self._url
        if parser.get_method() == b"CONNECT":
            self._refuse(405, b"Method Not Allowed", b"this is no tunnel")
            return
        if parser.should_upgrade():
            self._replay = self._without_upgrade()
            return
        version = parser.get_http_version()
        if not url.startswith(b"/"):  # absolute form, which a server has to take (RFC 9112, section 3.2.2)
            url = url.partition(b"://")[2] or url
            url = b"/" + url.partition(b"/")[2] if b"/" in url else url
        raw_path, _, query = url.partition(b"?")
        path = raw_path.decode("latin-1")
        scope: Message = {
            **self._scope,
            "http_version": version,
            "method": parser.get_method().decode(),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
        }
        cycle = Cycle(self, scope, keep_alive=version != "1.0" and parser.should_keep_alive())
        cycle.expects_continue = self._expects_continue
        self._coming = self._last = cycle
        if self._active is None:
            self._active, self._starting = cycle, True
        else:
            self._queue.append(cycle)
            self._pause_reading()

    def _without_upgrade(self) -> bytes:
        """The head of a request that offers another protocol, without the offer: a server may ignore it (RFC 9110,
        section 7.8). The parser would take the request's body for that protocol."""
        lines = [b"%b %b HTTP/1.1\r\n" % (self._parser.get_method(), self._url)]
        lines += [b"%b: %b\r\n" % header for header in self._headers if header[0] not in _OFFER]
        return b"".join((*lines, b"\r\n"))

    def on_body(self, data: bytes) -> None:
        cycle = self._coming
        if cycle is not None and not cycle.ended:
            cycle.feed(data)
            if cycle.unread > BODY_AHEAD:
                self._pause_reading()

    def on_message_complete(self) -> None:
        cycle, self._coming = self._coming, None
        if cycle is not None:
            cycle.received = True
            cycle.wake()
            self._between = cycle.keep_alive

    # -- one after the other ------------------------------------------------------------------------------

    def _start(self, cycle: Cycle) -> None:
        self.server.cycles.add(cycle)
        cycle.task = self.loop.create_task(cycle.run())

    def write_soon(self, data: bytes) -> None:
        """Write a whole response, with those to other clients if there may be some."""
        server = self.server
        if len(server.cycles) > 1:
            server.together.add(self._write, data)
        else:
            self.transport.write(data)

    def _write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def ended(self, cycle: Cycle) -> None:
        """A response was given to the transport: the next request's turn."""
        cycle.wake()
        self._active = None
        if not cycle.keep_alive or self.transport.is_closing():
            self.transport.close()
            return
        self._idle_since = self.loop.time()
        if self._queue:
            self._active = self._queue.popleft()
            self._start(self._active)
        self.resume_reading()

    def shut(self) -> None:
        """The server stops: no further request is taken, an answer under way is finished."""
        self._shut = True
        self._queue.clear()
        self.server.together.flush()
        if self._active is None:
            self.transport.close()
        else:
            self._active.keep_alive = False


def _address(transport: asyncio.BaseTransport, which: str) -> tuple[str, int] | None:
    found = transport.get_extra_info(which)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
