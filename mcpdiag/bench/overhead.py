"""Direct against proxied, in rounds: what a proxy adds to a call. `cli/bench_overhead.py` starts the servers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Final, Protocol

import msgspec

from mcpdiag.bench.columns import NEVER, Measurement
from mcpdiag.bench.generator import Generator
from mcpdiag.bench.matrix import closed_loop, nothing, repetition_of
from mcpdiag.bench.memory import Memory, MemoryWatch
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.result import Cell, Config, Repetition, Transport, Way
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import Endpoint, LoadSpec
from mcpdiag.bench.split import AROUND, At, Overhead, Parts, Phases, at, lost, parts_at
from mcpdiag.bench.statistics import paired_ratio
from mcpdiag.bench.workload import Workload

CellKey = tuple[Transport, int, Way]
_WAYS: Final[tuple[Way, ...]] = ("direct", "proxied", "unsampled")


class Side(Protocol):
    """One way to the server, for one round."""

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def pid(self) -> int | None:
        """Of the proxy; None of a way without one."""

    def phases(self, methods: Collection[str]) -> Phases:
        """The exchanges since the last time this was asked; none of a way that records none."""


SideKey = tuple[Transport, Way]
StartSides = Callable[[tuple[SideKey, ...]], AbstractContextManager[Mapping[SideKey, Side]]]


class OverheadRun:
    """`run` fills `cells` and `overhead`; what is there when it is interrupted is kept.

    Args:
        config: which transports and numbers of clients, how long, how often.
        start: starts both ways to the server for a round, and ends them.
        sampling: whether a third way, a proxy that records nothing, takes its turn too.
        tell: called before each step with its words, after how many of all steps.
    """

    def __init__(
        self,
        config: Config,
        workload: Workload,
        start: StartSides,
        *,
        sampling: bool = False,
        raw: RawFile | None = None,
        tell: Callable[[str, int], None] = lambda words, done: None,
    ) -> None:
        self.config, self.workload = config, workload
        self._start, self._raw, self._tell = start, raw, tell
        self.ways = _WAYS if sampling else _WAYS[:2]
        self.steps = config.repeat * (1 + len(config.transports) * len(config.clients) * len(self.ways))
        self._done = 0
        self._methods = frozenset(call.method for call in workload.calls)
        self._repetitions: dict[CellKey, list[Repetition]] = {}
        self._parts: dict[tuple[CellKey, float], list[Parts]] = {}
        self._exchanges: dict[CellKey, int] = {}

    def run(self) -> None:
        """All rounds."""
        sides = tuple((transport, way) for transport in self.config.transports for way in self.ways)
        with Generator() as generator:
            for number in range(self.config.repeat):
                self._step("starting the proxies")
                with self._start(sides) as running:
                    for key in self._order(number):
                        self._measure(generator, key, number, running[key[0], key[2]])
        self._tell("done", self.steps)

    def _step(self, words: str) -> None:
        self._tell(words, self._done)
        self._done += 1

    def _order(self, number: int) -> Iterator[CellKey]:
        """The ways of a pair one after the other, another one first in each round."""
        first = number % len(self.ways)
        ways = (*self.ways[first:], *self.ways[:first])
        for clients in self.config.clients:
            for transport in self.config.transports:
                for way in ways:
                    yield transport, clients, way

    def _measure(self, generator: Generator, key: CellKey, number: int, side: Side) -> None:
        transport, clients, way = key
        self._step(f"{transport}, {clients} client{'s' * (clients > 1)}, {way}")
        memory = Memory()
        side.phases(self._methods)  # what was before
        try:
            if side.pid is None:
                measurement = generator.run(self._spec(side.endpoint, clients))
            else:
                with MemoryWatch(side.pid) as watch:
                    measurement = generator.run(self._spec(side.endpoint, clients))
                memory = watch.memory
        except SessionError as error:
            repetition = Repetition(summary=nothing(clients), first_error=str(error))
        else:
            repetition = msgspec.structs.replace(repetition_of(measurement), memory=memory)
            self._keep(key, number, measurement, side)
        self._repetitions.setdefault(key, []).append(repetition)

    def _keep(self, key: CellKey, number: int, measurement: Measurement, side: Side) -> None:
        if self._raw is not None:
            self._raw.add(self._cell(key, ()).name, number, measurement)
        phases = side.phases(self._methods).without(warm_up(measurement))
        if len(phases):
            self._exchanges[key] = self._exchanges.get(key, 0) + len(phases)
            for share in AROUND:
                parts = parts_at(phases, share)
                assert parts is not None
                self._parts.setdefault((key, share), []).append(parts)

    def _spec(self, endpoint: Endpoint, clients: int) -> LoadSpec:
        return closed_loop(self.config, self.workload, endpoint, clients)

    # -- what was measured -----------------------------------------------------------------------------------

    def _cell(self, key: CellKey, repetitions: tuple[Repetition, ...]) -> Cell:
        transport, clients, way = key
        return Cell(transport=transport, reuse="on", clients=clients, way=way, repetitions=repetitions)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Direct and proxied beside each other."""
        keys = [
            (transport, clients, way)
            for transport in self.config.transports
            for clients in self.config.clients
            for way in self.ways
        ]
        return tuple(
            self._cell(key, tuple(self._repetitions[key])) for key in keys if key in self._repetitions
        )

    @property
    def overhead(self) -> tuple[Overhead, ...]:
        """What the proxy adds, wherever both ways were measured."""
        found = (
            self._overhead(transport, clients)
            for transport in self.config.transports
            for clients in self.config.clients
        )
        return tuple(each for each in found if each is not None)

    def _overhead(self, transport: Transport, clients: int) -> Overhead | None:
        proxied: CellKey = (transport, clients, "proxied")
        rounds = min(len(self._repetitions.get((transport, clients, way), ())) for way in self.ways)
        if not rounds:
            return None

        def values(way: Way, metric: str) -> list[float]:
            cell = self._cell((transport, clients, way), tuple(self._repetitions[transport, clients, way]))
            return cell.values(metric)[:rounds]

        def quantile(share: float, metric: str) -> At | None:
            parts = self._parts.get((proxied, share), [])
            return at(values("direct", metric), values("proxied", metric), parts, seed=self.config.seed)

        p50, p95 = quantile(0.5, "p50_ms"), quantile(0.95, "p95_ms")
        rps = {way: values(way, "throughput_rps") for way in self.ways}
        throughput = paired_ratio(rps["proxied"], rps["direct"], seed=self.config.seed)
        if p50 is None or p95 is None or throughput is None:
            return None
        sampling = "unsampled" in rps or None
        return Overhead(
            transport=transport,
            clients=clients,
            p50=p50,
            p95=p95,
            throughput=throughput,
            exchanges=self._exchanges.get(proxied, 0),
            sampling=sampling and lost(rps["proxied"], rps["unsampled"], seed=self.config.seed),
        )


def warm_up(measurement: Measurement) -> int:
    """How many of a run's calls were sent before the measured time began."""
    columns = measurement.columns
    return sum(columns.intended_ns[row] < 0 and columns.sent_ns[row] != NEVER for row in range(len(columns)))
