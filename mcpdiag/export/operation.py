"""An exchange as OpenTelemetry's conventions for MCP see it: attributes, and what took how long. No third party here."""

from __future__ import annotations

from typing import Final, Literal

from mcpdiag.hooks import ExchangeDone
from mcpdiag.samples.interned import OTHER, clean

Transport = Literal["tcp", "pipe"]
UPSTREAM_TRANSPORT: Final[dict[str, Transport]] = {"stdio": "pipe", "http": "tcp", "sse": "tcp"}
# It ended without a connection, so its time in the queue is not in the record.
_NO_CONNECTION = frozenset({"pool_timeout", "pool_queue_full", "too_many_sessions", "shutting_down"})


class Capped(dict[str, str]):
    """Texts that clients choose, of which the first `limit` are themselves and all later ones `(other)`.

    `capped[text]` adds a new one.
    """

    def __init__(self, limit: int) -> None:
        super().__init__({"": "", OTHER: OTHER})
        self._limit = limit

    def __missing__(self, text: str) -> str:
        known = clean(text)
        if known not in self:
            if len(self) >= self._limit + 2:
                return OTHER
            self[known] = known
        return self[known]


class Names:
    """The bounded labels of one exporter."""

    def __init__(self, *, targets: int = 1000, methods: int = 100) -> None:
        self.methods = Capped(methods)
        self.tools = Capped(targets)
        self.prompts = Capped(targets)
        self.outcomes = Capped(100)
        self.revisions = Capped(50)

    def operation(self, done: ExchangeDone, transport: Transport) -> tuple[str, ...]:
        """The values of `catalog.OPERATION`."""
        method = done.method
        return (
            done.upstream,
            self.methods[method],
            self.tools[done.target] if method == "tools/call" else "",
            self.prompts[done.target] if method == "prompts/get" else "",
            self.outcomes[error_type(done)],
            transport,
            self.revisions[done.protocol],
        )


def error_type(done: ExchangeDone) -> str:
    """`error.type`, empty if it went well."""
    return "" if done.outcome == "ok" else done.outcome


def client_ms(done: ExchangeDone) -> float | None:
    """From sending to the end of the answer, in milliseconds; None if it was never sent."""
    return max(done.total_ms - done.sent_ms, 0.0) if done.sent_ms > 0 else None


def waited(done: ExchangeDone) -> bool:
    """Whether `queue_ms` says how long it waited: it does of those that got a connection."""
    return done.outcome not in _NO_CONNECTION
