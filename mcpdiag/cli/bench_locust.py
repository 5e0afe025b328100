"""`mcpdiag bench locustfile` and `locust-result`: the same workload from many machines. `bench.py` registers them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mcpdiag.cli import bench_options as options
from mcpdiag.cli.bench_options import Mistakes
from mcpdiag.config.masking import public_url
from mcpdiag.errors import ConfigError

FILE = """\
What `mcpdiag bench locustfile` does
1. It picks the workload as `mcpdiag bench` does (an echo-like tool, else `tools/list`; or --workload), for which it
   asks the server at --url for its tools, and writes it into a locustfile as plain values.
2. The locustfile's users (`mcpdiag.bench.locust.McpUser`) send the same bytes as the load generator, each on a
   connection and a session of its own: pick a call by weight, wait for its answer, think, go on (a closed loop).
   Locust starts and distributes them, over processes (--processes) or machines (--master, --worker).
3. Values of --header are not written: the locustfile takes them from environment variables, MCP_HEADER_<NAME>.
4. Each worker writes its samples into the folder --mcpdiag-samples (default mcpdiag-locust) when the test stops, the
   master what it counted. `mcpdiag bench locust-result FOLDER` makes a result of them."""
RESULT = """\
What `mcpdiag bench locust-result` does
1. It reads the samples of all workers in a folder, and refuses those of different workloads or targets.
2. Measured is the time from when the last user had come (and --warmup) until the first worker was told to stop. The
   workers' clocks need to agree on that; latencies are each worker's own.
3. Percentiles, throughput and errors are computed as for the load generator's own runs. Locust waits up to 5 s for
   calls that are on their way at the end (--stop-timeout overrules that).
4. If Locust's master counted more calls than its workers stored, or had more workers, a file is missing, and it says
   so. The master may count fewer: it waits half a second for the last reports. If a worker's core was busy for 90 % of
   the time, the result says that the generator was saturated."""


def locustfile(
    url: options.Url = None,
    header: options.Header = None,
    workload: options.WorkloadFile = None,
    era: options.Era = "handshake",
    timeout: options.Timeout = 30.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write. [default: print it]")
    ] = None,
    explain: options.Explain = False,
) -> None:
    """Print a locustfile with the workload, for a load from many processes or machines.

    Example:

    `mcpdiag bench locustfile --url http://127.0.0.1:3001/mcp -o locustfile.py`
    """
    if explain:
        print(FILE)
        return
    from mcpdiag.bench import discover, spool
    from mcpdiag.bench.spec import LoadSpec
    from mcpdiag.bench.workload import choose

    wrong = Mistakes()
    headers = wrong.headers(header)
    era_ = wrong.one_of("--era", era, options.ERAS)
    timeout_s = wrong.above("--timeout", timeout)
    if not url and workload is None:
        wrong.add("--url", "found neither --url nor --workload; one of them tells what to call")
    if output is not None and output.exists():
        wrong.add("--output", f"found {output}, which is there already; remove it or give another name")
    wrong.raise_if_any()
    tools = None
    if url:
        server = LoadSpec(url=url, headers=dict(headers), era=era_, timeout_s=timeout_s)
        tools = discover.tools_of(server, needed=workload is None)
    load = choose(tools, workload)
    names = [name for name, _ in headers]
    host = public_url(url) if url else ""
    text = spool.locustfile(load, url=host, era=era_, timeout_s=timeout_s, headers=names)
    if output is None:
        print(text, end="")
    else:
        try:
            output.write_text(text)
        except OSError as error:
            raise ConfigError(
                [f"--output: found {output}, which cannot be written ({error.strerror})"]
            ) from None
        print(f"Locustfile: {output}")
        print(f"Run: locust -f {output} --headless -u 10 -r 10 -t 30s")
    if url and host != url:
        print(
            "mcpdiag: what may be a secret in the URL is masked; give the whole URL with --host",
            file=sys.stderr,
        )


def locust_result(
    folder: Annotated[Path | None, typer.Argument(help="The folder that the workers wrote.")] = None,
    warmup: Annotated[float, typer.Option(help="Seconds with all users that do not count.")] = 0.0,
    name: options.Name = "locust",
    output: options.Output = None,
    format_: options.Format = "table",
    quiet: options.Quiet = False,
    explain: options.Explain = False,
) -> None:
    """Make a result of what the workers of a Locust run stored.

    Example:

    `mcpdiag bench locust-result mcpdiag-locust`
    """
    if explain:
        print(RESULT)
        return
    from mcpdiag.cli.bench_locust_run import collect
    from mcpdiag.cli.bench_show import show

    wrong = Mistakes()
    wrong.above("--warmup", warmup, zero=True)
    wrong.name(name)
    wrong.shown(quiet, format_)
    if folder is None:
        wrong.add("FOLDER", "found none; give the folder that the workers wrote")
    wrong.raise_if_any()
    assert folder is not None
    result, written, warning = collect(folder, warmup_s=warmup, name=name, output=output)
    if quiet:
        print(written)
    else:
        show(result, written, format_)
    if warning:
        print(f"mcpdiag: {warning}", file=sys.stderr)
