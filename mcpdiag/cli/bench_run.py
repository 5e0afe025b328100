"""What `mcpdiag bench run` does, from the first look at the server to the result on disk; `bench.py` has the options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from mcpdiag.bench import discover, isolation
from mcpdiag.bench.matrix import Matrix, PoolKey, bare_load
from mcpdiag.bench.result import Config
from mcpdiag.bench.spec import Call, Endpoint
from mcpdiag.bench.workload import Workload, choose
from mcpdiag.cli.bench_proxies import Proxies, Target
from mcpdiag.cli.bench_store import Outcome, Tell, public, sit


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
    proxies = Proxies(
        order.target,
        pool_mode=config.pool_mode,
        max_connections=config.max_connections,
        timeout_s=config.timeout_s,
    )
    sitting = sit(
        order.name,
        order.output,
        tell,
        lambda: _look(order, proxies),
        lambda seen, raw, told: Matrix(config, seen[0], proxies, seen[1], raw=raw, tell=told),
    )
    if sitting is None:
        return None
    matrix = sitting.run
    if not matrix.cells:
        sitting.drop()
        return None
    if not any(each.summary.ok for cell in matrix.cells for each in cell.repetitions):
        raise sitting.fail(matrix.cells)
    return sitting.keep(
        target=public(order.target),
        workload=sitting.seen[0],
        config=config,
        cells=matrix.cells,
        pairs=matrix.pairs,
        isolation=matrix.isolation,
    )


def _look(order: Order, proxies: Proxies) -> tuple[Workload, tuple[Call, str]]:
    """The workload, and the call for the isolation check, after each call has been tried."""
    config = order.config
    pool: PoolKey = (config.transports[0], "on")
    with proxies((pool,)) as running:
        url = running[pool].url
        look = bare_load(config, Endpoint(url=url))
        tools = discover.tools_of(look, needed=order.workload is None)
        load = choose(tools, order.workload, generate=order.generate)
        discover.try_calls(replace(look, calls=load.calls))
    return load, isolation.probe(tools, load)
