"""What an upstream is to the proxy, and the three things that pass between them.

`Exchange` is one request under way, `Client` the session that asks, `Answer` what came back. The proxy makes
the first two and consumes the third; an upstream never looks above this file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum
from time import perf_counter
from typing import Literal, Protocol

import anyio

from mcpdiag.config import PoolMode, Timeouts, UpstreamConfig
from mcpdiag.errors import (
    ConnectTimeout,
    DeadlineExceeded,
    McpDiagError,
    PoolTimeout,
    RequestTimeout,
    ResponseTimeout,
)
from mcpdiag.hooks import Trace
from mcpdiag.pool.stats import PoolStats
from mcpdiag.protocol.message import Message, target_of
from mcpdiag.protocol.sse import Event
from mcpdiag.upstream.learned import Learned
from mcpdiag.upstream.scope import open_scope

TransportName = Literal["stdio", "http", "sse"]  # sse: HTTP+SSE of 2024-11-05
INBOX_MESSAGES = 1000
INBOX_BYTES = 16 * 1024 * 1024
MAX_ASKED = 1000


class Phase(Enum):
    """Where an exchange is; each has its limit in `Timeouts`."""

    QUEUE = "queue"
    CONNECT = "connect"
    REQUEST = "request"
    RESPONSE = "response"


_LIMITS = {
    Phase.QUEUE: ("acquire_timeout", PoolTimeout),
    Phase.CONNECT: ("connect_timeout", ConnectTimeout),
    Phase.REQUEST: ("request_timeout", RequestTimeout),
    Phase.RESPONSE: ("response_timeout", ResponseTimeout),
}


class Inbox:
    """Messages for one stream of one client, bounded. Filled without waiting, read by one task.

    `get` returns a message, and `b""` for ever after `close`.
    """

    __slots__ = ("_bytes", "_event", "_items", "closed")

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._bytes = 0
        self._event: anyio.Event | None = None
        self.closed = False

    def put(self, data: bytes) -> bool:
        """Add a message. False if it is closed, or if the client is too far behind; a single one always has room."""
        if self.closed:
            return False
        if self._items and (len(self._items) >= INBOX_MESSAGES or self._bytes + len(data) > INBOX_BYTES):
            return False
        self._items.append(data)
        self._bytes += len(data)
        self._wake()
        return True

    def drain(self) -> list[bytes]:
        """Everything in it, taken out at once."""
        items = [*self._items]
        self._items.clear()
        self._bytes = 0
        return items

    def close(self) -> None:
        """What is in it can still be read; then reading ends."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()

    async def get(self) -> bytes:
        """The next message, b"" at the end."""
        while True:
            if self._items:
                data = self._items.popleft()
                self._bytes -= len(data)
                return data
            if self.closed:
                return b""
            self._event = anyio.Event()
            await self._event.wait()
            self._event = None


@dataclass(slots=True, eq=False)
class Asked:
    """A request of the server that waits for the client's response."""

    reply: Callable[[bytes], None]  # hands a line to the connection that asked
    owner: object  # the router that asked
    server_id: bytes  # raw, as the server wrote it
    progress_token: bytes = b""


class Client:
    """A client session as its upstream sees it: where to send what belongs to no exchange, and what it was asked."""

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self.authorization = b""  # the client's own, for an HTTP upstream; never recorded
        self.protocol = b""  # its MCP-Protocol-Version header
        self.extra_headers = b""  # lines for the head of each request to an HTTP upstream
        self.capabilities: frozenset[str] = frozenset()
        self.streams: list[Inbox] = []
        self.asked: dict[int, Asked] = {}
        self.pending = Inbox()  # until the client opens a stream
        self._last_id = 0

    @property
    def listening(self) -> bool:
        return bool(self.streams)

    def push(self, data: bytes) -> bool:
        """A message for the newest open stream, else kept until one opens. False if there is no room."""
        return self.streams[-1].put(data) if self.streams else self.pending.put(data)

    def attach(self, inbox: Inbox) -> None:
        """A stream has opened; it gets what has been waiting."""
        for data in self.pending.drain():
            inbox.put(data)
        self.streams.append(inbox)

    def detach(self, inbox: Inbox) -> int:
        """A stream has closed; what it did not send waits for the next one. Returns how many had no room there."""
        if inbox in self.streams:
            self.streams.remove(inbox)
        return sum(not self.push(data) for data in inbox.drain())

    async def listen(self, inbox: Inbox, lost: Callable[[], None]) -> AsyncIterator[Event]:
        """What is pushed from now on, until `inbox` is closed. `lost` is told of each message that was left over."""
        self.attach(inbox)
        try:
            while data := await inbox.get():
                yield Event(data, b"message")
        finally:
            for _ in range(self.detach(inbox)):
                lost()

    def ask(self, asked: Asked) -> int | None:
        """Remember a server request; returns the id under which the client sees it, None if too many are open."""
        if len(self.asked) >= MAX_ASKED:
            return None
        self._last_id += 1
        self.asked[self._last_id] = asked
        return self._last_id

    def forget(self, owner: object) -> list[Asked]:
        """The asker is gone, or no longer wants to know: a response will not reach it. Returns what it had asked."""
        void = {number: asked for number, asked in self.asked.items() if asked.owner is owner}
        for number in void:
            del self.asked[number]
        return [*void.values()]


