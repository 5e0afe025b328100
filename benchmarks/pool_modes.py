"""What pooling saves: one stdio server, `max_connections=1`, 8 clients, in `multiplex` mode, next to reuse off.

    python benchmarks/pool_modes.py [--seconds 5] [--repeat 3] [--check]

Reuse is switched off by a lifetime of a millisecond: each exchange gets a process of its own, one at a time.
Runs are interleaved; medians and spread are over the repetitions. `--check` exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from wrk import HERE, Run, load, median, open_session, proxy, spread

CLIENTS = 8
TARGETS = {"rps at least": 1000.0, "p95_ms below": 20.0, "reuse factor at least": 10.0}
SERVERS = {
    "bench": [sys.executable, str(HERE / "upstream_stdio.py")],
    "embedded": [sys.executable, str(HERE.parent / "mcpdiag" / "embedded.py")],
}


def config(command: list[str], folder: Path, mode: str, lifetime: str) -> str:
    file = folder / f"{mode}-{lifetime}.toml"
    file.write_text(
        f"[pool]\nmax_connections = 1\nmax_lifetime = {lifetime!r}\n"
        f"[timeouts]\nacquire_timeout = '30s'\n"
        f"[upstreams.bench]\npool_mode = {mode!r}\ncommand = {json.dumps(command)}\n"
    )
    return str(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--server", choices=SERVERS, default="embedded")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    ways = {
        "multiplex": ("multiplex", "1h"),
        "request": ("request", "1h"),
        "reuse off": ("request", "1ms"),
    }
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(args.repeat):
            for way, (mode, lifetime) in ways.items():
                with proxy("--config", config(SERVERS[args.server], folder, mode, lifetime)) as (url, _):
                    sessions = [open_session(url) for _ in range(CLIENTS)]
                    load(url, sessions, connections=CLIENTS, seconds=1)
                    runs[way].append(load(url, sessions, connections=CLIENTS, seconds=args.seconds))
    print(
        f"one stdio server ({args.server}), max_connections=1, {CLIENTS} clients, {args.repeat} x {args.seconds:g} s"
    )
    print(f"{'':12} {'requests/s':>26} {'p50 ms':>20} {'p95 ms':>20} {'p99 ms':>20} errors")
    for way, each in runs.items():
        cells = [spread(each, field) for field in ("rps", "p50_ms", "p95_ms", "p99_ms")]
        print(
            f"{way:12} {cells[0]:>26} {cells[1]:>20} {cells[2]:>20} {cells[3]:>20} {sum(r.errors for r in each):>6}"
        )
    factor = median(runs["multiplex"], "rps") / median(runs["reuse off"], "rps")
    print(f"reuse gives {factor:.0f} times the throughput of a process for each request")
    met = {
        "rps at least": median(runs["multiplex"], "rps") >= TARGETS["rps at least"],
        "p95_ms below": median(runs["multiplex"], "p95_ms") < TARGETS["p95_ms below"],
        "reuse factor at least": factor >= TARGETS["reuse factor at least"],
    }
    for target, value in TARGETS.items():
        print(f"target: {target} {value:g}: {'met' if met[target] else 'MISSED'}")
    if args.check and not all(met.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
