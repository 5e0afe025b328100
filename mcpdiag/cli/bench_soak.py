"""`mcpdiag bench soak`: steady load for a while, and whether anything grows. `bench.py` registers it."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from mcpdiag.cli import bench_options as options
from mcpdiag.cli.bench_options import Mistakes
from mcpdiag.config.mistakes import found

FORMATS = ("table", "json", "md", "junit")
MOST = 100_000  # connections, of either side
FEWEST_READINGS = 14  # the first tenth is warm-up, and a verdict needs 12
SPARE_FILES = 200  # beside two a connection: the proxy's own, and its servers'
METHOD = """\
What `mcpdiag bench soak` does
1. It starts a proxy in front of the server, opens --connections sessions, and calls at --rate (an open loop at equal
   distances) for --for. After --session-calls calls a session is ended and a new one opened in its place.
2. 60 times in that time, but at most twice a second and at least every minute, it reads the proxy and the server:
   RSS, private memory, fds, threads, children, sessions; and what Python and malloc have given out, after a collection
   of garbage, of our own processes and, with --probe, of a Python server (a thread in the process tells).
3. The first tenth is warm-up. Of the rest, for each metric: the Theil-Sen slope per request. It is suspected if the
   slope is at least 0.5 blocks, 32 B of heap or 32 B of private memory a request, makes at least 500 blocks, 128 KiB
   or 2 MiB in all, and each third of the readings holds half of it; of fds, threads, children and sessions, if it
   makes at least 10, 4, 4 or 20 and each third holds half.
4. A suspicion is no leak yet: a cache that is filling looks the same. The soak goes on to twice the requests. It is a
   leak if all of that grows as steadily, and the second half at least half as fast as the first.
5. "none" is only said where such a leak would have shown. From outside, a process hides 3 MiB in memory it already
   has, so that takes some 100,000 requests; below that the answer is inconclusive, and says how many it needs.
