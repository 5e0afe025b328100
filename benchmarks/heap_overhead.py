"""What an open heap window costs: throughput while memray tracks the proxy, relative to none.

    python benchmarks/heap_overhead.py [--seconds 4] [--repeat 5]

One proxy, one stdio server in `multiplex` mode, closed loop. The ways take turns; the ratio is of each round, and its
median, smallest and largest are printed. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import memray
from wrk import HERE, Run, load, open_session

import mcpdiag
from mcpdiag.samples.heap import Heap

CLIENTS = 8
Way = Callable[[Path], contextlib.AbstractContextManager[object]]


def everything(file: Path, *, python_allocators: bool) -> memray.Tracker:
    """The format ALL, as `growth` uses it: uncompressed, because compressing stops the process."""
    return memray.Tracker(
        destination=memray.FileDestination(file, compress_on_exit=False),
        file_format=memray.FileFormat.ALL_ALLOCATIONS,
        trace_python_allocators=python_allocators,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    heap = Heap()
    ways: dict[str, Way] = {
        "none": lambda file: contextlib.nullcontext(),
        "window": lambda file: heap.window("bench"),
        "window, python allocators": lambda file: heap.window("bench", python_allocators=True),
        "ALL": lambda file: everything(file, python_allocators=False),
        "ALL, python allocators": lambda file: everything(file, python_allocators=True),
    }
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    kilobytes: dict[str, float] = dict.fromkeys(ways, 0.0)
    server = {"command": sys.executable, "args": [str(HERE / "upstream_stdio.py")], "pool_mode": "multiplex"}
    with (
        tempfile.TemporaryDirectory() as folder,
        mcpdiag.serve({"bench": server}, port=0) as proxy,
    ):
        sessions = [open_session(proxy.url) for _ in range(CLIENTS)]
        load(proxy.url, sessions, connections=CLIENTS, seconds=1)
        for _ in range(args.repeat):
            for way, track in ways.items():
                file = Path(folder) / "capture"
                with track(file):
                    run = load(proxy.url, sessions, connections=CLIENTS, seconds=args.seconds)
                runs[way].append(run)
                if file.exists():
                    kilobytes[way] = file.stat().st_size / 1000 / (run.rps * args.seconds)
                    file.unlink()
    print(
        f"{CLIENTS} connections, {args.repeat} rounds of {args.seconds:g} s, requests/s relative to no window"
    )
    print(f"{'':28} {'relative (min-max)':>22} {'requests/s':>12} {'p99 ms':>8} {'KB/request':>11} errors")
    for way, each in runs.items():
        ratios = [run.rps / none.rps for run, none in zip(each, runs["none"], strict=True)]
        relative = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        rps, p99 = (statistics.median(getattr(run, name) for run in each) for name in ("rps", "p99_ms"))
        size = f"{kilobytes[way]:.1f}" if kilobytes[way] else ""
        print(
            f"{way:28} {relative:>22} {rps:>12,.0f} {p99:>8.1f} {size:>11} {sum(r.errors for r in each):>6}"
        )


if __name__ == "__main__":
    main()
