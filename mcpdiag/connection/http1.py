"""One HTTP/1.1 connection: httptools over a non-blocking socket. `upstream/http.py` sends exchanges through it.

The socket is ours, not wrapped in a stream: whatever has not been parsed is then still in the kernel, so that
`healthy` sees every stray byte, and an answer can still be read after a write broke. Nothing here keeps time:
the caller holds one cancel scope around everything. A connection whose exchange was cut short is not reused.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable
from typing import Final

import anyio
import httptools
from anyio import CancelScope, ClosedResourceError, wait_writable

from mcpdiag.connection import dial as dialing
from mcpdiag.connection.dial import Origin, dial, readable, say_goodbye, words
from mcpdiag.connection.http1_response import Head, Reader, Response
from mcpdiag.connection.together import of_this_loop
from mcpdiag.errors import UpstreamClosed, UpstreamError, UpstreamProtocolError
from mcpdiag.protocol.heads import END, NO_BODY, Heads

READ_BYTES: Final = 64 * 1024
# The head and a body up to this size go out in one call. An idle connection takes that much at once, so that
# the answer need not be read at the same time; should it not, the slow way of larger bodies is taken.
JOIN_BYTES: Final = 64 * 1024
KNOWN_BYTES: Final = 2048  # of an answer's head that a connection keeps
# A non-blocking socket has nothing for us at this moment; TLS says it in two more ways.
_NOT_NOW: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Http1Connection:
    """One connection to one origin, one exchange at a time (`connection/base.py: Connection`).

    Attributes:
        capacity: always 1; requests are never pipelined.
        origin: what it is connected to.
        local_port: its own TCP port, to find it in `ss` or in the server's log.
        requests: exchanges begun.
        sent: whether any byte of the current request may have reached the server.
        max_body_bytes: the largest body that `Response.body` collects.
        max_head_bytes: the largest response head, 1xx included, and the largest trailer.
    """

    capacity: int = 1

    def __init__(
        self, origin: Origin, sock: socket.socket, *, max_body_bytes: int, max_head_bytes: int
    ) -> None:
        self.origin = origin
        self.local_port: int = sock.getsockname()[1]
        self.requests = 0
        self.sent = False
        self.max_body_bytes = max_body_bytes
        self.max_head_bytes = max_head_bytes
        self._sock = sock
        self._readable = readable(sock)
        self._socket_recv: Callable[[int], bytes] = sock.recv
        self._socket_send: Callable[[bytes | memoryview], int] = sock.send
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        # Not under TLS, whose own talk looks like a server that speaks before it was asked.
        self._together = None if self._tls is not None else of_this_loop()
        self._waits = False  # a request that will be sent with those of others
        self._left: memoryview | None = None  # what the socket did not take of it
        self._broken: OSError | None = None  # why it took nothing
        # `poll`, because `select` fails on descriptors above 1023. EOF counts as readable.
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        # True only between exchanges that ended well: every other way out leaves it False.
        self._idle = True
        self._unsent = False
        self._received = 0
        self._fruitless = 0
        self._opening = b""
        self._response = Response(self)
        self._reader = Reader(self._response)
        self._heads: Heads[Head] = Heads(KNOWN_BYTES)
        self._left_of_body = 0  # bytes that the parser does not see

    @classmethod
    async def open(
        cls,
        origin: Origin,
        *,
        ssl_context: ssl.SSLContext | None = None,
        max_body_bytes: int = 16 * 1024 * 1024,
        max_head_bytes: int = 64 * 1024,
    ) -> Http1Connection:
        """Connect, and shake hands if the scheme is https.

        Args:
            origin: the server.
            ssl_context: for https; default: the system's certificates. ALPN is set on it to http/1.1.
            max_body_bytes: default 16 MiB (the setting `max_message_bytes` of an upstream).
            max_head_bytes: default 64 KiB.

        Raises:
            ConnectError: the message names host, port, the reason and the remedy.
        """
        sock = await dial(origin, ssl_context)
        return cls(origin, sock, max_body_bytes=max_body_bytes, max_head_bytes=max_head_bytes)

    @property
    def healthy(self) -> bool:
        """Whether it can carry another exchange: the last one ended well and nothing has arrived since."""
        if not self._idle:
            return False
        if self._poll.poll(0) and not (self._tls and self._only_tls_talk()):
            self._idle = False
        return self._idle

    @property
    def single_shot(self) -> bool:
        """Whether the server ended the connection in good order after exactly one exchange."""
        response = self._response
        return self.requests == 1 and response.complete and not response.keep_alive

    async def send(self, head: bytes, body: bytes) -> Response:
        """Send one request; return when the head of its answer is there.

        If the socket takes no more of a large body, the answer is read at the same time. A server that answers
        before it has read everything is heard: the rest of the body is then not sent, and the connection not
        reused.

        Args:
            head: the complete request head with its blank line.
            body: what its Content-Length says; may be empty.

        Raises:
            UpstreamClosed: the server went away. `data["sent"]` is `sent` of that moment and `data["received"]`
                the bytes of the answer that had come: 0 and a request that is safe to repeat permit a retry.
            UpstreamProtocolError: the answer is not HTTP/1.x, switches protocols, or its head is too large.
        """
        self.sent = False
        self._received = self._fruitless = 0
        if not self._idle:
            raise self._lost("it was used again after it had ended")
        self._idle = False
        self.requests += 1
        self._response = response = Response(self)
        self._reader.expect(response, head.startswith(b"HEAD "))
        if len(body) > JOIN_BYTES:
            self.sent = True
            await self._send_and_read(memoryview(head), memoryview(body))
            await self._head()
        elif (together := self._together) is None:
            self._send_now(head + body)
            await self._head()
        else:
            self._waits = True
            if together.users:
                together.add(self._send_now, head + body)
            else:
                self._send_now(head + body)
            together.users += 1
            try:
                await self._head()
            finally:
                together.users -= 1
                self._waits = False
        if self._received > self.max_head_bytes:
            size = sum(len(name) + len(value) + 4 for name, value in response.headers)
            if size > self.max_head_bytes:
                self._idle = False
                raise self._head_too_large()
        return response

    def _send_now(self, data: bytes) -> None:
        """Give a small request to the socket; `_head` looks at what came of it."""
        if self._together is not None:
            if not self._waits or (self._readable.woken and self._poll.poll(0)):
                return  # its caller has gone; or the server has spoken, or left
            self._waits = False
        self.sent = True
        try:
            taken = self._socket_send(data)
        except _NOT_NOW:
            taken = 0
        except OSError as error:
            # Nothing of it went out. Under TLS a whole record may have, in front of the one that failed.
            self.sent = self._tls is not None
            self._broken = error
            self._readable.wake()
            return
        if taken < len(data):
            self._left = memoryview(data)[taken:]
            self._readable.wake()

    async def _head(self) -> None:
        """Wait for the head of the answer, and send what the socket has not taken."""
        response = self._response
        while not response.status:
            if self._broken is not None:
                error, self._broken = self._broken, None
                raise self._lost(f"the server had broken it before ({words(error)})") from error
            if self._left is not None:
                left, self._left = self._left, None
                await self._send_and_read(left)
            else:
                await self._fill()

    async def aclose(self, *, force: bool = False) -> None:
        """Close it. An idle TLS connection says goodbye first, for at most 2 s; with `force` none does.

        Idempotent; a second call with `force` ends a goodbye that still waits. An exchange in flight ends in
        `UpstreamClosed`.
        """
        tls = self._tls if self._idle and not force else None
        self._idle = False
        try:
            if tls is not None:
                with anyio.move_on_after(dialing.GOODBYE_TIMEOUT):
                    await say_goodbye(tls, self._readable)
        finally:
            if self._sock.fileno() != -1:
                self._readable.close()
                anyio.notify_closing(self._sock)
                self._sock.close()

    async def _fill(self) -> None:
        """Wait for bytes and parse them."""
        try:
            await self._readable.wait()
            if self._waits:
                if self._poll.poll(0):
                    raise self._lost("the server spoke or left before it was asked")
                return  # asyncio's own loop may wake for what the last exchange has read
            if self._left is not None or self._broken is not None:
                return
            data = self._socket_recv(READ_BYTES)
        except _NOT_NOW:
            return
        except (ClosedResourceError, ValueError) as error:  # ValueError: closed before this call
            raise self._lost("the proxy closed it") from error
        except OSError as error:
            # RFC 9112, section 9.5: the reset answers what is left of our request, not a lack of theirs.
            self._end(f"the server broke it ({words(error)})", error, lawful=self._unsent)
            return
        if data:
            self._parse(data)
        else:
            self._end("the server closed it", None, lawful=True)

    def _parse(self, data: bytes) -> None:
        reader, response = self._reader, self._response
        if self._left_of_body:
            self._take_body(data)
            return
        if not self._received:
            self._opening = data[:60]
            end = data.find(END) + len(END)
            known = None if reader.head_only else self._heads.get(data[:end])
            if known is not None and known.length >= len(data) - end:
                self._received = end
                response.status, response.headers, response.keep_alive = known.status, known.headers, True
                self._left_of_body = known.length
                self._take_body(data[end:])
                return
        first = not self._received
        self._received += len(data)
        body_bytes = response._body_bytes
        try:
            reader.feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if response.complete:
                reader.stray = True
            elif not reader.switching:
                raise self._not_http(error, data[:60] if response.status else self._opening) from error
        if response.complete:
            self._idle = response.keep_alive and not reader.stray and not self._unsent
            self._readable.settle()
        if first and response.status and response.keep_alive and not reader.head_only and not reader.stray:
            self._remember(data)
        if response.complete:
            pass
        elif not response.status:
            if reader.switching:
                raise UpstreamProtocolError(
                    f"{self.origin} answered 101 Switching Protocols to a plain request; "
                    "check that 'url' names the MCP endpoint and not a WebSocket"
                )
            if self._received > self.max_head_bytes:
                raise self._head_too_large()
        elif response._body_bytes != body_bytes:
            self._fruitless = 0
        else:
            # Trailers and chunk extensions: bytes without a body, which could go on for ever.
            self._fruitless += len(data)
            if self._fruitless > self.max_head_bytes:
                raise self._head_too_large()

    def _take_body(self, data: bytes) -> None:
        """Part of a body whose length alone tells its end."""
        response, left = self._response, self._left_of_body
        if len(data) > left:
            self._reader.stray = True
            data = data[:left]
        if data:
            response._chunks.append(data)
            response._body_bytes += len(data)
        self._received += len(data)
        self._left_of_body = left = left - len(data)
        if not left:
            response.complete = True
            self._idle = not self._reader.stray and not self._unsent
            self._readable.settle()

    def _remember(self, data: bytes) -> None:
        """The next answer may have the same head, byte for byte: then nobody need parse it again."""
        response = self._response
        length = response._declared()
        if (
            length is not None
            and data[9:12] == b"%d" % response.status  # and not the head of a 1xx before it
            and response.status not in NO_BODY
            and response.header(b"transfer-encoding") is None
        ):
            self._heads.keep(data, length, Head(response.status, response.headers, length))

    def _end(self, what: str, error: OSError | None, *, lawful: bool) -> None:
        """The server sends no more: the end of the body if it may be, else an error that says what is missing."""
        response, received = self._response, self._received
        if response.status:
            if lawful and response._ends_with_connection():
                response.complete = True
                return
            declared = response._declared()
            if declared is None:
                what += f" after {response._body_bytes} bytes of an unfinished body"
            else:
                what += f" after {response._body_bytes} of {declared} bytes of the body"
        elif received:
            what += f" after {received} bytes of an unfinished head"
        else:
            what += " without an answer"
        raise self._lost(what) from error

    async def _send_and_read(self, *parts: memoryview) -> None:
        """Send what the socket does not take at once, and read at the same time.

        It ends when all is sent, or when the answer is complete without that. A broken write leaves the reading
        to find out what the server still said.
        """
        self._unsent = True
        failure: UpstreamError | None = None

        async def read(scope: CancelScope) -> None:
            nonlocal failure
            try:
                while not self._response.complete:
                    await self._fill()
                    if self._response._body_bytes > self.max_body_bytes:
                        raise self._too_large("a larger body before it had read the request")
            except UpstreamError as error:
                failure = error
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(read, group.cancel_scope)
            if await self._write(parts):
                self._unsent = False
                group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _write(self, parts: tuple[memoryview, ...]) -> bool:
        """Whether all of it went out."""
        for part in parts:
            rest = part
            while rest:
                try:
                    await wait_writable(self._sock)
                    rest = rest[self._socket_send(rest) :]
                except _NOT_NOW:
                    continue
                except (OSError, ClosedResourceError, ValueError):
                    return False
        return True

    def _only_tls_talk(self) -> bool:
        """Whether the readable bytes were TLS's own (a session ticket follows every handshake), not the server's."""
        try:
            self._socket_recv(1)
        except _NOT_NOW:
            return True
        except OSError:
            pass
        return False

    def _lost(self, what: str) -> UpstreamClosed:
        return UpstreamClosed(
            f"the connection to {self.origin} (exchange {self.requests}, local port {self.local_port}) failed: "
            f"{what}; see the server's log",
            data={"sent": self.sent, "received": self._received},
        )

    def _not_http(self, error: Exception, shown: bytes) -> UpstreamProtocolError:
        hint = (
            "use https:// in 'url'" if shown[:2] == b"\x15\x03" else "check that 'url' names an HTTP server"
        )
        return UpstreamProtocolError(f"{self.origin} does not speak HTTP/1.1 ({error}): {shown!r}; {hint}")

    def _head_too_large(self) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"{self.origin} sent a response head or trailer of more than {self.max_head_bytes} bytes "
            "(max_head_bytes); have the server send fewer or smaller headers"
        )

    def _too_large(self, what: str) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"{self.origin} sent {what}, and {self.max_body_bytes} bytes are allowed; "
            "raise max_message_bytes of this upstream"
        )

    def __repr__(self) -> str:
        state = "closed" if self._sock.fileno() == -1 else "idle" if self._idle else "busy"
        return (
            f"<Http1Connection {self.origin} from port {self.local_port}: {state}, {self.requests} requests>"
        )
