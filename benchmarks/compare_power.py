"""Does `mcpdiag bench compare` find a server that is 10 % slower, and nothing where nothing has changed?

    python benchmarks/compare_power.py [--against-itself 20] [--slowed 5] [--slowdown 0.10] [--service-ms 5] [--waiting]
                                       [--check]

A stdio server computes for some milliseconds a call or, as one does that asks another server, waits; its copy takes
10 % more. Real `mcpdiag bench run`s follow each other; `compare` judges every run against the next one of the same
server, and against its neighbour of the copy.
`--check` exits 1 if a copy is not called slower, or if more than 1 in 20 of the others are called different.
About 27 s a run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from computing import compute

from mcpdiag.bench.compare import Comparison, change, compare
from mcpdiag.bench.doubt import TAIL
from mcpdiag.bench.result import Result, read

ALARMS = 0.05  # of the comparisons of a server with itself
SERVER = Path(__file__).with_name("computing.py")
SLOWER = ("throughput", "p50", "p95")


def steps_of(service_ms: float) -> int:
    """How many steps of `compute` take so long here, by the fastest of several tries."""
    probe = 20_000
    best = min(timed(probe) for _ in range(20))
    return max(1, round(probe * service_ms / 1e3 / best))


def timed(steps: int) -> float:
    began = time.perf_counter()
    compute(steps)
    return time.perf_counter() - began


def bench(amount: str, folder: Path, options: argparse.Namespace) -> Result:
    """One run from the command line, as a user makes it."""
    command = [sys.executable, "-m", "mcpdiag", "bench", "run", "--quiet", "--output", str(folder)]
    command += [
        "--clients",
        options.clients,
        "--repeat",
        str(options.repeat),
        "--seconds",
        str(options.seconds),
    ]
    command += ["--max-connections", "1", "--", sys.executable, str(SERVER), amount]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read(folder)


def slower(found: Comparison) -> bool:
    """Whether the comparison says so of a cell whose time is the server's, and calls nothing of it faster."""
    those = [each for each in found.significant if each.metric in SLOWER and each.cell.endswith("reuse on")]
    return bool(those) and all(each.verdict == "worse" for each in those)


def told(found: Comparison) -> str:
    cells = [each for each in found.differences if each.metric in SLOWER and each.cell.endswith("reuse on")]
    shown = "; ".join(f"{each.metric} {change(each.ratio)} p={each.p:.3f}" for each in cells)
    lost = f"; others had {found.base_lost:.2f} and {found.new_lost:.2f} processors"
    others = [f"{each.metric} of {each.cell}" for each in found.significant if each not in cells]
    return shown + lost + (f"; also significant: {', '.join(others)}" if others else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against-itself", type=int, default=20, help="comparisons of the server with itself"
    )
    parser.add_argument("--slowed", type=int, default=5, help="comparisons with the slowed copy")
    parser.add_argument("--slowdown", type=float, default=0.10)
    parser.add_argument("--service-ms", type=float, default=5.0)
    parser.add_argument("--waiting", action="store_true", help="the server waits instead of computing")
    parser.add_argument("--clients", default="8")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--keep", type=Path, help="a folder for the results; default: they are thrown away")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    factor = 1 + options.slowdown
    if options.waiting:
        amount, more = f"{options.service_ms:g}ms", f"{options.service_ms * factor:g}ms"
    else:
        steps = steps_of(options.service_ms)
        amount, more = str(steps), str(round(steps * factor))
    runs = max(options.against_itself + 1, options.slowed)
    every = max(1, runs // max(1, options.slowed))
    alarms = found_slower = compared = 0
    lost = 0.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        root = options.keep or Path(name)
        before: Result | None = None
        for number in range(runs):
            base = bench(amount, root / f"{number:02}-base", options)
            if before is not None and number <= options.against_itself:
                found = compare(before, base)
                alarms += bool(found.significant)
                print(
                    f"itself {number:2}: {'SIGNIFICANT' if found.significant else 'not significant'}: {told(found)}"
                )
            before = base
            if compared < options.slowed and number % every == 0:
                compared += 1
                copy = bench(more, root / f"{number:02}-slowed", options)
                found = compare(base, copy)
                found_slower += slower(found)
                lost = max(lost, found.base_lost, found.new_lost)
                print(
                    f"slowed {compared:2}: {'slower' if slower(found) else 'NOT SAID TO BE SLOWER'}: {told(found)}"
                )
            sys.stdout.flush()
    allowed = int(ALARMS * options.against_itself)
    print(f"{options.slowdown:.0%} slower: found in {found_slower} of {compared}")
    print(f"against itself: significant in {alarms} of {options.against_itself}, allowed are {allowed}")
    print(f"took {time.monotonic() - began:.0f} s; {options.service_ms:g} ms a call, {options.repeat} rounds")
    if lost > TAIL:
        print(
            f"other programs had up to {lost:.2f} processors: here a slower copy cannot be found, so be quiet first"
        )
    if options.check and (found_slower < compared or alarms > allowed):
        sys.exit(1)


if __name__ == "__main__":
    main()
