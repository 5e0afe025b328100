"""A Streamable HTTP server: each exchange is one POST over a pooled connection.

A client's session here is one session of the server, so ids and messages pass through untouched and the server
itself keeps clients apart; the connections carry no state and are shared. A client's listening stream has a
connection of its own, outside the pool, so that streams cannot starve calls.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Literal
from urllib.parse import urlsplit

import anyio
from anyio.abc import TaskGroup

from mcpdiag.config import PoolMode, UpstreamConfig
from mcpdiag.connection.dial import Origin
from mcpdiag.connection.http1 import Http1Connection, Response
from mcpdiag.errors import (
    ConnectTimeout,
    McpDiagError,
    RequestTimeout,
    UpstreamClosed,
    UpstreamError,
    UpstreamProtocolError,
)
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.pool.pool import Clock, Lease, Pool
from mcpdiag.pool.stats import PoolStats
from mcpdiag.protocol.headers import MCP_SESSION_ID, find, is_event_stream, is_json
from mcpdiag.protocol.message import (
    Message,
    MessageError,
    decode,
    encode_notification,
    encode_request,
    encode_response,
)
from mcpdiag.protocol.sse import COMMENT_KEEPALIVE, Decoder, SseError, encode
from mcpdiag.upstream.base import Answer, Client, Exchange, Inbox, Phase

END_GRACE = (
    0.1  # seconds in which a server ends its stream after the answer, so that the connection can be reused
)
GOODBYE = 2.0  # seconds for the DELETE of a session
RELAYED_HEADERS = frozenset({b"content-type", b"www-authenticate", b"retry-after", b"allow"})


class HttpUpstream:
    """A named HTTP server and the pool of connections to it."""

    transport: Literal["stdio", "http"] = "http"
    mode: PoolMode = "request"

    def __init__(
        self, name: str, config: UpstreamConfig, *, hook: Hook = NO_HOOK, clock: Clock = anyio.current_time
    ) -> None:
        assert config.url is not None
        self.name = name
        self.config = config
        self.hook = hook
        parts = urlsplit(config.url)
        self.origin = Origin.from_url(config.url)
        self._target = ((parts.path or "/") + (f"?{parts.query}" if parts.query else "")).encode()
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        own = [
            (key.lower().encode(), value.get_secret_value().encode()) for key, value in config.headers.items()
        ]
        self._sends_authorization = any(key == b"authorization" for key, _ in own)
        self._fixed = b"host: %b\r\n" % self.origin.host_header
        self._fixed += b"".join(b"%b: %b\r\n" % pair for pair in own)
        self.pool: Pool[Http1Connection] = Pool(
            name,
            self.connect,
            config.pool,
            acquire_timeout=config.timeouts.acquire_timeout,
            connect_timeout=config.timeouts.connect_timeout,
            hook=hook,
            clock=clock,
        )

    async def start(self, task_group: TaskGroup) -> None:
        """Start the pool; warm connections begin to open."""
        await self.pool.start(task_group)

    def session(self, client: Client) -> HttpSession:
        return HttpSession(self, client)

    def stats(self) -> PoolStats:
        return self.pool.stats()

    async def aclose(self, *, drain_timeout: float, force: bool = False) -> None:
        await self.pool.aclose(drain_timeout=drain_timeout, force=force)

    async def connect(self) -> Http1Connection:
        """A new connection within `connect_timeout`."""
        timeout = self.config.timeouts.connect_timeout
        with anyio.move_on_after(timeout):
            return await Http1Connection.open(
                self.origin, ssl_context=self._ssl, max_body_bytes=self.config.max_message_bytes
            )
        raise ConnectTimeout(
            f"the server '{self.name}' ({self.config.url}) did not accept a connection within {timeout:g} s "
            f"(connect_timeout); see whether it runs, or raise connect_timeout for '{self.name}'",
            data={"upstream": self.name, "phase": "connect", "limit_ms": round(timeout * 1000)},
        )

    def head(
        self, method: bytes, client: Client, session_id: bytes, length: int | None, extra: bytes = b""
    ) -> bytes:
        """The request head. The client's Authorization goes along unless the configuration has one."""
        parts = [method, b" ", self._target, b" HTTP/1.1\r\n", self._fixed]
        if session_id:
            parts.append(b"mcp-session-id: %b\r\n" % session_id)
        if client.protocol:
            parts.append(b"mcp-protocol-version: %b\r\n" % client.protocol)
        if client.authorization and not self._sends_authorization:
            parts.append(b"authorization: %b\r\n" % client.authorization)
        if length is not None:
            parts.append(
                b"content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
                b"content-length: %d\r\n" % length
            )
        parts += [extra, b"\r\n"]
        return b"".join(parts)


