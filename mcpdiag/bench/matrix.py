"""The standard matrix: {stdio, http} x {pool reuse on, off} x clients, the pairs side by side, in rounds.

Each round starts the proxies anew, so that what differs from one process to the next is in the repetitions too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Final, Literal, Protocol

from msgspec.structs import replace

from mcpdiag.bench.columns import CONNECT, OUTCOMES, Measurement
from mcpdiag.bench.generator import Generator
from mcpdiag.bench.isolation import Isolation, check, together
from mcpdiag.bench.memory import MemoryWatch
from mcpdiag.bench.neighbours import Neighbours
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.result import Cell, Config, Pair, PoolVerdict, Repetition, Reuse, Transport
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import Call, Endpoint, LoadSpec
from mcpdiag.bench.statistics import Summary, paired_ratio, summarize
from mcpdiag.bench.workload import Workload

ISOLATION_S: Final = 0.3
BUSY: Final = 0.9  # of its core: from there on the generator may be what is measured
CellKey = tuple[Transport, Reuse, int]
PoolKey = tuple[Transport, Reuse]


class RunningProxy(Protocol):
    """A proxy in a process of its own."""

    @property
    def url(self) -> str: ...
    @property
    def pid(self) -> int: ...


StartProxies = Callable[[tuple[PoolKey, ...]], AbstractContextManager[Mapping[PoolKey, RunningProxy]]]


class Matrix:
    """`run` fills `cells` and `isolation`; what is there when it is interrupted is kept.

    Args:
        config: which cells, how long, how often.
        start: starts a proxy for each pool, and ends them.
        probe: the call of the isolation check, and its argument that takes a mark, or "".
        tell: called before each step with its words, after how many of all steps.
    """

    def __init__(
        self,
        config: Config,
        workload: Workload,
        start: StartProxies,
        probe: tuple[Call, str],
        *,
        raw: RawFile | None = None,
        tell: Callable[[str, int], None] = lambda words, done: None,
    ) -> None:
        self.config, self.workload = config, workload
        self._start, self._probe, self._raw, self._tell = start, probe, raw, tell
        self.pools: tuple[PoolKey, ...] = tuple(
            (transport, reuse) for transport in config.transports for reuse in _REUSE
        )
        self.steps = config.repeat * (len(self.pools) * (len(config.clients) + 1) + 1)
        self._done = 0
        self._repetitions: dict[CellKey, list[Repetition]] = {}
        self._isolation: dict[PoolKey, list[Isolation]] = {}

    def run(self) -> None:
        """All rounds."""
        with Generator() as generator:
            for number in range(self.config.repeat):
                self._step("starting the proxies")
                with ExitStack() as stack:
                    proxies = stack.enter_context(self._start(self.pools))
                    for key in self._order(number):
                        self._measure(generator, key, number, proxies[key[0], key[1]])
                    for pool in self.pools:
                        self._step(f"two marked clients, {pool[0]}, reuse {pool[1]}")
                        call, argument = self._probe
                        verdict = check(
                            closed_loop(self.config, self.workload, Endpoint(url=proxies[pool].url), 1),
                            call,
                            argument,
                            ISOLATION_S,
                        )
                        self._isolation.setdefault(pool, []).append(verdict)
        self._tell("done", self.steps)

    def _step(self, words: str) -> None:
        self._tell(words, self._done)
        self._done += 1

    def _order(self, number: int) -> Iterator[CellKey]:
        """The two of a pair one after the other, each the first in every other round."""
        pair = _REUSE if number % 2 == 0 else _REUSE[::-1]
        for clients in self.config.clients:
            for transport in self.config.transports:
                for reuse in pair:
                    yield transport, reuse, clients

    def _measure(self, generator: Generator, key: CellKey, number: int, proxy: RunningProxy) -> None:
        transport, reuse, clients = key
        self._step(f"{transport}, reuse {reuse}, {clients} client{'s' * (clients > 1)}")
        with MemoryWatch(proxy.pid) as watch, Neighbours() as neighbours:
            try:
                measurement = generator.run(
                    closed_loop(self.config, self.workload, Endpoint(url=proxy.url), clients)
                )
            except SessionError as error:
                repetition = Repetition(summary=nothing(clients), first_error=str(error))
            else:
                if self._raw is not None:
                    self._raw.add(f"{transport} x{clients} reuse {reuse}", number, measurement)
                repetition = repetition_of(measurement)
        repetition = replace(repetition, memory=watch.memory, others_cpus=neighbours.others_cpus)
        self._repetitions.setdefault(key, []).append(repetition)

    # -- what was measured -----------------------------------------------------------------------------------

    @property
    def cells(self) -> tuple[Cell, ...]:
        """In the order of the matrix."""
        config = self.config
        keys: list[CellKey] = [
            (t, reuse, clients) for t in config.transports for clients in config.clients for reuse in _REUSE
        ]
        return tuple(
            Cell(transport=t, reuse=reuse, clients=clients, repetitions=tuple(found))
            for t, reuse, clients in keys
            if (found := self._repetitions.get((t, reuse, clients)))
        )

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """What reuse gives, where both sides were measured."""
        return pairs_of(self.cells, self.config.seed)

    @property
    def isolation(self) -> tuple[PoolVerdict, ...]:
        """One verdict for each pool."""
        return tuple(
            PoolVerdict(transport=transport, reuse=reuse, isolation=together(verdicts))
            for (transport, reuse), verdicts in self._isolation.items()
        )


_REUSE: Final[tuple[Reuse, ...]] = ("on", "off")
_PAIRED: Final[tuple[Literal["throughput_rps", "p95_ms"], ...]] = ("throughput_rps", "p95_ms")


def pairs_of(cells: tuple[Cell, ...], seed: int) -> tuple[Pair, ...]:
    """The ratio of throughput and of p95 with reuse to those without, for each transport and number of clients."""
    by_key = {(cell.transport, cell.reuse, cell.clients): cell for cell in cells}
    pairs = []
    for transport, reuse, clients in by_key:
        other = by_key.get((transport, "off", clients))
        if reuse != "on" or other is None:
            continue
        rounds = min(len(by_key[transport, "on", clients].repetitions), len(other.repetitions))
        for metric in _PAIRED:
            on = by_key[transport, "on", clients].values(metric)[:rounds]
            found = paired_ratio(on, other.values(metric)[:rounds], seed=seed)
            if found is not None:
                pairs.append(Pair(transport=transport, clients=clients, metric=metric, ratio=found))
    return tuple(pairs)


def bare_load(config: Config, server: Endpoint) -> LoadSpec:
    """For a look at a server: no calls of a workload yet."""
    return LoadSpec(
        url=server.url,
        headers=server.headers,
        command=server.command,
        era=config.era,
        timeout_s=config.timeout_s,
    )


def closed_loop(config: Config, workload: Workload, server: Endpoint, clients: int) -> LoadSpec:
    """The load of one cell."""
    return replace(
        bare_load(config, server),
        calls=workload.calls,
        clients=clients,
        sessions_per_client=workload.sessions_per_client,
        session_calls=workload.session_calls,
        think_time_s=workload.think_time_s,
        warmup_s=config.warmup_s,
        seconds=config.seconds,
        seed=config.seed,
    )


def repetition_of(measurement: Measurement) -> Repetition:
    """A run in numbers."""
    report, summary = measurement.report, summarize(measurement)
    return Repetition(
        summary=summary,
        lateness=report.lateness,
        saturated=saturation(measurement, summary),
        sessions_opened=report.sessions_opened,
        first_error=report.first_error,
    )


def saturation(measurement: Measurement, summary: Summary) -> str:
    """Why the generator may have set the pace instead of the server; empty if it kept up."""
    late = measurement.report.lateness
    if late.cpu_share >= BUSY:
        return f"its core was {late.cpu_share:.0%} busy"
    if late.late_p99_ms > max(1.0, summary.p99_ms / 5):
        return f"it took up 1 of 100 calls {late.late_p99_ms:.1f} ms late or more"
    if late.lag_p99_ms > max(10.0, summary.p99_ms):
        return f"its event loop came 1 of 100 times {late.lag_p99_ms:.1f} ms late or more"
    return ""


def nothing(clients: int) -> Summary:
    """The summary of a run whose sessions could not be opened."""
    return Summary(
        calls=clients,
        ok=0,
        errors={OUTCOMES[CONNECT]: clients},
        throughput_rps=0.0,
        p50_ms=0.0,
        p95_ms=0.0,
        p99_ms=0.0,
        max_ms=0.0,
        mean_ms=0.0,
        quantiles_ms={},
    )
