"""`mcpdiag bench break`: at which load a server breaks. `bench.py` registers it."""

from __future__ import annotations

from typing import Annotated

import typer

from mcpdiag.cli import bench_options as options
from mcpdiag.cli.bench_options import Mistakes
from mcpdiag.config.mistakes import found

METHOD = """\
What `mcpdiag bench break` does
1. It loads the server in an open loop: calls come at a rate, whether it keeps up or not, and latency counts from when
   a call was due. With --by clients it is a closed loop of so many clients. A URL is loaded directly, or through the
   proxy with --proxied; a command and the embedded server always through the proxy.
2. Low load: five runs at a quarter of the rate that one client gets in a closed loop (or --start). Their p99 has a
   95 % bootstrap interval.
3. Then the load doubles from step to step, each a run of its own with sessions of its own: nothing adds up from one
   to the next. After a step that departs it waits until the server answers again.
4. A step departs if more than --max-errors of its calls fail, if less than 95 % of the calls that were due are
   answered in that time (by clients: if throughput falls below 95 % of what fewer clients got), or if p99 is more
   than --p99-factor times the p99 of low load, counted from the upper end of its interval. It is run again then, and
   departs only if two of three runs do.
5. Between the last step that held and the first that departed it closes in, until they are --precision apart.
6. A step at which the generator's core was busy, its loop late, or its clients were not enough, is marked: if that is
   the one that departs, the breaking point is a lower bound, and the result says so.
It stops at --most or after --max-time, and says what held until then."""


def break_(
    command: options.Command = None,
    url: options.Url = None,
    header: options.Header = None,
    proxied: Annotated[
        bool, typer.Option("--proxied", help="Through the proxy, where --url is loaded directly.")
    ] = False,
    by: Annotated[str, typer.Option(help="What is raised: rate (calls a second) or clients.")] = "rate",
    start: Annotated[
        float | None,
        typer.Option(help="The lowest load. [default: a quarter of what one client gets, or one client]"),
    ] = None,
    most: Annotated[
        float | None, typer.Option(help="The highest load. [default: 100,000 a second, or 1,000 clients]")
    ] = None,
    p99_factor: Annotated[float, typer.Option(help="p99 may be so many times that of low load.")] = 5.0,
    max_errors: Annotated[str, typer.Option(help="So many calls may fail.")] = "1%",
    precision: Annotated[str, typer.Option(help="How close to close in.")] = "10%",
    seconds: Annotated[float, typer.Option(help="Measured time of a step, at the least.")] = 2.0,
    warmup: options.Warmup = 0.5,
    max_time: Annotated[str, typer.Option(help="Stop after this.")] = "3m",
    poisson: Annotated[
        bool, typer.Option("--poisson", help="Random arrivals instead of equal distances.")
    ] = False,
    max_clients: Annotated[
        int, typer.Option(help="Calls of an open loop that can be on their way at once.")
    ] = 1000,
    max_connections: Annotated[
        int | None, typer.Option(help="Of the proxy's pool. [default: 1 for the embedded server, else 10]")
    ] = None,
    pool_mode: options.PoolMode = "request",
    era: options.Era = "handshake",
    workload: options.WorkloadFile = None,
    timeout: options.Timeout = 5.0,
    seed: options.Seed = 1,
    name: options.Name = "break",
    output: options.Output = None,
    format_: options.Format = "table",
    quiet: options.Quiet = False,
    explain: options.Explain = False,
) -> None:
    """Raise the load until the server breaks, and say where, with a plot.

    Examples:

    `mcpdiag bench break --url http://127.0.0.1:3001/mcp`

    `mcpdiag bench break --by clients -- npx -y @modelcontextprotocol/server-everything`
    """
    if explain:
        print(METHOD)
        return
    from mcpdiag.bench.breaking import Plan
    from mcpdiag.bench.knee import Limits
    from mcpdiag.cli.bench_break_run import Order, measure
    from mcpdiag.cli.bench_proxies import Target
    from mcpdiag.cli.bench_show import finish, kept, progress

    wrong = Mistakes()
    wrong.target(command, url, header)
    target = Target(tuple(command or ()), url or "", wrong.headers(header))
    if proxied and not url:
        wrong.add("--proxied", "found it without --url; everything else goes through the proxy, remove it")
    direct = bool(url) and not proxied
    if direct and max_connections is not None:
        wrong.add("--max-connections", "found it without a proxy; add --proxied or remove it")
    wrong.one_of("--by", by, ("rate", "clients"))
    if by == "clients" and poisson:
        wrong.add("--poisson", "found it beside --by clients, who have no arrivals; remove it")
    ceiling = 1e6 if by == "rate" else 10_000.0
    top = (1e5 if by == "rate" else 1000.0) if most is None else wrong.above("--most", most, most=ceiling)
    lowest = 0.0 if start is None else wrong.above("--start", start, most=ceiling)
    if lowest > top:
        wrong.add("--start", f"found {lowest:g}, above the highest load {top:g}")
    if by == "clients" and (lowest != int(lowest) or top != int(top)):
        wrong.add("--start", "found a part of a client; allowed: whole numbers with --by clients")
    plan = Plan(
        by="clients" if by == "clients" else "rate",
        limits=Limits(
            p99_factor=_factor(wrong, p99_factor), max_errors=_share(wrong, "--max-errors", max_errors)
        ),
        start=lowest,
        most=top,
        precision=max(_share(wrong, "--precision", precision), 0.01),
        seconds=wrong.above("--seconds", seconds),
        warmup_s=wrong.above("--warmup", warmup, zero=True),
        arrivals="poisson" if poisson else "constant",
        max_clients=wrong.whole("--max-clients", max_clients),
        max_s=wrong.duration("--max-time", max_time),
    )
    order = Order(
        target=target,
        plan=plan,
        direct=direct,
        era=wrong.one_of("--era", era, options.ERAS),
        pool_mode=wrong.one_of("--pool-mode", pool_mode, options.POOL_MODES),
        max_connections=wrong.whole(
            "--max-connections", (1 if target.kind == "embedded" else 10) if max_connections is None else max_connections
        ),
        timeout_s=wrong.above("--timeout", timeout),
        seed=seed,
        name=name,
        workload=workload,
        output=output,
    )  # fmt: skip
    wrong.name(name)
    wrong.shown(quiet, format_)
    wrong.raise_if_any()
    with progress(quiet=quiet) as tell:
        outcome = kept(measure(order, tell))
    finish(outcome, quiet=quiet, format_=format_)


def _factor(wrong: Mistakes, value: float) -> float:
    if not 1 < value <= 1000:
        wrong.add("--p99-factor", f"found {value:g}; allowed: a number above 1 to 1,000")
        return 5.0
    return value


def _share(wrong: Mistakes, option: str, text: str) -> float:
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number) / 100 if text.strip().endswith("%") else float("nan")
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        wrong.add(option, f"found {found(text)}; allowed: a percentage from 0% to 100%, such as 5%")
        return 0.1
    return value
