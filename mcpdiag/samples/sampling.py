"""What runs beside a proxy as long as it samples: the gauge, and the writer of a capture. `serve` starts and ends it."""

from __future__ import annotations

import anyio

from mcpdiag.samples.gauge import Gauge
from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.writer import Writer


class Sampling:
    """The tasks that fill a recorder and empty it into a capture.

    Args:
        recorder: is closed at the end.
        gauge: reads pools and processes.
        writer: of the capture, if there is one.
    """

    def __init__(self, recorder: Recorder, gauge: Gauge, writer: Writer | None = None) -> None:
        self._recorder = recorder
        self._gauge = gauge
        self._writer = writer
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
        finally:
            self._ended.set()

    async def aclose(self) -> None:
        """Stop, with a last reading of the pools, and write what is left. Called once the pools are closed."""
        self._scope.cancel()
        if self._running:
            await self._ended.wait()
        self._gauge.read_pools()
        self._recorder.close()
        if self._writer is not None:
            await self._writer.finish()
