"""What sampling costs: throughput with recorder and gauge against `record=False`, and the prices of single steps.

    python benchmarks/sampling.py [--seconds 0.6] [--repeat 16] [--upstream http|stdio] [--rows 1000000] [--check]
                                  [--json FILE]

Two proxies in front of one upstream are called in turn, in slices of 50 ms, by 32 clients. Each round starts both
anew and gives a ratio, because two processes of one program may differ by a tenth (docs/bench.md, Duet).
`--check` exits 1 if the median ratio is below 0.95, or recording an exchange in a tight loop takes over 5 us.
`--json` writes what each round lost, for `mcpdiag bench check --extra FILE`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from wrk import HERE, free_port, process

import mcpdiag
from mcpdiag.bench.generator import Generator
from mcpdiag.bench.spec import Call, DuetSpec, LoadSpec
from mcpdiag.bench.statistics import Summary, paired_ratio, summarize
from mcpdiag.hooks import Ended
from mcpdiag.serve import run_loop, spare_collector

CONNECTIONS = 32
CALLS = (Call(method="tools/call", params={"name": "echo", "arguments": {"text": "hello"}}),)
RATIO_AT_LEAST = 0.95
EMIT_BELOW_NS = 5000
STDIO = {
    "command": [sys.executable, str(HERE / "upstream_stdio.py")],
    "pool_mode": "multiplex",
    "pool": {"max_connections": 1},
}


def serve(way: str, url: str) -> None:
    """The process of one proxy: `on` or `off`, in front of a URL or of a stdio server of its own."""

    async def main() -> None:
        upstream = {"url": url, "pool": {"max_connections": CONNECTIONS}} if url else STDIO
        async with mcpdiag.Proxy({"bench": upstream}, record=way == "on", port=0) as proxy:
            print(proxy.url, flush=True)
            spare_collector()  # as `mcpdiag proxy` does
            stopped = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
            await stopped.wait()

    run_loop(main)


@contextmanager
def proxy(way: str, url: str) -> Iterator[tuple[str, int]]:
    """A proxy in a process of its own; its URL and pid."""
    started = subprocess.Popen(
        [sys.executable, __file__, "--serve", way, url], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    try:
        line = started.stdout.readline().strip()
        if not line:
            sys.exit("the proxy did not start")
        yield line, started.pid
    finally:
        started.terminate()
        started.wait(20)
        started.stdout.close()


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def throughput(upstream: str, seconds: float, repeat: int) -> list[float]:
    """Prints both throughputs; returns the ratio of each round."""
    found: dict[str, list[Summary]] = {"off": [], "on": []}
    cpu_us: dict[str, list[float]] = {"off": [], "on": []}
    with ExitStack() as stack:
        url = ""
        if upstream == "http":
            port = free_port()
            url = f"http://127.0.0.1:{port}/mcp"
            stack.enter_context(process(sys.executable, str(HERE / "upstream_http.py"), str(port), port=port))
        generator = stack.enter_context(Generator())
        for number in range(repeat):
            first = number % 2
            with ExitStack() as proxies:
                order = ("on", "off") if first else ("off", "on")
                started = {way: proxies.enter_context(proxy(way, url)) for way in order}
                sides = (spec(started["off"][0], seconds), spec(started["on"][0], seconds))
                before = {way: cpu_s(started[way][1]) for way in found}
                measured = generator.duet(DuetSpec(sides=sides, first=first))
                for way, each in zip(found, measured, strict=True):
                    used = cpu_s(started[way][1]) - before[way]
                    found[way].append(summarize(each))
                    cpu_us[way].append(used * 1e6 / len(each.columns))
    rps = {way: [each.throughput_rps for each in summaries] for way, summaries in found.items()}
    print(f"{CONNECTIONS} clients, {upstream} upstream, {repeat} rounds of {seconds:g} s each")
    print(f"{'sampling':10} {'requests/s':>24} {'p50 ms':>20} {'processor us/request':>22} errors")
    for way, summaries in found.items():
        cells = [
            spread(rps[way], ",.0f"),
            spread([each.p50_ms for each in summaries], ".2f"),
            spread(cpu_us[way], ".0f"),
        ]
        failed = sum(sum(each.errors.values()) for each in summaries)
        print(f"{way:10} {cells[0]:>24} {cells[1]:>20} {cells[2]:>22} {failed:>6}")
    for what, values in (("throughput", rps), ("processor time", cpu_us)):
        ratio = paired_ratio(values["on"], values["off"])
        assert ratio is not None
        print(f"on / off: {what} {ratio.shown()}")
    return [on / off for on, off in zip(rps["on"], rps["off"], strict=True)]


def spec(url: str, seconds: float) -> LoadSpec:
    return LoadSpec(url=url, calls=CALLS, clients=CONNECTIONS, warmup_s=0.2, seconds=seconds)


def spread(values: list[float], form: str) -> str:
    low, mid, high = (format(each, form) for each in (min(values), statistics.median(values), max(values)))
    return f"{mid} ({low}-{high})"


def steps(rows: int) -> float:
    """Prints what single steps take; returns ns a recorded exchange."""
    recorder = mcpdiag.Recorder(requests=rows)
    draw = random.Random(1)
    now = time.perf_counter()
    events: list[Ended] = [
        (
            "bench", "stdio", "tools/call", draw.choice(["echo", "add"]), f"session{number // 8}", "2025-11-25", "ok",
            now - 2 - draw.random(), now - 2, now - 1 - draw.random(), now, 0.0, 0.0, True, 1, 1, 0, 100, 90, "", None,
        )
        for number in range(1000)
    ]  # fmt: skip
    best = float("inf")
    for _ in range(rows // len(events)):
        began = time.perf_counter_ns()
        for event in events:
            recorder.ended(event)
        best = min(best, (time.perf_counter_ns() - began) / len(events))
    print(f"one recorded exchange: {best:,.0f} ns (best of {rows // len(events)} times {len(events)})")
    folder = Path(tempfile.mkdtemp()) / "capture"
    try:
        importlib.import_module(
            "mcpdiag.samples.parts"
        )  # pandas and pyarrow, whose import is not what is measured
        for name, step in (
            ("build", lambda: recorder.requests),
            ("summary", lambda: recorder.summary()),
            ("save", lambda: recorder.save(folder)),
            ("load", lambda: mcpdiag.load(folder).requests),
        ):
            took = time.perf_counter()
            step()
            print(f"{name} {rows:,} rows: {time.perf_counter() - took:.2f} s")
    finally:
        shutil.rmtree(folder.parent)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.6, help="of each side in a round")
    parser.add_argument("--repeat", type=int, default=16, help="rounds")
    parser.add_argument("--upstream", choices=["http", "stdio"], default="http")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", nargs=2, metavar=("WAY", "URL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve)
        return
    emit_ns = steps(args.rows)
    ratios = throughput(args.upstream, args.seconds, args.repeat)
    ratio = statistics.median(ratios)
    if args.json is not None:
        args.json.write_text(
            json.dumps({"sampling_overhead": [round(1 - each, 4) for each in ratios]}) + "\n"
        )
    met = {
        f"on / off at least {RATIO_AT_LEAST}": ratio >= RATIO_AT_LEAST,
        f"a recorded exchange below {EMIT_BELOW_NS} ns": emit_ns < EMIT_BELOW_NS,
    }
    for target, good in met.items():
        print(f"target: {target}: {'met' if good else 'MISSED'}")
    if args.check and not all(met.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
