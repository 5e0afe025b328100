"""What the core tells whoever listens: one method, plain records, no dependency on the listener.

The core calls `hook.emit(event)` synchronously on the event loop; a hook must return at once and must not
raise. `samples/recorder` will be the main listener; a log or a test is another.
"""

from __future__ import annotations

from collections.abc import Mapping
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


class _NoHook:
    def emit(self, event: Event, /) -> None:
        return None


class Both:
    """A hook that tells two others, one after the other."""

    def __init__(self, first: Hook, second: Hook) -> None:
        self._first = first.emit
        self._second = second.emit
        self.tracer: Tracer | None = getattr(first, "tracer", None) or getattr(second, "tracer", None)

    def emit(self, event: Event, /) -> None:
        self._first(event)
        self._second(event)


NO_HOOK: Final[Hook] = _NoHook()
