"""What sampling costs: throughput with recorder and gauge against `record=False`, and the prices of single steps.

    python benchmarks/sampling.py [--seconds 3] [--repeat 7] [--upstream http|stdio] [--rows 1000000] [--check]
                                  [--json FILE]

Two proxies in front of one upstream take turns, `wrk -t1 -c32`; the one that does not serve is stopped meanwhile.
Each pair of runs gives a ratio. `--check` exits 1 if the median ratio is below 0.95, or an `emit` takes over 5 us.
`--json` writes what each pair lost, for `mcpdiag bench check --extra FILE`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
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
from wrk import HERE, Run, free_port, load, open_session, process, spread

import mcpdiag
from mcpdiag.hooks import ExchangeDone
from mcpdiag.serve import run_loop, spare_collector

CONNECTIONS = 32
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
        started.send_signal(signal.SIGCONT)
        started.terminate()
        started.wait(20)
        started.stdout.close()


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def throughput(upstream: str, seconds: int, repeat: int) -> list[float]:
    """Prints both throughputs; returns the ratio of each pair."""
    runs: dict[str, list[Run]] = {"on": [], "off": []}
    cpu_us: dict[str, list[float]] = {"on": [], "off": []}
    with ExitStack() as stack:
        url = ""
        if upstream == "http":
            port = free_port()
            url = f"http://127.0.0.1:{port}/mcp"
            stack.enter_context(process(sys.executable, str(HERE / "upstream_http.py"), str(port), port=port))
        proxies = {way: stack.enter_context(proxy(way, url)) for way in runs}
        sessions = {way: [open_session(proxies[way][0])] for way in runs}
        for way in runs:
            os.kill(proxies[way][1], signal.SIGSTOP)
        for turn in range(repeat + 1):  # the first turn warms up and is not kept
            for way in ("on", "off") if turn % 2 else ("off", "on"):
                url, pid = proxies[way]
                os.kill(pid, signal.SIGCONT)
                before = cpu_s(pid)
                run = load(url, sessions[way], connections=CONNECTIONS, seconds=seconds if turn else 1)
                used = cpu_s(pid) - before
                os.kill(pid, signal.SIGSTOP)
                if turn:
                    runs[way].append(run)
                    cpu_us[way].append(used * 1e6 / (run.rps * seconds))
    ratios = [on.rps / off.rps for on, off in zip(runs["on"], runs["off"], strict=True)]
    print(f"wrk -t1 -c{CONNECTIONS}, {upstream} upstream, {repeat} pairs of {seconds:g} s")
    print(f"{'sampling':10} {'requests/s':>30} {'p50 ms':>18} {'p99 ms':>20} errors")
    for way, each in runs.items():
        cells = [spread(each, field) for field in ("rps", "p50_ms", "p99_ms")]
        print(f"{way:10} {cells[0]:>30} {cells[1]:>18} {cells[2]:>20} {sum(run.errors for run in each):>6}")
    ratio = statistics.median(ratios)
    for way, values in cpu_us.items():
        print(
            f"{way:10} {min(values):.0f}-{max(values):.0f} us of processor time a request, median {statistics.median(values):.0f}"
        )
    print(f"on / off: {ratio:.3f} ({min(ratios):.3f}-{max(ratios):.3f})")
    return ratios


def steps(rows: int) -> float:
    """Prints what single steps take; returns ns per emit."""
    recorder = mcpdiag.Recorder(requests=rows)
    draw = random.Random(1)
    events = [
        ExchangeDone(
            "bench", "stdio", "tools/call", draw.choice(["echo", "add"]), f"session{number // 8}", "2025-11-25", "ok",
            first_ms=draw.random(), total_ms=1 + draw.random(), reused=True, bytes_in=100, bytes_out=90,
        )
        for number in range(1000)
    ]  # fmt: skip
    best = float("inf")
    for _ in range(rows // len(events)):
        began = time.perf_counter_ns()
        for event in events:
            recorder.emit(event)
        best = min(best, (time.perf_counter_ns() - began) / len(events))
    print(f"emit: {best:,.0f} ns (best of {rows // len(events)} times {len(events)})")
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
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=7)
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
        f"emit below {EMIT_BELOW_NS} ns": emit_ns < EMIT_BELOW_NS,
    }
    for target, good in met.items():
        print(f"target: {target}: {'met' if good else 'MISSED'}")
    if args.check and not all(met.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
