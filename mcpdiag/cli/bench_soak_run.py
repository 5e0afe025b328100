"""What `mcpdiag bench soak` does, from the first look at the server to the result on disk; `bench_soak.py` has the options."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from mcpdiag.bench import discover, readings
from mcpdiag.bench import result as results
from mcpdiag.bench.environment import here
from mcpdiag.bench.memory import Memory
from mcpdiag.bench.readings import Reading
from mcpdiag.bench.result import Cell, Config, Repetition, Result
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.soak import Soak
from mcpdiag.bench.soaked import Soaked
from mcpdiag.bench.spec import LoadSpec
from mcpdiag.bench.workload import Workload, choose
from mcpdiag.cli.bench_soak_servers import Front, Loaded, loaded
from mcpdiag.cli.bench_store import Tell, claim, public
from mcpdiag.cli.terminated import terminated_is_interrupted
from mcpdiag.errors import StartError


@dataclass(frozen=True)
class Order:
    """What was asked for; `rate` 0 is as fast as it goes."""

    front: Front
    seconds: float
    every_s: float
    rate: float
    session_calls: int
    extend: bool = True
    sites: bool = False
    workload: Path | None = None
    seed: int = 1
    name: str = "soak"
    output: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of it. `failure` says why it ended early, if it was not interrupted."""

    result: Result
    soaked: Soaked
    folder: Path
    readings: list[Reading] = field(repr=False)
    interrupted: bool
    failure: str

    @property
    def failed(self) -> int:
        """Calls that failed."""
        return self.soaked.failed


def measure(order: Order, tell: Tell, *, started: datetime, began: float) -> Outcome | None:
    """Start the proxy, load it, write the result. None if it was interrupted before there was a reading.

    Args:
        tell: called with words, seconds done and seconds in all.

    Raises:
        ConfigError: the workload is wrong, or there is a result in the folder already.
        StartError: the server does not start, has no tools or fails every call.
    """
    environment = here()
    interrupted, failure = False, ""
    soak: Soak | None = None
    with terminated_is_interrupted():
        try:
            tell("starting the proxy", 0, 1)
            with loaded(order.front) as running:
                load = _look(order, running)
                soak = Soak(
                    _spec(order, load, running.url),
                    running.read,
                    every_s=order.every_s,
                    extend=order.extend,
                    candidates=running.candidates if order.sites else None,
                    tell=tell,
                )
                soak.run()
        except KeyboardInterrupt:
            interrupted = True
        except SessionError as error:
            failure = str(error)
    if soak is None or not soak.readings:
        if failure:
            raise StartError(f"the server cannot be measured: {failure}")
        return None
    if not soak.tally.outcomes[0]:
        raise StartError(
            f"the server cannot be measured, every call failed: {soak.first_error or failure or 'no answer'}"
        )
    folder = claim(environment, order.name, order.output)
    result = Result(
        name=order.name,
        started_at=started.isoformat(timespec="seconds"),
        took_s=round(time.monotonic() - began, 3),
        complete=not interrupted and not failure,
        environment=environment,
        target=public(order.front.target),
        workload=load,
        config=_config(order),
        cells=(_cell(order, soak),),
        soak=soak.soaked(),
    )
    results.write(result, folder)
    readings.write(soak.readings, folder)
    return Outcome(result, soak.soaked(), folder, soak.readings, interrupted, failure)


def _look(order: Order, running: Loaded) -> Workload:
    timeout_s = order.front.timeout_s
    tools = discover.tools_of(LoadSpec(url=running.url, timeout_s=timeout_s), needed=order.workload is None)
    load = choose(tools, order.workload)
    discover.try_calls(LoadSpec(url=running.url, calls=load.calls, timeout_s=timeout_s))
    return load


def _spec(order: Order, load: Workload, url: str) -> LoadSpec:
    return LoadSpec(
        url=url,
        calls=load.calls,
        clients=order.front.sessions,
        session_calls=load.session_calls or order.session_calls,
        think_time_s=load.think_time_s,
        loop="open" if order.rate else "closed",
        rate=order.rate,
        warmup_s=0.0,
        seconds=order.seconds,
        timeout_s=order.front.timeout_s,
        seed=order.seed,
    )


def _config(order: Order) -> Config:
    front = order.front
    return Config(
        pool_mode=front.pool_mode,
        max_connections=front.max_connections,
        clients=(front.sessions,),
        transports=(front.transport,),
        warmup_s=0.0,
        seconds=order.seconds,
        repeat=1,
        timeout_s=front.timeout_s,
        seed=order.seed,
    )


def _cell(order: Order, soak: Soak) -> Cell:
    """All of the soak as one repetition, so that `check` and `compare` find what they know."""
    soaked = soak.soaked()
    rss = {
        process: max(
            (each.vitals[process].rss_bytes for each in soak.readings if process in each.vitals), default=0
        )
        for process in ("proxy", "server")
    }
    repetition = Repetition(
        summary=soak.tally.summary(soaked.took_s),
        memory=Memory(rss_bytes=int(rss["proxy"]), children_rss_bytes=int(rss["server"])),
        lateness=soaked.lateness,
        sessions_opened=soaked.sessions_opened,
        first_error=soak.first_error,
    )
    return Cell(
        transport=order.front.transport, reuse="on", clients=order.front.sessions, repetitions=(repetition,)
    )
