"""Sessions over Streamable HTTP: httptools on an asyncio protocol, JSON and event-stream answers, keep-alive.

Not httpx: it does 390 calls a second where this does tens of thousands (docs/bench.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import httptools

from mcpdiag.bench import columns, wire
from mcpdiag.bench.session import Session, SessionError
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.protocol.revisions import Era
from mcpdiag.protocol.sse import Decoder, SseError

MAX_EVENT_BYTES = 16 * 1024 * 1024


class Receiver(Protocol):
    """Who is told what a connection received."""

    def message(self, data: bytes) -> None: ...
    def complete(self, status: int) -> None: ...
    def lost(self, kind: int, reason: str) -> None: ...


class Link(asyncio.Protocol):
    """One HTTP/1.1 connection; what it receives goes to one receiver, until it is dropped."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver: Receiver | None = receiver
        self.session_id = b""
        self.closed = asyncio.get_running_loop().create_future()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._events: Decoder | None = None
        self._last = False
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self.write = self._transport.write

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, SseError) as error:
            self._lose(columns.PROTOCOL, f"the server does not speak HTTP/1.1 or SSE: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(columns.CLOSED, f"the server closed the connection ({exc or 'end of file'})")
        if not self.closed.done():
            self.closed.set_result(None)

    def _lose(self, kind: int, reason: str) -> None:
        receiver = self._receiver
        self.drop()
        if receiver is not None:
            receiver.lost(kind, reason)

    def drop(self) -> None:
        """Close, and tell nothing more."""
        self._receiver = None
        self._transport.abort()

    # -- httptools calls these -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._body.clear()
        self._events = None

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name)
        if size == 12 and name.lower() == b"content-type" and value.startswith(b"text/event-stream"):
            self._events = Decoder(MAX_EVENT_BYTES)
        elif size == 14 and name.lower() == b"mcp-session-id":
            self.session_id = value

    def on_headers_complete(self) -> None:
        self._last = not self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if self._events is None:
            self._body.append(body)
            return
        for event in self._events.feed(body):
            if event.data and self._receiver is not None:
                self._receiver.message(event.data)

    def on_message_complete(self) -> None:
        receiver, status = self._receiver, self._parser.get_status_code()
        if receiver is None or status < 200:
            return
        if self._last:  # there is no next exchange on this connection
            self.drop()
            receiver.lost(-1, "")
        if self._body:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            receiver.message(body)
        receiver.complete(status)


class HttpSession(Session):
    """A session with an HTTP endpoint."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        calls: Sequence[Call] = (),
        era: Era = "handshake",
        version: str,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(calls, era, version, timeout_s)
        self._head = wire.Head(url, headers or {}, era, version)
        self._url = url
        self._link: Link | None = None
        self._quiet = False
        self.session_id = b""

    @classmethod
    def of(cls, spec: LoadSpec) -> HttpSession:
        """One of the sessions that a load needs."""
        return cls(
            spec.url,
            headers=spec.headers,
            calls=spec.calls,
            era=spec.era,
            version=spec.protocol,
            timeout_s=spec.timeout_s,
        )

    async def connect(self) -> None:
        if self._link is not None:
            self._link.drop()
        self._link = await dial(self._head, self, self.timeout_s)
        self.write = self._link.write
        self.usable = True

    def halves(self, method: str, params: Mapping[str, Any], extra: Mapping[str, str]) -> wire.Halves:
        session = b"" if method == "initialize" else self.session_id
        return self._head.request(method, params, session, extra)

    async def open(self) -> None:
        self.session_id = b""
        await super().open()

    async def notify_initialized(self) -> None:
        if self._link is None or not self.usable:  # the answer to initialize ended the connection
            await self.connect()
        assert self._link is not None
        self._quiet = True
        await self._exchange(self._head.notification(self.session_id))

    async def _exchange(self, data: bytes) -> None:
        """Something whose answer has no message; its status does not matter."""
        self._asked = asyncio.get_running_loop().create_future()
        try:
            self.write(data)
            async with asyncio.timeout(self.timeout_s):
                await self._asked
        except TimeoutError:
            raise SessionError(f"{self._url} did not answer within {self.timeout_s:g} s") from None
        finally:
            self._asked, self._quiet = None, False

    def message(self, data: bytes) -> None:
        if not self._quiet:
            super().message(data)

    def complete(self, status: int) -> None:
        if self._quiet:
            self._end()
            return
        if self._link is not None and self._link.session_id:
            self.session_id = self._link.session_id
        super().complete(status)

    def lost(self, kind: int, reason: str) -> None:
        if kind == -1:
            self.usable = False
        elif self._quiet:
            self.usable = False
            self._end()
        else:
            super().lost(kind, reason)

    def abort(self) -> None:
        self.usable = False
        if self._link is not None:
            self._link.drop()

    async def close(self) -> None:
        if self._link is None:
            return
        with contextlib.suppress(SessionError, OSError):
            if self.session_id and self.outcome != -1 and self.usable:
                self._quiet = True
                await self._exchange(self._head.without_body("DELETE", self.session_id))
        self.abort()
        await self._link.closed

    async def listen(self, hear: Callable[[bytes], None]) -> Link:
        """Open the session's own stream; each message of it goes to `hear`. A server may have none."""
        link = await dial(self._head, _Listener(hear), self.timeout_s)
        link.write(self._head.without_body("GET", self.session_id))
        return link


class _Listener:
    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self.message = hear

    def complete(self, status: int) -> None:
        return None

    def lost(self, kind: int, reason: str) -> None:
        return None


async def dial(head: wire.Head, receiver: Receiver, timeout_s: float) -> Link:
    """A new connection.

    Raises:
        SessionError: there is none within `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    where = f"{head.host}:{head.port}"
    try:
        async with asyncio.timeout(timeout_s):
            _, link = await loop.create_connection(
                lambda: Link(receiver), head.host, head.port, ssl=head.tls or None
            )
    except TimeoutError:
        raise SessionError(f"no connection to {where} within {timeout_s:g} s") from None
    except OSError as error:
        raise SessionError(f"no connection to {where}: {error.strerror or error}") from None
    return link
