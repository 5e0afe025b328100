"""One client's session at a Streamable HTTP server, which it outlives: a server that has forgotten it gets a new one."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from time import time
from typing import TYPE_CHECKING, Any, cast

import anyio
import msgspec

from mcpdiag.connection.base import HttpConnection, HttpResponse
from mcpdiag.errors import (
    ConnectError,
    ConnectTimeout,
    McpDiagError,
    RequestTimeout,
    UpstreamClosed,
    UpstreamProtocolError,
)
from mcpdiag.hooks import Happened
from mcpdiag.pool.pool import Lease
from mcpdiag.protocol.headers import MCP_SESSION_ID, find, is_event_stream, is_json
from mcpdiag.protocol.message import (
    Message,
    MessageError,
    decode,
    encode_notification,
    encode_request,
    encode_response,
    text_member,
)
from mcpdiag.protocol.resume import session_is_lost
from mcpdiag.protocol.retry_after import retry_after
from mcpdiag.protocol.sse import Event
from mcpdiag.upstream.base import Answer
from mcpdiag.upstream.client import Client, Inbox
from mcpdiag.upstream.exchange import Exchange, Phase
from mcpdiag.upstream.journal import STATEFUL, Journal
from mcpdiag.upstream.stream import EventStream, Open

if TYPE_CHECKING:
    from mcpdiag.upstream.http import HttpUpstream

log = logging.getLogger("mcpdiag.upstream")
END_GRACE = (
    0.1  # seconds in which a server ends its stream after the answer, so that the connection can be reused
)
GOODBYE = 2.0  # seconds for the DELETE of a session
RELAYED_HEADERS = frozenset({b"content-type", b"www-authenticate", b"retry-after", b"allow"})
BUSY = frozenset(
    {429, 503}
)  # with Retry-After: not now, and nothing was begun. Waited for up to connect_timeout
RETRY_BASE, RETRY_CAP = 0.05, 1.0  # seconds between attempts to reach a server that an open session knows


class HttpSession:
    """One client's session at an HTTP server."""

    holds_connection = False  # its server does not tie a session to a connection

    def __init__(self, upstream: HttpUpstream, client: Client) -> None:
        self._upstream = upstream
        self._client = client
        self._id = b""  # the server's
        self._journal = Journal()
        self._protocol = ""  # what the server speaks with this session
        self._renewing = anyio.Lock()
        self._last_call = 0
        self._listening: _Listening | None = None
        self._listens_as = b""  # the server's id that its listening stream was last opened with
        self._opening = anyio.Lock()

    # -- calls --------------------------------------------------------------------------------------------

    async def exchange(self, exchange: Exchange) -> Answer:
        message = exchange.message
        body = encode_request(message.id, message.method, bytes(message.params))
        renewed, patient_until = False, 0.0
        while True:
            session_id = self._id
            response = await self._reach(exchange, body)
            if not response.complete:
                exchange.heard()
            content_type = find(response.headers, b"content-type")
            if response.status == 200 and is_event_stream(content_type):
                if message.method == "initialize":
                    self._id = find(response.headers, MCP_SESSION_ID) or b""
                return Answer(content_type=b"text/event-stream", events=self._relay(exchange, response))
            data = await response.body(exchange.heard)
            if response.status == 200 and is_json(content_type):
                if message.method == "initialize":
                    self._id = find(response.headers, MCP_SESSION_ID) or b""
                self._finish(exchange, data)
                exchange.end(reusable=True)
                return Answer(body=data)
            exchange.end(reusable=True)
            if session_id and session_is_lost(response.status, data) and message.method != "initialize":
                exchange.enter(Phase.QUEUE)
                if not renewed and await self._renew(session_id):
                    renewed = True
                    continue
                exchange.outcome = "http_404"
                answer = _as_it_came(response, data)
                answer.status = 404  # the client has to begin anew, also where the server said 400
                return answer
            pause = retry_after(response.header(b"retry-after"), time()) if response.status in BUSY else 0.0
            patient_until = patient_until or exchange.clock() + self._upstream.config.timeouts.connect_timeout
            if pause and exchange.clock() + pause < patient_until:
                exchange.attempts += 1
                exchange.enter(Phase.QUEUE)
                await anyio.sleep(pause)
                continue
            return self._refused(exchange, response, data)

    def _refused(self, exchange: Exchange, response: HttpResponse, data: bytes) -> Answer:
        if response.status < 400:
            content_type = find(response.headers, b"content-type") or b"none"
            raise UpstreamProtocolError(
                f"the server '{self._upstream.name}' answered {exchange.message.method} with HTTP {response.status} and "
                f"content type {content_type.decode(errors='replace')}, which is not an MCP answer",
                data={"upstream": self._upstream.name},
            )
        exchange.outcome = f"http_{response.status}"
        return _as_it_came(response, data)

    async def _reach(self, exchange: Exchange, body: bytes) -> HttpResponse:
        """Send. While a server that this session knows cannot be reached it is tried again, up to `connect_timeout`:
        it may be restarting, and nothing was sent."""
        give_up_at: float | None = None
        while True:
            try:
                return await self._send(exchange, body)
            except ConnectError:
                now = exchange.clock()
                if give_up_at is None:
                    give_up_at = now + self._upstream.config.timeouts.connect_timeout
                if not self._protocol or now >= give_up_at:
                    raise
            exchange.attempts += 1
            exchange.enter(Phase.QUEUE)
            delay = min(RETRY_CAP, RETRY_BASE * 2.0 ** min(exchange.attempts, 10))
            await anyio.sleep(random.uniform(0, delay))  # noqa: S311

    async def _send(self, exchange: Exchange, body: bytes) -> HttpResponse:
        """POST over a pooled connection; once more on a fresh one if the server had closed it and nothing was sent."""
        pool = self._upstream.pool
        while True:
            lease = pool.try_acquire()
            if lease is None:
                exchange.enter(Phase.QUEUE)
                lease = await pool.acquire()
                exchange.note_wait(lease.waited_s, reused=lease.reused)
            exchange.reused = lease.reused
            exchange.sending()
            head = self._upstream.head(b"POST", self._client, self._id, len(body))
            try:
                response = await lease.connection.send(head, body)
            except UpstreamClosed as error:
                lease.release(reusable=False)
                if lease.reused and not lease.connection.sent:
                    continue
                raise self._named(error) from None
            except BaseException:
                lease.release(reusable=False)
                raise
            exchange.on_end = _finisher(lease, response)
            return response

    def _named(self, error: McpDiagError) -> McpDiagError:
        error.data.setdefault("upstream", self._upstream.name)
        return error

    # -- answers ------------------------------------------------------------------------------------------

    async def _relay(self, exchange: Exchange, response: HttpResponse) -> AsyncIterator[Event]:
        """The server's events, one by one, until the answer has come, over as many connections as it takes."""
        wanted = exchange.message.id_key()
        stream = self._event_stream("post", self._again, needs_id=True, heard=exchange.heard)
        try:
            first = leased(exchange, response)
            async with aclosing(cast("Any", stream.events(first, ends=True))) as events:
                async for event in events:
                    if event.data and not self._is_answer(exchange, event.data, wanted):
                        exchange.messages += 1
                    if event.data or event.retry is not None or event == Event():
                        yield event
                    if exchange.final is not None:
                        return
        except UpstreamClosed as error:
            if stream.resume.last_id:
                raise
            raise UpstreamClosed(
                f"the server '{self._upstream.name}' ended its answer to {exchange.message.method} without a response "
                f"({error.message})",
                data={"upstream": self._upstream.name},
            ) from None

    def _finish(self, exchange: Exchange, data: bytes) -> None:
        try:
            answer = decode(data)
        except MessageError as error:
            raise UpstreamProtocolError(
                f"the server '{self._upstream.name}' answered {exchange.message.method} with {error}",
                data={"upstream": self._upstream.name},
            ) from None
        exchange.finish(data, is_error=bool(answer.error))
        self._note(exchange, answer)

    def _is_answer(self, exchange: Exchange, data: bytes, wanted: object) -> bool:
        try:
            message = decode(data)
        except MessageError:
            return False
        if message.method or not message.id or message.id_key() != wanted:
            return False
        exchange.finish(data, is_error=bool(message.error))
        self._note(exchange, message)
        return True

    def _note(self, exchange: Exchange, answer: Message) -> None:
        """Keep what a server that forgets the session would have to be told."""
        method = exchange.message.method
        if answer.error:
            return
        if method == "initialize":
            self._protocol = text_member(answer.result, "protocolVersion")
        if method == "initialize" or method in STATEFUL:
            self._journal.remember(exchange.message)

    # -- recovery -----------------------------------------------------------------------------------------

    async def _renew(self, stale: bytes, *, beside_stream: bool = True) -> bool:
        """A new session at the server in place of the one it has forgotten, told what the client had set there.

        The listening stream of the old one begins anew, unless it is the one that asks. False if the server now speaks another revision than the client was told: then the client has to begin anew.

        Raises:
            ConnectTimeout: not within `connect_timeout`.
            McpDiagError: the server cannot be reached or refuses.
        """
        timeout = self._upstream.config.timeouts.connect_timeout
        async with self._renewing:
            if self._id != stale:  # somebody else has done it
                return True
            with anyio.move_on_after(timeout):
                answer, session_id = await self._call("initialize", self._journal.params, b"")
                if text_member(answer.result, "protocolVersion") != self._protocol:
                    return False
                await self._post(encode_notification("notifications/initialized"), session_id)
                for method, params in self._journal.calls():
                    await self._call(method, params, session_id)
                self._id = session_id
                if self._listening is not None and beside_stream:
                    await self._listening.begin_anew()
                self._tell("recover", "the server had forgotten the session")
                return True
        raise ConnectTimeout(
            f"the server '{self._upstream.name}' had forgotten the session and did not begin a new one within "
            f"{timeout:g} s (connect_timeout)",
            data={"upstream": self._upstream.name, "phase": "connect", "limit_ms": round(timeout * 1000)},
        )

    async def _call(self, method: str, params: bytes, session_id: bytes) -> tuple[Message, bytes]:
        """A request of the proxy's own: the answer, and the session id of its head.

        Raises:
            UpstreamProtocolError: the server refuses it.
        """
        self._last_call += 1
        number = msgspec.json.encode(f"mcpdiag-{self._last_call}")
        body = encode_request(number, method, params)
        async with holding(*await self._open(b"POST", session_id, body)) as response:
            try:
                if response.status == 200 and is_event_stream(response.header(b"content-type")):
                    answer = await self._answer_in(response, number)
                else:
                    data = await response.body()
                    answer = decode(data) if response.status == 200 else Message()
            except MessageError:
                answer = Message()
        if not answer.result:
            words = text_member(answer.error, "message") or f"HTTP {response.status}"
            raise UpstreamProtocolError(
                f"the server '{self._upstream.name}' refused {method} of a session to be recovered: {words}",
                data={"upstream": self._upstream.name},
            )
        return answer, find(response.headers, MCP_SESSION_ID) or b""

    async def _answer_in(self, response: HttpResponse, number: bytes) -> Message:
        stream = self._event_stream("post", self._again, needs_id=True)
        first = contextlib.nullcontext(response)
        async with aclosing(cast("Any", stream.events(first))) as events:
            async for event in events:
                if event.data and bytes((message := decode(event.data)).id) == number:
                    return message
        return Message()

    # -- the stream of what belongs to no call -------------------------------------------------------------

    async def listen(self, inbox: Inbox) -> Answer:
        async with self._opening:
            if self._listening is None and (refusal := await self._start_listening()) is not None:
                return refusal
        return Answer(
            content_type=b"text/event-stream",
            events=self._client.listen(inbox, lambda: self._tell("undelivered", "left over by a stream")),
        )

    async def _start_listening(self) -> Answer | None:
        """Open the server's stream, one for all streams of the client; the server's own answer if it refuses."""
        stream = self._event_stream("get", self._listen_again, renew=self._renew_for_stream)
        await anyio.sleep(stream.resume.stagger(self._upstream.opening()))
        for last_try in (False, True):
            session_id = self._listens_as = self._id
            connection, response = await self._open(b"GET", session_id)
            if response.status == 200 and is_event_stream(response.header(b"content-type")):
                self._listening = _Listening(stream, connection)
                assert self._upstream.tasks is not None
                self._upstream.tasks.start_soon(self._keep_listening, self._listening, response)
                return None
            async with holding(connection, response):
                data = await response.body()
            if last_try or not (session_id and session_is_lost(response.status, data)):
                break
            if not await self._renew(session_id):
                break
        return _as_it_came(response, data)

    async def _keep_listening(self, listening: _Listening, response: HttpResponse) -> None:
        """Take the server's messages to the client, also while it has no stream open, until the session ends."""
        client = self._client
        try:
            with listening.scope:
                first = holding(listening.connection, response)
                async with aclosing(cast("Any", listening.stream.events(first))) as events:
                    async for event in events:
                        if event.data and not client.push(event.data):
                            self._tell("undelivered", "the client is too far behind")
        except McpDiagError as error:
            log.warning("%s", error.message)
        finally:
            self._listening = None
            for inbox in client.streams:
                inbox.close()
            listening.done.set()

    @contextlib.asynccontextmanager
    async def _again(self, last_id: bytes) -> AsyncIterator[HttpResponse]:
        async with holding(*await self._open(b"GET", self._id, last_id=last_id)) as response:
            yield response

    @contextlib.asynccontextmanager
    async def _listen_again(self, last_id: bytes) -> AsyncIterator[HttpResponse]:
        self._listens_as = self._id
        connection, response = await self._open(b"GET", self._listens_as, last_id=last_id)
        async with holding(connection, response):
            if self._listening is not None:
                self._listening.connection = connection
            yield response

    async def _renew_for_stream(self) -> None:
        # By the id that was refused: meanwhile a call may have made a new session, which is not to be lost.
        if not await self._renew(self._listens_as, beside_stream=False):
            raise UpstreamClosed(
                f"the server '{self._upstream.name}' speaks another revision than before",
                data={"upstream": self._upstream.name},
            )

    def _event_stream(
        self,
        kind: str,
        opener: Open,
        *,
        needs_id: bool = False,
        heard: Callable[[], None] = lambda: None,
        renew: Callable[[], Awaitable[None]] | None = None,
    ) -> EventStream:
        config = self._upstream.config
        return EventStream(
            self._upstream.name,
            kind,
            opener,
            config.reconnect,
            session=self._client.id,
            renew=renew,
            heard=heard,
            needs_id=needs_id,
            max_event_bytes=config.max_message_bytes,
            hook=self._upstream.hook,
            clock=self._upstream.clock,
        )

    async def _open(
        self, method: bytes, session_id: bytes, body: bytes | None = None, *, last_id: bytes = b""
    ) -> tuple[HttpConnection, HttpResponse]:
        """A request over a connection of its own, beside the pool; the caller closes it.

        Raises:
            RequestTimeout: the head of the answer did not come within `request_timeout`.
        """
        upstream, timeout = self._upstream, self._upstream.config.timeouts.request_timeout
        extra = b"" if body is not None else b"accept: text/event-stream\r\n"
        if last_id:
            extra += b"last-event-id: %b\r\n" % last_id
        length = None if body is None else len(body)
        head = upstream.head(method, self._client, session_id, length, extra)
        connection = await upstream.connect()
        try:
            with anyio.move_on_after(timeout):
                return connection, await connection.send(head, body or b"")
        except BaseException:
            await close(connection)
            raise
        await close(connection)
        raise RequestTimeout(
            f"the server '{upstream.name}' did not answer a {method.decode()} within {timeout:g} s (request_timeout); "
            f"raise request_timeout for '{upstream.name}', or see why it hangs",
            data={"upstream": upstream.name, "phase": "request", "limit_ms": round(timeout * 1000)},
        )

    # -- notifications and the end ------------------------------------------------------------------------

    async def tell(self, message: Message) -> Answer:
        if message.method:
            body = encode_notification(message.method, bytes(message.params))
        else:
            body = encode_response(message.id, message)
        exchange = Exchange(message, self._client, self._upstream.name, self._upstream.config.timeouts)
        try:
            with exchange.scope:
                session_id = self._id
                status, answer = await self._post_for(exchange, body)
                if not (session_id and session_is_lost(status, answer.body)):
                    return answer
                # What it was about is lost with the session, unless it is news about the client.
                exchange.enter(Phase.QUEUE)
                if await self._renew(session_id) and message.method == "notifications/roots/list_changed":
                    return (await self._post_for(exchange, body))[1]
                return Answer(status=202)
        finally:
            exchange.end(reusable=False)
        raise exchange.timeout_error()

    async def _post_for(self, exchange: Exchange, body: bytes) -> tuple[int, Answer]:
        stats = self._upstream.pool.stats()
        if stats.size >= stats.max and not stats.idle + stats.returning:
            # The calls that hold every connection may wait for just this message: it gets one beside the pool.
            exchange.enter(Phase.CONNECT)
            return await self._post(body, self._id)
        response = await self._send(exchange, body)
        data = await response.body()
        exchange.end(reusable=True)
        return response.status, Answer(status=202) if response.status < 300 else _as_it_came(response, data)

    async def _post(self, body: bytes, session_id: bytes) -> tuple[int, Answer]:
        async with holding(*await self._open(b"POST", session_id, body)) as response:
            data = await response.body()
        return response.status, Answer(status=202) if response.status < 300 else _as_it_came(response, data)

    async def cancel(self, exchange: Exchange, message: Message) -> None:
        exchange.cancel("cancelled by the client")  # at once, however long the server takes to be told
        await self.tell(message)

    async def aclose(self) -> None:
        if (listening := self._listening) is not None:
            listening.scope.cancel()
            with anyio.CancelScope(shield=True):
                await listening.done.wait()
        session_id, self._id = self._id, b""
        if not session_id:
            return
        with anyio.move_on_after(GOODBYE), contextlib.suppress(McpDiagError):
            async with contextlib.AsyncExitStack() as stack:
                lease = self._upstream.pool.try_acquire() or await self._upstream.pool.acquire()
                stack.callback(lease.release, reusable=False)
                response = await lease.connection.send(
                    self._upstream.head(b"DELETE", self._client, session_id, None), b""
                )
                await response.body()
                stack.pop_all()
                lease.release(reusable=response.complete)

    def _tell(self, kind: str, detail: str) -> None:
        self._upstream.hook.emit(Happened(kind, self._upstream.name, self._client.id, detail))


