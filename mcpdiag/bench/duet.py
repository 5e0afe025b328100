"""Base and new side by side, in rounds: `alternate.py` has one round. `cli/bench_duet_run.py` writes the result."""

from __future__ import annotations

from collections.abc import Callable

from mcpdiag.bench.generator import Generator
from mcpdiag.bench.matrix import closed_loop, nothing, repetition_of
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.result import Cell, Config, Repetition, Way
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import DuetSpec, Endpoint
from mcpdiag.bench.workload import Workload

WAYS: tuple[Way, Way] = ("base", "new")


class DuetRun:
    """`run` fills `cells`; what is there when it is interrupted is kept.

    Args:
        config: one transport; which numbers of clients, how long, how often.
        sides: base and new. Over stdio each client has a process of its own, started anew in each round, because a
            process may be slower than its like by a tenth for all of its life (docs/bench.md).
        cpu: the processor that they and the generator share; None: the system chooses.
        tell: called before each step with its words, after how many of all steps.
    """

    def __init__(
        self,
        config: Config,
        workload: Workload,
        sides: tuple[Endpoint, Endpoint],
        *,
        slice_s: float,
        cpu: int | None = None,
        raw: RawFile | None = None,
        tell: Callable[[str, int], None] = lambda words, done: None,
    ) -> None:
        self.config, self.workload = config, workload
        self._sides, self._slice_s, self._cpu = sides, slice_s, cpu
        self._raw, self._tell = raw, tell
        self.steps = config.repeat * len(config.clients)
        self._repetitions: dict[tuple[int, Way], list[Repetition]] = {}

    def run(self) -> None:
        """All rounds."""
        done = 0
        with Generator() as generator:
            for number in range(self.config.repeat):
                for clients in self.config.clients:
                    self._tell(f"{clients} client{'s' * (clients > 1)}", done)
                    self._measure(generator, clients, number)
                    done += 1
        self._tell("done", self.steps)

    def _measure(self, generator: Generator, clients: int, number: int) -> None:
        base, new = (closed_loop(self.config, self.workload, side, clients) for side in self._sides)
        spec = DuetSpec(sides=(base, new), slice_s=self._slice_s, first=number % 2, cpu=self._cpu)
        try:
            found = generator.duet(spec)
        except SessionError as error:
            failed = Repetition(summary=nothing(clients), first_error=str(error))
            for way in WAYS:
                self._repetitions.setdefault((clients, way), []).append(failed)
            return
        for way, measurement in zip(WAYS, found, strict=True):
            if self._raw is not None:
                self._raw.add(self._cell(clients, way).name, number, measurement)
            self._repetitions.setdefault((clients, way), []).append(repetition_of(measurement))

    def _cell(self, clients: int, way: Way, repetitions: tuple[Repetition, ...] = ()) -> Cell:
        return Cell(
            transport=self.config.transports[0],
            reuse="on",
            clients=clients,
            way=way,
            repetitions=repetitions,
        )

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Base and new beside each other, as many rounds of each."""
        found = []
        for clients in self.config.clients:
            sides = [self._repetitions.get((clients, way), []) for way in WAYS]
            rounds = min(map(len, sides))
            if rounds:
                found += [
                    self._cell(clients, way, tuple(side[:rounds]))
                    for way, side in zip(WAYS, sides, strict=True)
                ]
        return tuple(found)
