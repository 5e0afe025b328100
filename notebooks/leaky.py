"""A hook with a planted leak, for 03-memory: it keeps something of every exchange, and never lets go of it."""

from __future__ import annotations

from mcpdiag import Event, ExchangeDone

KEPT_BYTES = 16 * 1024  # of each exchange


class Leaky:
    """`mcpdiag.serve(..., hook=Leaky())`; with `leaks=False` it forgets, and is a hook as it should be."""

    def __init__(self, *, leaks: bool = True) -> None:
        self.kept: list[bytearray] = []
        self.leaks = leaks

    def emit(self, event: Event, /) -> None:
        if isinstance(event, ExchangeDone):
            note = bytearray(KEPT_BYTES)
            if self.leaks:
                self.kept.append(note)
