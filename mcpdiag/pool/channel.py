"""The return channel: released connections on their way back. Upkeep owns it; callers may drain it.

Unlike a memory object stream it hands nothing past the queue to a sleeping reader, so that a caller finds what was
released in this very turn instead of opening another connection.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class ReturnChannel(Generic[T]):
    """A bounded queue that can be closed. Only `wait` waits, and only one task may call it."""

    __slots__ = ("_items", "_sleeping", "closed", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.closed = False
        self._items: deque[T] = deque()
        self._sleeping: anyio.Event | None = None

    def put(self, item: T) -> bool:
        """Add an item and wake the reader. False if the channel is full or closed."""
        if self.closed or len(self._items) >= self.size:
            return False
        self._items.append(item)
        self._wake()
        return True

    def take(self) -> T | None:
        """The oldest item, or None."""
        return self._items.popleft() if self._items else None

    def close(self) -> None:
        """Refuse further items and let `wait` end. Idempotent."""
        self.closed = True
        self._wake()

    async def wait(self) -> bool:
        """Sleep until something was put. False once the channel is closed."""
        if not self._items and not self.closed:
            self._sleeping = anyio.Event()
            await self._sleeping.wait()
        return not self.closed

    def _wake(self) -> None:
        sleeping, self._sleeping = self._sleeping, None
        if sleeping is not None:
            sleeping.set()
