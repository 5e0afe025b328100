"""The MCP endpoint as an ASGI application: POST, GET and DELETE of `/mcp` and `/{name}/mcp`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import anyio
import msgspec

from mcpdiag.errors import CapacityError, ClientError, McpDiagError, ShuttingDown, UpstreamError
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.protocol.headers import MCP_SESSION_ID, accepts, is_json
from mcpdiag.protocol.message import (
    Id,
    Message,
    MessageError,
    decode,
    decode_batch,
    decode_id,
    encode_error,
    is_batch,
    members,
    text_member,
)
from mcpdiag.protocol.revisions import KNOWN, known_names
from mcpdiag.protocol.sse import encode_message
from mcpdiag.proxy import forward
from mcpdiag.proxy.forward import Reply, Send
from mcpdiag.proxy.guard import Guard
from mcpdiag.proxy.session import Session, Sessions
from mcpdiag.upstream.base import Answer, Exchange, Inbox, Upstream
from mcpdiag.upstream.scope import open_scope

log = logging.getLogger("mcpdiag.proxy")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Scope = MutableMapping[str, Any]
METHODS = "GET, POST, DELETE"
BODY_TIMEOUT = 30.0  # seconds for the body of a request to arrive
MAX_BATCH = 1000
_WANTED = frozenset(
    {
        b"host", b"origin", b"authorization", b"content-type", b"content-length", b"accept", b"last-event-id",
        b"mcp-session-id", b"mcp-protocol-version",
    }
)  # fmt: skip
_CORS_HEADERS = b"authorization, content-type, last-event-id, mcp-protocol-version, mcp-session-id"
Headers = dict[bytes, bytes]


class Endpoint:
    """Routes requests to sessions and upstreams, and refuses what is not MCP.

    Args:
        upstreams: by name; the only one is also served at `/mcp`.
    """

    def __init__(
        self, upstreams: Iterable[Upstream], sessions: Sessions, guard: Guard, *, hook: Hook = NO_HOOK
    ) -> None:
        by_path = {f"/{upstream.name}/mcp": upstream for upstream in upstreams}
        if len(by_path) == 1:
            by_path["/mcp"] = next(iter(by_path.values()))
        self._by_path = by_path
        self._sessions = sessions
        self._guard = guard
        self._hook = hook
        self.closing = False
        self._idle = anyio.Event()

    def close(self) -> None:
        """Admit no new exchange; those in flight go on."""
        self.closing = True
        self._note_idle()

    async def drained(self) -> None:
        """Wait, after `close`, until no exchange is in flight."""
        await self._idle.wait()

    def _note_idle(self) -> None:
        if self.closing and not self._sessions.calls_in_flight():
            self._idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003, "reason": "MCP is spoken over HTTP"})
            return
        headers: Headers = {key: value for key, value in scope["headers"] if key in _WANTED}
        origin = headers.get(b"origin", b"")
        reply = Reply(send, [])
        try:
            self._guard.check(headers.get(b"host", b""), origin, self._credentials(scope, headers))
            if origin:
                reply.headers += [
                    (b"access-control-allow-origin", origin),
                    (b"access-control-expose-headers", b"mcp-session-id"),
                    (b"vary", b"origin"),
                ]
            upstream = self._by_path.get(scope["path"])
            if upstream is None:
                raise ClientError(f"there is no {scope['path']} here; {self._paths()}", status=404)
            method = scope["method"]
            if method == "POST":
                await self._post(upstream, headers, receive, reply)
            elif method == "GET":
                await self._get(upstream, headers, receive, reply)
            elif method == "DELETE":
                await self._delete(upstream, headers, reply)
            elif method == "OPTIONS" and origin:
                reply.headers += [
                    (b"access-control-allow-methods", METHODS.encode()),
                    (b"access-control-allow-headers", _CORS_HEADERS),
                ]
                await reply.whole(204, b"")
            else:
                raise ClientError(
                    f"{method} is not an MCP method; use {METHODS}", status=405, headers={"allow": METHODS}
                )
        except McpDiagError as error:
            await _refuse(error, reply)

    def _credentials(self, scope: Scope, headers: Headers) -> bytes:
        # A browser's preflight carries no credentials; it reveals nothing.
        return self._guard.token if scope["method"] == "OPTIONS" else headers.get(b"authorization", b"")

    def _paths(self) -> str:
        return f"the MCP endpoints are {', '.join(sorted(self._by_path))}"

    # -- POST ---------------------------------------------------------------------------------------------

    async def _post(self, upstream: Upstream, headers: Headers, receive: Receive, reply: Reply) -> None:
        content_type = headers.get(b"content-type")
        if not is_json(content_type):
            found = (content_type or b"none").decode("latin-1")
            raise ClientError(f"Content-Type must be application/json, found {found}", status=415)
        if not accepts(headers.get(b"accept"), b"application/json", b"text/event-stream"):
            raise _not_acceptable(headers, "both application/json and text/event-stream")
        _check_revision(headers)
        body = await self._read(headers, receive)
        try:
            if is_batch(body):
                await self._batch(upstream, self._session(upstream, headers), decode_batch(body), reply)
                return
            message = decode(body)
        except MessageError as error:
            raise ClientError(str(error), code=error.code) from None
        if message.method == "initialize" and message.id:
            await self._initialize(upstream, headers, message, len(body), reply)
            return
        session = self._session(upstream, headers)
        if message.method and message.id:
            if self.closing:
                await _refuse_call(message, _closing(), reply)
                return
            exchange = self._exchange(session, message, len(body))
            await forward.run(session, exchange, reply, self._hook, retries=upstream.config.retries)
            if exchange.outcome == "http_404":  # its server has ended the session, so here it ends too
                self._sessions.end_soon(session, "ended by its server")
            self._note_idle()
        else:
            answer = await self._tell(session, message)
            reply.headers += answer.headers
            await reply.whole(answer.status, answer.body, answer.content_type)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        limit = self._guard.max_body_bytes
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise self._guard.too_large(int(declared))
        with open_scope(self._sessions.clock() + BODY_TIMEOUT):
            return await self._read_within(receive, limit)
        raise ClientError(f"the body did not arrive within {BODY_TIMEOUT:g} s; send it faster", status=408)

    async def _read_within(self, receive: Receive, limit: int) -> bytes:
        event = await receive()
        body = event.get("body", b"")
        if event.get("more_body"):
            parts, size = [body], len(body)
            while event.get("more_body"):
                event = await receive()
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

    def _exchange(self, session: Session, message: Message, size: int) -> Exchange:
        if message.id_key() in session.calls:
            raise ClientError(
                f"the id {bytes(message.id).decode()} belongs to a request that is still in flight; use another"
            )
        exchange = Exchange(
            message,
            session.client,
            session.upstream.name,
            session.upstream.config.timeouts,
            self._sessions.clock,
        )
        exchange.bytes_in = size
        return exchange

    async def _initialize(
        self, upstream: Upstream, headers: Headers, message: Message, size: int, reply: Reply
    ) -> None:
        try:
            if self.closing:
                raise _closing()
            session = self._sessions.begin(upstream)
        except CapacityError as error:
            await _refuse_call(message, error, reply)
            return
        session.client.authorization = self._authorization(headers)
        session.client.capabilities = frozenset(members(members(message.params).get("capabilities", b"")))
        session.protocol = text_member(message.params, "protocolVersion")
        exchange: Exchange | None = None

        def admit(answer: Answer) -> None:
            if exchange is not None and exchange.outcome == "ok" and answer.status == 200:
                self._sessions.admit(session)
                reply.headers.append((MCP_SESSION_ID, session.id.encode()))

        try:
            exchange = self._exchange(session, message, size)
            await forward.run(
                session, exchange, reply, self._hook, retries=upstream.config.retries, before_answer=admit
            )
        finally:
            if exchange is None or exchange.outcome != "ok":
                self._sessions.end_soon(session, "not initialized")
            self._note_idle()
        if exchange.final is not None and exchange.outcome == "ok":
            result = members(exchange.final).get("result", b"")
            session.protocol = text_member(result, "protocolVersion") or session.protocol

    async def _tell(self, session: Session, message: Message) -> Answer:
        if message.method != "notifications/cancelled":
            return await session.at.tell(message)
        named = _cancelled_id(message)
        exchange = None if named is None else session.calls.get(named)
        if exchange is not None:
            await session.at.cancel(exchange, message)
        elif session.upstream.transport == "http":
            # It may know a request whose stream the client has resumed; for a stdio server the id means nothing.
            return await session.at.tell(message)
        return Answer(status=202)

    async def _batch(
        self, upstream: Upstream, session: Session, messages: list[Message], reply: Reply
    ) -> None:
        """Revision 2025-03-26: each request of a batch is answered by an event of one stream."""
        revision = KNOWN.get(session.protocol)
        if revision is None or not revision.batches:
            raise ClientError(
                f"batches exist only in revision 2025-03-26; this session speaks {session.protocol}: send one message"
            )
        if len(messages) > MAX_BATCH:
            raise ClientError(
                f"a batch of {len(messages)} messages, and {MAX_BATCH} are allowed; send it in parts",
                status=413,
            )
        if any(message.method == "initialize" for message in messages):
            raise ClientError("initialize must not be part of a batch; send it alone")
        requests = [message for message in messages if message.kind == "request"]
        if len({message.id_key() for message in requests}) < len(requests):
            raise ClientError("two requests of the batch have the same id; give each its own")
        if requests and self.closing:
            raise _closing()
        for message in messages:
            if message.kind != "request":
                await self._tell(session, message)
        exchanges = [self._exchange(session, message, len(message.params)) for message in requests]
        if not exchanges:
            await reply.whole(202, b"")
            return
        await reply.begin()
        async with anyio.create_task_group() as tasks:
            for exchange in exchanges:
                part, retries = _PartOfBatch(reply, exchange.message), upstream.config.retries
                tasks.start_soon(partial(forward.run, session, exchange, part, self._hook, retries=retries))
        self._note_idle()
        await forward.end(reply)

    # -- GET and DELETE -----------------------------------------------------------------------------------

    async def _get(self, upstream: Upstream, headers: Headers, receive: Receive, reply: Reply) -> None:
        if not accepts(headers.get(b"accept"), b"text/event-stream"):
            raise _not_acceptable(headers, "text/event-stream")
        _check_revision(headers)
        session = self._session(upstream, headers)
        if self.closing:
            raise _closing()
        inbox = Inbox(self._sessions.clock())
        session.streams.add(inbox)
        try:
            answer = await session.at.listen(inbox, headers.get(b"last-event-id"))
            if answer.events is None:
                reply.headers += answer.headers
                await reply.whole(answer.status, answer.body, answer.content_type)
                return
            await reply.begin()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
                await self._pour(session, answer.events, reply)
                tasks.cancel_scope.cancel()
            await forward.end(reply)
        finally:
            session.streams.discard(inbox)
            session.used_at = self._sessions.clock()

    async def _pour(self, session: Session, source: AsyncIterator[bytes], reply: Reply) -> None:
        """Events to a listening client, until either side ends; what it did not read waits for its next stream."""
        limit = session.upstream.config.timeouts.response_timeout
        why = f"its client has not read for {limit:g} s (response_timeout)"
        try:
            async with aclosing(cast("Any", source)) as events:
                async for data in events:
                    with anyio.move_on_after(limit) as stalled:
                        await reply.event(data)
                    if stalled.cancelled_caught:
                        break
                else:
                    return
        except McpDiagError as error:
            why = error.message
        log.warning("a listening stream of '%s' broke off: %s", session.upstream.name, why)

    async def _delete(self, upstream: Upstream, headers: Headers, reply: Reply) -> None:
        _check_revision(headers)
        session = self._session(upstream, headers)
        await self._sessions.end(session, "ended by its client")
        await reply.whole(200, b"")

    # -- sessions -----------------------------------------------------------------------------------------

    def _session(self, upstream: Upstream, headers: Headers) -> Session:
        raw = headers.get(MCP_SESSION_ID)
        if raw is None:
            raise ClientError(
                "Mcp-Session-Id is missing; send initialize first and then its session id with each request"
            )
        session = self._sessions.get(raw.decode("latin-1"))
        if session is None or session.upstream is not upstream:
            raise ClientError("there is no such session (any more); start again with initialize", status=404)
        session.client.protocol = headers.get(b"mcp-protocol-version", b"")
        session.client.authorization = self._authorization(headers)
        return session

    def _authorization(self, headers: Headers) -> bytes:
        # With a token of the proxy's own the header is meant for the proxy, and ends here.
        return b"" if self._guard.token else headers.get(b"authorization", b"")


class _PartOfBatch(Reply):
    """Answers of a batch go as events into the one stream of the batch."""

    def __init__(self, batch: Reply, message: Message) -> None:
        super().__init__(batch._send, [])
        self.started = self.streaming = True
        self._message = message

    async def whole(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        if status != 200:  # the status of one part has no place in a stream of several
            text = f"the server answered {self._message.method} with HTTP {status}"
            body = encode_error(self._message.id, UpstreamError.code, text, {"type": f"http_{status}"})
        await self.event(encode_message(body))
        self.ended = True

    async def end(self) -> None:
        self.ended = True


def _closing() -> ShuttingDown:
    return ShuttingDown("the proxy is shutting down; try again with a new session")


def _cancelled_id(message: Message) -> Id | None:
    """Which request a cancellation names; None if it is malformed, which is to be ignored."""
    try:
        return decode_id(members(message.params).get("requestId", b""))
    except msgspec.DecodeError:
        return None


def _not_acceptable(headers: Headers, wanted: str) -> ClientError:
    found = headers.get(b"accept", b"none").decode("latin-1")
    return ClientError(f"Accept must allow {wanted}, found {found}", status=406)


def _check_revision(headers: Headers) -> None:
    raw = headers.get(b"mcp-protocol-version")
    if raw is None:
        return
    name = raw.decode("latin-1")
    if name not in KNOWN or KNOWN[name].era != "handshake":
        supported = known_names("handshake")
        raise ClientError(
            f"MCP-Protocol-Version {name!r} is not spoken here; known are {', '.join(supported)}",
            data={"supported": [*supported], "requested": name},
        )


async def _until_gone(receive: Receive, stream: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.cancel()


async def _refuse_call(message: Message, error: McpDiagError, reply: Reply) -> None:
    """Where there is a request to answer, official clients show its error; they do not show an HTTP status."""
    await reply.whole(200, encode_error(message.id, error.code, error.message, error.to_data()))


async def _refuse(error: McpDiagError, reply: Reply) -> None:
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