class _Listening:
    """The listening stream of a session, and the connection that it is on now."""

    def __init__(self, stream: EventStream, connection: HttpConnection) -> None:
        self.stream = stream
        self.connection = connection
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()

    async def begin_anew(self) -> None:
        """The session is a new one: what the server's stream of the old one was means nothing any more."""
        self.stream.resume.restarted()
        await close(self.connection)


@contextlib.asynccontextmanager
async def holding(connection: HttpConnection, response: HttpResponse) -> AsyncIterator[HttpResponse]:
    """A response whose connection is closed at the end."""
    try:
        yield response
    finally:
        await close(connection)


@contextlib.asynccontextmanager
async def leased(exchange: Exchange, response: HttpResponse) -> AsyncIterator[HttpResponse]:
    """A response over a pooled connection, which can be reused if the server ends its stream soon after the answer."""
    try:
        yield response
    finally:
        if exchange.final is not None and not response.complete:
            with anyio.move_on_after(END_GRACE), contextlib.suppress(McpDiagError):
                await response.chunk()
        exchange.end(reusable=True)


def _finisher(lease: Lease[HttpConnection], response: HttpResponse) -> Callable[[bool], None]:
    return lambda reusable: lease.release(reusable=reusable and response.complete)


def _as_it_came(response: HttpResponse, data: bytes) -> Answer:
    kept = [(key, value) for key, value in response.headers if key in RELAYED_HEADERS]
    content_type = find(kept, b"content-type") or b"application/json"
    return Answer(
        status=response.status,
        body=data,
        content_type=content_type,
        headers=[pair for pair in kept if pair[0] != b"content-type"],
    )


async def close(connection: HttpConnection) -> None:
    with anyio.CancelScope(shield=True):
        await connection.aclose(force=True)
