"""Heap windows that have closed, as rows of the frame `heap` in a ring. `Heap` writes them, in whatever thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple

from mcpdiag.samples.buffer import Ring
from mcpdiag.samples.heap_records import KINDS, Site
from mcpdiag.samples.interned import OTHER, clean
from mcpdiag.samples.schema import SCHEMA

ROWS = 20_000  # some 100 windows of 50 call sites of each kind
LONGEST_STACK = 4000  # characters


class Window(NamedTuple):
    """A window that has closed; the columns of the frame that all its rows share, and its sites of both kinds.

    `closed_ns` is nanoseconds since 1970; the other units are those of the schema.
    """

    closed_ns: int
    upstream: str
    name: str
    seconds: float
    requests: int
    sites: tuple[Site, ...]


class HeapRows:
    """Writes windows into a ring, one at a time, whatever threads they come from.

    Args:
        ring: of the frame `heap`; None for one of its own.
    """

    def __init__(self, ring: Ring | None = None) -> None:
        self.ring = Ring(SCHEMA["heap"], ROWS) if ring is None else ring
        self._lock = threading.Lock()
        self._stacks: dict[str, str] = {}

    def keep(self, window: Window) -> tuple[int, int]:
        """Write its rows: of a kind without sites one of 0 bytes, so that every window is in the frame.

        Returns:
            the number of the first row, and how many there are.
        """
        ring, (closed_ns, upstream, name, seconds, requests, found) = self.ring, window
        there = {site.kind for site in found}
        sites = [*found, *(Site(kind, 0, 0, "", OTHER, "", 0, "") for kind in KINDS if kind not in there)]
        with self._lock:
            first = ring.written
            table = ring.names
            for site, stack in zip(sites, self._shared(sites), strict=True):
                ring.append(
                    (
                        closed_ns,
                        table["upstream"][upstream],
                        table["window"][name],
                        seconds,
                        requests,
                        table["kind"][site.kind],
                        site.size_bytes,
                        site.n_allocations,
                        table["allocator"][site.allocator],
                        table["function"][site.function],
                        table["file"][site.file],
                        site.line,
                    ),
                    stack,
                )
            return first, len(sites)

    def _shared(self, sites: Iterable[Site]) -> list[str]:
        """The stacks, as the same objects as in the window before: windows resemble each other, and texts are long."""
        stacks = [clean(site.stack, LONGEST_STACK) for site in sites]
        self._stacks = {stack: self._stacks.get(stack, stack) for stack in stacks}
        return [self._stacks[stack] for stack in stacks]
