"""A result for people and for other programs: rows, sentences, Markdown, CSV, JUnit."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from statistics import median
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring  # only written, never parsed

from mcpdiag.bench import breaking_report, compare, overhead_report
from mcpdiag.bench.doubt import disturbance
from mcpdiag.bench.result import Cell, Result
from mcpdiag.html import line, table

HEADINGS: Final = (
    "server", "clients", "reuse", "req/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "errors", "RSS MB", "reuse gives",
)  # fmt: skip
WIDTH: Final = 100


def headings(result: Result) -> tuple[str, ...]:
    """Of the table that fits what was measured."""
    if result.overhead:
        return overhead_report.HEADINGS
    if result.duet is not None:
        return compare.HEADINGS
    return HEADINGS if result.breaking is None else breaking_report.HEADINGS


def rows(result: Result) -> list[tuple[str, ...]]:
    """The table below `headings`. Of a matrix a row a cell: medians of the repetitions, the largest max, all errors.

    RSS is that of the proxy and of its children.
    """
    if result.overhead:
        return overhead_report.rows(result)
    if result.duet is not None:
        return compare.lines(compare.sides(result))
    if result.breaking is not None:
        return breaking_report.rows(result)
    found = []
    for cell in result.cells:
        own, children = (max(getattr(r.memory, n) for r in cell.repetitions) / 1e6 for n in _MEMORY)
        gives = (
            next((p.ratio for p in result.pairs if _is_throughput(p, cell)), None)
            if cell.reuse == "on"
            else None
        )
        found.append(
            (
                cell.transport,
                f"{cell.clients}",
                cell.reuse if cell.way == "proxied" else "-",
                _number(median(cell.values("throughput_rps"))) or "0",
                *(_number(median(cell.values(name))) or "-" for name in ("p50_ms", "p95_ms", "p99_ms")),
                _number(max(cell.values("max_ms"))) or "-",
                f"{cell.failed}",
                f"{own:.0f}+{children:.0f}" if own else "-",
                "" if gives is None else gives.shown("x"),
            )
        )
    return found


_MEMORY: Final = ("rss_bytes", "children_rss_bytes")


def _is_throughput(pair: object, cell: Cell) -> bool:
    key = ("transport", "clients", "metric")
    return tuple(getattr(pair, name) for name in key) == (cell.transport, cell.clients, "throughput_rps")


def _number(value: float) -> str:
    """Three digits or so; nothing for 0, which is what a round has in which no call was due or answered."""
    if not value:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plain(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in plain text, the first column to the left."""
    widths = [max(len(row[at]) for row in (headings, *body)) for at in range(len(headings))]
    lines = []
    for row in (headings, *body):
        cells = [
            text.ljust(w) if at == 0 else text.rjust(w)
            for at, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def sentences(result: Result) -> list[str]:
    """What the numbers mean, and what speaks against trusting them."""
    if result.breaking is not None:
        return [*breaking_report.sentences(result), *_interrupted(result)]
    said = _of_locust(result) + overhead_report.sentences(result)
    if result.duet is not None:
        said += compare.sentences(compare.sides(result))
        if result.target.kind == "url":
            said.append(
                "Each side is one process: what differs between two processes of one program is in the change."
            )
    largest = max((cell.clients for cell in result.cells), default=0)
    gives = [
        f"{p.ratio.shown('x')} over {p.transport}"
        for p in result.pairs
        if p.metric == "throughput_rps" and p.clients == largest
    ]
    if gives:
        said.append(
            f"Reusing connections gives {' and '.join(gives)} at {largest} clients (in brackets the 95 % interval)."
        )
    exchanges = sum(each.isolation.exchanges for each in result.isolation)
    said.extend(
        f"CROSS-TALK over {each.transport}, reuse {each.reuse}: {each.isolation.foreign} messages reached the "
        f"wrong client; {each.isolation.evidence}"
        for each in result.crossed
    )
    unknown = [each for each in result.isolation if each.isolation.verdict == "inconclusive"]
    if result.isolation and not result.crossed and not unknown:
        by = (
            ""
            if all(each.isolation.by == "arguments" for each in result.isolation)
            else " (by request ids only)"
        )
        said.append(f"No cross-talk seen in {exchanges:,} exchanges of two marked clients{by}.")
    said.extend(
        f"No isolation verdict over {each.transport}, reuse {each.reuse}: {each.isolation.evidence}"
        for each in unknown
    )
    failed = sum(cell.failed for cell in result.cells)
    if failed:
        first = next((r.first_error for c in result.cells for r in c.repetitions if r.first_error), "")
        said.append(f"{failed:,} calls failed; the first: {first}")
    said += [
        f"Saturated generator in {name}: {why}; read the numbers as a lower bound."
        for name, why in saturated(result)
    ]
    if disturbed := disturbance(result):
        said.append(disturbed)
    return said + _interrupted(result)


def _interrupted(result: Result) -> list[str]:
    return [] if result.complete else ["Interrupted: the numbers are of what was measured until then."]


def _of_locust(result: Result) -> list[str]:
    """What the master counted beside what its workers stored."""
    if result.locust is None:
        return []
    found = result.locust
    many = f"{len(found.workers)} worker{'s' * (len(found.workers) != 1)}"
    said = f"Locust {found.version}, {many}: {found.stored:,} calls"
    if found.master_calls < 0:
        return [f"{said}; no word of its master."]
    late = (
        ", for it waits only half a second for the last reports" if found.master_calls < found.stored else ""
    )
    return [f"{said}; its master counted {found.master_calls:,}{late}."]


def saturated(result: Result) -> list[tuple[str, str]]:
    """The cells in most of whose repetitions the generator did not keep up, and the first reason."""
    found = []
    for cell in result.cells:
        reasons = [each.saturated for each in cell.repetitions if each.saturated]
        if 2 * len(reasons) > len(cell.repetitions):
            found.append((cell.name, reasons[0]))
    return found


def markdown(result: Result) -> str:
    """The table and the sentences as Markdown."""
    head = headings(result)
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows(result)]
    return "\n".join([*lines, "", *sentences(result)]) + "\n"


