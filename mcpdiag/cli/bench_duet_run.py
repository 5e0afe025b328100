"""What `mcpdiag bench duet` does, from the first look at both servers to the result on disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from mcpdiag.bench import discover
from mcpdiag.bench import result as results
from mcpdiag.bench.duet import DuetRun
from mcpdiag.bench.environment import here
from mcpdiag.bench.overhead import Endpoint
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.result import Config, Duet, Result
from mcpdiag.bench.spec import LoadSpec
from mcpdiag.bench.workload import Workload, choose
from mcpdiag.cli.bench_proxies import Target
from mcpdiag.cli.bench_store import Outcome, Tell, claim, forget, public
from mcpdiag.cli.terminated import terminated_is_interrupted
from mcpdiag.errors import StartError


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
    started, began = datetime.now(UTC), time.monotonic()
    environment = here()
    with terminated_is_interrupted():
        try:
            tell("looking at the servers", 0, 1)
            load = _look(order)
        except KeyboardInterrupt:
            return None
        folder = claim(environment, order.name, order.output)
        interrupted = False
        with RawFile(folder) as raw:
            run = DuetRun(
                order.config,
                load,
                (_endpoint(order.base), _endpoint(order.new)),
                slice_s=order.slice_s,
                cpu=order.cpu,
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
    cells = run.cells
    if interrupted and min((len(cell.repetitions) for cell in cells), default=0) < 2:
        forget(folder, raw)
        return None
    if not any(each.summary.ok for cell in cells for each in cell.repetitions):
        first = next((e.first_error for c in cells for e in c.repetitions if e.first_error), "no answer")
        forget(folder, raw)
        raise StartError(f"the servers cannot be measured, every call failed: {first}")
    result = Result(
        name=order.name,
        started_at=started.isoformat(timespec="seconds"),
        took_s=round(time.monotonic() - began, 3),
        complete=not interrupted,
        environment=environment,
        target=public(order.new),
        workload=load,
        config=order.config,
        cells=cells,
        duet=Duet(base=public(order.base), slice_s=order.slice_s, cpu=order.cpu),
    )
    results.write(result, folder)
    return Outcome(result, folder, interrupted)


def _endpoint(target: Target) -> Endpoint:
    return Endpoint(url=target.url, headers=dict(target.headers), command=target.command)


def _look(order: Order) -> Workload:
    """The workload, chosen by the tools that both have, once each of its calls has been tried at both."""
    base, new = (_spec(order.config, _endpoint(each)) for each in (order.base, order.new))
    needed = order.workload is None
    known = {tool.name for tool in discover.tools_of(base, needed=needed)}
    tools = [tool for tool in discover.tools_of(new, needed=needed) if tool.name in known]
    load = choose(tools, order.workload)
    for each in (base, new):
        discover.try_calls(replace(each, calls=load.calls))
    return load


def _spec(config: Config, endpoint: Endpoint) -> LoadSpec:
    return LoadSpec(
        url=endpoint.url,
        headers=endpoint.headers,
        command=endpoint.command,
        era=config.era,
        timeout_s=config.timeout_s,
    )
