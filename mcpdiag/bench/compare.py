"""Two results side by side: how large each difference is, whether it is more than noise, whether it is too much."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby
from statistics import median
from typing import Final

import msgspec

from mcpdiag.bench.doubt import TAIL, explained, lost_to_others
from mcpdiag.bench.result import Cell, Result
from mcpdiag.bench.significance import ALPHA, least_change, least_p, p_values, paired_p_values
from mcpdiag.bench.statistics import LEAST, Estimate, paired_ratio, ratio
from mcpdiag.config.mistakes import close_to, found
from mcpdiag.errors import ConfigError

LOWER_IS_BETTER: Final = {"p50": "p50_ms", "p95": "p95_ms", "rss": "rss_bytes"}
METRICS: Final = {"throughput": "throughput_rps", **LOWER_IS_BETTER}
HEADINGS: Final = ("cell", "metric", "base", "new", "change (95 % interval)", "")
HIDDEN: Final = 0.1  # a change of this size that would not have been found is worth a sentence
_LIKE: Final = ("era", "pool_mode", "max_connections", "warmup_s")


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one cell in both results. `ratio` is new over base; `p` counts all comparisons made (docs/bench.md)."""

    cell: str
    metric: str
    base: float
    new: float
    ratio: Estimate
    p: float

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not significant`."""
        if self.p > ALPHA or self.ratio.value == 1:
            return "not significant"
        up_is_worse = self.metric in LOWER_IS_BETTER
        return "worse" if (self.ratio.value > 1) == up_is_worse else "better"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All differences, and how many repetitions they rest on."""

    differences: tuple[Difference, ...]
    base_repetitions: int
    new_repetitions: int
    base_failed: int = 0  # calls of the cells that both have
    new_failed: int = 0
    base_lost: float = 0.0  # how many processors others kept busy, on the mean; 0 where nobody knows
    new_lost: float = 0.0
    least: float = 0.0  # the change in speed that would have been found in 8 of 10 tries
    paired: bool = False  # the sides of a duet

    @property
    def significant(self) -> list[Difference]:
        return [each for each in self.differences if each.verdict != "not significant"]

    @property
    def can_tell(self) -> bool:
        """Whether so few repetitions can show a difference at all."""
        return self.least_p <= ALPHA

    @property
    def least_p(self) -> float:
        return least_p(self.base_repetitions, self.new_repetitions, paired=self.paired)


def unlike(base: Result, new: Result) -> list[str]:
    """Why the two should not be compared."""
    reasons = []
    if base.environment.machine != new.environment.machine:
        reasons.append(
            f"the machines differ: {base.environment.machine} ({base.environment.cpu}) "
            f"and {new.environment.machine} ({new.environment.cpu})"
        )
    if base.workload.digest != new.workload.digest:
        reasons.append(f"the workloads differ: {base.workload.shown} and {new.workload.shown}")
    if base.target.kind != new.target.kind:
        reasons.append(f"the targets differ: {base.target.shown} and {new.target.shown}")
    for name in _LIKE:
        before, after = getattr(base.config, name), getattr(new.config, name)
        if before != after:
            reasons.append(f"{name} differs: {before} and {after}")
    return reasons


def compare(base: Result, new: Result, *, force: bool = False, seed: int = 1) -> Comparison:
    """Every metric of every cell that both results have.

    Raises:
        ConfigError: they are unlike and `force` is not set, or have no cell with repetitions in common.
    """
    reasons = unlike(base, new)
    if reasons and not force:
        raise ConfigError([f"refused to compare: {each} (--force compares all the same)" for each in reasons])
    pairs = [
        (before, after)
        for before in base.cells
        if (after := new.cell(before.transport, before.reuse, before.clients, before.way, before.rate))
        is not None
    ]
    sizes = [min((len(c.repetitions) for c in side), default=0) for side in zip(*pairs, strict=True)]
    if not pairs or min(sizes) < 2:
        raise ConfigError(
            ["refused to compare: the results have no cell in common with two repetitions in each"]
        )
    rows = [
        (before, metric, before.values(field)[: sizes[0]], after.values(field)[: sizes[1]])
        for before, after in pairs
        for metric, field in METRICS.items()
        if _has(metric, before.values(field), after.values(field))
    ]
    lost = (
        lost_to_others(base, [before for before, _ in pairs]),
        lost_to_others(new, [after for _, after in pairs]),
    )
    spans = [explained(metric, *lost) for _, metric, _, _ in rows]
    # As much better and as much worse as it may have been had there been no others.
    chances = [
        p_values(
            [(a, [value * span[at] for value in b]) for (_, _, a, b), span in zip(rows, spans, strict=True)],
            seed=seed,
        )
        for at in ((0, 1) if any(lost) else (0,))
    ]
    differences = tuple(
        _difference(*row, span, max(ps), seed)
        for row, span, ps in zip(rows, spans, zip(*chances, strict=True), strict=True)
    )
    speeds = [(a, b) for _, metric, a, b in rows if metric != "rss"]
    failed = [sum(cell.failed for cell in side) for side in zip(*pairs, strict=True)]
    return Comparison(
        differences=differences,
        base_repetitions=sizes[0],
        new_repetitions=sizes[1],
        base_failed=failed[0],
        new_failed=failed[1],
        base_lost=lost[0],
        new_lost=lost[1],
        least=round(least_change(speeds), 3) if speeds else 0.0,
    )


def sides(result: Result, *, seed: int = 1) -> Comparison:
    """The two sides of a duet: base and new of each round beside each other.

    Raises:
        ConfigError: it is none, or has less than two rounds.
    """
    if result.duet is None:
        raise ConfigError(["refused to compare: found one result; give a second one, or one of `bench duet`"])
    by_side = [[cell for cell in result.cells if cell.way == way] for way in ("base", "new")]
    pairs = list(zip(*by_side, strict=True))
    rounds = min((len(cell.repetitions) for cell in result.cells), default=0)
    if rounds < 2:
        raise ConfigError([f"refused to compare: found {rounds} rounds; allowed: at least two"])
    rows = [
        (base, metric, base.values(field)[:rounds], new.values(field)[:rounds])
        for base, new in pairs
        for metric, field in METRICS.items()
        if metric != "rss" and _has(metric, base.values(field), new.values(field))
    ]
    chances = paired_p_values([(a, b) for _, _, a, b in rows], seed=seed)
    differences = []
    for (cell, metric, a, b), p in zip(rows, chances, strict=True):
        found = paired_ratio(b, a, seed=seed)
        if found is not None:
            name = f"{cell.transport} x{cell.clients}"
            differences.append(
                Difference(cell=name, metric=metric, base=median(a), new=median(b), ratio=found, p=p)
            )
    return Comparison(
        differences=tuple(differences),
        base_repetitions=rounds,
        new_repetitions=rounds,
        base_failed=sum(base.failed for base, _ in pairs),
        new_failed=sum(new.failed for _, new in pairs),
        paired=True,
    )


def lines(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row a difference, below `HEADINGS`."""
    return [
        (d.cell, d.metric, f"{d.base:,.4g}", f"{d.new:,.4g}", change(d.ratio), d.verdict)
        for d in comparison.differences
    ]


def _has(metric: str, base: list[float], new: list[float]) -> bool:
    """Whether both sides have the metric: where every call of a round failed, there is only a throughput, of 0."""
    return any(base + new) if metric == "throughput" else all(base + new)


def _difference(
    cell: Cell,
    metric: str,
    base: list[float],
    new: list[float],
    span: tuple[float, float],
    p: float,
    seed: int,
) -> Difference:
    found = ratio(new, base, seed=seed)
    least, most = span
    if found.value * least <= 1 <= found.value * most:  # it may be as large in the other direction
        p = 1.0
    return Difference(
        cell=cell.name,
        metric=metric,
        base=median(base),
        new=median(new),
        ratio=Estimate(found.value, found.low * least, found.high * most, found.repetitions),
        p=p,
    )


def parse_limits(text: str, where: str = "--max-regression") -> dict[str, float]:
    """`p95=5%,throughput=5%,rss=10%` as shares.

    Raises:
        ConfigError: one line for each mistake.
    """
    limits: dict[str, float] = {}
    problems = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, _, value = part.partition("=")
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip())
        if name not in METRICS:
            near = close_to(name, list(METRICS))
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(METRICS)}"
            problems.append(f"{where}: found {found(name)}; {hint}")
        elif match is None:
            problems.append(f"{where}: {name}: found {found(value)}; allowed: a percentage such as 5%")
        elif name in limits:
            problems.append(f"{where}: {name}: found it twice; remove one of them")
        else:
            limits[name] = float(match[1]) / 100
    if not limits and not problems:
        problems.append(f"{where}: found nothing; allowed: METRIC=PERCENT with {', '.join(METRICS)}")
    if problems:
        raise ConfigError(problems)
    return limits


def regressions(comparison: Comparison, limits: Mapping[str, float]) -> list[Difference]:
    """What got worse by more than is allowed, with the whole of its interval.

    Raises:
        ConfigError: there are too few repetitions for an interval.
    """
    least = min(comparison.base_repetitions, comparison.new_repetitions)
    if least < LEAST:
        raise ConfigError(
            [f"--max-regression: found {least} repetitions; at least {LEAST} are needed for an interval"]
        )
    return [
        each
        for each in comparison.differences
        if each.metric in limits and _too_much(each, limits[each.metric])
    ]


def _too_much(each: Difference, limit: float) -> bool:
    if each.metric in LOWER_IS_BETTER:
        return each.ratio.low > 1 + limit
    return each.ratio.high < 1 - limit


def within(each: Difference, limit: float) -> bool:
    """Whether all of the interval is inside what is allowed."""
    if each.metric in LOWER_IS_BETTER:
        return each.ratio.high <= 1 + limit
    return each.ratio.low >= 1 - limit


def sentences(comparison: Comparison) -> list[str]:
    """What the comparison says."""
    said = _significance(comparison)
    if comparison.base_failed or comparison.new_failed:
        said.append(f"Failed calls: {comparison.base_failed:,} in base, {comparison.new_failed:,} in new.")
    if max(comparison.base_lost, comparison.new_lost) > TAIL:
        said.append(
            f"Other processes kept {comparison.base_lost:.2f} processors busy while base was measured, {comparison.new_lost:.2f} "
            "with new; the intervals allow for that. Measure both again on a quiet machine for narrower ones."
        )
    return said


def _significance(comparison: Comparison) -> list[str]:
    significant = comparison.significant
    paired = comparison.paired
    count = f"{comparison.base_repetitions} " + (
        "rounds" if paired else f"and {comparison.new_repetitions} repetitions"
    )
    if not comparison.can_tell:
        return [
            (
                f"Not significant: {count} cannot show a difference (the least p is {comparison.least_p:.2f}); "
                f"run with --repeat {8 if paired else 5} or more."
            )
        ]
    if significant and paired:
        by_cell = groupby(significant, key=lambda each: each.cell)
        return [_slower_or_faster(cell, [*those], count) for cell, those in by_cell]
    if not significant:
        said = [
            f"Not significant: no difference beyond noise in {len(comparison.differences)} comparisons ({count})."
        ]
        if comparison.least > HIDDEN:
            said.append(
                f"The repetitions differ so much from each other that only a change of about {comparison.least:.0%} or "
                "more would show; measure both again on a quiet machine."
            )
        return said
    said = []
    for verdict in ("worse", "better"):
        those = [each for each in significant if each.verdict == verdict]
        if those:
            largest = max(those, key=lambda each: abs(each.ratio.value - 1))
            said.append(
                f"{len(those)} of {len(comparison.differences)} comparisons are significantly {verdict}; the largest: "
                f"{largest.metric} of {largest.cell}, {change(largest.ratio)}."
            )
    return said


def _slower_or_faster(cell: str, those: list[Difference], count: str) -> str:
    verdicts = {each.verdict for each in those}
    how = "slower and faster" if len(verdicts) > 1 else "slower" if verdicts == {"worse"} else "faster"
    shown = ", ".join(f"{each.metric} {change(each.ratio)}" for each in those)
    return f"New is {how} than base over {cell}: {shown}; {count}."


def change(estimate: Estimate) -> str:
    """`+10.2 % (+8.1 to +12.0)`."""
    value, low, high = (100 * (each - 1) for each in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.1f} % ({low:+.1f} to {high:+.1f})"
