"""The hook that keeps samples in memory: events become rows, and rows become frames when somebody looks.

The core calls `emit` on the event loop; the gauge adds pools and processes; notebooks read from any thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from msgspec.structs import astuple

from mcpdiag.hooks import Ended, Event, ExchangeDone, exchange_done
from mcpdiag.pool.stats import PoolStats
from mcpdiag.samples.base import Samples
from mcpdiag.samples.buffer import Ring, Rows
from mcpdiag.samples.heap import Heap
from mcpdiag.samples.heap_rows import ROWS, HeapRows
from mcpdiag.samples.interned import clean
from mcpdiag.samples.schema import SCHEMA, FrameName

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

LONGEST_DETAIL = 500  # characters
BATCH = 64  # exchanges
_CATEGORIES = ("upstream", "transport", "method", "target", "session", "protocol", "outcome", "operation")
_pool_numbers: Callable[[PoolStats], tuple[Any, ...]] = attrgetter(*tuple(SCHEMA["pool"])[4:])


class Recorder(Samples):
    """A `Hook` that keeps the latest samples in fixed memory. Payloads are never recorded.

    recorder.requests               a DataFrame, one row an exchange
    recorder.summary()              counts and percentiles of each upstream and target
    recorder.heap.window("steady")  a heap window of this process (`mcpdiag.samples.heap`); `heap.frame` has them all
    recorder.dropped                rows that were overwritten, of each frame

    All writing is done on one event loop; any thread may read meanwhile. Exchanges become rows in batches of 64, or
    when somebody looks.

    Args:
        requests, pool, memory, heap, events: rows to keep. A row takes 129, 228, 80, 76 and 40 bytes, the last two
            their text too.
        names: different values that a category tells apart.
        about: what is known of the run, for the `meta.json` of captures; no secrets.
        clock: nanoseconds since 1970.
    """

    def __init__(
        self,
        *,
        requests: int = 200_000,
        pool: int = 50_000,
        memory: int = 50_000,
        heap: int = ROWS,
        events: int = 20_000,
        names: int = 10_000,
        about: Mapping[str, object] | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        sizes: dict[FrameName, int] = {
            "requests": requests,
            "pool": pool,
            "memory": memory,
            "heap": heap,
            "events": events,
        }
        self.about = {} if about is None else dict(about)
        self.started_ns = clock()
        self.started_monotonic = time.monotonic()
        self.closed = False
        self._clock = clock
        self._waiting: deque[Ended] = deque()
        self._settling = threading.Lock()
        self._rings: dict[FrameName, Ring] = {
            name: Ring(SCHEMA[name], size, names=names) for name, size in sizes.items()
        }
        self._requests, self._pool, self._memory, heap_ring, self._events = self._rings.values()
        self._heap = Heap(self, rows=HeapRows(heap_ring), requests=lambda: self.written["requests"])
        table = self._requests.names
        self._categories = [table[name] for name in _CATEGORIES]

    # -- writing ------------------------------------------------------------------------------------------

    def ended(self, ended: Ended, /) -> None:
        """Keep an exchange as a row. Its time is right if the system's clock is not set before it becomes one."""
        waiting = self._waiting
        waiting.append(ended)
        # Never wait for a reader that is at it: it takes what is there, or the next one here does.
        if len(waiting) >= BATCH and self._settling.acquire(blocking=False):
            try:
                self._take_waiting()
            finally:
                self._settling.release()

    def emit(self, event: Event, /) -> None:
        """Keep an event as a row."""
        if isinstance(event, ExchangeDone):
            self._keep(event)
            return
        table = self._events.names
        self._events.append(
            (
                self._clock(),
                table["upstream"][event.upstream],
                table["kind"][event.kind],
                table["session"][event.session],
                event.attempt,
                event.delay_ms,
            ),
            clean(event.detail, LONGEST_DETAIL),
        )

    def settle(self) -> None:
        """Make rows of the exchanges that wait for it. Any thread may call it; whatever reads does."""
        with self._settling:
            self._take_waiting()

    def _take_waiting(self) -> None:
        # Everything in one function, all fields at once and no tuple between: half the time of `append` for each.
        upstream, transport, method, target, session, protocol, outcome, operation = (
            table.known for table in self._categories
        )
        ring, take, count = self._requests, self._waiting.popleft, len(self._waiting)
        # Twice, because between its two readings something else may have its turn.
        offset = max(self._clock() - time.perf_counter_ns() for _ in range(2)) if count else 0
        pack, records, width, slots, number = ring.pack, ring.records, ring.width, ring.slots, ring.written
        for _ in range(count):
            ended = take()
            (
                up, via, name, of, client, revision, end, began, sent, first, now, queue_s, connect_s, reused, attempts,
                messages, inflight, bytes_in, bytes_out, joined, _trace,
            ) = ended  # fmt: skip
            try:
                pack(
                    records, number % slots * width, int(now * 1e9) + offset, upstream[up], transport[via], method[name],
                    target[of], session[client], protocol[revision], outcome[end], queue_s * 1000, connect_s * 1000,
                    (first - sent) * 1000 if 0 < sent < first else 0.0, (now - began) * 1000, reused, attempts, messages,
                    inflight, bytes_in, bytes_out, operation[joined], (sent - began) * 1000 if sent else 0.0,
                )  # fmt: skip
            except KeyError:  # a new text, or one too many
                self._append(int(now * 1e9) + offset, exchange_done(ended))
                number = ring.written
                continue
            number += 1
            ring.written = number  # after each: a reader may look at any time

    def _keep(self, done: ExchangeDone) -> None:
        """A row at once, of an exchange that somebody else tells of."""
        with self._settling:
            self._take_waiting()
            self._append(self._clock(), done)

    def _append(self, ts: int, done: ExchangeDone) -> None:
        fields = astuple(done)
        texts = (*fields[:7], done.operation)
        *places, operation = (table[text] for table, text in zip(self._categories, texts, strict=True))
        self._requests.append((ts, *places, *fields[7:17], operation, done.sent_ms))

    def pool_row(self, upstream: str, mode: str, era: str, stats: PoolStats) -> None:
        """Keep the numbers of a pool at this moment."""
        table = self._pool.names
        known = (table["upstream"][upstream], table["mode"][mode], table["era"][era])
        self._pool.append((self._clock(), *known, *_pool_numbers(stats)))

    def memory_row(self, upstream: str, process: str, *numbers: float) -> None:
        """Keep what a process uses at this moment: `numbers` from `pid` on, in the order of the schema."""
        table = self._memory.names
        self._memory.append((self._clock(), table["upstream"][upstream], table["process"][process], *numbers))

    def close(self) -> None:
        """Nothing more will come: streams end once they have given what is there. Frames stay."""
        self.closed = True

    @property
    def heap(self) -> Heap:
        """Opens heap windows of this process, and has those that have closed: `heap.frame`, `heap.diff`."""
        return self._heap

    # -- reading ------------------------------------------------------------------------------------------

    def rows(self, name: FrameName, since: int = 0) -> Rows:
        """A copy of the rows numbered `since` or higher; its `stop` is where to go on. Needs no pandas."""
        self.settle()
        return self._rings[name].read(since)

    def frame(self, name: FrameName, since: int = 0) -> DataFrame:
        """The frame of that name, from the row with the number `since` on; rows are counted from 0.

        Raises:
            KeyError: there is none of that name.
        """
        from mcpdiag.samples.frame import build

        return build(name, self.rows(name, since))

    @property
    def written(self) -> dict[FrameName, int]:
        self.settle()
        return {name: ring.written for name, ring in self._rings.items()}

    @property
    def dropped(self) -> dict[FrameName, int]:
        self.settle()
        return {name: ring.dropped for name, ring in self._rings.items()}

    async def stream(
        self, name: FrameName, *, every: float = 1.0, since: int | None = None
    ) -> AsyncIterator[DataFrame]:
        """New rows as they come, until the proxy has stopped. In any event loop; the proxy's may be another.

        Args:
            name: of the frame.
            every: seconds between two looks. One that finds nothing yields nothing.
            since: the number of the first row; rows that come from now on, if not given.

        Yields:
            A DataFrame with at least one row. Rows that are overwritten between two looks are missing.
        """
        from mcpdiag.samples.frame import build

        if since is None:
            since = self.written[name]
        closed = False
        while not closed:
            await anyio.sleep(every)
            closed = self.closed  # before the last look, which then misses nothing
            rows = self.rows(name, since)
            since = rows.stop
            if len(rows):
                yield build(name, rows)

    def save(self, folder: str | Path) -> Path:
        """Write what is there now as a capture, which `mcpdiag.load` reads. Returns the folder.

        Raises:
            ValueError: there is a capture already.
            ImportError: pyarrow is missing.
            OSError: the folder cannot be written.
        """
        from mcpdiag.samples.writer import Writer

        writer = Writer(self, Path(folder))
        writer.flush()
        writer.close()
        return writer.folder
