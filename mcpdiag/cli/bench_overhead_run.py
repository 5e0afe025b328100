"""What `mcpdiag bench overhead` does, from the first look at the server to the result on disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from mcpdiag.bench import discover
from mcpdiag.bench import result as results
from mcpdiag.bench.environment import here
from mcpdiag.bench.overhead import Endpoint, OverheadRun, SideKey
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.result import Config, Result
from mcpdiag.bench.spec import LoadSpec
from mcpdiag.bench.workload import Workload, choose
from mcpdiag.cli.bench_proxies import Target
from mcpdiag.cli.bench_sides import Sides
from mcpdiag.cli.bench_store import Outcome, Tell, claim, forget, public
from mcpdiag.cli.terminated import terminated_is_interrupted
from mcpdiag.errors import StartError


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    target: Target
    config: Config
    sampling: bool = False
    name: str = "overhead"
    workload: Path | None = None
    output: Path | None = None


def measure(order: Order, tell: Tell) -> Outcome | None:
    """Look at the server, run all rounds, write the result. None if it was interrupted before anything was measured.

    Args:
        tell: called with words, steps done and steps in all.

    Raises:
        ConfigError: the workload is wrong, or there is a result in the folder already.
        StartError: the server does not start, has no tools or fails every call.
    """
    config = order.config
    started, began = datetime.now(UTC), time.monotonic()
    sides = Sides(
        order.target,
        pool_mode=config.pool_mode,
        max_connections=config.max_connections,
        timeout_s=config.timeout_s,
    )
    environment = here()
    with terminated_is_interrupted():
        try:
            tell("looking at the server", 0, 1)
            load = _look(order, sides)
        except KeyboardInterrupt:
            return None
        folder = claim(environment, order.name, order.output)
        interrupted = False
        with RawFile(folder) as raw:
            run = OverheadRun(
                config,
                load,
                sides,
                sampling=order.sampling,
                raw=raw,
                tell=lambda words, done: tell(words, done, run.steps),
            )
            try:
                run.run()
            except KeyboardInterrupt:
                interrupted = True
            except BaseException:
                forget(folder, raw)
                raise
    cells, overhead = run.cells, run.overhead
    if interrupted and not overhead:
        forget(folder, raw)
        return None
    if not overhead:
        first = next((e.first_error for c in cells for e in c.repetitions if e.first_error), "no answer")
        forget(folder, raw)
        raise StartError(f"the server cannot be measured: {first}")
    result = Result(
        name=order.name,
        started_at=started.isoformat(timespec="seconds"),
        took_s=round(time.monotonic() - began, 3),
        complete=not interrupted,
        environment=environment,
        target=public(order.target),
        workload=load,
        config=config,
        cells=cells,
        overhead=overhead,
    )
    results.write(result, folder)
    return Outcome(result, folder, interrupted)


def _look(order: Order, sides: Sides) -> Workload:
    """The workload, once each of its calls has been tried in both ways, over each transport."""
    config = order.config
    keys: tuple[SideKey, ...] = tuple((t, way) for t in config.transports for way in _WAYS)
    with sides(keys) as running:
        tools = discover.tools_of(
            _spec(config, running[config.transports[0], "direct"].endpoint), needed=order.workload is None
        )
        load = choose(tools, order.workload)
        for key in keys:
            discover.try_calls(replace(_spec(config, running[key].endpoint), calls=load.calls))
    return load


_WAYS: tuple[results.Way, ...] = ("direct", "proxied")


def _spec(config: Config, endpoint: Endpoint) -> LoadSpec:
    return LoadSpec(
        url=endpoint.url,
        headers=endpoint.headers,
        command=endpoint.command,
        era=config.era,
        timeout_s=config.timeout_s,
    )
