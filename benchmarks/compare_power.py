"""Does `compare` say slower of a server that is 10 % slower, and nothing where nothing has changed?

    python benchmarks/compare_power.py [--against-itself 20] [--slowed 5] [--slowdown 0.10] [--service-ms 5] [--waiting]
                                       [--apart] [--check] [-- OPTIONS OF BENCH]

A stdio server computes for some milliseconds a call or, as one does that asks another server, waits; its copy takes
10 % more. Each comparison is a `mcpdiag bench duet`, half a minute. With `--apart` real `mcpdiag bench run`s follow
each other and `compare` judges every run against the next one of the same server, and against its neighbour of the
copy: what is lost where base and new are not measured in one run.
`--check` exits 1 if a copy is not called slower, or if more than 1 in 20 of the others are called different.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from computing import compute

from mcpdiag.bench.compare import Comparison, change, compare, sides
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


class Bench:
    """`mcpdiag bench` from the command line, as a user has it."""

    def __init__(self, root: Path, more: list[str]) -> None:
        self._root, self._more, self._number = root, more, 0

    def result(self, verb: str, amount: str, *options: str) -> Result:
        self._number += 1
        folder = self._root / f"{self._number:02}-{verb}"
        command = [sys.executable, "-m", "mcpdiag", "bench", verb, "--quiet", "--output", str(folder)]
        command += [*options, *self._more, "--", sys.executable, str(SERVER), amount]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return read(folder)

    def duet(self, base: str, new: str) -> Comparison:
        return sides(self.result("duet", new, "--base", f"{sys.executable} {SERVER} {base}"))

    def run(self, amount: str) -> Result:
        return self.result("run", amount, "--clients", "8", "--max-connections", "1")


def duets(bench: Bench, amount: str, more: str, itself: int, slowed: int) -> Iterator[tuple[str, Comparison]]:
    every = max(1, max(itself, slowed) // max(1, slowed))
    for number in range(max(itself, slowed)):
        if number < itself:
            yield "itself", bench.duet(amount, amount)
        if number % every == 0 and number // every < slowed:
            yield "slowed", bench.duet(amount, more)


def runs(bench: Bench, amount: str, more: str, itself: int, slowed: int) -> Iterator[tuple[str, Comparison]]:
    every = max(1, max(itself, slowed) // max(1, slowed))
    before = bench.run(amount)
    for number in range(max(itself, slowed)):
        base = bench.run(amount)
        if number < itself:
            yield "itself", compare(before, base)
        if number % every == 0 and number // every < slowed:
            yield "slowed", compare(base, bench.run(more))
        before = base


def slower(found: Comparison) -> bool:
    """Whether the comparison says so of a cell whose time is the server's, and calls nothing of it faster."""
    those = [each for each in found.significant if of_the_server(each.metric, each.cell)]
    return bool(those) and all(each.verdict == "worse" for each in those)


def of_the_server(metric: str, cell: str) -> bool:
    return metric in SLOWER and not cell.endswith("reuse off")


def told(found: Comparison) -> str:
    cells = [each for each in found.differences if of_the_server(each.metric, each.cell)]
    shown = "; ".join(f"{each.metric} {change(each.ratio)} p={each.p:.3f}" for each in cells)
    others = [f"{each.metric} of {each.cell}" for each in found.significant if each not in cells]
    return shown + (f"; also significant: {', '.join(others)}" if others else "")


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
    parser.add_argument("--apart", action="store_true", help="runs one after the other instead of duets")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("options", nargs="*", help="after --: of `mcpdiag bench duet` or `bench run`")
    options = parser.parse_args()
    factor = 1 + options.slowdown
    if options.waiting:
        amount, more = f"{options.service_ms:g}ms", f"{options.service_ms * factor:g}ms"
    else:
        steps = steps_of(options.service_ms)
        amount, more = str(steps), str(round(steps * factor))
    seen = {"itself": [0, 0], "slowed": [0, 0]}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options.options)
        comparisons = runs if options.apart else duets
        for kind, found in comparisons(bench, amount, more, options.against_itself, options.slowed):
            said = slower(found) if kind == "slowed" else bool(found.significant)
            seen[kind][0] += said
            seen[kind][1] += 1
            words = {
                "itself": ("not significant", "SIGNIFICANT"),
                "slowed": ("NOT SAID TO BE SLOWER", "slower"),
            }
            print(f"{kind} {seen[kind][1]:2}: {words[kind][said]}: {told(found)}", flush=True)
    (alarms, itself), (found_slower, slowed) = seen["itself"], seen["slowed"]
    allowed = int(ALARMS * itself)
    print(f"{options.slowdown:.0%} slower: found in {found_slower} of {slowed}")
    print(f"against itself: significant in {alarms} of {itself}, allowed are {allowed}")
    print(f"took {time.monotonic() - began:.0f} s; {options.service_ms:g} ms a call")
    if options.check and (found_slower < slowed or alarms > allowed):
        sys.exit(1)


if __name__ == "__main__":
    main()
