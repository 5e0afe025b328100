"""What the core tells whoever listens: plain records, no dependency on the listener.

The core calls `hook.emit(event)` synchronously on the event loop; a hook must return at once and must not raise.
`samples/recorder` is the main listener, and a `FastHook`; a log or a test is another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec


class Trace(Protocol):
    """The place of one exchange in a distributed trace. `carrier` is what its server gets in `_meta`."""

    @property
    def carrier(self) -> Mapping[str, str]: ...


class Tracer(Protocol):
    """What a hook that traces has as its attribute `tracer`. Called on the event loop, before anything is sent."""

    def begin(self, method: str, request_id: str, carrier: Mapping[str, str], /) -> Trace:
        """An exchange begins; `carrier` holds `traceparent` and `tracestate` of its request, if there are any."""


class ExchangeDone(msgspec.Struct, frozen=True, gc=False):
    """One JSON-RPC request and everything that came back, told once, at its end.

    Durations are milliseconds on the monotonic clock. `first_ms` is the time from sending the request to
    the first byte or message of the answer; `outcome` is `ok`, `rpc_error` (the server answered with an
    error), `cancelled`, or the `type` of the McpDiagError that ended it. `session` is empty for a request of the
    stateless era. `operation` joins the requests of one operation that the server interrupted to ask for input
    (2026-07-28, `input_required`): all legs have the same id, the first one too; it is empty for all others.
    `sent_ms` is the time until the request was sent (of several attempts the last), 0 if it never was. `trace` is what
    the hook's own `tracer` gave, if it has one.
    """

    upstream: str
    transport: str
    method: str
    target: str
    session: str
    protocol: str
    outcome: str
    queue_ms: float = 0.0
    connect_ms: float = 0.0
    first_ms: float = 0.0
    total_ms: float = 0.0
    reused: bool = False
    attempts: int = 1
    messages: int = 0
    inflight: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    operation: str = ""
    sent_ms: float = 0.0
    trace: Trace | None = None


Ended = tuple[
    str, str, str, str, str, str, str, float, float, float, float, float, float, bool, int, int, int, int, int, str,
    Trace | None,
]  # fmt: skip
"""An exchange as the core has it: the fields of `ExchangeDone` from `upstream` to `outcome`; when it `began`, was
`sent`, had its `first` byte and ended, on `time.perf_counter` (0: never), and how long it waited for a connection and
for opening one, all in seconds; then `reused` to `bytes_out`, `operation` and `trace`."""


def exchange_done(ended: Ended) -> ExchangeDone:
    """The same for who reads it."""
    (
        upstream, transport, method, target, session, protocol, outcome, began, sent, first, now, queue_s, connect_s,
        reused, attempts, messages, inflight, bytes_in, bytes_out, operation, trace,
    ) = ended  # fmt: skip
    # By position, in the order of the fields: by name, making one takes many times as long.
    return ExchangeDone(
        upstream, transport, method, target, session, protocol, outcome, queue_s * 1000, connect_s * 1000,
        (first - sent) * 1000 if 0 < sent < first else 0.0, (now - began) * 1000, reused, attempts, messages,
        inflight, bytes_in, bytes_out, operation, (sent - began) * 1000 if sent else 0.0, trace,
    )  # fmt: skip


@dataclass(slots=True)
class Happened:
    """Something worth a row that is not an exchange.

    Kinds so far: `child_exit`, `stray_output`, `undelivered`, `single_shot`, `session_end`,
    `connect_failed`, `timeout`, `return_overflow`, `recover`; `session_lost` and `transport` of HTTP+SSE servers;
    `reconnect_attempt`, `reconnect_ok` and `reconnect_gave_up` of event streams, with the number of the attempt since
    the last message and, for the first of them, the delay before it in milliseconds; `heap_window`, whose detail is
    `open NAME`, `close NAME: SECONDS` or `skip NAME: REASON`.
    """

    kind: str
    upstream: str
    session: str = ""
    detail: str = ""
    attempt: int = 0
    delay_ms: float = 0.0


Event = ExchangeDone | Happened


class Hook(Protocol):
    """Receives every event. Called on the event loop: return at once, never raise."""

    def emit(self, event: Event, /) -> None: ...


class FastHook(Hook, Protocol):
    """A hook that takes exchanges as the core has them, as the recorder does; `emit` hears of everything else."""

    def ended(self, ended: Ended, /) -> None: ...


def teller(hook: Hook) -> Callable[[Ended], None]:
    """What tells a hook of an exchange."""
    fast: Callable[[Ended], None] | None = getattr(hook, "ended", None)
    return (lambda ended: hook.emit(exchange_done(ended))) if fast is None else fast


class _NoHook:
    def emit(self, event: Event, /) -> None:
        return None


class All:
    """A hook that tells others, one after the other."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._emits = [hook.emit for hook in hooks]
        self._fast = [teller(hook) for hook in hooks if hasattr(hook, "ended")]
        self._slow = [hook.emit for hook in hooks if not hasattr(hook, "ended")]
        self.tracer: Tracer | None = next(
            filter(None, (getattr(hook, "tracer", None) for hook in hooks)), None
        )

    def emit(self, event: Event, /) -> None:
        for emit in self._emits:
            emit(event)

    def ended(self, ended: Ended, /) -> None:
        for tell in self._fast:
            tell(ended)
        if self._slow:
            done = exchange_done(ended)  # one for all of them
            for emit in self._slow:
                emit(done)


NO_HOOK: Final[Hook] = _NoHook()
