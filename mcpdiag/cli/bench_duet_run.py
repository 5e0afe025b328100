"""What `mcpdiag bench duet` does, from the first look at both servers to the result on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from mcpdiag.bench import discover
from mcpdiag.bench.duet import DuetRun
from mcpdiag.bench.matrix import bare_load
from mcpdiag.bench.result import Config, Duet
from mcpdiag.bench.spec import Endpoint
from mcpdiag.bench.workload import Workload, choose
from mcpdiag.cli.bench_proxies import Target
from mcpdiag.cli.bench_store import Outcome, Tell, public, sit


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for."""

    base: Target
    new: Target
    config: Config
    slice_s: float
    cpu: int | None = None
    name: str = "duet"
    workload: Path | None = None
    output: Path | None = None


def measure(order: Order, tell: Tell) -> Outcome | None:
    """Look at both servers, run all rounds, write the result. None if it was interrupted before a round was measured.

    Args:
        tell: called with words, steps done and steps in all.

    Raises:
        ConfigError: the workload is wrong, or there is a result in the folder already.
        StartError: a server does not start, has no tools or fails every call.
    """
    config = order.config
    sitting = sit(
        order.name,
        order.output,
        tell,
        lambda: _look(order),
        lambda load, raw, told: DuetRun(
            config,
            load,
            (_endpoint(order.base), _endpoint(order.new)),
            slice_s=order.slice_s,
            cpu=order.cpu,
            raw=raw,
            tell=told,
        ),
    )
    if sitting is None:
        return None
    cells = sitting.run.cells
    if min((len(cell.repetitions) for cell in cells), default=0) < 2:
        sitting.drop()
        return None
    if not any(each.summary.ok for cell in cells for each in cell.repetitions):
        raise sitting.fail(cells)
    return sitting.keep(
        target=public(order.new),
        workload=sitting.seen,
        config=config,
        cells=cells,
        duet=Duet(base=public(order.base), slice_s=order.slice_s, cpu=order.cpu),
    )


def _endpoint(target: Target) -> Endpoint:
    return Endpoint(url=target.url, headers=dict(target.headers), command=target.command)


def _look(order: Order) -> Workload:
    """The workload, chosen by the tools that both have, once each of its calls has been tried at both."""
    base, new = (bare_load(order.config, _endpoint(each)) for each in (order.base, order.new))
    needed = order.workload is None
    known = {tool.name for tool in discover.tools_of(base, needed=needed)}
    tools = [tool for tool in discover.tools_of(new, needed=needed) if tool.name in known]
    load = choose(tools, order.workload)
    for each in (base, new):
        discover.try_calls(replace(each, calls=load.calls))
    return load
