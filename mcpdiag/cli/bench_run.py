"""What `mcpdiag bench run` does, from the first look at the server to the result on disk; `bench.py` has the options."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mcpdiag.bench import discover, isolation
from mcpdiag.bench import result as results
from mcpdiag.bench.environment import here
from mcpdiag.bench.matrix import Matrix, PoolKey
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.result import Config, Result
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.bench.workload import Workload, choose
from mcpdiag.cli.bench_proxies import Proxies, Target
from mcpdiag.cli.bench_store import Outcome, Tell, claim, forget, public
from mcpdiag.cli.terminated import terminated_is_interrupted
from mcpdiag.errors import StartError


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    target: Target
    config: Config
    name: str = "matrix"
    workload: Path | None = None
    generate: bool = False
    output: Path | None = None


def measure(order: Order, tell: Tell) -> Outcome | None:
    """Look at the server, run the matrix, write the result. None if it was interrupted before anything was measured.

    Args:
        tell: called with words, steps done and steps in all.

    Raises:
        ConfigError: the workload is wrong, or there is a result in the folder already.
        StartError: the server does not start, has no tools or fails every call.
    """
    config = order.config
    started, began = datetime.now(UTC), time.monotonic()
    proxies = Proxies(
        order.target,
        pool_mode=config.pool_mode,
        max_connections=config.max_connections,
        timeout_s=config.timeout_s,
    )
    environment = here()
    with terminated_is_interrupted():
        try:
            tell("looking at the server", 0, 1)
            load, probe = _look(order, proxies)
        except KeyboardInterrupt:
            return None
        folder = claim(environment, order.name, order.output)
        interrupted = False
        with RawFile(folder) as raw:
            matrix = Matrix(
                config,
                load,
                proxies,
                probe,
                raw=raw,
                tell=lambda words, done: tell(words, done, matrix.steps),
            )
            try:
                matrix.run()
            except KeyboardInterrupt:
                interrupted = True
    if not matrix.cells:
        forget(folder, raw)
        return None
    result = Result(
        name=order.name,
        started_at=started.isoformat(timespec="seconds"),
        took_s=round(time.monotonic() - began, 3),
        complete=not interrupted,
        environment=environment,
        target=public(order.target),
        workload=load,
        config=config,
        cells=matrix.cells,
        pairs=matrix.pairs,
        isolation=matrix.isolation,
    )
    if not any(each.summary.ok for cell in result.cells for each in cell.repetitions):
        first = next(
            (e.first_error for c in result.cells for e in c.repetitions if e.first_error), "no answer"
        )
        forget(folder, raw)
        raise StartError(f"the server cannot be measured, every call failed: {first}")
    results.write(result, folder)
    return Outcome(result, folder, interrupted)


def _look(order: Order, proxies: Proxies) -> tuple[Workload, tuple[Call, str]]:
    """The workload, and the call for the isolation check, after each call has been tried."""
    config = order.config
    pool: PoolKey = (config.transports[0], "on")
    with proxies((pool,)) as running:
        url = running[pool].url
        look = LoadSpec(url=url, era=config.era, timeout_s=config.timeout_s)
        tools = discover.tools_of(look, needed=order.workload is None)
        load = choose(tools, order.workload, generate=order.generate)
        spec = LoadSpec(url=url, era=config.era, calls=load.calls, timeout_s=config.timeout_s)
        discover.try_calls(spec)
    return load, isolation.probe(tools, load)
