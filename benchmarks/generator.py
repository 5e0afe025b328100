"""Is `mcpdiag.bench.load` fast and right? Against `wrk`, one thread each, in turn, on the same endpoints.

    python benchmarks/generator.py [--seconds 3] [--repeat 5] [--check]

`trivial` is the cheapest HTTP server there is (upstream_http.py): there the generator itself is the limit, and says so.
`proxy` is `mcpdiag proxy` in front of it: there both measure the proxy, and should agree. `--check` exits 1 if the
generator does less than 20,000 requests a second on the first, or differs by more than 10 % on the second.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack

from wrk import HERE, Run, free_port, load, open_session, process, proxy, spread

from mcpdiag.bench.generator import Generator
from mcpdiag.bench.matrix import repetition_of
from mcpdiag.bench.spec import Call, LoadSpec

CLIENTS = 32
CALL = Call(method="tools/call", params={"name": "echo", "arguments": {"text": "hello"}})
LEAST_RPS = 20_000.0
AGREE = 0.10


def ours(generator: Generator, url: str, seconds: float) -> tuple[Run, str]:
    """One closed-loop run of the generator in the terms of wrk, and whether it was saturated."""
    found = repetition_of(generator.run(LoadSpec(url=url, calls=(CALL,), clients=CLIENTS, seconds=seconds)))
    numbers = found.summary
    run = Run(
        numbers.throughput_rps,
        numbers.p50_ms,
        numbers.p95_ms,
        numbers.p99_ms,
        numbers.max_ms,
        errors=sum(numbers.errors.values()),
    )
    return run, found.saturated


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    runs: dict[tuple[str, str], list[Run]] = {}
    saturated: dict[str, str] = {}
    with ExitStack() as stack:
        port = free_port()
        stack.enter_context(process(sys.executable, str(HERE / "upstream_http.py"), str(port), port=port))
        trivial = f"http://127.0.0.1:{port}/mcp"
        proxied, _ = stack.enter_context(proxy("--max-connections", str(CLIENTS), "--url", trivial))
        generator = stack.enter_context(Generator())
        urls = {"trivial": trivial, "proxy": proxied}
        sessions = {name: [open_session(url) for _ in range(CLIENTS)] for name, url in urls.items()}
        for turn in range(args.repeat + 1):  # the first turn warms up and is not kept
            seconds = args.seconds if turn else 0.5
            for name, url in urls.items():
                run, why = ours(generator, url, seconds)
                other = load(url, sessions[name], connections=CLIENTS, seconds=max(seconds, 1))
                if turn:
                    runs.setdefault((name, "mcpdiag"), []).append(run)
                    runs.setdefault((name, "wrk"), []).append(other)
                    saturated[name] = why
    print(f"{CLIENTS} clients, one thread each, {args.repeat} x {args.seconds:g} s, in turn")
    print(f"{'':18} {'requests/s':>30} {'p50 ms':>20} {'p99 ms':>20} errors")
    for (name, tool), each in runs.items():
        cells = [spread(each, field) for field in ("rps", "p50_ms", "p99_ms")]
        errors = sum(run.errors for run in each)
        print(f"{name + ' ' + tool:18} {cells[0]:>30} {cells[1]:>20} {cells[2]:>20} {errors:>6}")
    for name, why in saturated.items():
        print(f"{name}: the generator was {'saturated: ' + why if why else 'not saturated'}")
    rps = statistics.median(run.rps for run in runs["trivial", "mcpdiag"])
    pairs = zip(runs["proxy", "mcpdiag"], runs["proxy", "wrk"], strict=True)
    ratio = statistics.median(one.rps / other.rps for one, other in pairs)
    met = {
        f"at least {LEAST_RPS:,.0f} requests a second: {rps:,.0f}": rps >= LEAST_RPS,
        f"agrees with wrk within {AGREE:.0%}: {ratio:.3f} of it": abs(ratio - 1) <= AGREE,
    }
    for target, is_met in met.items():
        print(f"target: {target}: {'met' if is_met else 'MISSED'}")
    if args.check and not all(met.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
