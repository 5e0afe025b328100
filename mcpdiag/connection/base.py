"""What a connection is to the pool: a state, a capacity, and a few questions.

The rule: `OPENING -> IDLE -> BUSY -> RETURNING -> IDLE`, and out of each `-> CLOSING -> CLOSED`. The table below is
the whole truth; the pool's ledger moves a connection only through `move`, and an illegal move raises.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Protocol


class ConnectionState(Enum):
    OPENING = "opening"
    IDLE = "idle"
    BUSY = "busy"
    RETURNING = "returning"
    CLOSING = "closing"
    CLOSED = "closed"

    __hash__ = (
        object.__hash__
    )  # members are single objects; Enum's own hash is Python code, here on the hot path


TRANSITIONS: Final[dict[ConnectionState, frozenset[ConnectionState]]] = {
    ConnectionState.OPENING: frozenset(
        {ConnectionState.IDLE, ConnectionState.CLOSING, ConnectionState.CLOSED}
    ),
    ConnectionState.IDLE: frozenset({ConnectionState.BUSY, ConnectionState.CLOSING}),
    ConnectionState.BUSY: frozenset({ConnectionState.RETURNING, ConnectionState.CLOSING}),
    ConnectionState.RETURNING: frozenset({ConnectionState.IDLE, ConnectionState.CLOSING}),
    ConnectionState.CLOSING: frozenset({ConnectionState.CLOSED}),
    ConnectionState.CLOSED: frozenset(),
}


class IllegalTransition(AssertionError):
    """A connection was moved between two states that the table does not join: a bug of ours."""


def move(old: ConnectionState, new: ConnectionState) -> ConnectionState:
    """`new`, if the table allows it after `old`.

    Raises:
        IllegalTransition: it does not.
    """
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(f"{old.value} -> {new.value}")
    return new


class Connection(Protocol):
    """One live link to one server. The pool asks these questions and never looks at the class."""

    @property
    def capacity(self) -> int:
        """How many exchanges it carries at once (1, or more for `multiplex`)."""

    @property
    def healthy(self) -> bool:
        """Whether it can carry another exchange. Cheap, synchronous, true to this moment."""

    @property
    def single_shot(self) -> bool:
        """Whether it ended by itself, in good order, after a single exchange."""

    async def aclose(self, *, force: bool = False) -> None:
        """Close it: nicely, or at once with `force`. Bounded in time, idempotent, shielded by the caller."""
