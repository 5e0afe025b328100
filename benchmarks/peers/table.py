"""What was measured of each peer, and the table of it, in text and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from mcpdiag.bench.environment import Environment
from mcpdiag.bench.report import plain
from mcpdiag.bench.statistics import LEAST, Summary, estimate

DIRECT = "direct"
HEADINGS = (
    "proxy", "version", "servers", "req/s", "p50 ms", "p99 ms", "adds ms", "RSS MB", "errors", "failures",
)  # fmt: skip


@dataclass
class Row:
    """A peer on one upstream; `why_not` is empty if it could be measured.

    Attributes:
        loaded, alone: a summary a round, with many clients and with one.
        rss_bytes: the highest, of the whole process tree.
        failures: of the official suite; None if that was not run, a text if it could not.
    """

    upstream: str
    name: str
    version: str = ""
    processes: str = ""
    why_not: str = ""
    loaded: list[Summary] = field(default_factory=list)
    alone: list[Summary] = field(default_factory=list)
    rss_bytes: int = 0
    failures: int | str | None = None

    @property
    def key(self) -> str:
        return f"{self.upstream}: {self.name}"


def cells(row: Row, direct: Row | None) -> tuple[str, ...]:
    """One line below `HEADINGS`. What it adds is the median over the rounds of its p50 with one client less that of
    the direct way in the same round, with its 95 % interval."""
    start = (row.key, row.version, row.processes)
    failures = "" if row.failures is None else f"{row.failures}" if isinstance(row.failures, int) else "-"
    if not row.loaded:
        return (*start, "-", "-", "-", "-", "-", "-", failures)
    adds = ""
    if direct is not None and row is not direct and row.alone and len(row.alone) == len(direct.alone):
        more = [one.p50_ms - other.p50_ms for one, other in zip(row.alone, direct.alone, strict=True)]
        found = estimate(more)
        between = f" ({found.low:.2f} to {found.high:.2f})" if found.repetitions >= LEAST else ""
        adds = f"{found.value:.2f}{between}"
    errors = sum(sum(each.errors.values()) for each in (*row.loaded, *row.alone))
    return (
        *start,
        f"{median(each.throughput_rps for each in row.loaded):,.0f}",
        _ms(median(each.p50_ms for each in row.loaded)),
        _ms(median(each.p99_ms for each in row.loaded)),
        adds,
        f"{row.rss_bytes / 1e6:.0f}" if row.rss_bytes else "",
        f"{errors:,}",
        failures,
    )


def _ms(value: float) -> str:
    return f"{value:.2f}" if value else "-"  # 0 where no call was answered in time


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    direct = {row.upstream: row for row in rows if row.name == DIRECT}
    return [cells(row, direct.get(row.upstream)) for row in rows]


def text(rows: Sequence[Row]) -> str:
    return "\n".join([plain(HEADINGS, lines(rows)), *notes(rows)])


def notes(rows: Sequence[Row]) -> list[str]:
    """Why some are not there."""
    missing = [f"{row.key}: {row.why_not}." for row in rows if row.why_not]
    unjudged = [
        f"{row.key}: no failures counted: {row.failures}." for row in rows if isinstance(row.failures, str)
    ]
    return missing + unjudged


def markdown(rows: Sequence[Row], environment: Environment, method: str, date: str) -> str:
    """The whole of RESULTS.md, without anything that tells whose machine it was."""
    processors = f"{environment.cpus} processors ({environment.cpu})"
    memory = f"{round(environment.memory_bytes / 2**30)} GB"
    machine = ", ".join((environment.system, processors, memory, environment.python))
    out = [
        "# Peers",
        "",
        f"Made by `python benchmarks/peers --save` on {date}, commit {environment.commit[:8] or 'unknown'}.",
        f"Machine: {machine}.",
        method,
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---|---|---" + "|--:" * (len(HEADINGS) - 3) + "|",
        *("| " + " | ".join(row) + " |" for row in lines(rows)),
        "",
        "`adds`: p50 with one client, less that of the direct way in the same round; in brackets the 95 % interval.",
        "`RSS` is that of the whole process tree, with the stdio servers in it.",
        "`servers`: how many stdio servers there are; `failures`: checks of the official suite that failed.",
        *notes(rows),
    ]
    return "\n".join(out) + "\n"
