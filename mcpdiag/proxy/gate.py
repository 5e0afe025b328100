"""Whether the proxy still admits calls, and when the last one in flight has ended."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from mcpdiag.errors import ShuttingDown


class Gate:
    """
    Args:
        in_flight: how many calls there are now.
    """

    def __init__(self, in_flight: Callable[[], int]) -> None:
        self.closing = False
        self._in_flight = in_flight
        self._idle = anyio.Event()

    def close(self) -> None:
        """Admit no new call; those in flight go on."""
        self.closing = True
        self.left()

    def left(self) -> None:
        """A call has ended."""
        if self.closing and not self._in_flight():
            self._idle.set()

    async def drained(self) -> None:
        """Wait, after `close`, until no call is in flight."""
        await self._idle.wait()

    def check(self) -> None:
        """
        Raises:
            ShuttingDown: it is closed.
        """
        if self.closing:
            raise self.error()

    def error(self) -> ShuttingDown:
        return ShuttingDown("the proxy is shutting down; try again with a new session")
