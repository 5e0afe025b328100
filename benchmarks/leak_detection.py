"""How often a soak finds a planted leak, and how often it sees one where there is none.

    python benchmarks/leak_detection.py [--for 20] [--repeat 3] [--rates 100,1000] [--habits ...] [-o FILE]

Each run is a fresh server of tests/servers/leaky.py over HTTP, loaded directly at a steady rate and read twice a
second. Of the same readings it takes two verdicts: `inside`, with what a probe in the process tells (blocks, heap),
and `outside`, with private memory only, as of a server in another language; fds, threads and children count in both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mcpdiag.bench import vitals  # noqa: E402
from mcpdiag.bench.readings import Reading  # noqa: E402
from mcpdiag.bench.soak import Soak, judge_readings, second_look  # noqa: E402
from mcpdiag.bench.spec import Call, LoadSpec  # noqa: E402
from mcpdiag.bench.verdict import BLOCKS, HEAP, PRIVATE, RULES, overall  # noqa: E402
from mcpdiag.bench.vitals import Vitals  # noqa: E402
from tests.servers.leaky import command  # noqa: E402

LEAKS = ("bytes:1024", "bytes:100", "bytes:48", "fd:100", "child:100")
CLEAN = ("clean", "churn", "ttl:3", "cache:500", "cache:3000")
CALL = Call(method="tools/call", params={"name": "echo", "arguments": {"text": "hello"}})
CONNECTIONS = 20
INSIDE = tuple(each for each in RULES if each != PRIVATE)
OUTSIDE = tuple(each for each in RULES if each not in (BLOCKS, HEAP))


@contextmanager
def server(habit: str, sockets: Path) -> Iterator[tuple[str, int]]:
    """A server with a probe in it: URL and pid."""
    wanted = vitals.probed(command(habit, http=True), sockets)
    assert wanted is not None
    process = subprocess.Popen(wanted, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def soak(habit: str, rate: float, seconds: float) -> Soak:
    """One run."""
    with tempfile.TemporaryDirectory(prefix="mcpdiag-") as folder, server(habit, Path(folder)) as (url, pid):
        vitals.ask(Path(folder), pid)

        def read() -> tuple[Mapping[str, Vitals], float, float]:
            return {"server": vitals.read([pid], Path(folder))}, vitals.NAN, vitals.NAN

        spec = LoadSpec(
            url=url,
            calls=(CALL,),
            clients=CONNECTIONS,
            # 50 sessions a second where sessions leak, else one in a hundred calls
            session_calls=int(rate / 50) if habit.startswith("child") else 100,
            loop="open",
            rate=rate,
            warmup_s=0.0,
            seconds=seconds,
        )
        found = Soak(spec, read, every_s=0.5)
        found.run()
    return found


def verdict(found: Soak, seconds: float, inside: bool) -> str:
    """What is said with only some of the metrics known."""
    readings: list[Reading] = found.readings
    rules = INSIDE if inside else OUTSIDE
    start = next(at for at, each in enumerate(readings) if each.at_s >= found.warmup_s)
    half = next((at for at, each in enumerate(readings) if each.at_s > seconds + 0.25), len(readings))
    judge = partial(judge_readings, rules=rules, connections=CONNECTIONS)
    first = judge(readings[start:half])
    if not found.extended or not any(each.suspected for each in first):
        return overall(first)
    return overall(second_look(first, judge(readings[start:]), judge(readings[half:])))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--for", dest="seconds", type=float, default=20.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rates", default="100,1000")
    parser.add_argument("--habits", default=",".join((*LEAKS, *CLEAN)))
    parser.add_argument("-o", "--output", type=Path, help="append a line of JSON a run")
    parser.add_argument(
        "--read", type=Path, nargs="*", default=[], help="print the table of such files, run nothing"
    )
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = [
        json.loads(line) for path in arguments.read for line in path.read_text().splitlines()
    ]
    for number in range(0 if arguments.read else arguments.repeat):
        for habit in arguments.habits.split(","):
            for rate in map(float, arguments.rates.split(",")):
                found = soak(habit, rate, arguments.seconds)
                last = found.readings[-1]
                row: dict[str, object] = {
                    "habit": habit,
                    "rate": rate,
                    "repeat": number,
                    "seconds": arguments.seconds,
                    "requests": last.requests,
                    "failed": found.tally.failed,
                    "waiting": max(each.waiting for each in found.readings),
                    "inside": verdict(found, arguments.seconds, inside=True),
                    "outside": verdict(found, arguments.seconds, inside=False),
                    "leaks": {e.metric: round(e.slope, 3) for e in found.findings() if e.verdict == "leak"},
                }
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
                if arguments.output is not None:
                    with arguments.output.open("a") as sink:
                        sink.write(json.dumps(row) + "\n")
    print(table(rows))


def table(rows: list[dict[str, object]]) -> str:
    """Verdicts by habit and rate, as Markdown."""
    lines = [
        "| server | rate | runs | inside: leak | none | inconclusive | outside: leak | none | inconclusive |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    keys = dict.fromkeys((str(row["habit"]), float(str(row["rate"]))) for row in rows)
    for habit, rate in keys:
        those = [row for row in rows if (row["habit"], row["rate"]) == (habit, rate)]
        cells = []
        for side in ("inside", "outside"):
            count = Counter(str(row[side]) for row in those)
            cells += [str(count[each]) for each in ("leak", "none", "inconclusive")]
        lines.append(f"| `{habit}` | {rate:g} | {len(those)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