class HttpSession:
    """One client's session at an HTTP server."""

    holds_connection = False  # its server does not tie a session to a connection

    def __init__(self, upstream: HttpUpstream, client: Client) -> None:
        self._upstream = upstream
        self._client = client
        self._session_id = b""

    async def exchange(self, exchange: Exchange) -> Answer:
        message = exchange.message
        body = encode_request(message.id, message.method, bytes(message.params))
        response = await self._send(exchange, body)
        if not response.complete:
            exchange.heard()
        content_type = find(response.headers, b"content-type")
        if message.method == "initialize" and response.status == 200:
            self._session_id = find(response.headers, MCP_SESSION_ID) or b""
        if response.status == 200 and is_event_stream(content_type):
            return Answer(content_type=b"text/event-stream", events=self._relay(exchange, response))
        data = await response.body(exchange.heard)
        if response.status == 200 and is_json(content_type):
            self._finish(exchange, data)
            exchange.end(reusable=True)
            return Answer(body=data)
        exchange.end(reusable=True)
        if response.status < 400:
            raise UpstreamProtocolError(
                f"the server '{self._upstream.name}' answered {message.method} with HTTP {response.status} and "
                f"content type {(content_type or b'none').decode(errors='replace')}, which is not an MCP answer",
                data={"upstream": self._upstream.name},
            )
        exchange.outcome = f"http_{response.status}"
        return _as_it_came(response, data)

    def _finish(self, exchange: Exchange, data: bytes) -> None:
        try:
            answer = decode(data)
        except MessageError as error:
            raise UpstreamProtocolError(
                f"the server '{self._upstream.name}' answered {exchange.message.method} with {error}",
                data={"upstream": self._upstream.name},
            ) from None
        exchange.finish(data, is_error=bool(answer.error))

    async def _send(self, exchange: Exchange, body: bytes) -> Response:
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
            head = self._upstream.head(b"POST", self._client, self._session_id, len(body))
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

    async def _relay(self, exchange: Exchange, response: Response) -> AsyncIterator[bytes]:
        """Pass the server's events on, one by one, until the answer has come."""
        decoder = Decoder(self._upstream.config.max_message_bytes)
        wanted = exchange.message.id_key()
        resumable = False
        try:
            while chunk := await response.chunk():
                events = decoder.feed(chunk)
                if decoder.pending or any(event.has_data for event in events):
                    exchange.heard()  # a comment alone is no message: it keeps connections alive, not answers
                elif not events:
                    yield COMMENT_KEEPALIVE
                for event in events:
                    resumable = resumable or bool(event.id)
                    final = self._is_answer(exchange, event.data, wanted)
                    if not final and event.data:
                        exchange.messages += 1
                    yield encode(event)
                if exchange.final is not None:
                    with anyio.move_on_after(END_GRACE):
                        await response.chunk()
                    exchange.end(reusable=True)
                    return
        except SseError as error:
            raise UpstreamProtocolError(
                f"the server '{self._upstream.name}' sent {error}", data={"upstream": self._upstream.name}
            ) from None
        except UpstreamClosed as error:
            if not resumable:
                raise self._named(error) from None
        if not resumable:
            raise UpstreamClosed(
                f"the server '{self._upstream.name}' ended its answer to {exchange.message.method} without a response",
                data={"upstream": self._upstream.name},
            )
        # It closed the connection but not the stream: the client comes back with Last-Event-ID.
        exchange.outcome = "polling"

    def _is_answer(self, exchange: Exchange, data: bytes, wanted: object) -> bool:
        if not data:
            return False
        try:
            message = decode(data)
        except MessageError:
            return False
        if message.method or not message.id or message.id_key() != wanted:
            return False
        exchange.finish(data, is_error=bool(message.error))
        return True

    async def tell(self, message: Message) -> Answer:
        if message.method:
            body = encode_notification(message.method, bytes(message.params))
        else:
            body = encode_response(message.id, message)
        exchange = Exchange(message, self._client, self._upstream.name, self._upstream.config.timeouts)
        try:
            with exchange.scope:
                stats = self._upstream.pool.stats()
                if stats.size >= stats.max and not stats.idle + stats.returning:
                    return await self._tell_beside(exchange, body)
                response = await self._send(exchange, body)
                data = await response.body()
                exchange.end(reusable=True)
                return Answer(status=202) if response.status < 300 else _as_it_came(response, data)
        finally:
            exchange.end(reusable=False)
        raise exchange.timeout_error()

    async def _tell_beside(self, exchange: Exchange, body: bytes) -> Answer:
        """The calls that hold every connection may wait for just this message: it gets one beside the pool."""
        exchange.enter(Phase.CONNECT)
        connection = await self._upstream.connect()
        try:
            exchange.sending()
            response = await connection.send(
                self._upstream.head(b"POST", self._client, self._session_id, len(body)), body
            )
            data = await response.body()
            return Answer(status=202) if response.status < 300 else _as_it_came(response, data)
        finally:
            await _close(connection)

    async def cancel(self, exchange: Exchange, message: Message) -> None:
        exchange.cancel("cancelled by the client")  # at once, however long the server takes to be told
        await self.tell(message)

    async def listen(self, inbox: Inbox, last_event_id: bytes | None) -> Answer:
        extra = b"accept: text/event-stream\r\n"
        if last_event_id:
            extra += b"last-event-id: %b\r\n" % last_event_id
        connection = await self._upstream.connect()
        try:
            timeout = self._upstream.config.timeouts.request_timeout
            with anyio.fail_after(timeout):
                response = await connection.send(
                    self._upstream.head(b"GET", self._client, self._session_id, None, extra), b""
                )
                if response.status == 200 and is_event_stream(find(response.headers, b"content-type")):
                    return Answer(
                        content_type=b"text/event-stream", events=self._listen(connection, response, inbox)
                    )
                answer = _as_it_came(response, await response.body())
        except TimeoutError:
            await _close(connection)
            raise RequestTimeout(
                f"the server '{self._upstream.name}' did not answer a GET within {timeout:g} s (request_timeout); "
                f"raise request_timeout for '{self._upstream.name}', or see why it hangs",
                data={"upstream": self._upstream.name, "phase": "request", "limit_ms": round(timeout * 1000)},
            ) from None
        except BaseException:
            await _close(connection)
            raise
        await _close(connection)
        return answer

    async def _listen(
        self, connection: Http1Connection, response: Response, inbox: Inbox
    ) -> AsyncIterator[bytes]:
        decoder = Decoder(self._upstream.config.max_message_bytes)
        try:
            with contextlib.suppress(UpstreamError, SseError):
                while (chunk := await _next(response, inbox)) != b"":
                    if chunk is None:
                        yield COMMENT_KEEPALIVE
                    else:
                        for event in decoder.feed(chunk):
                            yield encode(event)
        finally:
            await _close(connection)

    async def aclose(self) -> None:
        session_id, self._session_id = self._session_id, b""
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


def _finisher(lease: Lease[Http1Connection], response: Response) -> Callable[[bool], None]:
    return lambda reusable: lease.release(reusable=reusable and response.complete)


def _as_it_came(response: Response, data: bytes) -> Answer:
    kept = [(key, value) for key, value in response.headers if key in RELAYED_HEADERS]
    content_type = find(kept, b"content-type") or b"application/json"
    return Answer(
        status=response.status,
        body=data,
        content_type=content_type,
        headers=[pair for pair in kept if pair[0] != b"content-type"],
    )


async def _next(response: Response, inbox: Inbox) -> bytes | None:
    """The next bytes of a listening stream, None after a nudge of the proxy, b"" when the server or it has ended it."""
    chunk: bytes | None = None
    told: bytes | None = None
    failure: UpstreamError | None = None

    async def watch() -> None:
        nonlocal told
        told = await inbox.get()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            chunk = await response.chunk()
        except UpstreamError as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return told if chunk is None else chunk


async def _close(connection: Http1Connection) -> None:
    with anyio.CancelScope(shield=True):
        await connection.aclose(force=True)
