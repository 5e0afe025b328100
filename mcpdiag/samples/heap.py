"""memray windows in the proxy's process: what was allocated meanwhile, by call site. Notebooks and `serve` call it.

While no window is open nothing is tracked, and memray is not even imported. docs/heap.md has costs and limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
from anyio import to_thread

from mcpdiag.errors import HeapError
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.samples.heap_records import KINDS, Grown, Site, import_memray, read_sites
from mcpdiag.samples.heap_tracker import folder, read_in_child, tracker

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

LEAST_GROWTH = 16.0  # bytes a request: what a site must gain in each of the last two thirds to be a candidate
SNAPSHOTS = 90  # memory snapshots of a growth run: the moments at which live bytes are known


class Window(NamedTuple):
    """A window that has closed. `closed_ns` is nanoseconds since 1970; `sites` has both kinds, each by size."""

    closed_ns: int
    upstream: str
    name: str
    sites: tuple[Site, ...]


class Heap:
    """Heap windows of this process, of which the newest are kept.

    with heap.window("steady"): ...              also from a notebook cell, while the proxy runs in another thread
    await heap.snapshot(seconds=5)               a DataFrame of the next five seconds
    await heap.growth(30, requests=lambda: n)    which call sites grow with the requests: candidates of a leak
    heap.frame                                   a DataFrame, one row a call site a window

    One memray tracker can be active in a process, so there is one window at a time. While it is open the proxy has
    about 0.55 of its throughput, with `python_allocators` 0.35. Without them objects of up to 512 bytes are seen only
    as the arenas they live in, which are put down to whatever line made one grow.

    Args:
        hook: is told of the edges: `Happened("heap_window", "", detail="open NAME" or "close NAME: ...")`.
        directory: for capture files while they are needed; None for the system's temporary directory.
        windows: how many are kept.
        sites: call sites kept of a window and kind, the largest ones; the others are summed in one row `(other)`.
        loop: where the hook is to be called, if windows are opened in other threads; None to call it in theirs.
    """

    def __init__(
        self,
        hook: Hook = NO_HOOK,
        *,
        directory: Path | None = None,
        windows: int = 100,
        sites: int = 50,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._hook = hook
        self._directory = directory
        self._sites = sites
        self._loop = loop
        self._windows: deque[Window] = deque(maxlen=windows)
        self._count = 0

    # -- windows ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def window(self, name: str, *, python_allocators: bool = False) -> Iterator[None]:
        """Track this process during the block, all its threads, and keep the result under that name.

        Opening, closing and reading block the calling thread, and Python as a whole, for some 5 ms each.

        Raises:
            HeapBusy: a tracker is active: another window, or one that a notebook has started itself.
            HeapUnavailable: there is no memray here; the message says what to install.
            HeapError: the capture file could not be written or read.
        """
        with folder(self._directory) as captures:
            path = captures / "window"
            opened = False
            try:
                with tracker(name, path, self._tell, python_allocators=python_allocators):
                    opened = True
                    yield
            finally:
                if opened:
                    self._keep(name, path)

    async def snapshot(
        self, seconds: float = 5.0, *, name: str = "", python_allocators: bool = False
    ) -> DataFrame:
        """A window of so many seconds from now. Called `snapshot-1`, `snapshot-2`, ... if it gets no name.

        Returns:
            the frame `heap` with the rows of this window.

        Raises: what `window` raises. Cancelled, it closes the window and keeps what it has got so far.
        """
        name = name or self._next("snapshot")
        kept = await self._timed(name, seconds, python_allocators)
        return await to_thread.run_sync(_frame, [kept])

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
        while True:
            await anyio.sleep(every - for_)
            name = self._next("periodic")
            try:
                await self._timed(name, for_, python_allocators)
            except HeapError as error:
                self._tell(f"skip {name}: {error}")
                await anyio.sleep(for_)

    async def check(self) -> None:
        """Import memray, which takes a moment, so that it does not take it when a window is opened.

        Raises:
            HeapUnavailable: there is none; the message says what to install.
        """
        await to_thread.run_sync(import_memray)

    def _next(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count}"

    async def _timed(self, name: str, seconds: float, python_allocators: bool) -> Window:
        await self.check()
        with folder(self._directory) as captures:
            path = captures / "window"
            opened = False
            try:
                # Not in a thread: memray holds the GIL while it starts and stops, and a thread that a cancelled
                # caller no longer waits for would leave a tracker behind.
                with tracker(name, path, self._tell, python_allocators=python_allocators):
                    opened = True
                    await anyio.sleep(seconds)
            finally:
                if opened:
                    with anyio.CancelScope(shield=True):
                        kept = await to_thread.run_sync(self._keep, name, path)
            return kept

    def _keep(self, name: str, path: Path) -> Window:
        closed_ns = time.time_ns()
        before = self._windows[-1].sites if self._windows else ()
        known = {each.stack: each.stack for each in before}  # windows resemble each other: share long texts
        sites = tuple(
            site._replace(stack=known.get(site.stack, site.stack)) for site in read_sites(path, self._sites)
        )
        kept = Window(closed_ns, "", name, sites)
        self._windows.append(kept)
        return kept

    def _tell(self, detail: str) -> None:
        event = Happened("heap_window", "", detail=detail)
        if self._loop is None or self._loop is _running_loop():
            self._hook.emit(event)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._hook.emit, event)

    # -- what they found ----------------------------------------------------------------------------------

    @property
    def windows(self) -> list[Window]:
        """The windows that are kept, the oldest first."""
        return list(self._windows)

    @property
    def frame(self) -> DataFrame:
        """The frame `heap` of the windows that are kept: one row a call site a window. Needs pandas."""
        return _frame(self.windows)

    def diff(
        self, a: str, b: str, *, kind: str = "leaked", per_request: tuple[int, int] | None = None
    ) -> DataFrame:
        """What two windows held, by call site, all allocators of a site together.

        It compares two windows; it does not find leaks: in a short window a cache that turns over looks the same.
        A site that only one of the windows has among its largest counts as 0 in the other.

        Args:
            a, b: names of windows; of several with one name the newest.
            kind: `leaked` or `high_watermark`.
            per_request: requests served in `a` and in `b`, each at least 1.

        Returns:
            a row a site: `function file line`, `size_bytes_a n_allocations_a size_bytes_b n_allocations_b`,
            `size_bytes n_allocations` (b less a), `bytes_per_request_a bytes_per_request_b
            growth_bytes_per_request` (NaN without `per_request`), `stack`. What grew most comes first.

        Raises:
            KeyError: no window of that name is kept.
            ValueError: no such kind, or a number of requests below 1.
        """
        if kind not in KINDS:
            raise ValueError(f"found kind {kind!r}; allowed: {', '.join(KINDS)}")
        if per_request is not None and min(per_request) < 1:
            raise ValueError(f"found per_request {per_request}; both windows need at least 1 request")
        from mcpdiag.samples.heap_frame import difference

        return difference(self._of(a, kind), self._of(b, kind), per_request)

    def _of(self, name: str, kind: str) -> list[Site]:
        windows = self.windows
        for window in reversed(windows):
            if window.name == name:
                return [site for site in window.sites if site.kind == kind]
        names = ", ".join(window.name for window in windows) or "none"
        raise KeyError(f"there is no heap window '{name}'; kept are: {names}")

    # -- growth -------------------------------------------------------------------------------------------

    async def growth(self, seconds: float, requests: Callable[[], int]) -> DataFrame:
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
            requests: how many requests the proxy has served so far; called in this event loop.

        Returns:
            a row a candidate: `function file line`, `growth_2_bytes_per_request growth_3_bytes_per_request
            growth_bytes_per_request` (of the second, the last, and both thirds), `live_1_bytes live_2_bytes
            live_3_bytes` (at the end of each third), `n_allocations` (live at the end), `stack`.
            What grew most comes first. `attrs["requests"]` is the count at the end of each third.

        Raises:
            HeapBusy, HeapUnavailable: as `window`.
            HeapError: the capture could not be written or read, or a third of the run had no request.
        """
        await self.check()
        history_ms = max(1, round(seconds * 1000 / SNAPSHOTS))
        moments: list[float] = []
        counts: list[int] = []
        with folder(self._directory) as captures:
            path = captures / "growth"
            with (
                _old_objects_aside(),
                tracker("growth", path, self._tell, python_allocators=True, history_ms=history_ms),
            ):
                for _ in range(3):
                    await anyio.sleep(seconds / 3)
                    gc.collect()  # cycles that wait for the collector are no growth
                    moments.append(time.time() * 1000)
                    counts.append(requests())
            if not counts[0] < counts[1] < counts[2]:
                raise HeapError(
                    f"growth per request needs requests in every third of the run; counted were {counts} "
                    "at their ends: give it load, or more seconds"
                )
            rows = await read_in_child("growth", path, *moments)
            grown = [Grown(*row) for row in rows]
            return await to_thread.run_sync(_candidates, grown, (counts[0], counts[1], counts[2]))


def _frame(windows: Sequence[Window]) -> DataFrame:
    from mcpdiag.samples.heap_frame import frame

    return frame(windows)


def _candidates(grown: Sequence[Grown], counts: tuple[int, int, int]) -> DataFrame:
    from mcpdiag.samples.heap_frame import candidates

    return candidates(grown, counts, LEAST_GROWTH)


@contextlib.contextmanager
def _old_objects_aside() -> Iterator[None]:
    """The collector looks only at objects that are made in the block: with all of them it takes 100 ms and more."""
    ours = not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
