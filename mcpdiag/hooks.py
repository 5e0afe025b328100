"""What the core tells whoever listens: one method, plain records, no dependency on the listener.

The core calls `hook.emit(event)` synchronously on the event loop; a hook must return at once and must not
raise. `samples/recorder` will be the main listener; a log or a test is another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(slots=True)
class ExchangeDone:
    """One JSON-RPC request and everything that came back, told once, at its end.

    Durations are milliseconds on the monotonic clock. `first_ms` is the time from sending the request to
    the first byte or message of the answer; `outcome` is `ok`, `rpc_error` (the server answered with an
    error), `cancelled`, or the `type` of the McpDiagError that ended it.
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


@dataclass(slots=True)
class Happened:
    """Something worth a row that is not an exchange.

    Kinds so far: `child_exit`, `stray_output`, `undelivered`, `single_shot`, `session_end`,
    `connect_failed`, `timeout`, `return_overflow`, `recover`.
    """

    kind: str
    upstream: str
    session: str = ""
    detail: str = ""


Event = ExchangeDone | Happened


class Hook(Protocol):
    """Receives every event. Called on the event loop: return at once, never raise."""

    def emit(self, event: Event, /) -> None: ...


class _NoHook:
    def emit(self, event: Event, /) -> None:
        return None


NO_HOOK: Final[Hook] = _NoHook()
