"""Event loops whose clock jumps to the next timer once nobody can run: an hour of pool life takes no time."""

from __future__ import annotations

import asyncio
from selectors import DefaultSelector, SelectorKey
from typing import Any

import trio.testing


class VirtualSelector(DefaultSelector):
    """Never sleeps for a timer: it adds the time to `skipped`. It still waits for I/O if there is no timer."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is None:
            return super().select()
        events = super().select(0)
        if not events:
            self.skipped += max(timeout, 0.0)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop on virtual time, as trio's MockClock with autojump is for trio."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.skipped


def backend_options(name: str) -> dict[str, Any]:
    """Options for `anyio.run` and the `anyio_backend` fixture."""
    if name == "asyncio":
        return {"loop_factory": VirtualLoop}
    return {"clock": trio.testing.MockClock(autojump_threshold=0)}
