"""What runs beside a proxy as long as it samples: the gauge, heap windows, the writer of a capture.

`serve` starts and ends it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from mcpdiag.samples.gauge import Gauge
from mcpdiag.samples.heap_servers import HeapServers
from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.writer import Writer


class Sampling:
    """The tasks that fill a recorder and empty it into a capture.

    Args:
        recorder: is closed at the end.
        gauge: reads pools and processes.
        writer: of the capture, if there is one.
        heap_windows: seconds between the beginnings of periodic heap windows, and of each; None for none.
        heap_servers: the servers that run under memray, if there are any.
    """

    def __init__(
        self,
        recorder: Recorder,
        gauge: Gauge,
        writer: Writer | None = None,
        *,
        heap_windows: tuple[float, float] | None = None,
        heap_servers: HeapServers | None = None,
    ) -> None:
        self._recorder = recorder
        self._gauge = gauge
        self._writer = writer
        self._heap_windows = heap_windows
        self._heap_servers = heap_servers
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._running = False

    async def run(self) -> None:
        """Until `aclose`."""
        self._running = True
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._gauge.run)
                    if self._writer is not None:
                        tasks.start_soon(self._writer.run)
                    if self._heap_windows is not None:
                        tasks.start_soon(self._recorder.heap.periodic, *self._heap_windows)
                    if self._heap_servers is not None:
                        tasks.start_soon(self._heap_servers.run)
        finally:
            self._ended.set()

    async def aclose(self, force: anyio.Event) -> None:
        """Stop, with a last reading of the pools and of the servers' heaps, and write what is left.

        Called once the pools are closed.

        Args:
            force: when it is set, heaps that are not read yet are left out.
        """
        self._scope.cancel()
        if self._running:
            await self._ended.wait()
        if self._heap_servers is not None:
            await _unless(force, self._heap_servers.finish)
        self._gauge.read_pools()
        self._recorder.close()
        if self._writer is not None:
            await self._writer.finish()


async def _unless(force: anyio.Event, finish: Callable[[], Awaitable[None]]) -> None:
    async def cut_short() -> None:
        await force.wait()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cut_short)
        await finish()
        tasks.cancel_scope.cancel()
