"""`mcpdiag bench duet`: is the new server slower than the one before? `bench.py` registers it."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from mcpdiag.cli import bench_options as options
from mcpdiag.cli.bench_options import Mistakes

METHOD = """\
What `mcpdiag bench duet` does
1. Both servers are loaded directly, in a closed loop, by one generator that calls only one of them at a time: slices
   of 50 ms, in the order base, new, new, base. What slows the machine for longer than that slows both alike.
2. Each round starts the processes of both anew, in every other round the new one first, because a process may get
   unlucky addresses and be slower by a tenth for all of its life. They and the generator share one processor
   (--no-pin: the system chooses), for two processors are not equally fast at every moment.
3. The time of a side is that of its slices, each until its last answer. Its throughput and percentiles in a round are
   those of all calls of the round.
4. The change is the median of the rounds' ratios, new over base, with a 95 % bootstrap interval.
5. Whether that is more than noise: Wilcoxon's signed ranks of the rounds' ratios, each round's sign turned at random,
   and the largest of all comparisons compared with the one found (maxT). So the rate of false alarms, 1 %, is of all
   comparisons together. Fewer than 8 rounds cannot reach it.
Two URLs are two processes: what differs between two processes of one program is in the change then."""


def duet(
    command: options.Command = None,
    base: Annotated[
        str | None, typer.Option(help="The stdio server to compare with: its command, quoted.")
    ] = None,
    url: options.Url = None,
    base_url: Annotated[
        str | None, typer.Option(help="The Streamable HTTP server to compare --url with.")
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(help="'Name: value', sent to both URLs; may be repeated.", show_default=False),
    ] = None,
    clients: Annotated[str, typer.Option(help="How many at once, with commas.")] = "1",
    seconds: Annotated[float, typer.Option(help="Measured time of each side in a round.")] = 0.75,
    warmup: options.Warmup = 0.15,
    slice_: Annotated[str, typer.Option("--slice", help="How long one side is called at a time.")] = "50ms",
    repeat: Annotated[int, typer.Option(help="Rounds; fewer than 8 cannot show a difference.")] = 16,
    pin: Annotated[
        bool, typer.Option(help="Keep generator and stdio servers on one processor (Linux).")
    ] = True,
    era: options.Era = "handshake",
    workload: options.WorkloadFile = None,
    timeout: options.Timeout = 30.0,
    seed: options.Seed = 1,
    name: options.Name = "duet",
    output: options.Output = None,
    format_: options.Format = "table",
    quiet: options.Quiet = False,
    explain: options.Explain = False,
) -> None:
    """Measure two servers in turn, in slices of milliseconds, and say whether the new one is slower.

    Examples:

    `mcpdiag bench duet --base 'node old/server.js' -- node new/server.js`

    `mcpdiag bench duet --base-url http://127.0.0.1:3001/mcp --url http://127.0.0.1:3002/mcp --clients 1,8`
    """
    if explain:
        print(METHOD)
        return
    from mcpdiag.bench.result import Config
    from mcpdiag.cli.bench_duet_run import Order, measure
    from mcpdiag.cli.bench_proxies import Target
    from mcpdiag.cli.bench_show import finish, kept, progress

    wrong = Mistakes()
    wrong.target(command, url, header)
    if not command and not url:
        wrong.add("--base", "found no new server; allowed: --base 'OLD' -- NEW, or --base-url OLD --url NEW")
    elif command and (not base or base_url):
        wrong.add("--base", "a command is compared with a command; allowed: --base 'OLD' -- NEW")
    elif url and (not base_url or base):
        wrong.add("--base-url", "a URL is compared with a URL; allowed: --base-url OLD --url NEW")
    headers = wrong.headers(header)
    config = Config(
        era=wrong.one_of("--era", era, options.ERAS),
        pool_mode="",
        max_connections=0,
        clients=wrong.wholes("--clients", clients, most=1000),
        transports=("http",) if url else ("stdio",),
        warmup_s=wrong.above("--warmup", warmup, zero=True),
        seconds=wrong.above("--seconds", seconds),
        repeat=wrong.whole("--repeat", repeat, least=2),
        timeout_s=wrong.above("--timeout", timeout),
        seed=seed,
    )
    slice_s = wrong.duration("--slice", slice_, most=60)
    words: list[str] = []
    try:
        words = shlex.split(base or "")
    except ValueError as error:
        wrong.add("--base", f"found a command with {str(error).lower()}; quote it as for a shell")
    wrong.name(name)
    wrong.shown(quiet, format_)
    wrong.raise_if_any()
    order = Order(
        base=Target(tuple(words), base_url or "", headers),
        new=Target(tuple(command or ()), url or "", headers),
        config=config,
        slice_s=slice_s,
        cpu=_processor() if pin and command else None,
        name=name,
        workload=workload,
        output=output,
    )
    with progress(quiet=quiet) as tell:
        outcome = kept(measure(order, tell))
    finish(outcome, quiet=quiet, format_=format_)


def _processor() -> int | None:
    """The last of those that may be used: the first has most of the system's own work."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
