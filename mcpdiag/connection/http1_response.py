"""The answer to one request of an `Http1Connection`, and how httptools fills it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httptools

if TYPE_CHECKING:
    from mcpdiag.connection.http1 import Http1Connection


class Response:
    """The answer to one request. Its head is there; the body is read with `chunk` or `body`, once.

    Attributes:
        status: 200-999; 1xx never gets here.
        headers: in the order received, names in lower case. Trailers are dropped.
        keep_alive: whether the server lets the connection be used again. Known with the head.
        complete: whether the last byte of the body has arrived.
    """

    __slots__ = ("_body_bytes", "_chunks", "_connection", "complete", "headers", "keep_alive", "status")

    def __init__(self, connection: Http1Connection) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.keep_alive = False
        self.complete = False
        self._connection = connection
        self._chunks: list[bytes] = []
        self._body_bytes = 0

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its name in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def chunk(self) -> bytes:
        """The next bytes of the body as they arrive, without their transfer encoding; `b""` at the end.

        Raises:
            UpstreamClosed: the server went away before the end.
            UpstreamProtocolError: the body is not framed as HTTP says.
        """
        while not self._chunks and not self.complete:
            await self._connection._fill()
        return self._take()

    async def body(self, heard: Callable[[], None] = lambda: None) -> bytes:
        """All of the body that `chunk` has not given out yet.

        Args:
            heard: called each time that more of it has arrived, but not for what is there already.

        Raises:
            UpstreamClosed: the server went away before the end.
            UpstreamProtocolError: the body is not framed as HTTP says, or is above `max_body_bytes`.
        """
        limit = self._connection.max_body_bytes
        if not self.complete and (self._declared() or 0) > limit:
            raise self._connection._too_large(f"a body of {self._declared()} bytes")
        while not self.complete and self._body_bytes <= limit:
            await self._connection._fill()
            heard()
        if self._body_bytes > limit:
            raise self._connection._too_large("a larger body")
        return self._take()

    def _take(self) -> bytes:
        chunks = self._chunks
        if len(chunks) == 1:
            return chunks.pop()
        data = b"".join(chunks)
        chunks.clear()
        return data

    def _declared(self) -> int | None:
        """What Content-Length promises (the parser let it through, so it is a number)."""
        length = self.header(b"content-length")
        return None if length is None else int(length)

    def _ends_with_connection(self) -> bool:
        """RFC 9112, section 6.3: the body of this answer has no other end than that of the connection."""
        coding = self.header(b"transfer-encoding")
        if coding is not None:
            return not coding.lower().endswith(b"chunked")
        return self.header(b"content-length") is None

    def __repr__(self) -> str:
        return f"<Response {self.status} {self._body_bytes} bytes{'' if self.complete else ' so far'}>"


class Head:
    """What the head of a whole answer said, whose connection can be reused."""

    __slots__ = ("headers", "length", "status")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], length: int) -> None:
        self.status = status
        self.headers = headers
        self.length = length


class Reader:
    """What httptools calls. It may call several times in one feed, also for bytes behind the end."""

    __slots__ = ("feed", "head_only", "parser", "response", "stray", "switching")

    def __init__(self, response: Response) -> None:
        self.response = response
        self.head_only = False
        self.stray = False
        self.switching = False
        self._renew()

    def _renew(self) -> None:
        self.parser: Any = httptools.HttpResponseParser(self)
        self.feed: Callable[[bytes], None] = self.parser.feed_data

    def expect(self, response: Response, head_only: bool) -> None:
        if self.head_only:  # the parser cannot be told that a HEAD has no body: it still waits for one
            self._renew()
        self.response = response
        self.head_only = head_only

    def on_message_begin(self) -> None:
        if self.response.complete:
            self.stray = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.response.status:
            self.response.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        response, status = self.response, self.parser.get_status_code()
        if response.status:
            return
        if status < 200:
            response.headers.clear()
            self.switching = status == 101
            return
        response.status = status
        response.keep_alive = self.parser.should_keep_alive()
        response.complete = self.head_only

    def on_body(self, data: bytes) -> None:
        response = self.response
        if response.complete:
            self.stray = True
        else:
            response._chunks.append(data)
            response._body_bytes += len(data)

    def on_message_complete(self) -> None:
        if self.response.status:
            self.response.complete = True
