"""When and where an event stream goes on after it broke: the last event id, the delay, what was relayed already.

The policy of every stream in the project, without a clock and without randomness of its own: the caller passes the
time, and the function that draws from a range. `upstream/stream.py` does the I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from mcpdiag.config import ReconnectPolicy

REMEMBERED: Final = 1000  # ids of events already relayed, the newest
_LONG_ID: Final = 64  # bytes; of longer ones a digest is remembered
# 409: the SDKs allow one stream a session, and may not have seen yet that the old one broke.
_FOR_NOW: Final = frozenset({408, 409, 425, 429})
_DOUBLINGS: Final = 60  # enough for any cap, and a float can hold it


@dataclass(frozen=True, slots=True)
class Again:
    """Open the stream again after `delay` seconds. `attempt` counts from 1 since the last message."""

    delay: float
    attempt: int


@dataclass(frozen=True, slots=True)
class Renew:
    """The server does not know the session any more: initialize again, then open the stream from its start."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Do not try again. `gave_up` tells the end of the window from an answer that settles it."""

    reason: str
    gave_up: bool


Verdict = Again | Renew | Stop


class Resume:
    """The state of one stream over all of its connections.

    Args:
        policy: base, cap and window of the delays.
        uniform: draws a float from the range it is given, such as `random.uniform`.

    Attributes:
        last_id: what to send as `Last-Event-ID`; empty if the server has sent no id.
        attempts: how often it was opened again since the last message.
        retry: seconds that the server wants between attempts (its `retry` field).
    """

    __slots__ = (
        "_before",
        "_now",
        "_opened_at",
        "_policy",
        "_renewed",
        "_uniform",
        "_waits_since",
        "attempts",
        "last_id",
        "retry",
    )

    def __init__(self, policy: ReconnectPolicy, uniform: Callable[[float, float], float]) -> None:
        self.last_id = b""
        self.attempts = 0
        self.retry = 0.0
        self._policy = policy
        self._uniform = uniform
        self._now: dict[bytes, None] = {}  # ids that came over this connection, the oldest first
        self._before: dict[bytes, None] = {}  # over earlier ones
        self._opened_at: float | None = None
        self._renewed = False  # and not opened since
        self._waits_since: float | None = None  # the first failure since the last message

    def stagger(self, others: int) -> float:
        """Seconds to wait before the very first connect, if `others` are being opened at the same moment."""
        return self._uniform(0.0, min(self._policy.cap, 0.01 * others))

    def opened(self, now: float) -> None:
        """The server has accepted the stream."""
        self._opened_at = now
        self._renewed = False

    def admit(self, event_id: bytes | None, *, has_message: bool) -> bool:
        """Note an event; False if one with its id was relayed over an earlier connection, so that it is a repeat.

        A server may give one id to several events of a connection; those are different events. A repeat is no
        sign that things go on: a server that ever replays the same and breaks would be asked without end.
        """
        if event_id is not None:
            self.last_id = event_id
            key = event_id if len(event_id) <= _LONG_ID else sha256(event_id).digest()
            if key in self._before:
                return False
            if key and key not in self._now:
                self._now[key] = None
                if len(self._now) > REMEMBERED:
                    del self._now[next(iter(self._now))]
        if has_message:
            self.attempts = 0
            self._waits_since = None
        return True

    def restarted(self) -> None:
        """The session is a new one: the ids of the old one mean nothing."""
        self.last_id = b""
        self._now.clear()
        self._before.clear()

    def failed(
        self, now: float, *, status: int = 0, retry_after: float = 0.0, polled: bool = False
    ) -> Verdict:
        """The stream could not be opened, or has ended.

        Args:
            now: seconds on any steady clock.
            status: the HTTP status that refused it; 0 for a connection that failed, ended or fell silent, and for
                a stream that was open.
            retry_after: seconds of the `Retry-After` header.
            polled: the server ended it in good order, which is no failure if it has said when to come back.
        """
        opened_at, self._opened_at = self._opened_at, None
        if status == 404 and not self._renewed:
            self._renewed = True
            return Renew()
        self._renewed = self._renewed and status == 404
        if status and not (status >= 500 or status in _FOR_NOW):
            return Stop(f"the server answered HTTP {status}", gave_up=False)
        policy = self._policy
        held = opened_at is not None and now - opened_at >= policy.cap
        if held or (polled and self.retry > 0):  # as good as a message
            self.attempts = 0
            self._waits_since = None
        self._before |= self._now
        self._now = {}
        while len(self._before) > REMEMBERED:
            del self._before[next(iter(self._before))]
        if self._waits_since is None:
            self._waits_since = now
        floor = max(self.retry, retry_after)
        left = self._waits_since + policy.window - now
        if left <= 0 or floor > left:
            wants = f", and the server asks for {floor:g} s more" if left > 0 else ""
            return Stop(f"{self.attempts} attempts in {now - self._waits_since:.0f} s{wants}", gave_up=True)
        ceiling = min(policy.cap, policy.base * 2.0 ** min(self.attempts, _DOUBLINGS))
        self.attempts += 1
        return Again(min(floor + self._uniform(0.0, ceiling), left), self.attempts)


def session_is_lost(status: int, body: bytes) -> bool:
    """Whether this answer says that the server does not know the session any more.

    The specification says 404 (2025-11-25, basic/transports, "Session Management" 3). Servers made after an example
    of the official TypeScript SDK say 400 and speak of the session in the error's message.
    """
    return status == 404 or (status == 400 and b"session" in body[:2000].lower())
