"""What `mcpdiag bench overhead` does, from the first look at the server to the result on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from mcpdiag.bench import discover
from mcpdiag.bench import result as results
from mcpdiag.bench.matrix import bare_load
from mcpdiag.bench.overhead import OverheadRun, SideKey
from mcpdiag.bench.result import Config
from mcpdiag.bench.workload import Workload, choose
from mcpdiag.cli.bench_proxies import Target
from mcpdiag.cli.bench_sides import Sides
from mcpdiag.cli.bench_store import Outcome, Tell, public, sit


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
    sides = Sides(
        order.target,
        pool_mode=config.pool_mode,
        max_connections=config.max_connections,
        timeout_s=config.timeout_s,
    )
    sitting = sit(
        order.name,
        order.output,
        tell,
        lambda: _look(order, sides),
        lambda load, raw, told: OverheadRun(config, load, sides, sampling=order.sampling, raw=raw, tell=told),
    )
    if sitting is None:
        return None
    cells, overhead = sitting.run.cells, sitting.run.overhead
    if not overhead:
        if not sitting.interrupted:
            raise sitting.fail(cells)
        sitting.drop()
        return None
    return sitting.keep(
        target=public(order.target), workload=sitting.seen, config=config, cells=cells, overhead=overhead
    )


def _look(order: Order, sides: Sides) -> Workload:
    """The workload, once each of its calls has been tried in both ways, over each transport."""
    config = order.config
    keys: tuple[SideKey, ...] = tuple((t, way) for t in config.transports for way in _WAYS)
    with sides(keys) as running:
        tools = discover.tools_of(
            bare_load(config, running[config.transports[0], "direct"].endpoint), needed=order.workload is None
        )
        load = choose(tools, order.workload)
        for key in keys:
            discover.try_calls(replace(bare_load(config, running[key].endpoint), calls=load.calls))
    return load


_WAYS: tuple[results.Way, ...] = ("direct", "proxied")
