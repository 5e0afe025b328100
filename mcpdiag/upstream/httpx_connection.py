"""A connection to an HTTP server through httpx: for HTTP/2 and forward proxies. What `Http1Connection` is otherwise.

Each has a transport of its own that may open one connection, so that the pool still bounds and counts them all. httpx
connects with the first request, so the time of connecting is part of that. What a request brings is read by a task
of its own (`httpx_response.py`).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import anyio
import httpx
from anyio.abc import TaskGroup, TaskStatus

from mcpdiag.connection.dial import Origin
from mcpdiag.errors import ConnectTimeout, UpstreamClosed, UpstreamProtocolError
from mcpdiag.upstream.httpx_response import CLOSE_TIMEOUT, HttpxResponse

STREAMS: Final = 100  # exchanges that share a connection of HTTP/2
_LIMITS: Final = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)
# These write headers, and with them credentials, into the log at the level DEBUG.
_TALKATIVE: Final = ("httpcore", "h2", "hpack")


class HttpxConnection:
    """One connection to one origin (`connection/base.py: HttpConnection`). Attributes as those of `Http1Connection`."""

    def __init__(
        self,
        origin: Origin,
        transport: httpx.AsyncHTTPTransport,
        *,
        proxy: httpx.URL | None,
        connect_timeout: float,
        too_slow: Callable[[], ConnectTimeout],
        max_body_bytes: int,
        max_head_bytes: int,
    ) -> None:
        self.origin = origin
        self.proxy = None if proxy is None else Origin(proxy.scheme, proxy.host, proxy.port or 0)
        self.local_port = 0
        self.requests = 0
        self.sent = False
        self.too_slow = too_slow
        self.max_body_bytes = max_body_bytes
        self.max_head_bytes = max_head_bytes
        self._transport = transport
        self._connect_timeout = connect_timeout
        self._url = partial(httpx.URL, scheme=origin.scheme, host=origin.host, port=origin.port)
        self._stream: Any = None
        self._http2 = False
        self._dead = False
        self._running: set[HttpxResponse] = set()
        self._last: HttpxResponse | None = None
        self._tasks: TaskGroup | None = None
        self._close_asked = anyio.Event()
        self._closed = anyio.Event()

    @classmethod
    async def open(
        cls,
        tasks: TaskGroup,
        origin: Origin,
        *,
        ssl_context: ssl.SSLContext | None = None,
        http2: bool = False,
        proxy: str | None = None,
        connect_timeout: float = 10.0,
        too_slow: Callable[[], ConnectTimeout] = lambda: ConnectTimeout("the server did not accept in time"),
        max_body_bytes: int = 16 * 1024 * 1024,
        max_head_bytes: int = 64 * 1024,
    ) -> HttpxConnection:
        """A connection that connects with its first request.

        Args:
            tasks: owns the connection's task until `aclose`.
            origin: the server.
            ssl_context: for https; default: the system's certificates. ALPN is set on it.
            http2: whether to offer HTTP/2 in TLS.
            proxy: URL of a forward proxy, with user and password if it wants them.
            connect_timeout: seconds until the first request can be sent, through the proxy and TLS.
            too_slow: makes the error for a connect that took longer.
        """
        for name in _TALKATIVE:
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(logging.WARNING)
        through = None if proxy is None else httpx.Proxy(proxy)
        transport = httpx.AsyncHTTPTransport(
            verify=ssl_context or False, http2=http2, limits=_LIMITS, proxy=through
        )
        connection = cls(
            origin,
            transport,
            proxy=None if through is None else through.url,
            connect_timeout=connect_timeout,
            too_slow=too_slow,
            max_body_bytes=max_body_bytes,
            max_head_bytes=max_head_bytes,
        )
        await tasks.start(connection.run)
        return connection

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Stay until closed."""
        try:
            async with anyio.create_task_group() as self._tasks:
                task_status.started()
                await self._close_asked.wait()
                self._tasks.cancel_scope.cancel()
        finally:
            self._dead = True
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await self._transport.aclose()
            self._closed.set()

    # -- what the pool asks ---------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """1 until the server has been seen to speak HTTP/2."""
        return STREAMS if self._http2 else 1

    @property
    def healthy(self) -> bool:
        """Whether it can carry another exchange. One that is idle and has something to read is on its way out."""
        if self._dead or self._close_asked.is_set():
            return False
        if self._running:
            return self._http2
        try:
            return self._stream is None or not self._stream.get_extra_info("is_readable")
        except ValueError:  # trio's answer where httpx has closed it already
            return False

    @property
    def single_shot(self) -> bool:
        """Whether the server ended the connection in good order after exactly one exchange."""
        last = self._last
        return self.requests == 1 and last is not None and last.complete and not last.keep_alive

    async def aclose(self, *, force: bool = False) -> None:
        """Close it; exchanges in flight end in `UpstreamClosed`. Idempotent."""
        self._close_asked.set()
        await self._closed.wait()

    # -- what the upstream uses -----------------------------------------------------------------------------

    async def send(self, head: bytes, body: bytes) -> HttpxResponse:
        """Send one request; return when the head of its answer is there. See `Http1Connection.send`.

        Raises:
            ConnectError, ConnectTimeout: it was the first, and there was no way to the server.
            UpstreamClosed: the server went away, with `sent` and `received` in its data.
            UpstreamProtocolError: the answer is not HTTP, switches protocols, or its head is too large.
        """
        self.sent = False
        if self._dead or self._close_asked.is_set() or (self._running and not self._http2):
            raise self.lost("it was used again after it had ended")
        assert self._tasks is not None
        self.requests += 1
        response = self._last = HttpxResponse(self, self._request(head, body))
        self._running.add(response)
        self._tasks.start_soon(response.run, self._transport, self._connect_timeout)
        try:
            await response.head()
        finally:
            self.sent = response.sent
        return response

    def _request(self, head: bytes, body: bytes) -> httpx.Request:
        first, *lines = head.rstrip(b"\r\n").split(b"\r\n")
        method, target, _ = first.split(b" ", 2)
        headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        return httpx.Request(method.decode(), self._url(raw_path=target), headers=headers, content=body)

    # -- what its responses tell ----------------------------------------------------------------------------

    def connected(self, stream: Any) -> None:
        address = stream.get_extra_info("client_addr")
        self.local_port = address[1] if isinstance(address, tuple) else 0

    def speaks(self, version: bytes, stream: Any) -> None:
        self._http2 = version == b"HTTP/2"
        self._stream = stream

    def ended(self, response: HttpxResponse) -> None:
        self._running.discard(response)
        # Also of HTTP/2: a request that was given up may have been cut in the middle of a frame, which the
        # others on the connection survive, but not the tables of its header compression.
        if not response.complete or not response.keep_alive:
            self._dead = True

    # -- words ----------------------------------------------------------------------------------------------

    def lost(self, what: str, response: HttpxResponse | None = None) -> UpstreamClosed:
        sent, received = (False, 0) if response is None else (response.sent, response.body_bytes)
        if response is not None and response.status:
            received += sum(len(name) + len(value) + 4 for name, value in response.headers)
        return UpstreamClosed(
            f"the connection to {self.origin} (exchange {self.requests}, local port {self.local_port}) failed: "
            f"{what}; see the server's log",
            data={"sent": sent, "received": received},
        )

    def head_too_large(self) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"{self.origin} sent a response head or trailer of more than {self.max_head_bytes} bytes "
            "(max_head_bytes); have the server send fewer or smaller headers"
        )

    def too_large(self, what: str) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"{self.origin} sent {what}, and {self.max_body_bytes} bytes are allowed; "
            "raise max_message_bytes of this upstream"
        )

    def __repr__(self) -> str:
        state = "closed" if self._dead else "busy" if self._running else "idle"
        return (
            f"<HttpxConnection {self.origin} from port {self.local_port}: {state}, {self.requests} requests>"
        )
