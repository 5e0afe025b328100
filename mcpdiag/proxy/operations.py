"""The exchange of a request of the stateless era, and what joins those that are legs of one operation.

A server that needs input ends a request with an `input_required` result; the client asks again with the answers and the
server's `requestState` (2026-07-28, basic/patterns/mrtr). The proxy changes nothing of it, but remembers whose state it
was. A result without a state joins nothing.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable

from mcpdiag.protocol.message import Message, members, text_member
from mcpdiag.proxy.session import Session
from mcpdiag.upstream.base import Answer
from mcpdiag.upstream.exchange import Exchange, Phase
from mcpdiag.upstream.learned import METHODS

MAX_OPEN = 10_000  # operations that wait for their next leg; the oldest are forgotten


class Operations:
    """Which operation each request state belongs to."""

    def __init__(self) -> None:
        self._open: dict[bytes, str] = {}

    def of(self, upstream: str, message: Message) -> str:
        """The operation that a request goes on with, or ""."""
        if b"requestState" not in bytes(message.params):
            return ""
        return self._open.get(_key(upstream, text_member(message.params, "requestState")), "")

    def answered(self, upstream: str, operation: str, answer: bytes) -> str:
        """The operation of a request, new if it has none yet and its answer asks for input."""
        if b"input_required" not in answer:
            return operation
        result = members(answer).get("result", b"")
        if text_member(result, "resultType") != "input_required":
            return operation
        operation = operation or secrets.token_hex(8)
        if state := text_member(result, "requestState"):
            self._open[_key(upstream, state)] = operation
            if len(self._open) > MAX_OPEN:
                del self._open[next(iter(self._open))]
        return operation


def _key(upstream: str, state: str) -> bytes:
    return hashlib.blake2b(f"{upstream}\n{state}".encode(errors="replace"), digest_size=16).digest()


class Leg(Exchange):
    """A request of the stateless era. Its answer tells its operation, and perhaps something about the server."""

    __slots__ = ("_learn", "_operations")

    def __init__(
        self, message: Message, session: Session, operations: Operations, clock: Callable[[], float]
    ) -> None:
        upstream = session.upstream
        super().__init__(message, session.client, upstream.name, upstream.config.timeouts, clock)
        self.operation = operations.of(upstream.name, message)
        self._operations = operations
        self._learn = upstream.learned.take if message.method in METHODS else None

    def finish(self, data: bytes, *, is_error: bool) -> None:
        open_until_now = self.final is None and self.error is None
        super().finish(data, is_error=is_error)
        if open_until_now and not is_error:
            self.operation = self._operations.answered(self.upstream, self.operation, data)
            if self._learn is not None:
                self._learn(self.message.method, data)


class Listen(Leg):
    """A `subscriptions/listen`: it has the limits of a call until it is acknowledged, and then none."""

    __slots__ = ("_endless",)

    def __init__(
        self, message: Message, session: Session, operations: Operations, clock: Callable[[], float]
    ) -> None:
        self._endless = False
        super().__init__(message, session, operations, clock)

    def opened(self, answer: Answer) -> None:
        """The server has accepted or refused it."""
        self._endless = answer.events is not None
        if self._endless:
            self.scope.deadline = math.inf

    def _limit(self, phase: Phase, now: float) -> None:
        if not self._endless:
            super()._limit(phase, now)

    def deliver(self, data: bytes) -> bool:
        """False also ends it: nothing else would notice a client that has stopped reading."""
        delivered = super().deliver(data)
        if not delivered:
            self.cancel("the client reads too slowly")
        return delivered
