"""`mcpdiag bench`: how fast a server is, what pooling saves, whether it got slower. `run` is the default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from typer.core import TyperGroup

from mcpdiag.cli import bench_options as options
from mcpdiag.cli.bench_break import break_
from mcpdiag.cli.bench_duet import duet
from mcpdiag.cli.bench_locust import locust_result, locustfile
from mcpdiag.cli.bench_options import Mistakes
from mcpdiag.cli.bench_overhead import overhead
from mcpdiag.cli.bench_soak import soak
from mcpdiag.cli.bench_words import COMPARE, METHOD
from mcpdiag.errors import ConfigError, StartError

# Each verb imports what it needs: `mcpdiag proxy`, which clients start, would wait 0.1 s for all of it.


class _RunByDefault(TyperGroup):
    """`mcpdiag bench -- CMD` and `mcpdiag bench --url U` mean `mcpdiag bench run ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Honest numbers of an MCP server: load, comparison, gates.",
    rich_markup_mode="markdown",
)


@app.command()
def run(
    command: options.Command = None,
    url: options.Url = None,
    header: options.Header = None,
    clients: Annotated[str, typer.Option(help="How many at once, with commas.")] = "1,8,32",
    transports: Annotated[
        str | None, typer.Option(help="Of the embedded server: stdio,http. [default: both]")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Measured time of each run.")] = 0.4,
    warmup: options.Warmup = 0.15,
    repeat: Annotated[int, typer.Option(help="Rounds; fewer than 5 cannot show a difference.")] = 5,
    max_connections: Annotated[
        int | None, typer.Option(help="Of each pool. [default: 1 for the embedded server, else 10]")
    ] = None,
    pool_mode: options.PoolMode = "request",
    era: options.Era = "handshake",
    workload: options.WorkloadFile = None,
    generate_arguments: Annotated[
        bool, typer.Option(help="Call every tool, with arguments made from its schema.")
    ] = False,
    timeout: options.Timeout = 30.0,
    seed: options.Seed = 1,
    name: options.Name = "matrix",
    output: options.Output = None,
    format_: options.Format = "table",
    quiet: options.Quiet = False,
    explain: options.Explain = False,
) -> None:
    """Measure {stdio, http} x {pool reuse on, off} x {1, 8, 32 clients} on the embedded server, or on yours.

    Examples:

    `mcpdiag bench`

    `mcpdiag bench -- npx -y @modelcontextprotocol/server-everything`

    `mcpdiag bench --url http://127.0.0.1:3001/mcp --clients 1,8 --workload calls.toml`
    """
    if explain:
        print(METHOD)
        return
    from mcpdiag.bench.result import Config
    from mcpdiag.cli.bench_proxies import Target
    from mcpdiag.cli.bench_run import Order, measure
    from mcpdiag.cli.bench_show import finish, kept, progress

    wrong = Mistakes()
    wrong.target(command, url, header)
    target = Target(tuple(command or ()), url or "", wrong.headers(header))
    if workload is not None and generate_arguments:
        wrong.add("--generate-arguments", "found it beside --workload; allowed: one of them")
    chosen = wrong.transports(command, url, transports)
    wrong.shown(quiet, format_)
    wrong.name(name)
    default = 1 if target.kind == "embedded" else 10
    config = Config(
        era=wrong.one_of("--era", era, options.ERAS),
        pool_mode=wrong.one_of("--pool-mode", pool_mode, options.POOL_MODES),
        max_connections=wrong.whole(
            "--max-connections", default if max_connections is None else max_connections
        ),
        clients=wrong.wholes("--clients", clients),
        transports=chosen,
        warmup_s=wrong.above("--warmup", warmup, zero=True),
        seconds=wrong.above("--seconds", seconds),
        repeat=wrong.whole("--repeat", repeat),
        timeout_s=wrong.above("--timeout", timeout),
        seed=seed,
    )
    wrong.raise_if_any()
    order = Order(target, config, name, workload, generate_arguments, output)
    with progress(quiet=quiet) as tell:
        outcome = kept(measure(order, tell))
    finish(outcome, quiet=quiet, format_=format_)
    if outcome.result.crossed:
        raise typer.Exit(1)


@app.command()
def load(
    command: options.Command = None,
    url: options.Url = None,
    rate: Annotated[float, typer.Option(help="Calls a second of an open loop; 0 is a closed loop.")] = 0.0,
    poisson: Annotated[
        bool, typer.Option("--poisson", help="Random arrivals instead of equal distances.")
    ] = False,
    clients: Annotated[int, typer.Option(min=1, help="Calls that can be on their way at once.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.01, help="Measured time.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before it that do not count.")] = 1.0,
    era: options.Era = "handshake",
    workload: options.WorkloadFile = None,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds until a call has failed.")] = 30.0,
    seed: options.Seed = 1,
) -> None:
    """Load a server directly, in a closed or an open loop, and print the summary as JSON.

    Example:

    `mcpdiag bench load --url http://127.0.0.1:3001/mcp --rate 500 --poisson`
    """
    from mcpdiag.bench.discover import tools_of
    from mcpdiag.bench.generator import Generator
    from mcpdiag.bench.matrix import repetition_of
    from mcpdiag.bench.session import SessionError
    from mcpdiag.bench.spec import LoadSpec
    from mcpdiag.bench.workload import choose

    wrong = Mistakes()
    era_ = wrong.one_of("--era", era, options.ERAS)
    if bool(command) == bool(url):
        wrong.add("--url", f"found {'both' if url else 'neither'} --url and a command; allowed: one of them")
    if poisson and not rate:
        wrong.add("--poisson", "found it without --rate, which it goes with; remove it")
    wrong.above("--rate", rate, zero=True)
    wrong.raise_if_any()
    server: dict[str, Any] = {
        "url": url or "",
        "command": tuple(command or ()),
        "era": era_,
        "timeout_s": timeout,
    }
    tools = tools_of(LoadSpec(**server), needed=workload is None)
    calls = choose(tools, workload)
    spec = LoadSpec(
        **server,
        calls=calls.calls,
        clients=clients,
        sessions_per_client=calls.sessions_per_client,
        session_calls=calls.session_calls,
        think_time_s=calls.think_time_s,
        loop="open" if rate else "closed",
        rate=rate,
        arrivals="poisson" if poisson else "constant",
        warmup_s=warmup,
        seconds=seconds,
        seed=seed,
    )
    try:
        with Generator() as generator:
            found_ = repetition_of(generator.run(spec))
    except SessionError as error:
        raise StartError(f"the server cannot be measured: {error}") from None
    shown = {"load": calls.shown, **msgspec.to_builtins(found_)}
    del shown["memory"]
    print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(help="The folder or file of a result.")],
    new: Annotated[
        Path | None, typer.Argument(help="The one to compare with it; none for a result of `bench duet`.")
    ] = None,
    max_regression: Annotated[
        str | None, typer.Option(help="Exit 1 beyond these, e.g. p95=5%,throughput=5%,rss=10%.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare unlike machines or workloads too.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print the method, compare nothing.")] = False,
) -> None:
    """Say by how much a result differs from another, and whether that is more than noise.

    Example:

    `mcpdiag bench compare mcpdiag-results/base mcpdiag-results/new --max-regression p95=5%,throughput=5%,rss=10%`
    """
    if explain:
        print(COMPARE)
        return
    from mcpdiag.bench import compare as comparing
    from mcpdiag.bench import result
    from mcpdiag.cli.bench_show import table

    limits = {} if max_regression is None else comparing.parse_limits(max_regression)
    if new is None:
        comparison = comparing.sides(result.read(base))
        if "rss" in limits:
            raise ConfigError(["--max-regression: found rss; a duet has throughput, p50 and p95"])
    else:
        comparison = comparing.compare(result.read(base), result.read(new), force=force)
    table(comparing.HEADINGS, comparing.lines(comparison))
    for sentence in comparing.sentences(comparison):
        print(sentence)
    if limits and (worse := comparing.regressions(comparison, limits)):
        for each in worse:
            print(f"REGRESSION: {each.metric} of {each.cell}: {comparing.change(each.ratio)}, "
                  f"allowed are {limits[each.metric]:.0%}")  # fmt: skip
        raise typer.Exit(1)


@app.command()
def check(
    result_: Annotated[Path, typer.Argument(metavar="RESULT", help="The folder or file of a result.")],
    targets: Annotated[Path, typer.Option(help="A .toml file with targets.")] = Path(
        "benchmarks/targets.toml"
    ),
    baseline: Annotated[
        Path | None,
        typer.Option(help="A result to compare with. [default: the newest stored one of its kind]"),
    ] = None,
    results: Annotated[Path, typer.Option(help="Where results are stored.")] = Path("benchmarks/results"),
    extra: Annotated[
        Path | None,
        typer.Option(help="A .json file with metrics that a result has not (docs/bench.md, Targets)."),
    ] = None,
) -> None:
    """Exit 1 if a result misses a target, or has fallen behind the baseline.

    Example:

    `mcpdiag bench check mcpdiag-results/new --targets benchmarks/targets.toml`
    """
    from mcpdiag.bench import doubt, gate, result

    aims = gate.read_targets(targets)
    measured = result.read(result_)
    findings = gate.check(measured, aims, None if extra is None else gate.read_extra(extra))
    stored = baseline or gate.newest_baseline(measured, result_, results)
    if aims.limits and stored is not None:
        findings += gate.against_baseline(measured, result.read(stored), aims.limits)
    elif aims.limits:
        print(
            f"no baseline of this machine: no stored result of {measured.environment.machine} with this workload "
            f"in {results}"
        )
    for each in findings:
        print(f"{each.status + ':':14} {each.name}: {each.detail}")
    if said := doubt.disturbance(measured):
        print(said)
    if any(each.failed for each in findings):
        raise typer.Exit(1)


app.command(name="break")(break_)
app.command()(duet)
app.command()(overhead)
app.command()(locustfile)
app.command()(locust_result)
app.command()(soak)
