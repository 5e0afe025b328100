"""`mcpdiag bench soak`: steady load for a while, and whether anything grows. `bench.py` registers it."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from mcpdiag.config.mistakes import found
from mcpdiag.config.types import parse_duration
from mcpdiag.errors import ConfigError

FORMATS = ("table", "json", "md", "junit")
MODES = ("request", "multiplex", "session")
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
    command: Annotated[
        list[str] | None, typer.Argument(help="After `--`: the stdio server's command.", show_default=False)
    ] = None,
    url: Annotated[str | None, typer.Option(help="A Streamable HTTP server instead of a command.")] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="'Name: value', sent to --url by the proxy; may be repeated.")
    ] = None,
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
    pool_mode: Annotated[str, typer.Option(help=f"Of a stdio server: {', '.join(MODES)}.")] = "request",
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
    workload: Annotated[
        Path | None, typer.Option(help="A .toml file with what to call (docs/bench.md).")
    ] = None,
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
    timeout: Annotated[float, typer.Option(help="Seconds until a call has failed.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 1,
    name: Annotated[str, typer.Option(help="Of the result.")] = "soak",
    output: Annotated[
        Path | None, typer.Option(help="Folder of the result. [default: a new one in mcpdiag-results]")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "table",
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print the path of the result and nothing else.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print the method, measure nothing.")] = False,
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
    from mcpdiag.cli.bench_show import progress
    from mcpdiag.cli.bench_soak_run import Order, measure
    from mcpdiag.cli.bench_soak_servers import Front
    from mcpdiag.cli.bench_soak_show import show

    problems: list[str] = []
    target = Target(tuple(command or ()), url or "", tuple(_header(problems, each) for each in header or ()))
    embedded = target.kind == "embedded"
    if command and url:
        problems.append("--url: found it beside a command after --; allowed: one of them")
    for option, given, needs, there in (
        ("--header", header, "--url", url),
        ("--pid", pid, "--url", url),
        ("--probe", probe, "a command after --", command),
        ("--transport", transport, "no target, which has one", embedded),
    ):
        if given and not there:
            problems.append(f"{option}: found it without {needs}; remove it")
    seconds = _duration(problems, "--for", for_)
    every_s = every_of(seconds) if every is None else _duration(problems, "--every", every)
    if seconds < FEWEST_READINGS * every_s:
        enough = f"allowed: {FEWEST_READINGS * every_s:g}s or longer, or a shorter --every"
        problems.append(
            f"--for: found {for_}, fewer than {FEWEST_READINGS} readings {every_s:g} s apart; {enough}"
        )
    calls = _rate(problems, rate)
    for option, value, least in (
        ("--connections", connections, 1),
        ("--session-calls", session_calls, 0),
        ("--max-connections", 1 if max_connections is None else max_connections, 1),
    ):
        if not least <= value <= 100_000:
            problems.append(f"{option}: found {value}; allowed: a whole number from {least} to 100,000")
    if not 0 < timeout <= 1e6:
        problems.append(f"--timeout: found {timeout:g}; allowed: a number above 0")
    for option, text, allowed in (
        ("--pool-mode", pool_mode, MODES),
        ("--transport", transport or "stdio", ("stdio", "http")),
        ("--format", format_, FORMATS),
    ):
        if text not in allowed:
            problems.append(f"{option}: found {found(text)}; allowed: {', '.join(allowed)}")
    if quiet and format_ != "table":
        problems.append("--quiet: found it beside --format; allowed: one of them")
    if not name or not all(each.isalnum() or each in "-._" for each in name):
        problems.append(f"--name: found {found(name)}; allowed: letters, digits, '-', '.' and '_'")
    pool = max_connections or (1 if embedded else 10)
    stdio = bool(command) or (embedded and transport != "http")
    problems += _files(connections, 4 * pool if stdio else pool)
    if problems:
        raise ConfigError(problems)
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
    with progress(quiet=quiet or not sys.stderr.isatty()) as tell:
        outcome = measure(order, tell, started=started, began=began)
    if outcome is None:
        print("mcpdiag: interrupted before anything was measured", file=sys.stderr)
        raise typer.Exit(130)
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


def _duration(problems: list[str], option: str, text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        problems.append(f"{option}: {error}")
        return 60.0
    if not 0.1 <= seconds <= 30 * 86400:
        problems.append(f"{option}: found {text}; allowed: from 100ms to 30 days")
        return 60.0
    return seconds


def _rate(problems: list[str], text: str) -> float:
    """0 is as fast as it goes."""
    if text == "max":
        return 0.0
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1e6:
        problems.append(f"--rate: found {found(text)}; allowed: a number above 0, or max")
        return 1.0
    return rate


def _header(problems: list[str], text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        problems.append("--header: found no colon; allowed: 'Name: value'")
    return name.strip(), value.strip()


def _files(connections: int, pool: int) -> list[str]:
    """Raise the limit of open files as far as it goes; a line if that is not far enough."""
    try:
        import resource
    except ImportError:
        return []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * connections + pool + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        words = (
            f"found {connections}, which need {needed:,} open files; the hard limit is {hard:,} (ulimit -Hn)"
        )
        return [f"--connections: {words}: raise it, or use fewer"]
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return []