def as_html(result: Result) -> str:
    """The table and the sentences for a notebook."""
    title = f"{result.name}: {result.target.shown}, {result.workload.source}, {len(result.cells)} cells"
    head = line(f"measured {result.started_at} on {result.environment.machine}", strong=title)
    return head + table(headings(result), rows(result)) + "".join(line(each) for each in sentences(result))


def comma_separated(result: Result) -> str:
    """A line a repetition, with full numbers."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    metrics = ("throughput_rps", "p50_ms", "p95_ms", "p99_ms", "max_ms")
    writer.writerow(
        [
            "transport",
            "reuse",
            "clients",
            "repetition",
            "calls",
            "errors",
            *metrics,
            *_MEMORY,
            "saturated",
            "way",
            "rate",
        ]
    )
    for cell in result.cells:
        for number, each in enumerate(cell.repetitions):
            writer.writerow(
                [
                    cell.transport,
                    cell.reuse,
                    cell.clients,
                    number,
                    each.summary.calls,
                    sum(each.summary.errors.values()),
                    *(getattr(each.summary, name) for name in metrics),
                    *(getattr(each.memory, name) for name in _MEMORY),
                    each.saturated,
                    cell.way,
                    cell.rate,
                ]
            )
    return sink.getvalue()


def junit(result: Result) -> str:
    """A test case a cell, failed if calls failed, and one a pool, failed at cross-talk.

    At a breaking point calls are meant to fail: there it is one case, failed if not even the lowest load held.
    """
    suite = Element("testsuite", name=f"mcpdiag bench {result.name}")
    failures = 0
    if result.breaking is not None:
        case = SubElement(
            suite, "testcase", classname="bench", name="breaking point", time=f"{result.took_s:.3f}"
        )
        SubElement(case, "system-out").text = "\n".join(sentences(result))
        if not result.breaking.held:
            failures += 1
            SubElement(case, "failure", message=sentences(result)[1])
    for cell in result.cells if result.breaking is None else ():
        took = sum(result.config.seconds for _ in cell.repetitions)
        case = SubElement(suite, "testcase", classname="bench", name=cell.name, time=f"{took:.3f}")
        if any(each.summary.errors for each in cell.repetitions):
            failures += 1
            first = next((each.first_error for each in cell.repetitions if each.first_error), "calls failed")
            SubElement(case, "failure", message=first)
    for verdict in result.isolation:
        name = f"isolation {verdict.transport} reuse {verdict.reuse}"
        case = SubElement(suite, "testcase", classname="bench", name=name)
        if verdict.isolation.verdict == "cross-talk":
            failures += 1
            SubElement(case, "failure", message=verdict.isolation.evidence)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(failures))
    return tostring(suite, encoding="unicode") + "\n"
