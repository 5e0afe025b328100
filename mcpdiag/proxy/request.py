"""One HTTP request as the endpoint's handlers see it: its headers, its body within limits, and the reply to it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol, cast

from mcpdiag.errors import ClientError, McpDiagError
from mcpdiag.protocol.headers import accepts, is_json
from mcpdiag.protocol.message import Message, encode_error
from mcpdiag.protocol.sse import COMMENT_KEEPALIVE, Event, encode
from mcpdiag.proxy.guard import Guard
from mcpdiag.proxy.store import EventStore, StoredStream
from mcpdiag.upstream.scope import open_scope

log = logging.getLogger("mcpdiag.proxy")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = dict[bytes, bytes]
BODY_TIMEOUT = 30.0  # seconds for the body of a request to arrive


class Direct(Protocol):
    """What our own server offers beside ASGI (the extension `mcpdiag.direct`): most exchanges need no more.

    Attributes:
        notes: kept from one request of a connection to the next whose head is the same, byte for byte.
    """

    notes: dict[str, Any]

    def whole_body(self) -> bytes | None:
        """All of the request's body, if it is there already."""

    def whole(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a complete response at once; `Content-Length` is added."""


class Reply:
    """The HTTP response to one request, sent once: whole, or as a stream of events.

    Attributes:
        storage: where the events of a stream are kept, so that the client can resume it; None if it cannot.
        stored: the stream there, once there is one.
        primed: whether the stream begins with an id alone, so that it can be resumed before its first event.
        patient: whether it may become a stream just because nothing has come for a while.
        quiet_since: when `Sessions` last saw that something was sent; what `keep_alive` is for.
    """

    started = False
    streaming = False
    ended = False
    primed = False
    patient = False
    quiet_since: float | None = None
    storage: EventStore | None = None
    stored: StoredStream | None = None

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], direct: Direct | None = None) -> None:
        self._send = send
        self.direct = direct
        self.headers = headers
        self.bytes = 0

    async def whole(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        """Status, headers and the complete body; as the last event, if keep-alives have made it a stream."""
        if self.streaming:
            await self.event(Event(body, b"message"))
            await self.end()
            return
        self.started = True
        self.bytes += len(body)
        headers = [*self.headers, (b"content-type", content_type)] if body else self.headers
        if self.direct is not None:
            self.ended = True
            self.direct.whole(status, headers, body)
            return
        headers = [*headers, (b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
        self.ended = True

    async def event(self, event: Event) -> None:
        """The first one begins the stream. After `end` it is only stored."""
        if not self.started:
            await self.begin()
        if self.stored is not None:
            data = self.stored.add(event)
        else:
            data = encode(Event(event.data, event.event, None, event.retry, event.empty_data))
        if not self.ended:
            await self.write(data)

    async def write(self, data: bytes) -> None:
        """Encoded events, as part of the stream."""
        self.bytes += len(data)
        self.quiet_since = None
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def begin(self) -> None:
        """The head of an event stream."""
        self.started = self.streaming = True
        if self.storage is not None and self.stored is None:
            self.stored = self.storage.stream()
        headers = [
            *self.headers,
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.primed and self.stored is not None:
            await self.write(self.stored.here())

    async def keep_alive(self) -> None:
        """A comment, so that nobody on the way takes a quiet stream for a dead one."""
        if self.ended or not (self.streaming or self.patient):
            return
        if not self.started:
            await self.begin()
        if not self.ended:
            await self._send({"type": "http.response.body", "body": COMMENT_KEEPALIVE, "more_body": True})

    async def end(self) -> None:
        """The end of an event stream."""
        if self.ended:
            return
        if not self.started:
            self.storage = None  # there is nothing to resume
            await self.begin()
        self.ended = True
        await self._send({"type": "http.response.body", "body": b""})


class Request:
    """A request that has passed the guard.

    Attributes:
        headers: those that have a meaning here, names in lower case.
        path: without the query.
        query: raw, without the question mark.
        reply: the response, sent by whoever handles the request.
        all_headers: every header, as it came.
    """

    __slots__ = ("_clock", "_guard", "_receive", "all_headers", "headers", "path", "query", "reply")

    def __init__(
        self,
        headers: Headers,
        path: str,
        query: bytes,
        receive: Receive,
        reply: Reply,
        guard: Guard,
        clock: Callable[[], float],
        all_headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self.headers = headers
        self.all_headers = all_headers
        self.path = path
        self.query = query
        self.reply = reply
        self._receive = receive
        self._guard = guard
        self._clock = clock

    @property
    def authorization(self) -> bytes:
        """What an HTTP upstream may get. With a token of the proxy's own the header is meant for the proxy: b""."""
        return b"" if self._guard.token else self.headers.get(b"authorization", b"")

    def wants(self, *media: bytes) -> None:
        """
        Raises:
            ClientError: 406, `Accept` does not allow one of these media types.
        """
        accept = self.headers.get(b"accept")
        if not accepts(accept, *media):
            wanted = " and ".join(kind.decode() for kind in media)
            found = (accept or b"none").decode("latin-1")
            both = "both " if len(media) > 1 else ""
            raise ClientError(f"Accept must allow {both}{wanted}, found {found}", status=406)

    async def json(self) -> bytes:
        """The body, which must say that it is JSON.

        Raises:
            ClientError: 415 another content type, 413 too large, 408 too slow, 400 cut short.
        """
        content_type = self.headers.get(b"content-type")
        if not is_json(content_type):
            found = (content_type or b"none").decode("latin-1")
            raise ClientError(f"Content-Type must be application/json, found {found}", status=415)
        limit = self._guard.max_body_bytes
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise self._guard.too_large(int(declared))
        return await self.body()

    async def body(self) -> bytes:
        """The body, whatever it is.

        Raises:
            ClientError: 413 too large, 408 too slow, 400 cut short.
        """
        limit = self._guard.max_body_bytes
        if (direct := self.reply.direct) is not None and (body := direct.whole_body()) is not None:
            if len(body) > limit:
                raise self._guard.too_large(len(body))
            return body
        with open_scope(self._clock() + BODY_TIMEOUT):
            return await self._read(limit)
        raise ClientError(f"the body did not arrive within {BODY_TIMEOUT:g} s; send it faster", status=408)

    async def _read(self, limit: int) -> bytes:
        event = await self._receive()
        body = event.get("body", b"")
        if event.get("more_body"):
            parts, size = [body], len(body)
            while event.get("more_body"):
                event = await self._receive()
                parts.append(event.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise self._guard.too_large(size)
            body = b"".join(parts)
        if event["type"] == "http.disconnect":
            raise ClientError("the client went away before its request was complete")
        if len(body) > limit:
            raise self._guard.too_large(len(body))
        return cast("bytes", body)

    async def gone(self) -> None:
        """Return when the client has closed the connection. Only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def refuse_call(message: Message, error: McpDiagError, reply: Reply) -> None:
    """Where there is a request to answer, official clients show its error; they do not show an HTTP status."""
    await reply.whole(200, encode_error(message.id, error.code, error.message, error.to_data()))


async def refuse(error: McpDiagError, reply: Reply) -> None:
    """An error that belongs to no JSON-RPC request, with its HTTP status."""
    if reply.started:
        log.warning("a response broke off: %s", error.message)
        await reply.end()
        return
    if isinstance(error, ClientError):
        reply.headers += [(key.encode(), value.encode()) for key, value in error.headers.items()]
        data: dict[str, Any] | None = error.data or None
    else:
        data = error.to_data()
    await reply.whole(error.status, encode_error(b"null", error.code, error.message, data))
