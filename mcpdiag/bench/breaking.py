"""Raises the load step by step until a server departs from what it was at low load, then closes in on where.

Each step is a run of its own. `knee.py` judges it; `cli/bench_break.py` starts what is loaded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import msgspec

from mcpdiag.bench import knee
from mcpdiag.bench.generator import Generator
from mcpdiag.bench.knee import TRIES, Breaking, By, Departure, Limits, Step
from mcpdiag.bench.matrix import nothing, repetition_of
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.result import Cell, Repetition, Transport, Way
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import Arrivals, LoadSpec
from mcpdiag.bench.statistics import Estimate, estimate

BASE_RUNS: Final = 5
LEAST_CALLS: Final = 100  # of a step, for a p99 that means something
LONGEST: Final = 5  # times `seconds` that a step at a low rate may take
GROWTH: Final = 2.0
LEAST_CLIENTS: Final = 16
PROBE_S: Final = 0.5
SETTLE_S: Final = 10.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to search, and when to stop.

    Args:
        start: the lowest load; 0 is a quarter of what one client gets in a closed loop, or one client.
        most: the highest load to try.
        precision: how close `held` and `departed` are to be, as a share.
        seconds: of a step; one at a low rate takes up to five times as long, for a hundred calls.
        max_clients: how many calls of an open loop can be on their way.
        max_s: after so long no further run begins.
    """

    by: By = "rate"
    limits: Limits = Limits()
    start: float = 0.0
    most: float = 1e5
    precision: float = 0.1
    seconds: float = 2.0
    warmup_s: float = 0.5
    arrivals: Arrivals = "constant"
    max_clients: int = 1000
    max_s: float = 180.0


