"""Reads at regular times what no event tells: the pools' numbers, and what the processes use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread

from mcpdiag.pool.stats import PoolStats
from mcpdiag.samples.recorder import Recorder

if TYPE_CHECKING:
    from mcpdiag.samples.processes import ProcessReader, Usage

log = logging.getLogger("mcpdiag.samples")


class PoolReading(NamedTuple):
    """A pool at one moment: the columns of the frame `pool` after `ts`."""

    upstream: str
    mode: str
    era: str
    stats: PoolStats


class Gauge:
    """Adds rows to the frames `pool` and `memory`.

    Args:
        recorder: gets the rows.
        pools: the numbers of all pools now; called on the event loop.
        servers: the pids of the stdio servers' processes by upstream; called on the event loop.
        every: seconds between two readings.
    """

    def __init__(
        self,
        recorder: Recorder,
        pools: Callable[[], Iterable[PoolReading]],
        servers: Callable[[], Mapping[str, Sequence[int]]],
        *,
        every: float = 1.0,
    ) -> None:
        self._recorder = recorder
        self._pools = pools
        self._servers = servers
        self._every = every
        self._reader: ProcessReader | None = None
        self._failed = False

    async def run(self) -> None:
        """Read until cancelled. A reading that fails is said once and left out; it never ends the proxy."""
        while True:
            await self.tick()
            await anyio.sleep(self._every)

    async def tick(self) -> None:
        """One reading. /proc is read in a worker thread, because it takes milliseconds."""
        self.read_pools()
        self._recorder.settle()  # so that no event is kept alive for longer
        servers = self._servers()
        try:
            rows = await anyio.to_thread.run_sync(self._read_processes, servers)
        except Exception:
            if not self._failed:
                log.warning("what the processes use cannot be read", exc_info=True)
            self._failed = True
            return
        for upstream, process, usage in rows:
            self._recorder.memory_row(upstream, process, *usage)

    def read_pools(self) -> None:
        """The pools' numbers alone."""
        for reading in self._pools():
            self._recorder.pool_row(*reading)

    def _read_processes(self, servers: Mapping[str, Sequence[int]]) -> list[tuple[str, str, Usage]]:
        if self._reader is None:
            from mcpdiag.samples.processes import ProcessReader  # psutil: not before it is used

            self._reader = ProcessReader()
        return self._reader.read(servers)
