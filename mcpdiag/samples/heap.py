"""memray windows in the proxy's process: what was allocated meanwhile, by call site. `recorder.heap` is one.

While no window is open nothing is tracked, and memray is not even imported. docs/heap.md has costs and limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from mcpdiag.errors import HeapError
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.samples.heap_growth import record
from mcpdiag.samples.heap_records import Site, import_memray, read_sites
from mcpdiag.samples.heap_rows import HeapRows, Window
from mcpdiag.samples.heap_tracker import folder, read_in_child, tracker, wait_for_child
from mcpdiag.samples.heap_windows import HeapWindows

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

log = logging.getLogger("mcpdiag.samples")
READ_LIMIT = 30.0  # seconds for reading a window, also when the caller was cancelled
Servers = Callable[[], Awaitable[int]]


class Heap(HeapWindows):
    """Heap windows of this process: opens them, and has them as a frame.

    with heap.window("steady"): ...              also from a notebook cell, while the proxy runs in another thread
    await heap.snapshot(seconds=5)               a DataFrame of the next five seconds
    await heap.growth(30)                        which call sites grow with the requests: candidates of a leak
    await heap.servers()                         a DataFrame of the servers that run under memray (`--heap-upstream`)
    heap.frame                                   a DataFrame, one row a call site, kind and window
    heap.diff("steady", "later")                 what two windows held, by call site and request

    One memray tracker can be active in a process, so there is one window at a time. While it is open the proxy has
    about 0.55 of its throughput, with `python_allocators` 0.35. Without them objects of up to 512 bytes are seen only
    as the arenas they live in, which are put down to whatever line made one grow.

    Args:
        hook: is told of the edges: `Happened("heap_window", "", detail="open NAME" or "close NAME: ...")`.
        rows: where windows are kept; None for a ring of its own, of 20,000 rows.
        requests: how many requests have ended so far; None if nobody counts.
        directory: for capture files while they are needed; None for the system's temporary directory.
        sites: call sites kept of a window and kind, the largest ones; the others are summed in one row `(other)`.
        loop: where the hook is to be called, if windows are opened in other threads; None to call it in theirs.
    """

    def __init__(
        self,
        hook: Hook = NO_HOOK,
        *,
        rows: HeapRows | None = None,
        requests: Callable[[], int] | None = None,
        directory: Path | None = None,
        sites: int = 50,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.rows = HeapRows() if rows is None else rows
        super().__init__(self._built, lambda: self.rows.ring.dropped)
        self._hook = hook
        self._requests = requests
        self._directory = directory
        self._sites = sites
        self._loop = loop
        self._servers: Servers | None = None
        self._counts: dict[str, int] = {}

    def connect(
        self, hook: Hook, loop: asyncio.AbstractEventLoop | None, servers: Servers | None = None
    ) -> None:
        """From now on tell this hook of the edges, on that loop; `serve` calls it.

        Args:
            servers: keeps the rows of the servers under memray, and returns the number of the first row.
        """
        self._hook, self._loop, self._servers = hook, loop, servers

    # -- windows ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def window(self, name: str, *, python_allocators: bool = False) -> Iterator[None]:
        """Track this process during the block, all its threads, and keep the result under that name.

        Opening and closing block Python as a whole for 10 ms and more each, and the first time memray is imported, if
        `check` has not done it. In the thread of the proxy's loop reading the window blocks too; in other threads a
        process of its own reads it, which takes a second.

        Raises:
            HeapBusy: a tracker is active: another window, or one that a notebook has started itself.
            HeapUnavailable: there is no memray here; the message says what to install.
            HeapError: the capture file could not be written or read.
        """
        with folder(self._directory) as captures:
            path = captures / "window"
            span = _Span(self._requests)
            try:
                with tracker(name, path, self._tell, python_allocators=python_allocators), span:
                    yield
            finally:
                if span.opened:
                    beside = self._loop not in (None, _running_loop())
                    self._keep(name, span, (_beside if beside else read_sites)(path, self._sites))

    async def snapshot(
        self, seconds: float = 5.0, *, name: str = "", python_allocators: bool = False
    ) -> DataFrame:
        """A window of so many seconds from now. Called `snapshot-1`, `snapshot-2`, ... if it gets no name.

        Returns:
            the frame `heap` with the rows of this window.

        Raises: what `window` raises. Cancelled, it closes the window and keeps what it has got so far.
        """
        first, count = await self._timed(name or self._next("snapshot"), seconds, python_allocators)
        return await to_thread.run_sync(self._built, first, count)

    async def periodic(self, every: float, for_: float, *, python_allocators: bool = False) -> None:
        """A window of `for_` seconds, begun every `every` seconds, until cancelled; `periodic-1`, `periodic-2`, ...

        One that cannot be opened, because another tracker is active or the disk is full, is skipped, and the hook is
        told why.

        Raises:
            HeapUnavailable: at once, if there is no memray here.
            ValueError: the windows would overlap.
        """
        if not 0 < for_ < every:
            raise ValueError(f"a heap window of {for_:g} s every {every:g} s leaves no time without one")
        await self.check()
        start = anyio.current_time() - for_
        while True:
            start = max(start + every, anyio.current_time())
            await anyio.sleep_until(start)
            name = self._next("periodic")
            try:
                await self._timed(name, for_, python_allocators)
            except HeapError as error:
                self._tell(f"skip {name}: {error}")
            except Exception as error:  # whatever memray does, the proxy goes on
                log.warning("the heap window %r failed", name, exc_info=True)
                self._tell(f"skip {name}: {type(error).__name__}: {error}")

    async def check(self) -> None:
        """Import memray, which takes a moment, so that it does not take it when a window is opened.

        Raises:
            HeapUnavailable: there is none; the message says what to install.
        """
        await to_thread.run_sync(import_memray)

    async def servers(self) -> DataFrame:
        """What the servers under memray hold, those that run and those that have ended since the last look.

        Returns:
            the frame `heap` with their rows, which are kept too; a window is called `pid 1234`.

        Raises:
            HeapError: no server of this proxy runs under memray.
        """
        if self._servers is None:
            raise HeapError("no server runs under memray; start the proxy with --heap-upstream")
        first = await self._servers()
        frame = await to_thread.run_sync(self._built, first)
        return frame[frame["upstream"] != ""].reset_index(drop=True)

    def _next(self, kind: str) -> str:
        self._counts[kind] = number = self._counts.get(kind, 0) + 1
        return f"{kind}-{number}"

    async def _timed(self, name: str, seconds: float, python_allocators: bool) -> tuple[int, int]:
        """A window of so many seconds: the number of its first row, and how many there are."""
        await self.check()
        with folder(self._directory) as captures:
            path = captures / "window"
            span = _Span(self._requests)
            kept, whole = (0, 0), False
            try:
                # Not in a thread: memray holds the GIL while it starts and stops, and a thread that a cancelled
                # caller no longer waits for would leave a tracker behind.
                with tracker(name, path, self._tell, python_allocators=python_allocators), span:
                    await anyio.sleep(seconds)
                whole = True
            finally:
                if span.opened:
                    with anyio.CancelScope(shield=True):
                        try:
                            kept = self._keep(name, span, await self._read(path))
                        except HeapError as error:
                            if whole:
                                raise
                            log.warning("%s", error)  # what ended the window goes on
            return kept

    async def _read(self, path: Path) -> Sequence[Site]:
        """In a process of its own: in a thread it would hold the GIL for 10 to 50 ms."""
        with anyio.move_on_after(READ_LIMIT):
            return [Site(*row) for row in await read_in_child("sites", path, self._sites)]
        raise HeapError(f"the heap capture {path} could not be read within {READ_LIMIT:g} s")

    def _keep(self, name: str, span: _Span, sites: Sequence[Site]) -> tuple[int, int]:
        window = Window(span.closed_ns, "", name, span.seconds, span.requests, tuple(sites))
        return self.rows.keep(window)

    def _tell(self, detail: str) -> None:
        event = Happened("heap_window", "", detail=detail)
        if self._loop is None or self._loop is _running_loop():
            self._hook.emit(event)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._hook.emit, event)

    def _built(self, since: int = 0, count: int | None = None) -> DataFrame:
        from mcpdiag.samples.frame import build

        frame = build("heap", self.rows.ring.read(since))
        return frame if count is None else frame.iloc[:count]

    # -- growth -------------------------------------------------------------------------------------------

    async def growth(self, seconds: float, requests: Callable[[], int] | None = None) -> DataFrame:
        """Call sites that grow with the requests, as candidates of a leak: run it under steady load.

        Every allocation of the run is recorded, Python's own allocators included. A site is a candidate if its live
        bytes grow by at least 16 a request in the second third of the run and again in the last. Candidates are no
        proof: a cache that is still filling is one too, and CPython's free lists can put an object down to a line
        beside the one that keeps it.

        At each third the garbage of the run is collected; cycles of older objects wait until the end (`gc.freeze`).
        The capture takes some 5 KB of disk a request, and is removed at the end. A process of its own reads it, at low
        priority, which takes as long as the run, or three times that while the load goes on.

        Args:
            seconds: length of the run.
            requests: how many requests the proxy has served so far; called in this event loop. None for what the
                recorder has counted.

        Returns:
            a row a candidate: `function file line`, `growth_2_bytes_per_request growth_3_bytes_per_request
            growth_bytes_per_request` (of the second, the last, and both thirds), `live_1_bytes live_2_bytes
            live_3_bytes` (at the end of each third), `n_allocations` (live at the end), `stack`.
            What grew most comes first. `attrs["requests"]` is the count at the end of each third.

        Raises:
            HeapBusy, HeapUnavailable: as `window`.
            HeapError: the capture could not be written or read, or a third of the run had no request.
            ValueError: nobody counts requests.
        """
        counted = requests or self._requests
        if counted is None:
            raise ValueError("growth per request needs requests: a function that says how many there were")
        await self.check()
        with folder(self._directory) as captures:
            return await record(seconds, counted, captures / "growth", self._tell)


class _Span:
    """A context manager that measures a window: how long it was, and how many requests ended in it."""

    def __init__(self, requests: Callable[[], int] | None) -> None:
        self._count = requests or (lambda: 0)
        self.opened = False
        self.closed_ns = 0
        self.seconds = 0.0
        self.requests = 0

    def __enter__(self) -> None:
        self.opened = True
        self._began, self._before = time.monotonic(), self._count()

    def __exit__(self, *_: object) -> None:
        self.closed_ns, self.seconds = time.time_ns(), time.monotonic() - self._began
        self.requests = self._count() - self._before


def _beside(path: Path, top: int) -> list[Site]:
    return [Site(*row) for row in wait_for_child("sites", path, top)]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
