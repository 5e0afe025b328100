"""Whether a result meets the targets of a file, and has not fallen behind a stored baseline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from mcpdiag.bench.compare import (
    METRICS,
    Comparison,
    Difference,
    change,
    compare,
    parse_limits,
    regressions,
    unlike,
    within,
)
from mcpdiag.bench.document import Document, Table
from mcpdiag.bench.doubt import explained, lost_to_others
from mcpdiag.bench.result import FILE, Result, read
from mcpdiag.bench.statistics import Estimate, estimate
from mcpdiag.config.mistakes import found
from mcpdiag.errors import ConfigError

_BOUNDS: Final = ("at_least", "above", "at_most", "below")
_CELL_METRICS: Final = ("throughput_rps", "p50_ms", "p95_ms", "p99_ms", "max_ms", "rss_bytes")
_ELSEWHERE: Final = ("sampling_overhead",)  # measured by benchmarks/sampling.py
_METRICS: Final = (
    *_CELL_METRICS,
    "reuse_throughput",
    "reuse_p95",
    *_ELSEWHERE,
    "cross_talk",
    "errors",
)
_KEYS: Final = ("name", "metric", "transport", "reuse", "clients", "max_connections", "required", *_BOUNDS)
_TAILS: Final = ("p99_ms", "max_ms")  # touched by others as p95 is, only sooner
_IN_COMPARE: Final = {field: name for name, field in METRICS.items()}
Extra = Mapping[str, Sequence[float]]
Status = Literal["met", "missed", "unclear", "not measured"]


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """One target. Where a number of the cell is not given, every cell of the result has to meet it."""

    name: str
    metric: str
    bound: str
    value: float
    transport: str = ""
    reuse: str = ""
    clients: int = 0
    max_connections: int = 0
    required: bool = True


class Targets(msgspec.Struct, frozen=True):
    """The targets of a file, and by how much each metric may fall behind the baseline."""

    goals: tuple[Goal, ...]
    limits: Mapping[str, float]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one target. `unclear`: its interval has the bound inside, which is no failure."""

    name: str
    status: Status
    detail: str
    required: bool = True

    @property
    def failed(self) -> bool:
        return self.status == "missed" or (self.status == "not measured" and self.required)


def read_targets(path: Path) -> Targets:
    """The targets of a TOML file.

    Raises:
        ConfigError: one line for each mistake.
    """
    document = Document(path)
    document.root.only(("target", "baseline"))
    goals = tuple(_goal(table) for table in document.root.tables("target"))
    baseline = document.root.table("baseline")
    baseline.only(METRICS)
    limits: dict[str, float] = {}
    for name in baseline.values:
        text = baseline.text(name)
        if not re.fullmatch(r"\d+(?:\.\d+)?\s*%", text):
            baseline.report(name, f'found "{text}"; allowed: a percentage such as "5%"')
        elif name in METRICS:
            limits |= parse_limits(f"{name}={text}")
    document.with_mistakes()
    return Targets(goals, limits)


def _goal(table: Table) -> Goal:
    table.only(_KEYS)
    given = [name for name in _BOUNDS if name in table.values]
    if len(given) != 1:
        table.report(
            "at_least", f"found {' and '.join(given) or 'no bound'}; allowed: one of {', '.join(_BOUNDS)}"
        )
    metric = table.text("metric", allowed=_METRICS)
    if "metric" not in table.values:
        table.report("metric", f"found none; allowed: {', '.join(_METRICS)}")
    return Goal(
        name=table.text("name") or metric,
        metric=metric,
        bound=given[0] if given else "at_least",
        value=table.number(given[0], 0.0) if given else 0.0,
        transport=table.text("transport", allowed=("stdio", "http")),
        reuse=table.text("reuse", allowed=("on", "off")),
        clients=table.count("clients", 0, least=0),
        max_connections=table.count("max_connections", 0, least=0),
        required=table.flag("required", default=True),
    )


def read_extra(path: Path) -> Extra:
    """Metrics that another program has measured: `{"sampling_overhead": [0.031, 0.04, ...]}`, a number a repetition.

    Raises:
        ConfigError: it is no such file, or names what no target can have; one line for each mistake.
    """
    try:
        extra = msgspec.json.decode(
            path.read_bytes(), type=dict[str, Annotated[list[float], Meta(min_length=1)]]
        )
    except OSError as error:
        raise ConfigError([f"{path}: found no file ({error.strerror}); give one with metrics"]) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        allowed = f'allowed: {{"{_ELSEWHERE[0]}": [a number a repetition]}}'
        raise ConfigError([f"{path}: found no metrics: {error}; {allowed}"]) from None
    unknown = [name for name in extra if name not in _ELSEWHERE]
    if unknown:
        raise ConfigError(
            [f"{path}: found {found(name)}; allowed: {', '.join(_ELSEWHERE)}" for name in unknown]
        )
    return extra


