"""HTTP+SSE of 2024-11-05 as a pipe of messages: one event stream brings them, each to the server is a POST.

To everything above it this is what `connection/stdio.py` is. The stream reopens itself (`stream.py`); if it then
names another endpoint, the server's session is gone, and so is this connection.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, Final, cast
from urllib.parse import urljoin

import anyio
from anyio.abc import TaskGroup, TaskStatus

from mcpdiag.config import UpstreamConfig
from mcpdiag.connection.base import HttpResponse
from mcpdiag.connection.dial import Origin
from mcpdiag.errors import McpDiagError, RequestTimeout, UpstreamClosed, UpstreamError, UpstreamProtocolError
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.pool.pool import Clock
from mcpdiag.protocol.headers import is_event_stream
from mcpdiag.protocol.message import Message, MessageError, decode, decode_batch, is_batch
from mcpdiag.upstream.dialer import Dialer, target_of
from mcpdiag.upstream.legacy_outbox import Outbox
from mcpdiag.upstream.stream import EventStream

log = logging.getLogger("mcpdiag.upstream")
WRITE_HIGH_WATER: Final = 1024 * 1024  # bytes on their way to the server before senders have to wait
WRITE_LIMIT: Final = 64 * 1024 * 1024  # with what was posted, before the server is given up
CONFIRM: Final = 0.5  # seconds in which a server that has begun a new session says so on a reopened stream
SHOWN_BYTES: Final = 200


class LegacyConnection:
    """A session at an HTTP+SSE server (`connection/base.py: MessageConnection`).

    `run` owns it from the first GET to the end; everything else is called while it runs.

    Args:
        name: the upstream's name, for messages.
        config: its URL, timeouts and limits.
        dialer: opens its HTTP connections.
        capacity: exchanges it may carry at once.
    """

    def __init__(
        self,
        name: str,
        config: UpstreamConfig,
        dialer: Dialer,
        *,
        capacity: int = 1,
        hook: Hook = NO_HOOK,
        clock: Clock = anyio.current_time,
    ) -> None:
        self.name = name
        self.shown = config.public_url or ""
        self.capacity = capacity
        self.answers = 0
        self.returncode: int | None = None
        self.single_shot = False
        self.stray_events = 0
        self.last_stray = b""
        self.lost = anyio.Event()
        self.closed = anyio.Event()
        self.on_message: Callable[[Message], None] = lambda message: None
        self.on_stray: Callable[[bytes], None] = lambda line: None
        self.on_oversized: Callable[[bytes], None] = lambda head: None  # never: here that ends the stream
        self.on_refused: Callable[[Message, McpDiagError], None] = lambda message, error: None
        self.on_lost: Callable[[], None] = lambda: None
        self._config = config
        self._dialer = dialer
        self._outbox = Outbox(dialer, config.timeouts.deadline, self._refused, self._lose)
        self._stream = EventStream(
            name,
            "sse",
            self._open,
            config.reconnect,
            heard=self._heard,
            max_event_bytes=config.max_message_bytes,
            hook=hook,
            clock=clock,
        )
        self._endpoint = b""  # path and query to post to, once the server has named it
        self._why = ""
        self._tasks: TaskGroup | None = None
        self._reading = anyio.CancelScope()
        self._close_asked = anyio.Event()
        self._opened = anyio.Event()  # the stream is there
        self._steady = anyio.Event()  # and has said something, or nothing for `CONFIRM`

    # -- what the pool asks -------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        return not self.lost.is_set() and not self._close_asked.is_set()

    async def aclose(self, *, force: bool = False) -> None:
        """Let what is on its way arrive, for up to `close_timeout`, then close everything; `force` closes at once.

        Before `run` it returns at once, and `run` then refuses to start.
        """
        if self._tasks is not None and not force:
            with anyio.move_on_after(self._config.close_timeout):
                await self._outbox.drain()
        self._close_asked.set()
        self._reading.cancel()
        if self._tasks is not None:
            await self.closed.wait()

    # -- what the upstream uses ---------------------------------------------------------------------------

    async def send(self, line: bytes) -> None:
        """Hand over one message; waits first while too much is on its way.

        Raises:
            UpstreamClosed: the session is gone. Nothing was sent.
        """
        outbox = self._outbox
        while outbox.bytes > WRITE_HIGH_WATER and self.healthy:
            if outbox.room.is_set():
                outbox.room = anyio.Event()
            await outbox.room.wait()
        if not self.healthy:
            raise self.gone()
        self._post(line)

    def post(self, line: bytes) -> None:
        """Hand over one message without waiting; dropped if the session is gone.

        A server that lets 64 MiB of them wait is given up: its session is lost.
        """
        if not self.healthy:
            return
        if self._outbox.bytes > WRITE_LIMIT:
            self._lose(f"it does not accept what is posted to it, and {self._outbox.bytes} bytes wait")
            return
        self._post(line)

    def _post(self, line: bytes) -> None:
        assert self._tasks is not None
        self._outbox.post(self._tasks, self._endpoint, line)

    @property
    def is_steady(self) -> bool:
        """Whether the stream is open, and of this session still."""
        return self._steady.is_set() and self.healthy

    async def steady(self) -> bool:
        """Wait while the stream is being opened again; False if the session turns out to be gone."""
        while self.healthy and not self._steady.is_set():
            opened, steady = self._opened, self._steady
            await opened.wait()
            with anyio.move_on_after(CONFIRM):
                await steady.wait()
            steady.set()  # of a stream that broke meanwhile there is another event
        return self.healthy

    def gone(self) -> UpstreamClosed:
        """The error that says how the session ended."""
        return UpstreamClosed(self.describe_end(), data=self.error_data())

    def error_data(self) -> dict[str, object]:
        return {"upstream": self.name}

    def describe_end(self) -> str:
        why = self._why or "it was closed"
        return f"the session at the server '{self.name}' ({self.shown}) is gone: {why}{self.evidence()}"

    def evidence(self) -> str:
        """What the server said beside the protocol, as the end of a sentence; empty if nothing."""
        if not self.stray_events:
            return ""
        shown = self.last_stray.decode(errors="replace")
        return f"; {self.stray_events} event(s) of it were not JSON-RPC, the last one: {shown!r}"

    # -- the stream ---------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Open the stream and stay until closed. `task_status` tells that the server has named its endpoint.

        Raises:
            UpstreamError: the stream cannot be opened, or does not begin with an endpoint that may be used.
        """
        failure: UpstreamError | None = None
        try:
            async with anyio.create_task_group() as self._tasks:
                try:
                    with self._reading:
                        await self._read(task_status)
                except UpstreamError as error:
                    failure = error
                    self._lose(error.message)
                if self._endpoint:
                    await self._close_asked.wait()
                self._tasks.cancel_scope.cancel()
        finally:
            self._close_asked.set()
            self._lose("")
            await self._outbox.aclose()
            self.closed.set()
        if not self._endpoint:
            raise failure or self.gone()

    async def _read(self, task_status: TaskStatus[None]) -> None:
        """Take events until the session is gone."""
        async with AsyncExitStack() as stack:
            response = await stack.enter_async_context(self._open(b""))
            if response.status != 200 or not is_event_stream(response.header(b"content-type")):
                raise self._not_legacy(f"answered a GET with HTTP {response.status} and no event stream")
            first = _held(stack.pop_all(), response)
        async with aclosing(cast("Any", self._stream.events(first))) as events:
            async for event in events:
                self._steady.set()
                if event.event == b"endpoint":
                    target = self._target(event.data)
                    if not self._endpoint:
                        self._endpoint = target
                        task_status.started()
                    elif target != self._endpoint:
                        self._lose("its event stream was opened again and names another endpoint")
                        return
                elif not self._endpoint and event.has_data:
                    raise self._not_legacy("began its event stream with something else than an endpoint")
                elif event.data and event.event in {b"", b"message"}:
                    self._received(event.data)

    @asynccontextmanager
    async def _open(self, last_id: bytes) -> AsyncIterator[HttpResponse]:
        """A GET of the stream; leaving the context closes it."""
        extra = b"accept: text/event-stream\r\ncache-control: no-store\r\n"
        if last_id:
            extra += b"last-event-id: %b\r\n" % last_id
        timeout = self._config.timeouts.request_timeout
        connection = await self._dialer.open()
        try:
            with anyio.move_on_after(timeout) as waiting:
                response = await connection.send(self._dialer.head(b"GET", self._dialer.target, extra), b"")
            if waiting.cancelled_caught:
                raise RequestTimeout(
                    f"the server '{self.name}' did not answer a GET within {timeout:g} s (request_timeout)",
                    data={"upstream": self.name, "phase": "request", "limit_ms": round(timeout * 1000)},
                )
            yield response
        finally:
            if self._opened.is_set() and not self.lost.is_set():
                self._opened, self._steady = anyio.Event(), anyio.Event()
            with anyio.CancelScope(shield=True):
                await connection.aclose(force=True)

    def _heard(self) -> None:
        self._opened.set()

    def _target(self, data: bytes) -> bytes:
        """The path and query of the endpoint that the server names.

        Raises:
            UpstreamProtocolError: it is of another origin, or no URL.
        """
        url, ours = urljoin(self._config.url or "", data.decode(errors="replace")), self._dialer.origin
        try:
            origin, target = Origin.from_url(url), target_of(url)
        except ValueError:
            raise self._not_legacy("names an endpoint that is no URL") from None
        if origin != ours:
            raise self._not_legacy(f"names an endpoint at {origin}, and only one at {ours} is safe to use")
        return target

    def _not_legacy(self, what: str) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"the server '{self.name}' ({self.shown}) {what}; check 'url' and 'transport' of '{self.name}'",
            data={"upstream": self.name},
        )

    def _received(self, data: bytes) -> None:
        try:
            messages = decode_batch(data) if is_batch(data) else [decode(data)]
        except MessageError:
            self.stray_events += 1
            self.last_stray = data[:SHOWN_BYTES]
            self.on_stray(self.last_stray)
            return
        for message in messages:
            if not message.method:
                self.answers += 1
            try:
                self.on_message(message)
            except Exception:  # one message that we cannot handle must not end the proxy
                log.exception("a message of '%s' could not be handled", self.name)

    def _refused(self, message: Message, error: McpDiagError) -> None:
        error.data.setdefault("upstream", self.name)
        self.on_refused(message, error)

    def _lose(self, why: str) -> None:
        self._why = self._why or why
        if not self.lost.is_set():
            self.lost.set()
            for waited_for in (self._opened, self._steady, self._outbox.room):
                waited_for.set()
            self.on_lost()

    def __repr__(self) -> str:
        state = "open" if self.healthy else "closed" if self.closed.is_set() else "lost"
        return f"<LegacyConnection '{self.name}' {state}, {self.answers} answers>"


@asynccontextmanager
async def _held(stack: AsyncExitStack, response: HttpResponse) -> AsyncIterator[HttpResponse]:
    """What `stack` closes, as a context of its own."""
    async with stack:
        yield response
