"""Writes of one turn of an event loop, made together at its end.

A write wakes whoever waits for it, and that costs more than the write: with 32 clients a third of the time of a small
exchange. One by one, between other work, each wakes its reader anew; together, the first wakes it for all.
Where there is rarely more than one a turn, as with one process that serves one call after the other, nothing is
gained and the turn is lost: then they go out at once, but for one of `TRY` that looks whether that has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakKeyDictionary

WORTH = 1.5  # writes a turn, on average, above which they are made together
TRY = 17  # a prime, so that it is not always the last of a turn that is tried


class Together:
    """
    Attributes:
        users: who has something under way; a lone one has nobody to wait for, and writes at once.
    """

    __slots__ = ("__weakref__", "_mean", "_tried", "_writes", "users")

    def __init__(self) -> None:
        self._writes: list[tuple[Callable[[bytes], None], bytes]] = []
        self._mean = 2 * WORTH
        self._tried = 0
        self.users = 0

    def add(self, write: Callable[[bytes], None], data: bytes) -> None:
        """Call `write(data)`, which does not raise: now, or in the loop's next turn, before any task that starts from
        now on, and in the order of the calls."""
        if not self._writes:
            if self._mean < WORTH:
                self._tried = (self._tried + 1) % TRY
                if self._tried:
                    write(data)
                    return
            asyncio.get_running_loop().call_soon(self.flush)
        self._writes.append((write, data))

    def flush(self) -> None:
        """Write what waits for it now."""
        writes, self._writes = self._writes, []
        if writes:
            self._mean += (len(writes) - self._mean) / TRY
        for write, data in writes:
            write(data)


def of_this_loop() -> Together | None:
    """The one of the event loop that runs; None on trio."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    found = _of_loop.get(loop)
    if found is None:
        found = _of_loop[loop] = Together()
    return found


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Together] = WeakKeyDictionary()
