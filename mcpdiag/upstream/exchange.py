"""`Exchange`: one request under way, with its phases and their limits."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from time import perf_counter

import anyio

from mcpdiag.config import Timeouts
from mcpdiag.errors import (
    ConnectTimeout,
    DeadlineExceeded,
    McpDiagError,
    PoolTimeout,
    RequestTimeout,
    ResponseTimeout,
)
from mcpdiag.hooks import Trace
from mcpdiag.protocol.message import Message, target_of
from mcpdiag.upstream.client import Client, Inbox
from mcpdiag.upstream.scope import open_scope


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