def check(result: Result, targets: Targets, extra: Extra | None = None) -> list[Finding]:
    """Each target against the result, judged on the interval of its repetitions.

    Args:
        extra: metrics that are not in a result, with a number a repetition.
    """
    return [_judge(goal, _estimates(goal, result, extra or {})) for goal in targets.goals]


def _estimates(goal: Goal, result: Result, extra: Extra) -> list[tuple[str, Estimate]]:
    if goal.metric in _ELSEWHERE:
        values = extra.get(goal.metric)
        return [("all pairs", estimate(values))] if values else []
    if goal.max_connections not in (0, result.config.max_connections):
        return []
    if goal.metric == "cross_talk":
        foreign = float(sum(each.isolation.foreign for each in result.isolation))
        told = any(each.isolation.verdict != "inconclusive" for each in result.isolation)
        return [("all pools", Estimate(foreign, foreign, foreign))] if told else []
    cells = [
        cell
        for cell in result.cells
        if cell.way == "proxied"
        and not cell.rate  # of an open loop, throughput is what was sent
        and goal.transport in ("", cell.transport)
        and goal.reuse in ("", cell.reuse)
        and goal.clients in (0, cell.clients)
    ]
    if goal.metric == "errors":
        counts = [(cell.name, float(cell.failed)) for cell in cells]
        return [(name, Estimate(count, count, count)) for name, count in counts]
    if goal.metric.startswith("reuse_"):
        wanted = {"reuse_throughput": "throughput_rps", "reuse_p95": "p95_ms"}[goal.metric]
        return [
            (f"{pair.transport} x{pair.clients}", pair.ratio)
            for pair in result.pairs
            if pair.metric == wanted
            and goal.transport in ("", pair.transport)
            and goal.clients in (0, pair.clients)
        ]
    lost = lost_to_others(result, result.cells)
    return [(cell.name, _alone(goal.metric, estimate(cell.values(goal.metric)), lost)) for cell in cells]


def _alone(metric: str, found: Estimate, lost: float) -> Estimate:
    """The estimate with its interval as wide as what others took of the processors makes it."""
    least, most = explained("p95" if metric in _TAILS else _IN_COMPARE[metric], 0.0, lost)
    # A factor above 1 of a tail would be for what was taken from a base, of which there is none here.
    most = most if metric == "throughput_rps" else 1.0
    return Estimate(found.value, found.low * least, found.high * most, found.repetitions)


def _judge(goal: Goal, found: Sequence[tuple[str, Estimate]]) -> Finding:
    if not found:
        detail = "this result does not have it"
        return Finding(name=goal.name, status="not measured", detail=detail, required=goal.required)
    order: tuple[Status, ...] = ("missed", "unclear", "met")
    judged = [(_status(goal, each), name, each) for name, each in found]
    status, name, worst = min(judged, key=lambda each: order.index(each[0]))
    shown = worst.shown() if worst.low < worst.high else f"{worst.value:g}"
    detail = f"{shown} in {name}, to be {goal.bound.replace('_', ' ')} {goal.value:g}"
    return Finding(name=goal.name, status=status, detail=detail, required=goal.required)


def _status(goal: Goal, found: Estimate) -> Status:
    def meets(value: float) -> bool:
        return {
            "at_least": value >= goal.value,
            "above": value > goal.value,
            "at_most": value <= goal.value,
            "below": value < goal.value,
        }[goal.bound]

    low, high = meets(found.low), meets(found.high)
    return "met" if low and high else "unclear" if low or high else "missed"


def against_baseline(result: Result, baseline: Result, limits: Mapping[str, float]) -> list[Finding]:
    """A finding a metric that has a limit.

    Raises:
        ConfigError: the two cannot be compared; with the reason.
    """
    comparison = compare(baseline, result)
    worse = regressions(comparison, limits)
    return [_fallen_behind(name, limit, comparison, worse) for name, limit in limits.items()]


def _fallen_behind(name: str, limit: float, comparison: Comparison, worse: Sequence[Difference]) -> Finding:
    those = [each for each in comparison.differences if each.metric == name]
    title = f"{name} within {limit:.0%} of the baseline"
    if not those:
        return Finding(name=title, status="not measured", detail="the two results have it in no common cell")
    missed = [each for each in those if each in worse]
    unclear = [each for each in those if not within(each, limit)]
    sign = -1 if name == "throughput" else 1
    largest = max(missed or unclear or those, key=lambda each: sign * each.ratio.value)
    status: Status = "missed" if missed else "unclear" if unclear else "met"
    return Finding(name=title, status=status, detail=f"{change(largest.ratio)} in {largest.cell}")


def newest_baseline(result: Result, own: Path, root: Path) -> Path | None:
    """The newest stored result of the same machine that can be compared with this one, other than itself."""
    folders = sorted((root / result.environment.machine).glob("[0-9]*_*"), reverse=True)
    for folder in folders:
        if not (folder / FILE).is_file() or folder.resolve() in (own.resolve(), own.resolve().parent):
            continue
        if not unlike(read(folder), result):
            return folder
    return None