class Search:
    """`run` fills `cells` and `breaking`; what is there when it is interrupted is kept.

    Args:
        server: what is loaded and how, but for loop, rate, clients and times.
        transport, way: for the cells.
        tell: called before each run with its words, and the share of the time that has passed.
    """

    def __init__(
        self,
        plan: Plan,
        server: LoadSpec,
        *,
        transport: Transport = "http",
        way: Way = "direct",
        raw: RawFile | None = None,
        tell: Callable[[str, float], None] = lambda words, share: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan, self._server = plan, server
        self._transport, self._way, self._raw, self._tell, self._clock = transport, way, raw, tell, clock
        self._began = clock()
        self._cells: dict[float, list[Repetition]] = {}
        self._clients: dict[float, int] = {}
        self._steps: list[Step] = []
        self._base = Estimate(0.0, 0.0, 0.0)
        self._stopped = ""

    def run(self) -> None:
        """The whole search.

        Raises:
            SessionError: the server does not even answer at the lowest load.
        """
        with Generator() as generator:
            self._generator = generator
            load = self.plan.start or self._start()
            if not self._lowest(load):
                return
            while load < self.plan.most:
                load = min(self._tidy(load * GROWTH), self.plan.most)
                if not self._climb(load):
                    return
                if self._steps[-1].departed:
                    break
            while load := self._next():
                if not self._climb(load):
                    return

    def _tidy(self, load: float) -> float:
        return knee.tidy(load) if self.plan.by == "rate" else float(round(load))

    def _next(self) -> float:
        held, departed = knee.around(self._steps)
        if not held or not departed:
            return 0.0
        load = knee.between(self.plan.by, held, departed, self.plan.precision)
        return 0.0 if any(each.load == load for each in self._steps) else load

    # -- the runs ----------------------------------------------------------------------------------------------

    def _start(self) -> float:
        """A quarter of what one client gets when it calls without a pause."""
        if self.plan.by == "clients":
            return 1.0
        self._tell("one client", 0.0)
        spec = self._spec(loop="closed", clients=1, warmup_s=0.1, seconds=PROBE_S)
        found = repetition_of(self._generator.run(spec))
        took_s = found.summary.p50_ms / 1e3
        return min(knee.tidy(max(0.25 / took_s if took_s else 0.0, 0.1)), self.plan.most)

    def _lowest(self, load: float) -> bool:
        """What the server is like at the lowest load; false if that is too much already."""
        for number in range(BASE_RUNS):
            if number and self._over():
                break
            self._measure(load)
        found = self._cells[load]
        self._base = estimate([each.summary.p99_ms for each in found], seed=self._server.seed)
        departures = [self._judge(load, each) for each in found]
        self._keep(load, departures)
        return not self._steps[-1].departed

    def _climb(self, load: float) -> bool:
        """One step; false if there is none to come after it."""
        departures: list[Departure] = []
        while len(departures) < TRIES:
            if self._over():
                break
            departures.append(self._judge(load, self._measure(load)))
            bad = sum(map(bool, departures))
            if bad == 0 or max(bad, len(departures) - bad) > TRIES // 2:
                break
        if not departures:
            return False
        self._keep(load, departures)
        return not self._steps[-1].departed or self._settled()

    def _over(self) -> bool:
        if self._clock() - self._began < self.plan.max_s:
            return False
        self._stopped = f"its {self.plan.max_s:g} s were over"
        return True

    def _settled(self) -> bool:
        """Whether the server answers again: what piled up in a step that departed must not be in the next."""
        self._tell("waiting for the server to settle", self._share())
        spec = self._spec(loop="closed", clients=1, warmup_s=0.0, seconds=0.05, timeout_s=SETTLE_S)
        try:
            found = repetition_of(self._generator.run(spec))
        except SessionError as error:
            reason = str(error)
        else:
            if found.summary.ok:
                return True
            reason = found.first_error or "no answer"
        self._stopped = f"the server did not recover after {self._steps[-1].load:g}: {reason}"
        return False

    def _measure(self, load: float) -> Repetition:
        by_rate = self.plan.by == "rate"
        self._tell(f"{load:g} calls a second" if by_rate else f"{load:g} clients", self._share())
        spec = self._rate_spec(load) if by_rate else self._clients_spec(int(load))
        self._clients[load] = spec.clients
        found = self._cells.setdefault(load, [])
        try:
            measurement = self._generator.run(spec)
        except SessionError as error:
            if not self._steps and len(found) == 0:
                raise
            repetition = Repetition(summary=nothing(spec.clients), first_error=str(error))
        else:
            repetition = repetition_of(measurement)
            if self._raw is not None:
                self._raw.add(self._cell(load, ()).name, len(found), measurement)
        found.append(repetition)
        return repetition

    def _share(self) -> float:
        return min(1.0, (self._clock() - self._began) / self.plan.max_s)

    def _rate_spec(self, rate: float) -> LoadSpec:
        plan = self.plan
        return self._spec(
            loop="open",
            rate=rate,
            arrivals=plan.arrivals,
            clients=min(max(self._needed(rate), LEAST_CLIENTS), plan.max_clients),
            warmup_s=max(plan.warmup_s, 2 * self._base.value / 1e3),
            seconds=self._seconds(rate),
        )

    def _seconds(self, load: float) -> float:
        seconds = self.plan.seconds
        return (
            seconds if self.plan.by == "clients" else min(max(seconds, LEAST_CALLS / load), LONGEST * seconds)
        )

    def _needed(self, rate: float) -> int:
        """Calls on their way at once when p99 meets its limit: rate x latency (Little's law), and as much for bursts."""
        limit_s = self.plan.limits.p99_factor * self._base.high / 1e3
        return math.ceil(2 * rate * limit_s)

    def _clients_spec(self, clients: int) -> LoadSpec:
        return self._spec(
            loop="closed", clients=clients, warmup_s=self.plan.warmup_s, seconds=self.plan.seconds
        )

    def _spec(self, **changes: object) -> LoadSpec:
        return msgspec.structs.replace(self._server, **changes)

    # -- what they say -----------------------------------------------------------------------------------------

    def _judge(self, load: float, found: Repetition) -> Departure:
        return knee.judge(
            found.summary,
            due_rps=self._due(load, found),
            limits=self.plan.limits,
            base=self._base,
            answered_before=self._before(load),
            edge_rps=1 / self._seconds(load),
        )

    def _due(self, load: float, found: Repetition) -> float:
        """Calls a second that were due; with random arrivals those that came, not those that were asked for."""
        if self.plan.by == "clients":
            return 0.0
        if self.plan.arrivals == "constant" or found.summary.calls == 0:
            return load
        return found.summary.calls / self._seconds(load)

    def _before(self, load: float) -> float:
        if self.plan.by == "rate":
            return 0.0
        return max((each.answered_rps for each in self._steps if each.load < load), default=0.0)

    def _keep(self, load: float, departures: list[Departure]) -> None:
        """A step: whether most runs departed, with the numbers of the middle one of those that agree with that."""
        runs = self._cells[load]
        departed = sum(map(bool, departures)) * 2 > len(departures)
        agreeing = [(run, why) for run, why in zip(runs, departures, strict=True) if bool(why) == departed]
        agreeing.sort(key=lambda each: each[0].summary.p99_ms)
        run, why = agreeing[len(agreeing) // 2]
        reasons = [each.saturated for each, _ in agreeing if each.saturated]
        saturated = reasons[0] if 2 * len(reasons) > len(agreeing) else ""
        needed, most = self._needed(load), self.plan.max_clients
        if departed and self.plan.by == "rate" and needed > most and not saturated:
            saturated = f"up to {needed:,} calls would have been on their way, and it has {most:,} clients"
        self._steps.append(
            Step(
                load=load,
                clients=self._clients[load],
                runs=len(departures),
                due_rps=self._due(load, run),
                answered_rps=run.summary.throughput_rps,
                error_rate=knee.error_rate(run.summary),
                p50_ms=run.summary.p50_ms,
                p99_ms=run.summary.p99_ms,
                departed=why,
                saturated=saturated,
                first_error=run.first_error,
            )
        )

    def _cell(self, load: float, repetitions: tuple[Repetition, ...]) -> Cell:
        return Cell(
            transport=self._transport,
            reuse="on",
            clients=self._clients[load],
            way=self._way,
            rate=load if self.plan.by == "rate" else 0.0,
            repetitions=repetitions,
        )

    @property
    def cells(self) -> tuple[Cell, ...]:
        """A cell a load, the lowest first."""
        return tuple(self._cell(load, tuple(found)) for load, found in sorted(self._cells.items()) if found)

    @property
    def breaking(self) -> Breaking:
        """What the steps say so far."""
        held, departed = knee.around(self._steps)
        return Breaking(
            by=self.plan.by,
            limits=self.plan.limits,
            precision=self.plan.precision,
            base=self._base,
            steps=tuple(self._steps),
            held=held,
            departed=departed,
            stopped=self._stopped,
        )
