"""What a connection is to the pool: a state, a capacity, and a few questions.

The rule: `OPENING -> IDLE -> BUSY -> RETURNING -> IDLE`, and out of each `-> CLOSING -> CLOSED`. The table below is
the whole truth; the pool's ledger moves a connection only through `move`, and an illegal move raises.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

import anyio
from anyio.abc import TaskStatus

from mcpdiag.errors import UpstreamClosed
from mcpdiag.protocol.message import Message


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


class HttpResponse(Protocol):
    """The answer to one request. Its head is there; the body is read with `chunk` or `body`, once."""

    status: int
    headers: list[tuple[bytes, bytes]]

    @property
    def complete(self) -> bool:
        """Whether the last byte of the body has arrived."""

    @property
    def keep_alive(self) -> bool:
        """Whether the server lets the connection be used again."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its name in lower case."""

    async def chunk(self) -> bytes:
        """The next bytes of the body; `b""` at the end. A cancelled call loses nothing."""

    async def body(self, heard: Callable[[], None] = lambda: None) -> bytes:
        """All of the body that `chunk` has not given out yet; `heard` is called each time that more has arrived."""


class HttpConnection(Connection, Protocol):
    """A connection to an HTTP server: `connection/http1.py`, or `upstream/httpx_connection.py`."""

    @property
    def sent(self) -> bool:
        """Whether any byte of the request that failed last may have reached the server."""

    async def send(self, head: bytes, body: bytes) -> HttpResponse:
        """Send one request; return when the head of its answer is there."""


class MessageConnection(Connection, Protocol):
    """A connection that carries messages both ways: `connection/stdio.py`, or `upstream/legacy_connection.py`.

    Attributes:
        name: the upstream's.
        shown: its command or URL, for messages.
        answers: responses received.
        returncode: of a process that has exited.
        single_shot: the upstream sets it.
        lost: set once nothing more will come.
        on_message, on_stray, on_oversized, on_lost: see `StdioConnection`.
    """

    name: str
    shown: str
    answers: int
    returncode: int | None
    single_shot: bool
    lost: anyio.Event
    on_message: Callable[[Message], None]
    on_stray: Callable[[bytes], None]
    on_oversized: Callable[[bytes], None]
    on_lost: Callable[[], None]

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Open it and stay until it is closed; `task_status` tells that it is open."""

    async def send(self, line: bytes) -> None:
        """Hand over one message; waits first while too much is on its way. Raises `UpstreamClosed` if it is lost."""

    def post(self, line: bytes) -> None:
        """Hand over one message without waiting; dropped if the connection is lost."""

    def gone(self) -> UpstreamClosed:
        """The error that says how it ended."""

    def describe_end(self) -> str:
        """How it ended, as one line."""

    def evidence(self) -> str:
        """What the server left behind, as the end of a sentence."""

    def error_data(self) -> dict[str, object]:
        """Members for an error's `data`."""
