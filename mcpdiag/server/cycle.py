"""One HTTP request and its response: ASGI's `receive` and `send`, as `connection.py` starts them."""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from mcpdiag.protocol.heads import NO_BODY

if TYPE_CHECKING:
    from mcpdiag.server.connection import ServerConnection

log = logging.getLogger("mcpdiag.server")
Message = dict[str, Any]
Notes = dict[str, Any]
STATUS_LINE: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}
KNOWN_LINES: Final = 64  # sets of header lines that a server remembers
KNOWN_BYTES: Final = 1024  # of such a set
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Cycle:
    """One request and its response.

    Attributes:
        scope: ASGI's. Its extension `mcpdiag.direct` is this object, with `whole_body`, `whole` and `notes`.
        notes: for the application, which finds them again in the next request of this connection with the same head.
        keep_alive: whether the connection is used again.
        received: whether the whole request is there.
        ended: whether the whole response was given to the transport.
        disconnected: whether the client has gone.
        unread: bytes of the body that have come and were not asked for.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_given",
        "_head",
        "_left",
        "_news",
        "_parts",
        "disconnected",
        "ended",
        "expects_continue",
        "keep_alive",
        "notes",
        "received",
        "scope",
        "started",
        "task",
        "unread",
    )

    def __init__(
        self, connection: ServerConnection, scope: Message, *, keep_alive: bool, notes: Notes | None = None
    ) -> None:
        self._connection = connection
        self.scope = scope
        scope["extensions"] = {"mcpdiag.direct": self}
        self.notes: Notes = {} if notes is None else notes
        self.keep_alive = keep_alive
        self.expects_continue = False
        self.task: asyncio.Task[None] | None = None
        self.received = self._given = False
        self.started = self.ended = self.disconnected = False
        self._parts: list[bytes] = []
        self.unread = 0
        self._news: asyncio.Event | None = None
        self._head = b""  # of the response, until the first of its body
        self._chunked = False
        self._left = 0  # bytes that Content-Length has promised

    async def run(self) -> None:
        """Call the application; whatever it leaves undone ends the connection."""
        connection = self._connection
        try:
            await connection.server.app(self.scope, self.receive, self.send)
        except Exception:
            log.exception("the application failed at %s", self.scope["path"])
        finally:
            connection.server.cycles.discard(self)
            self.scope.pop("extensions", None)  # it has this object: nothing is left to the garbage collector
            if not self.ended and not self.disconnected:
                self._give_up()

    def _give_up(self) -> None:
        if self.started:
            self._connection.transport.close()  # a response that breaks off is not taken for a whole one
        else:
            self.keep_alive = False
            self.whole(500, [(b"content-type", b"text/plain")], b"the proxy failed; its log says why")

    # -- the request --------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """More of the body has come."""
        self._parts.append(data)
        self.unread += len(data)
        self.wake()

    def wake(self) -> None:
        """Something has changed that `receive` may wait for."""
        if self._news is not None:
            self._news.set()

    def whole_body(self) -> bytes | None:
        """All of the body, if it is there already and was not asked for before."""
        if not self.received or self._given:
            return None
        self.expects_continue = False
        return self._body()

    async def receive(self) -> Message:
        """The body as it comes, then `http.disconnect` once the client or the response is gone."""
        if self.expects_continue and not self.started:
            self.expects_continue = False
            self._connection.transport.write(_CONTINUE)
        while not self.disconnected and not self.ended:
            if self._parts or (self.received and not self._given):
                return {"type": "http.request", "body": self._body(), "more_body": not self.received}
            self._connection.resume_reading()
            self._news = asyncio.Event()
            await self._news.wait()
        return {"type": "http.disconnect"}

    def _body(self) -> bytes:
        parts, self._parts = self._parts, []
        self._given, self.unread = self.received, 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # -- the response -------------------------------------------------------------------------------------

    def whole(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """A complete response at once, in one write. `Content-Length` is added; `headers` must not have it.

        A client that does not read fills the transport's buffer with at most one response.
        """
        self.started = self.ended = True
        if self.disconnected:
            return
        bare = status in NO_BODY
        head = self._encode(status, headers, b"" if bare else b"content-length: %d\r\n" % len(body))
        silent = bare or self.scope["method"] == "HEAD"
        data = head if silent else head + body
        if self.keep_alive:
            self._connection.write_soon(data)
        else:
            self._connection.transport.write(data)
        self._connection.ended(self)

    async def send(self, message: Message) -> None:
        """ASGI's `send`. Waits while the client does not read."""
        if (drained := self._connection.drained) is not None:
            await drained.wait()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.started:
            self._begin(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.started and not self.ended:
            self._continue(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"the application sent {kind!r} at the wrong time")

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.started = True
        headers = [*headers]
        names = {name: value for name, value in headers if name in (b"content-length", b"transfer-encoding")}
        if status not in NO_BODY and self.scope["method"] != "HEAD":
            if (length := names.get(b"content-length")) is not None:
                self._left = int(length)
            elif b"transfer-encoding" not in names and self.scope["http_version"] != "1.0":
                self._chunked = True
                headers.append((b"transfer-encoding", b"chunked"))
            else:
                self._left = -1  # the end of the connection is its end
        self._head = self._encode(status, headers)
        self._connection.loop.call_soon(
            self._flush
        )  # the first of the body goes out with it, if it comes now

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._connection.transport.write(head)

    def _continue(self, body: bytes, *, more: bool) -> None:
        head, self._head = self._head, b""
        if self._chunked:
            framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            data = head + (framed if more else framed + b"0\r\n\r\n")
        elif self._left < 0:
            data = head + body
        else:
            body = body[: self._left]
            self._left -= len(body)
            data = head + body
        if data:
            self._connection.transport.write(data)
        if not more:
            self.ended = True
            if self._left > 0:
                self.keep_alive = False  # shorter than promised: the client must not wait for the rest
            self._connection.ended(self)

    def _encode(self, status: int, headers: Iterable[tuple[bytes, bytes]], length: bytes = b"") -> bytes:
        server, key = self._connection.server, tuple(headers)
        lines = server.lines.get(key)
        if lines is None:
            lines = self._lines(key)
            if self.keep_alive and len(lines) <= KNOWN_BYTES:
                if len(server.lines) >= KNOWN_LINES:
                    server.lines.clear()
                server.lines[key] = lines
        line = STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        return b"".join((line, server.date(), lines, length, end))

    def _lines(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        lines = []
        for name, value in headers:
            if name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
            else:
                lines.append(b"%b: %b\r\n" % (name, value))
        joined = b"".join(lines)
        if joined.count(b"\n") != len(lines) or joined.count(b"\r") != len(lines):
            raise ValueError("a header of the response holds a line break")
        return joined
