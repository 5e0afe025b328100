"""What `mcpdiag bench soak` shows: how it went, what each metric says, and the verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring  # only written, never parsed

import msgspec

from mcpdiag.bench.readings import Reading
from mcpdiag.bench.soaked import Soaked
from mcpdiag.bench.verdict import Finding, decisive
from mcpdiag.cli.bench_show import table
from mcpdiag.cli.bench_soak_run import Outcome

MOMENTS: Final = 12  # rows of the table over time
NAMES: Final = {"heap_bytes": "heap", "private_bytes": "private"}
TIMES: Final = (
    "time", "requests", "p99 ms", "proxy MB", "blocks", "fds", "sessions", "server MB", "blocks", "fds", "children",
)  # fmt: skip
FINDINGS: Final = ("process", "metric", "verdict", "a request", "in all", "")
_OVER_TIME: Final = (
    ("proxy", "rss_bytes"), ("proxy", "blocks"), ("proxy", "fds"), ("proxy", "sessions"),
    ("server", "rss_bytes"), ("server", "blocks"), ("server", "fds"), ("server", "children"),
)  # fmt: skip


def show(outcome: Outcome, format_: str) -> None:
    """Print it in one of the formats."""
    if format_ == "json":
        print(msgspec.json.format(msgspec.json.encode(outcome.result), indent=1).decode())
    elif format_ == "md":
        for headings, body in (TIMES, times(outcome.readings)), (FINDINGS, findings(outcome.soaked)):
            print("\n".join(_markdown(headings, body)) + "\n")
        print("\n".join(sentences(outcome)))
    elif format_ == "junit":
        print(junit(outcome.soaked))
    else:
        soaked = outcome.soaked
        pace = f"{soaked.rate:g} calls a second" if soaked.rate else "as fast as it goes"
        print(
            f"{outcome.result.target.shown}: {outcome.result.workload.shown}; {soaked.connections} connections, {pace}"
        )
        table(TIMES, times(outcome.readings))
        print()
        table(FINDINGS, findings(soaked))
        for sentence in sentences(outcome):
            print(sentence)
        print(f"Result: {outcome.folder}")


def times(readings: Sequence[Reading]) -> list[tuple[str, ...]]:
    """Some of the readings, the first and the last among them, below `TIMES`."""
    count = min(MOMENTS, len(readings))
    chosen = sorted({round(n * (len(readings) - 1) / max(1, count - 1)) for n in range(count)})
    return [
        (
            _clock(reading.at_s),
            f"{reading.requests:,}",
            f"{reading.pace.p99_ms:.1f}",
            *(_value(reading.value(process, metric), metric) for process, metric in _OVER_TIME),
        )
        for reading in (readings[at] for at in chosen)
    ]


def findings(soaked: Soaked) -> list[tuple[str, ...]]:
    """A row a metric of a process, below `FINDINGS`; one in brackets does not decide."""
    deciding = {(each.process, each.metric) for each in decisive(soaked.findings)}
    return [
        (
            each.process,
            NAMES.get(each.metric, each.metric),
            each.verdict if (each.process, each.metric) in deciding else f"({each.verdict})",
            _slope(each),
            _growth(each),
            each.why,
        )
        for each in soaked.findings
    ]


def sentences(outcome: Outcome) -> list[str]:
    """What it means."""
    soaked = outcome.soaked
    of = f"{soaked.requests:,} requests in {_clock(soaked.took_s)}, {soaked.failed:,} failed"
    said = []
    deciding = decisive(soaked.findings)
    if soaked.verdict == "leak":
        leaks = [each for each in deciding if each.verdict == "leak"]
        what = "; ".join(
            f"{NAMES.get(e.metric, e.metric)} of the {e.process} by {_slope(e)} a request" for e in leaks
        )
        said.append(f"Verdict: LEAK. In {of}, this grew all the time: {what}.")
    elif soaked.verdict == "none":
        said.append(f"Verdict: none. Nothing grew in {of}.")
    else:
        said.append(f"Verdict: inconclusive, after {of}. {_unknown(deciding)}")
    if soaked.extended:
        said.append(
            f"There was a suspicion after {_clock(soaked.seconds)}, so it went on to twice the requests."
        )
    said += [
        f"Candidate: {each.function} in {each.file}:{each.line}, {each.growth_bytes_per_request:,.0f} B a request."
        for each in soaked.sites
    ]
    if soaked.no_sites:
        said.append(f"No candidates: {soaked.no_sites}.")
    if outcome.result.cells[0].repetitions[0].first_error:
        said.append(f"The first error: {outcome.result.cells[0].repetitions[0].first_error}")
    if not any("server" in each.vitals for each in outcome.readings):
        said.append(
            "The server's processes cannot be seen from here: the verdict is on the proxy alone (--pid)."
        )
    if soaked.replaced:
        said.append(
            f"Server processes were replaced at {soaked.replaced} readings; what a process leaked ended with it."
        )
    for process, ratio in soaked.rss_ratio.items():
        said.append(f"RSS of the {process} at the end is {ratio:.3f} of what it was after the first minute.")
    if outcome.readings and outcome.readings[-1].waiting > soaked.connections:
        said.append(
            f"The server did not keep up: {outcome.readings[-1].waiting:,} calls were due and unsent; lower --rate."
        )
    if outcome.interrupted:
        said.append("Interrupted: the numbers are of what was measured until then.")
    return said


def _unknown(deciding: Sequence[Finding]) -> str:
    """What is not known, for each reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for each in deciding:
        if each.verdict == "inconclusive":
            by_reason.setdefault((each.process, each.why), []).append(NAMES.get(each.metric, each.metric))
    return " ".join(
        f"{', '.join(names)} of the {process}: {why}." for (process, why), names in by_reason.items()
    )


def junit(soaked: Soaked) -> str:
    """A test case a metric of a process, failed at a leak, skipped where it is inconclusive."""
    suite = Element("testsuite", name="mcpdiag bench soak")
    deciding = decisive(soaked.findings)
    for each in deciding:
        case = SubElement(suite, "testcase", classname="soak", name=f"{each.process} {each.metric}")
        if each.verdict == "leak":
            SubElement(case, "failure", message=f"{_slope(each)} a request: {each.why}")
        elif each.verdict == "inconclusive":
            SubElement(case, "skipped", message=each.why)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(sum(each.verdict == "leak" for each in deciding)))
    suite.set("skipped", str(sum(each.verdict == "inconclusive" for each in deciding)))
    return tostring(suite, encoding="unicode")


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _value(value: float, metric: str) -> str:
    if math.isnan(value):
        return "-"
    return f"{value / 1e6:.1f}" if metric == "rss_bytes" else f"{value:,.0f}"


def _slope(found: Finding) -> str:
    if found.metric.endswith("_bytes"):
        return f"{found.slope:,.1f} B"
    return f"{found.slope:.3g}"


def _growth(found: Finding) -> str:
    if found.metric.endswith("_bytes"):
        return f"{found.growth / 1e6:,.2f} MB"
    return f"{found.growth:,.0f}"


def _markdown(headings: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in body)]