Where blocks or heap are known, private memory is shown and does not decide. Where the server did not keep up with
--rate, 100 blocks or 4 KiB for each connection are calls under way and no growth. --report-sites keeps the load on
for 12 s more and names call sites that grew: candidates, never proof. Exit: 0 none or inconclusive, 1 leak
(with --strict also inconclusive, or failed calls), 2 usage, 3 the server cannot be measured, 130 interrupted."""


def soak(
    command: options.Command = None,
    url: options.Url = None,
    header: options.Header = None,
    for_: Annotated[str, typer.Option("--for", help="How long, e.g. 60s, 10m, 1h.")] = "60s",
    connections: Annotated[
        int, typer.Option(help="Sessions that are kept open, each on a connection.")
    ] = 100,
    rate: Annotated[str, typer.Option(help="Calls a second, or max: as fast as it goes.")] = "500",
    session_calls: Annotated[
        int, typer.Option(help="After so many calls a session is replaced by a new one; 0 is never.")
    ] = 100,
    transport: Annotated[
        str | None, typer.Option(help="Of the embedded server: stdio or http. [default: stdio]")
    ] = None,
    pool_mode: options.PoolMode = "request",
    max_connections: Annotated[
        int | None, typer.Option(help="Of the pool. [default: 1 for the embedded server, else 10]")
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Start the Python server with a thread that tells what it has allocated."
        ),
    ] = False,
    pid: Annotated[
        int | None, typer.Option(help="Process of --url. [default: who listens there, if it is this machine]")
    ] = None,
    every: Annotated[str | None, typer.Option(help="Between readings. [default: a 60th of --for]")] = None,
    workload: options.WorkloadFile = None,
    extend: Annotated[
        bool, typer.Option(help="Look at a suspicion over twice the requests; without, it is inconclusive.")
    ] = True,
    report_sites: Annotated[
        bool,
        typer.Option(
            "--report-sites", help="After a leak, name call sites that grew (mcpdiag[heap], --probe)."
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 if it is inconclusive, or a call has failed.")
    ] = False,
    timeout: options.Timeout = 30.0,
    seed: options.Seed = 1,
    name: options.Name = "soak",
    output: options.Output = None,
    format_: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "table",
    quiet: options.Quiet = False,
    explain: options.Explain = False,
) -> None:
    """Load a server steadily, and say whether memory, descriptors, threads, children or sessions leak.

    Examples:

    `mcpdiag bench soak --for 60s`

    `mcpdiag bench soak --for 1h --connections 1000 -- npx -y @modelcontextprotocol/server-everything`

    `mcpdiag bench soak --for 10m --probe -- python -m my_server`

    `mcpdiag bench soak --for 10m --url http://127.0.0.1:3001/mcp`
    """
    if explain:
        print(METHOD)
        return
    from mcpdiag.bench.soak import every_of
    from mcpdiag.cli.bench_proxies import Target
    from mcpdiag.cli.bench_show import kept, progress
    from mcpdiag.cli.bench_soak_run import Order, measure
    from mcpdiag.cli.bench_soak_servers import Front
    from mcpdiag.cli.bench_soak_show import show

    wrong = Mistakes()
    wrong.target(command, url, None)
    target = Target(tuple(command or ()), url or "", wrong.headers(header))
    embedded = target.kind == "embedded"
    for option, given, needs, there in (
        ("--header", header, "--url", url),
        ("--pid", pid, "--url", url),
        ("--probe", probe, "a command after --", command),
        ("--transport", transport, "no target, which has one", embedded),
    ):
        if given and not there:
            wrong.add(option, f"found it without {needs}; remove it")
    seconds = wrong.duration("--for", for_, least=0.1)
    every_s = every_of(seconds) if every is None else wrong.duration("--every", every, least=0.1)
    if seconds < FEWEST_READINGS * every_s:
        enough = f"allowed: {FEWEST_READINGS * every_s:g}s or longer, or a shorter --every"
        wrong.add(
            "--for", f"found {for_}, fewer than {FEWEST_READINGS} readings {every_s:g} s apart; {enough}"
        )
    calls = _rate(wrong, rate)
    pool = (1 if embedded else 10) if max_connections is None else max_connections
    wrong.whole("--connections", connections, most=MOST)
    wrong.whole("--session-calls", session_calls, least=0, most=MOST)
    wrong.whole("--max-connections", pool, most=MOST)
    wrong.above("--timeout", timeout)
    wrong.one_of("--pool-mode", pool_mode, options.POOL_MODES)
    wrong.one_of("--transport", transport or "stdio", ("stdio", "http"))
    wrong.shown(quiet, format_, FORMATS)
    wrong.name(name)
    stdio = bool(command) or (embedded and transport != "http")
    _files(wrong, connections, 4 * pool if stdio else pool)
    wrong.raise_if_any()
    front = Front(
        target=target,
        transport="stdio" if stdio else "http",
        pool_mode=pool_mode,
        max_connections=pool,
        sessions=connections,
        timeout_s=timeout,
        probe=probe,
        server_pid=pid,
    )
    order = Order(
        front=front,
        seconds=seconds,
        every_s=every_s,
        rate=calls,
        session_calls=session_calls,
        extend=extend,
        sites=report_sites,
        workload=workload,
        seed=seed,
        name=name,
        output=output,
    )
    started, began = datetime.now(UTC), time.monotonic()
    with progress(quiet=quiet) as tell:
        outcome = kept(measure(order, tell, started=started, began=began))
    if quiet:
        print(outcome.folder)
    else:
        show(outcome, format_)
    if outcome.failure:
        print(f"mcpdiag: {outcome.failure}", file=sys.stderr)
    raise typer.Exit(
        _code(outcome.interrupted, bool(outcome.failure), outcome.soaked.verdict, outcome.failed, strict)
    )


def _code(interrupted: bool, broken: bool, verdict: str, failed: int, strict: bool) -> int:
    if interrupted:
        return 130
    return int(broken or verdict == "leak" or (strict and (verdict == "inconclusive" or failed > 0)))


def _rate(wrong: Mistakes, text: str) -> float:
    """0 is as fast as it goes."""
    if text == "max":
        return 0.0
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1e6:
        wrong.add("--rate", f"found {found(text)}; allowed: a number above 0, or max")
        return 1.0
    return rate


def _files(wrong: Mistakes, connections: int, pool: int) -> None:
    """Raise the limit of open files as far as it goes; a mistake if that is not far enough."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * connections + pool + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        words = (
            f"found {connections}, which need {needed:,} open files; the hard limit is {hard:,} (ulimit -Hn)"
        )
        wrong.add("--connections", f"{words}: raise it, or use fewer")
    elif soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