class Exchange:
    """One JSON-RPC request and everything that comes back for it.

    One cancel scope covers it; its deadline moves with the phase and never beyond the overall deadline.
    Limits are on the event loop's clock, which uvloop advances once a turn and in milliseconds; what is measured
    (`began sent_at first_at`) is on `time.perf_counter`, in seconds.
    """

    __slots__ = (
        "_inbox",
        "attempts",
        "began",
        "bytes_in",
        "cancel_reason",
        "cancelled",
        "client",
        "clock",
        "connect_s",
        "deadline_at",
        "error",
        "final",
        "first_at",
        "limit",
        "message",
        "messages",
        "on_end",
        "operation",
        "outcome",
        "phase",
        "progress_token",
        "queue_s",
        "reused",
        "rewritten_id",
        "scope",
        "sent_at",
        "timeouts",
        "trace",
        "upstream",
    )  # fmt: skip

    def __init__(
        self,
        message: Message,
        client: Client,
        upstream: str,
        timeouts: Timeouts,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        now = clock()
        self.began = perf_counter()
        self.message = message
        self.client = client
        self.upstream = upstream
        self.timeouts = timeouts
        self.clock = clock
        self.deadline_at = now + timeouts.deadline
        # As if sent already: the usual exchange finds a connection at once and so needs one timer.
        self.limit = timeouts.request_timeout
        self.scope = open_scope(min(now + self.limit, self.deadline_at))
        self.phase = Phase.REQUEST
        self._inbox: Inbox | None = None  # most exchanges with an HTTP server need none
        self.final: bytes | None = None
        self.error: McpDiagError | None = None
        self.cancelled = False
        self.cancel_reason = "timed out"
        self.outcome = "ok"
        self.operation = ""  # joins the legs of an input-required operation
        self.trace: Trace | None = None
        self.on_end: Callable[[bool], None] | None = None
        self.rewritten_id = 0
        self.progress_token = b""  # raw, as the client chose it
        self.queue_s = self.connect_s = self.sent_at = self.first_at = 0.0
        self.reused = False
        self.attempts = 1
        self.messages = self.bytes_in = 0

    def enter(self, phase: Phase) -> None:
        """Begin a phase: its limit counts from now."""
        self.phase = phase
        self._limit(phase, self.clock())

    def sending(self) -> None:
        """The request is about to be sent."""
        self.sent_at = perf_counter()
        if self.phase is not Phase.REQUEST:
            self.enter(Phase.REQUEST)

    def note_wait(self, seconds: float, *, reused: bool) -> None:
        """Time spent until there was a connection: in the queue for a used one, connecting for a new one."""
        if reused:
            self.queue_s += seconds
        else:
            self.connect_s += seconds

    def heard(self) -> None:
        """Something of the answer has come: the silence limit starts anew."""
        now = self.clock()
        self.first_at = self.first_at or perf_counter()
        self.phase = Phase.RESPONSE
        self._limit(Phase.RESPONSE, now)

    def _limit(self, phase: Phase, now: float) -> None:
        if (
            phase is Phase.QUEUE
        ):  # the pool keeps acquire_timeout itself: an open may take its own time on top
            self.scope.deadline = self.deadline_at
            return
        limit: float = getattr(self.timeouts, _LIMITS[phase][0])
        self.limit = limit
        self.scope.deadline = min(now + limit, self.deadline_at)

    @property
    def inbox(self) -> Inbox:
        """What has come for it and waits to be sent on; closed once the answer is there."""
        if self._inbox is None:
            self._inbox = Inbox()
            if self.final is not None or self.error is not None:
                self._inbox.close()
        return self._inbox

    # -- called by whoever reads the connection -----------------------------------------------------------

    def deliver(self, data: bytes) -> bool:
        """A message that belongs to this exchange, encoded for the client. False if the client is too far behind."""
        self.messages += 1
        self.heard()
        return self.inbox.put(data)

    def finish(self, data: bytes, *, is_error: bool) -> None:
        """The answer, encoded for the client. Nothing comes after it."""
        if self.final is None and self.error is None:
            self.first_at = self.first_at or perf_counter()
            self.final = data
            self.outcome = "rpc_error" if is_error else "ok"
            if self._inbox is not None:
                self._inbox.close()

    def fail(self, error: McpDiagError) -> None:
        """End without an answer."""
        if self.final is None and self.error is None:
            self.error = error
            if self._inbox is not None:
                self._inbox.close()

    def cancel(self, reason: str) -> None:
        """The client does not want the answer any more."""
        self.cancelled = True
        self.cancel_reason = reason
        self.scope.cancel()

    def again(self) -> None:
        """Forget a failed attempt before the next one; the overall deadline stays."""
        self.end(reusable=False)
        self.attempts += 1
        self.final = self.error = None
        self.first_at = 0.0
        self.enter(Phase.REQUEST)
        self._inbox = None

    def end(self, *, reusable: bool) -> None:
        """Give back whatever the exchange holds. Called once it is over; again does nothing."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(reusable)

    # -- words --------------------------------------------------------------------------------------------

    @property
    def target(self) -> str:
        """The tool, prompt or resource it names; empty for other methods."""
        return target_of(self.message.method, self.message.params)

    def timeout_error(self) -> McpDiagError:
        """The error of the limit that the scope has just met."""
        data: dict[str, object] = {
            "upstream": self.upstream,
            "phase": self.phase.value,
            "elapsed_ms": round((perf_counter() - self.began) * 1000),
        }
        target = self.target
        what = f"{self.message.method} {target!r}" if target else self.message.method
        if self.clock() >= self.deadline_at:
            data["limit_ms"] = round(self.timeouts.deadline * 1000)
            return DeadlineExceeded(
                f"{what} on '{self.upstream}' did not finish within {self.timeouts.deadline:g} s (deadline, in phase "
                f"{self.phase.value}); raise deadline for '{self.upstream}'",
                data=data,
            )
        name, kind = _LIMITS[self.phase]
        data["limit_ms"] = round(self.limit * 1000)
        how = {
            Phase.QUEUE: "got no connection",
            Phase.CONNECT: "was not ready",
            Phase.REQUEST: f"sent nothing in answer to {what}",
            Phase.RESPONSE: f"fell silent inside its answer to {what}, for longer than it may:",
        }[self.phase]
        joint = "" if self.phase is Phase.RESPONSE else "within "
        return kind(
            f"the server '{self.upstream}' {how} {joint}{self.limit:g} s ({name}); raise {name} for "
            f"'{self.upstream}', or see why it hangs",
            data=data,
        )


@dataclass(slots=True)
class Answer:
    """What goes back to the client: a whole JSON body, or a stream of events.

    Of an event the proxy relays data, name and `retry`; its id was for the one who reads the server's stream. An event
    without any field tells that the server has ended the stream for now, and its rest will come later ("polling").
    """

    status: int = 200
    body: bytes = b""
    content_type: bytes = b"application/json"
    events: AsyncIterator[Event] | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class UpstreamSession(Protocol):
    """What one client session has at one upstream."""

    @property
    def holds_connection(self) -> bool:
        """Whether it keeps a connection to itself, which ending it would free."""

    async def exchange(self, exchange: Exchange) -> Answer:
        """Run one request. The caller holds `exchange.scope` and calls `exchange.end` when it is over."""

    async def tell(self, message: Message) -> Answer:
        """Relay a notification of the client, or its response to a request of the server; 202 if accepted."""

    async def cancel(self, exchange: Exchange, message: Message) -> None:
        """The client cancelled an exchange with this notification: stop it here and at the server."""

    async def listen(self, inbox: Inbox) -> Answer:
        """The stream of messages that belong to no exchange, until `inbox` is closed."""

    async def aclose(self) -> None:
        """End the session at the upstream and free what it holds."""


class Upstream(Protocol):
    """A named server."""

    name: str
    transport: TransportName
    mode: PoolMode
    config: UpstreamConfig
    learned: Learned

    def session(self, client: Client) -> UpstreamSession:
        """A client's session here; nothing is opened before its first exchange."""

    def stateless_session(self, client: Client) -> UpstreamSession:
        """What one request of the stateless era has here."""

    def stats(self) -> PoolStats:
        """The pool's numbers."""

    def pids(self) -> list[int]:
        """The processes that were started for it and run now; their descendants are not among them."""

    async def aclose(self, *, drain_timeout: float, force: bool = False) -> None:
        """Close the pool and everything in it."""
