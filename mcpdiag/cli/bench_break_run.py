"""What `mcpdiag bench break` does, from the first look at the server to the result and its plot on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from mcpdiag.bench import discover
from mcpdiag.bench import result as results
from mcpdiag.bench.breaking import BASE_RUNS, Plan, Search
from mcpdiag.bench.environment import here
from mcpdiag.bench.knee import Breaking
from mcpdiag.bench.matrix import PoolKey
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.result import Config, Result, Transport
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import LoadSpec
from mcpdiag.bench.workload import Workload, choose
from mcpdiag.cli.bench_proxies import Proxies, Target
from mcpdiag.cli.bench_store import Outcome, Tell, claim, forget, public
from mcpdiag.cli.terminated import terminated_is_interrupted
from mcpdiag.errors import StartError

PLOT = "breaking.png"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for; `direct` is past the proxy."""

    target: Target
    plan: Plan
    direct: bool
    era: Literal["handshake", "stateless"]
    pool_mode: str
    max_connections: int
    timeout_s: float
    seed: int = 1
    name: str = "break"
    workload: Path | None = None
    output: Path | None = None

    @property
    def transport(self) -> Transport:
        return "http" if self.target.url else "stdio"


def measure(order: Order, tell: Tell) -> Outcome | None:
    """Look at the server, search, write the result. None if it was interrupted before anything was measured.

    Raises:
        ConfigError: the workload is wrong, or there is a result in the folder already.
        StartError: the server does not start, has no tools or fails every call.
    """
    started, began = datetime.now(UTC), time.monotonic()
    environment = here()
    with terminated_is_interrupted():
        try:
            tell("looking at the server", 0, 100)
            with _served(order) as server:
                load = _look(order, server)
                folder = claim(environment, order.name, order.output)
                search, interrupted = _search(order, server, load, folder, tell)
        except KeyboardInterrupt:
            return None
    if not search.breaking.steps:
        return None
    result = Result(
        name=order.name,
        started_at=started.isoformat(timespec="seconds"),
        took_s=round(time.monotonic() - began, 3),
        complete=not interrupted,
        environment=environment,
        target=public(order.target),
        workload=load,
        config=_config(order, search),
        cells=search.cells,
        breaking=search.breaking,
    )
    results.write(result, folder)
    return Outcome(result, folder, interrupted, draw(search.breaking, folder))


@contextmanager
def _served(order: Order) -> Iterator[LoadSpec]:
    """What is to be loaded, while it runs."""
    if order.direct:
        target = order.target
        yield LoadSpec(
            url=target.url, headers=dict(target.headers), era=order.era, timeout_s=order.timeout_s, seed=order.seed
        )  # fmt: skip
        return
    proxies = Proxies(
        order.target,
        pool_mode=order.pool_mode,
        max_connections=order.max_connections,
        timeout_s=order.timeout_s,
    )
    pool: PoolKey = (order.transport, "on")
    with proxies((pool,)) as running:
        yield LoadSpec(url=running[pool].url, era=order.era, timeout_s=order.timeout_s, seed=order.seed)


def _look(order: Order, server: LoadSpec) -> Workload:
    tools = discover.tools_of(server, needed=order.workload is None)
    load = choose(tools, order.workload)
    discover.try_calls(replace(server, calls=load.calls))
    return load


def _search(order: Order, server: LoadSpec, load: Workload, folder: Path, tell: Tell) -> tuple[Search, bool]:
    spec = replace(
        server,
        calls=load.calls,
        sessions_per_client=load.sessions_per_client,
        session_calls=load.session_calls,
        think_time_s=load.think_time_s,
    )
    with RawFile(folder) as raw:
        search = Search(
            order.plan,
            spec,
            transport=order.transport,
            way="direct" if order.direct else "proxied",
            raw=raw,
            tell=lambda words, share: tell(words, round(100 * share), 100),
        )
        interrupted = False
        try:
            search.run()
        except KeyboardInterrupt:
            interrupted = True
        except SessionError as error:
            forget(folder, raw)
            raise StartError(f"the server cannot be measured: {error}") from None
    if not search.breaking.steps:
        forget(folder, raw)
    return search, interrupted


def _config(order: Order, search: Search) -> Config:
    plan = order.plan
    return Config(
        era=order.era,
        pool_mode="" if order.direct else order.pool_mode,
        max_connections=0 if order.direct else order.max_connections,
        clients=tuple(sorted({cell.clients for cell in search.cells})),
        transports=(order.transport,),
        warmup_s=plan.warmup_s,
        seconds=plan.seconds,
        repeat=BASE_RUNS,
        timeout_s=order.timeout_s,
        seed=order.seed,
    )


def draw(breaking: Breaking, folder: Path) -> str:
    """The plot beside the result; its path, or why there is none."""
    try:
        from mcpdiag.samples import plot
    except ImportError as error:
        return f"none; {error}"
    steps = sorted(breaking.steps, key=lambda each: each.load)
    axes = plot.breaking(
        [each.load for each in steps],
        p50_ms=[each.p50_ms for each in steps],
        p99_ms=[each.p99_ms for each in steps],
        departed=[bool(each.departed) for each in steps],
        limit_ms=breaking.limits.p99_factor * breaking.base.high,
        between=(breaking.held, breaking.departed),
        by=breaking.by,
    )
    file = folder / PLOT
    plot.save(axes, file)
    return str(file)
