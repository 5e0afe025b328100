"""The handshake era over Streamable HTTP: POST, GET and DELETE of an MCP endpoint, 2025-03-26 to 2025-11-25."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import anyio
import msgspec

from mcpdiag.errors import CapacityError, ClientError, UpstreamError
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.protocol.headers import MCP_SESSION_ID
from mcpdiag.protocol.message import Id, Message, decode_batch, decode_id, encode_error, members, text_member
from mcpdiag.protocol.revisions import KNOWN, known_names
from mcpdiag.protocol.sse import Event
from mcpdiag.proxy import forward
from mcpdiag.proxy.gate import Gate
from mcpdiag.proxy.listening import listen
from mcpdiag.proxy.request import Headers, Reply, Request, refuse_call
from mcpdiag.proxy.session import Session, Sessions
from mcpdiag.upstream.base import Answer, Upstream
from mcpdiag.upstream.exchange import Exchange

log = logging.getLogger("mcpdiag.proxy")
MAX_BATCH = 1000
_SPOKEN = frozenset(name.encode() for name in known_names("handshake"))


class Handshake:
    """Requests that belong to a session, or begin one.

    Args:
        gate: shut when the proxy closes.
    """

    def __init__(self, sessions: Sessions, gate: Gate, *, hook: Hook = NO_HOOK) -> None:
        self._sessions = sessions
        self._gate = gate
        self._hook = hook

    # -- POST ---------------------------------------------------------------------------------------------

    async def post(self, upstream: Upstream, request: Request, message: Message, size: int) -> None:
        """One message; `size` is its length in bytes."""
        if message.method == "initialize" and message.id:
            await self._initialize(upstream, request, message, size)
            return
        session, reply = self._session(upstream, request), request.reply
        if message.method and message.id:
            if self._gate.closing:
                await refuse_call(message, self._gate.error(), reply)
                return
            exchange = new_exchange(session, message, size, self._sessions.clock)
            await forward.run(session, exchange, reply, self._hook, retries=upstream.config.retries)
            if exchange.outcome == "http_404":  # its server has ended the session, so here it ends too
                self._sessions.end_soon(session, "ended by its server")
            self._gate.left()
        else:
            answer = await tell(session, message)
            reply.headers += answer.headers
            await reply.whole(answer.status, answer.body, answer.content_type)

    async def _initialize(self, upstream: Upstream, request: Request, message: Message, size: int) -> None:
        reply = request.reply
        try:
            self._gate.check()
            session = self._sessions.begin(upstream)
        except CapacityError as error:
            await refuse_call(message, error, reply)
            return
        session.client.authorization = request.authorization
        session.client.capabilities = frozenset(members(members(message.params).get("capabilities", b"")))
        session.protocol = text_member(message.params, "protocolVersion")
        exchange: Exchange | None = None

        def admit(answer: Answer) -> None:
            if exchange is not None and exchange.outcome == "ok" and answer.status == 200:
                self._sessions.admit(session)
                reply.headers.append((MCP_SESSION_ID, session.id.encode()))

        try:
            exchange = new_exchange(session, message, size, self._sessions.clock)
            await forward.run(
                session, exchange, reply, self._hook, retries=upstream.config.retries, before_answer=admit
            )
            if exchange.outcome == "ok" and exchange.final is not None:
                self._sessions.agreed(session, exchange.final)
        finally:
            if exchange is None or exchange.outcome != "ok":
                self._sessions.end_soon(session, "not initialized")
            self._gate.left()

    async def batch(self, upstream: Upstream, request: Request, body: bytes) -> None:
        """Revision 2025-03-26: each request of a batch is answered by an event of one stream."""
        session, reply, messages = self._session(upstream, request), request.reply, decode_batch(body)
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
        if requests:
            self._gate.check()
        for message in messages:
            if message.kind != "request":
                await tell(session, message)
        exchanges = [
            new_exchange(session, message, len(message.params), self._sessions.clock) for message in requests
        ]
        if not exchanges:
            await reply.whole(202, b"")
            return
        session.open(reply)
        try:
            await reply.begin()
            async with anyio.create_task_group() as tasks:
                for exchange in exchanges:
                    part, retries = _PartOfBatch(reply, exchange.message), upstream.config.retries
                    tasks.start_soon(
                        partial(forward.run, session, exchange, part, self._hook, retries=retries)
                    )
            self._gate.left()
            await forward.end(reply)
        finally:
            session.close(reply)

    # -- GET and DELETE -----------------------------------------------------------------------------------

    async def get(self, upstream: Upstream, request: Request) -> None:
        """The stream of what belongs to no call; with `Last-Event-ID` the rest of any stream of the session."""
        request.wants(b"text/event-stream")
        check_revision(request.headers)
        session = self._session(upstream, request)
        self._gate.check()
        try:
            await listen(session, request, request.headers.get(b"last-event-id"))
        finally:
            session.used_at = self._sessions.clock()

    async def delete(self, upstream: Upstream, request: Request) -> None:
        """The client ends its session."""
        check_revision(request.headers)
        session = self._session(upstream, request)
        await self._sessions.end(session, "ended by its client")
        await request.reply.whole(200, b"")

    # -- sessions -----------------------------------------------------------------------------------------

    def _session(self, upstream: Upstream, request: Request) -> Session:
        headers = request.headers
        raw = headers.get(MCP_SESSION_ID)
        if raw is None:
            raise ClientError(
                "Mcp-Session-Id is missing; send initialize first and then its session id with each request"
            )
        session = self._sessions.get(raw.decode("latin-1"))
        if session is None or session.upstream is not upstream:
            raise ClientError("there is no such session (any more); start again with initialize", status=404)
        session.client.protocol = headers.get(b"mcp-protocol-version", b"")
        session.client.authorization = request.authorization
        return session


class _PartOfBatch(Reply):
    """Answers of a batch go as events into the one stream of the batch."""

    def __init__(self, batch: Reply, message: Message) -> None:
        super().__init__(batch._send, [])
        self.started = self.streaming = True
        self._batch = batch
        self._message = message

    async def whole(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        if status != 200:  # the status of one part has no place in a stream of several
            text = f"the server answered {self._message.method} with HTTP {status}"
            body = encode_error(self._message.id, UpstreamError.code, text, {"type": f"http_{status}"})
        await self.event(Event(body, b"message"))
        self.ended = True

    async def event(self, event: Event) -> None:
        self.bytes += len(event.data)
        await self._batch.event(event)

    async def keep_alive(self) -> None:
        """The batch's own keeps the stream alive."""

    async def end(self) -> None:
        self.ended = True


