"""A session over Streamable HTTP on a blocking socket, for load tools with green threads, such as Locust.

It sends the same bytes as the generator's own sessions (`wire.py`) and judges answers as they do. Nothing of anyio
or asyncio: what gevent has patched works.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from time import monotonic, perf_counter_ns

from mcpdiag.bench import columns, wire
from mcpdiag.bench.session import SessionError, hear
from mcpdiag.bench.spec import Call
from mcpdiag.protocol.revisions import LATEST_HANDSHAKE, LATEST_STATELESS, Era
from mcpdiag.protocol.sse import Decoder, SseError

MAX_EVENT_BYTES = 16 * 1024 * 1024
CHUNK = 65536
DRAIN_S = 1.0  # for the end of a stream after its answer
_BROKEN = (OSError, HTTPException, SseError)


class BlockingSession:
    """One client session; one call at a time.

    Args:
        url: the endpoint.
        calls: what `call` can make, by number.
        headers: sent with every request.
        era: what is spoken.
        timeout_s: a call without an answer for so long has failed.

    Attributes:
        served: calls since it was opened.
        error: what went wrong with the last call, in one line.
        size: bytes of the last result.
        done_ns: when the last call's answer was there, or it failed (`perf_counter_ns`).
    """

    def __init__(
        self,
        url: str,
        *,
        calls: Sequence[Call],
        headers: Mapping[str, str] | None = None,
        era: Era = "handshake",
        timeout_s: float = 30.0,
    ) -> None:
        version = LATEST_STATELESS if era == "stateless" else LATEST_HANDSHAKE
        self._head = wire.Head(url, headers or {}, era, version)
        self._calls, self._era, self._version, self._timeout_s = calls, era, version, timeout_s
        self._socket: socket.socket | None = None
        self._halves: list[wire.Halves] = []
        self._session = b""
        self._number = wire.FIRST_ID
        self._ready = False
        self.served = self.size = self.done_ns = 0
        self.error = ""

    @property
    def usable(self) -> bool:
        """Whether it is open; if not, `open` makes it so."""
        return self._ready

    def open(self) -> None:
        """Shake hands where the era has that.

        Raises:
            SessionError: the server cannot be reached, or refuses.
        """
        self._drop()
        self._session, self._ready, self.served = b"", False, 0
        if self._era == "handshake":
            method, params = wire.initialize(self._version)
            if self._exchange(self._head.request(method, params, b"")) != columns.OK:
                raise SessionError(self.error)
            if self._send(self._head.notification(self._session)) != columns.OK:
                raise SessionError(self.error)
        self._halves = [
            self._head.request(call.method, call.params, self._session, call.headers) for call in self._calls
        ]
        self._ready = True

    def call(self, number: int) -> int:
        """Make one of the calls; its outcome (`columns.OUTCOMES`)."""
        self.served += 1
        return self._exchange(self._halves[number])

    def close(self) -> None:
        """End the session; never raises."""
        if self._session and self._ready and self._socket is not None:
            self._send(self._head.without_body("DELETE", self._session))
        self._ready = False
        self._drop()

    # -- on the socket -------------------------------------------------------------------------------------------

    def _exchange(self, halves: wire.Halves) -> int:
        """A request; its outcome."""
        before, after = halves
        self._number += 1
        self.error, self.size = "", 0
        end = monotonic() + self._timeout_s
        try:
            response = self._response(b"%b%d%b" % (before, self._number, after), end)
            heard = self._answer(response, end)
        except TimeoutError:
            return self._failed(columns.TIMEOUT, f"no answer within {self._timeout_s:g} s")
        except SessionError as error:
            return self._failed(columns.CONNECT, str(error))
        except _BROKEN as error:
            return self._failed(columns.CLOSED, f"the connection broke: {error or 'end of file'}")
        except BaseException:  # a green thread is stopped in the middle of a call
            self._drop()
            raise
        if heard is None:
            self.done_ns = perf_counter_ns()
            kind = columns.HTTP_ERROR if response.status >= 300 else columns.PROTOCOL
            self.error = f"HTTP status {response.status} and no answer"
            if response.status == 404:  # the server does not know the session any more
                self._ready = False
            return kind
        outcome, self.error, result = heard
        self.size = len(result)
        if response.headers.get("mcp-session-id"):
            self._session = response.headers["mcp-session-id"].encode()
        return outcome

    def _send(self, data: bytes) -> int:
        """Something whose answer has no message; its status does not matter."""
        try:
            response = self._response(
                data, monotonic() + self._timeout_s, method=data.split(b" ", 1)[0].decode()
            )
            response.read()
            self._after(response)
        except TimeoutError:
            return self._failed(columns.TIMEOUT, f"no answer within {self._timeout_s:g} s")
        except SessionError as error:
            return self._failed(columns.CONNECT, str(error))
        except _BROKEN as error:
            return self._failed(columns.CLOSED, f"the connection broke: {error or 'end of file'}")
        return columns.OK

    def _failed(self, outcome: int, error: str) -> int:
        self._drop()
        self.done_ns, self.error = perf_counter_ns(), error
        return outcome

    def _response(self, data: bytes, end: float, method: str = "POST") -> HTTPResponse:
        connection = self._socket if self._socket is not None else self._connect()
        connection.settimeout(max(end - monotonic(), 0.001))
        connection.sendall(data)
        response = HTTPResponse(connection, method=method)
        response.begin()
        return response

    def _answer(self, response: HTTPResponse, end: float) -> tuple[int, str, bytes] | None:
        """What the response says of the request, once it has ended; None if nothing."""
        if not (response.headers.get("content-type") or "").startswith("text/event-stream"):
            body = response.read()
            self.done_ns = perf_counter_ns()
            self._after(response)
            return hear(body, self._number) if body else None
        decoder, heard = Decoder(MAX_EVENT_BYTES), None
        while chunk := response.read1(CHUNK):
            for event in decoder.feed(chunk):
                if event.data and heard is None:
                    heard = hear(event.data, self._number)
                    self.done_ns = perf_counter_ns()
            if heard is not None:
                self._end(response)
                return heard
            if self._socket is not None:
                self._socket.settimeout(max(end - monotonic(), 0.001))
        self._after(response)
        return heard

    def _end(self, response: HTTPResponse) -> None:
        """A stream ends soon after its answer; the connection of one that does not is of no more use."""
        assert self._socket is not None
        self._socket.settimeout(DRAIN_S)
        with contextlib.suppress(*_BROKEN):
            if not response.read1(CHUNK):
                self._after(response)
                return
        response.close()
        self._drop()

    def _after(self, response: HTTPResponse) -> None:
        if response.will_close:
            self._drop()

    def _connect(self) -> socket.socket:
        head = self._head
        where = f"{head.host}:{head.port}"
        try:
            connection = socket.create_connection((head.host, head.port), timeout=self._timeout_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if head.tls:
                connection = ssl.create_default_context().wrap_socket(connection, server_hostname=head.host)
        except TimeoutError:
            raise SessionError(f"no connection to {where} within {self._timeout_s:g} s") from None
        except OSError as error:
            raise SessionError(f"no connection to {where}: {error.strerror or error}") from None
        self._socket = connection
        return connection

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
