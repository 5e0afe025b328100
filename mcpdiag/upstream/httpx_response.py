"""The answer to one request through httpx. A task of its connection reads it, ahead of whoever wants it.

httpx gives up a response whose reader was cancelled; here a reader may be cancelled and come again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx

from mcpdiag.errors import UpstreamError
from mcpdiag.upstream.httpx_errors import Trouble

if TYPE_CHECKING:
    from mcpdiag.upstream.httpx_connection import HttpxConnection

BUFFERED_BYTES: Final = 256 * 1024  # of a body that nobody reads
CLOSE_TIMEOUT: Final = 2.0


class HttpxResponse:
    """See `connection/http1.py: Response`."""

    def __init__(self, connection: HttpxConnection, request: httpx.Request) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.keep_alive = False
        self.complete = False
        self.sent = False  # whether any byte of the request may have reached the server
        self.body_bytes = 0
        self.connection = connection
        self._request = request
        self._scope = anyio.CancelScope()
        self._connecting = anyio.CancelScope()
        self._trouble = Trouble(connection.origin, connection.proxy)
        self._error: UpstreamError | None = None
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._room = BUFFERED_BYTES
        self._news = anyio.Event()
        self._taken = anyio.Event()

    def header(self, name: bytes) -> bytes | None:
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def head(self) -> None:
        """Wait for the head of the answer.

        Raises:
            UpstreamError: there is none.
        """
        try:
            while not self.status:
                await self._more()
            size = sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.connection.max_head_bytes:
                raise self.connection.head_too_large()
        except BaseException:
            self._scope.cancel()
            raise

    async def chunk(self) -> bytes:
        while not self._chunks and not self.complete:
            await self._more()
        return self._take()

    async def body(self, heard: Callable[[], None] = lambda: None) -> bytes:
        limit = self.connection.max_body_bytes
        declared = self.declared()
        if not self.complete and (declared or 0) > limit:
            self._scope.cancel()
            raise self.connection.too_large(f"a body of {declared} bytes")
        self._room = limit + 1
        self._taken.set()
        while not self.complete and self.body_bytes <= limit:
            await self._more()
            heard()
        if self.body_bytes > limit:
            self._scope.cancel()
            raise self.connection.too_large("a larger body")
        return self._take()

    def declared(self) -> int | None:
        """What Content-Length promises."""
        length = self.header(b"content-length") or b""
        return int(length) if length.isdigit() else None

    def _take(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._waiting_bytes = 0
        self._taken.set()
        return data

    async def _more(self) -> None:
        """Wait until something has happened."""
        if self._error is not None:
            raise self._error
        self._news = anyio.Event()
        await self._news.wait()

    # -- the task of the connection -------------------------------------------------------------------------

    async def run(self, transport: httpx.AsyncHTTPTransport, connect_timeout: float) -> None:
        """Send the request and read the answer, as far ahead of its reader as `_room` allows."""
        connection = self.connection
        self._request.extensions = {"trace": self._trace}
        try:
            with self._scope:
                await self._run(transport, connect_timeout)
        except Exception as error:  # httpx, and what httpx lets through of h2, h11 and ssl
            self._error = self._trouble.explain(error, self)
        finally:
            if not self.complete and self._error is None:
                self._error = connection.lost("the proxy closed it", self)
            connection.ended(self)
            self._news.set()

    async def _run(self, transport: httpx.AsyncHTTPTransport, connect_timeout: float) -> None:
        self._connecting.deadline = anyio.current_time() + connect_timeout
        with self._connecting:
            response = await transport.handle_async_request(self._request)
        if self._connecting.cancelled_caught:
            self._error = self.connection.too_slow()
            return
        assert isinstance(response.stream, httpx.AsyncByteStream)
        chunks = aiter(response.stream)
        try:
            self._begin(response)
            async for data in chunks:
                self._chunks.append(data)
                self.body_bytes += len(data)
                self._waiting_bytes += len(data)
                self._news.set()
                while self._waiting_bytes > self._room:
                    self._taken = anyio.Event()
                    await self._taken.wait()
        except BaseException:
            await _unwind(chunks)
            raise
        finally:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await response.aclose()
        self.complete = True

    def _begin(self, response: httpx.Response) -> None:
        version = response.extensions.get("http_version", b"")
        self.connection.speaks(version, response.extensions.get("network_stream"))
        self.headers = [(name.lower(), value) for name, value in response.headers.raw]
        options = (self.header(b"connection") or b"").lower()
        self.keep_alive = version == b"HTTP/2" or (
            b"keep-alive" in options if version == b"HTTP/1.0" else b"close" not in options
        )
        if response.status_code == 101:
            raise self._trouble.switching()
        self.status = response.status_code
        self._news.set()

    async def _trace(self, name: str, info: Mapping[str, Any]) -> None:
        """What httpcore tells of its steps (an extension of httpx's requests)."""
        self._trouble.step(name)
        if name.endswith(("connect_tcp.complete", "connect_unix_socket.complete")):
            self.connection.connected(info["return_value"])
        elif name.endswith(("send_request_headers.started", "send_connection_init.started")):
            request = info.get("request")
            if getattr(request, "method", b"") != b"CONNECT":  # that one is the proxy's
                self.sent = True
                self._connecting.deadline = float("inf")

    def __repr__(self) -> str:
        return f"<HttpxResponse {self.status} {self.body_bytes} bytes{'' if self.complete else ' so far'}>"


async def _unwind(chunks: AsyncIterator[bytes]) -> None:
    """End a body before its end. httpx reads it through four generators, which only an exception that is raised in
    the innermost closes all; so they go on until that one has to wait, and is cancelled there.
    """
    with anyio.CancelScope(shield=True) as scope:
        scope.cancel()
        async for _ in chunks:
            pass
