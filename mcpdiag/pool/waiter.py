"""One queued request for a connection. It *accepts* an offer, so a cancelled caller never swallows one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

if TYPE_CHECKING:
    from mcpdiag.connection.base import Connection
    from mcpdiag.pool.ledger import Slot

C = TypeVar("C", bound="Connection")


class Waiter(Generic[C]):
    """Waits for a slot or an error, whichever is set first.

    `offer` and `fail` say whether they were taken: after the caller has left, or was served, they are not, and
    the offerer keeps what it holds.

    Args:
        started_at: when the caller arrived.
        limit: seconds that it waits.
        open_limit: seconds that it waits in addition once a connection is being opened for it.
        exclusive: it wants a connection that nobody shares.
    """

    __slots__ = (
        "_event",
        "_left",
        "_open_limit",
        "_scope",
        "error",
        "exclusive",
        "limit",
        "opening",
        "slot",
        "started_at",
    )

    def __init__(
        self, started_at: float, limit: float = 0.0, *, open_limit: float = 0.0, exclusive: bool = False
    ) -> None:
        self.started_at = started_at
        self.limit = limit
        self.exclusive = exclusive
        self.opening = False  # whether an open on this caller's behalf is under way
        self.slot: Slot[C] | None = None
        self.error: Exception | None = None
        self._open_limit = open_limit
        self._left = False
        self._event = anyio.Event()
        self._scope: anyio.CancelScope | None = None

    @property
    def pending(self) -> bool:
        return not (self._left or self.slot is not None or self.error is not None)

    def offer(self, slot: Slot[C]) -> bool:
        """Give it the slot. False if it no longer wants one."""
        if not self.pending:
            return False
        self.slot = slot
        self._event.set()
        return True

    def fail(self, error: Exception) -> bool:
        """Wake it with an error. False if it no longer waits."""
        if not self.pending:
            return False
        self.error = error
        self._event.set()
        return True

    def leave(self) -> None:
        """The caller is going: from here on every offer is refused."""
        self._left = True

    def expect_open(self) -> None:
        """An open on this caller's behalf begins: it may take its own time, once."""
        self.opening = True
        extra, self._open_limit = self._open_limit, 0.0
        self.limit += extra
        if self._scope is not None:
            self._scope.deadline += extra

    async def wait(self) -> bool:
        """True once served or failed, False after `limit` seconds; then the waiter has left.

        An offer that arrives in the same turn as the timeout wins: the connection is not wasted.
        """
        with anyio.move_on_after(self.limit) as self._scope:
            await self._event.wait()
        if self.pending:
            self.leave()
            return False
        return True
