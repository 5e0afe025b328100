"""`mcpdiag bench overhead`: what the proxy adds to a call, and where in it. `bench.py` registers it."""

from __future__ import annotations

from typing import Annotated

import typer

from mcpdiag.cli import bench_options as options
from mcpdiag.cli.bench_options import Mistakes

METHOD = """\
What `mcpdiag bench overhead` does
1. The same load goes to the server in two ways, direct and through a proxy, both of the same round: a process of the
   server for each client over stdio, one server for both ways over HTTP. The ways of a pair run one after the other,
   another one first in each round, and each round starts the proxies anew.
2. The proxy is as users have it (--pool-mode session, recording). --sampling lets a third one take its turn, which
   records nothing: the throughput that it has more is what sampling costs.
3. The load comes from a process of its own, a closed loop (`mcpdiag bench --explain` has more of it).
4. "ratio" is the median of the rounds' ratios, "added" the difference of their medians, both with a 95 % bootstrap
   interval over rounds, widened for few rounds (Hesterberg 2015).
5. The parts come from the proxy's own recorder: queue (waiting for a connection), conn. (opening one), first (from
   sending the request to the server's first byte), relay (the rest of the proxy's time). Percentiles do not add up,
   means do: each part is the mean over the calls around the percentile (45th to 55th, 93rd to 97th).
6. hop is what the client waited beyond that: the way to the proxy and back, and its HTTP server. So
   queue + conn. + first + relay + hop is proxied; first minus direct is what the server itself took longer."""


def overhead(
    command: options.Command = None,
    url: options.Url = None,
    header: options.Header = None,
    clients: Annotated[str, typer.Option(help="How many at once, with commas.")] = "1,8",
    transports: Annotated[
        str | None, typer.Option(help="Of the embedded server: stdio,http. [default: both]")
    ] = None,
    sampling: Annotated[
        bool, typer.Option("--sampling", help="Also through a proxy that records nothing.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Measured time of each run.")] = 0.5,
    warmup: options.Warmup = 0.15,
    repeat: Annotated[int, typer.Option(help="Rounds; fewer than 3 give no interval.")] = 7,
    max_connections: Annotated[
        int | None, typer.Option(help="Of each pool. [default: 10, or the most clients]")
    ] = None,
    pool_mode: options.PoolMode = "session",
    era: options.Era = "handshake",
    workload: options.WorkloadFile = None,
    timeout: options.Timeout = 30.0,
    seed: options.Seed = 1,
    name: options.Name = "overhead",
    output: options.Output = None,
    format_: options.Format = "table",
    quiet: options.Quiet = False,
    explain: options.Explain = False,
) -> None:
    """Measure a server direct and through the proxy, in turn, and say what the proxy adds and where.

    Examples:

    `mcpdiag bench overhead`

    `mcpdiag bench overhead -- npx -y @modelcontextprotocol/server-everything`

    `mcpdiag bench overhead --url http://127.0.0.1:3001/mcp --clients 1,8,32`
    """
    if explain:
        print(METHOD)
        return
    from mcpdiag.bench.result import Config
    from mcpdiag.cli.bench_overhead_run import Order, measure
    from mcpdiag.cli.bench_proxies import Target
    from mcpdiag.cli.bench_show import finish, kept, progress

    wrong = Mistakes()
    wrong.target(command, url, header)
    target = Target(tuple(command or ()), url or "", wrong.headers(header))
    chosen = wrong.transports(command, url, transports)
    numbers = wrong.wholes("--clients", clients, most=1000)
    config = Config(
        era=wrong.one_of("--era", era, options.ERAS),
        pool_mode=wrong.one_of("--pool-mode", pool_mode, options.POOL_MODES),
        max_connections=wrong.whole(
            "--max-connections", max(10, *numbers) if max_connections is None else max_connections
        ),
        clients=numbers,
        transports=chosen,
        warmup_s=wrong.above("--warmup", warmup, zero=True),
        seconds=wrong.above("--seconds", seconds),
        repeat=wrong.whole("--repeat", repeat),
        timeout_s=wrong.above("--timeout", timeout),
        seed=seed,
    )
    wrong.name(name)
    wrong.shown(quiet, format_)
    wrong.raise_if_any()
    order = Order(target, config, sampling, name, workload, output)
    with progress(quiet=quiet) as tell:
        outcome = kept(measure(order, tell))
    finish(outcome, quiet=quiet, format_=format_)