def new_exchange(session: Session, message: Message, size: int, clock: Callable[[], float]) -> Exchange:
    """The exchange of a request of `size` bytes, its limits counting from now.

    Raises:
        ClientError: its id belongs to a call in flight.
    """
    if message.id_key() in session.calls:
        raise ClientError(
            f"the id {bytes(message.id).decode()} belongs to a request that is still in flight; use another"
        )
    upstream = session.upstream
    exchange = Exchange(message, session.client, upstream.name, upstream.config.timeouts, clock)
    exchange.bytes_in = size
    return exchange


async def tell(session: Session, message: Message) -> Answer:
    """Relay a notification or a response of the client; a cancellation stops the call that it names."""
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


def _cancelled_id(message: Message) -> Id | None:
    """Which request a cancellation names; None if it is malformed, which is to be ignored."""
    try:
        return decode_id(members(message.params).get("requestId", b""))
    except msgspec.DecodeError:
        return None


def check_revision(headers: Headers) -> None:
    """
    Raises:
        ClientError: 400, `MCP-Protocol-Version` is not one of this era.
    """
    raw = headers.get(b"mcp-protocol-version")
    if raw is not None and raw not in _SPOKEN:
        name = raw.decode("latin-1")
        supported = known_names("handshake")
        raise ClientError(
            f"MCP-Protocol-Version {name!r} is not spoken here; known are {', '.join(supported)}",
            data={"supported": [*supported], "requested": name},
        )
