"""Quantiles of a run, and intervals that say how far repetitions can be trusted. Standard library only, seedable."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist, median
from typing import Final

import msgspec

from mcpdiag.bench.columns import NOT_SENT, OK, OUTCOMES, TIMEOUT, Measurement

QUANTILES: Final = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
LEAST: Final = 3
"""Repetitions for an interval that means something."""
RESAMPLES: Final = 2000
Statistic = Callable[[Sequence[float]], float]
# Of Student's t at 97.5 %, for 1, 2, ... degrees of freedom.
_T: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
)  # fmt: skip


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run in numbers, milliseconds and calls a second.

    Latency counts from when a call was due, and is that of the calls that succeeded and of those that waited in
    vain (`timeout`, `not_sent`), with the time they waited. `throughput_rps` counts the successes that ended in the
    measured time; those that its edges cut count by the part inside, or else slow servers would have a few
    throughputs to choose from. `quantiles_ms` has the keys of `QUANTILES`, such as `"0.95"`.
    """

    calls: int
    ok: int
    errors: dict[str, int]
    throughput_rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float
    quantiles_ms: dict[str, float]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of sorted values, linear between two of them; nan of none."""
    if not ordered:
        return math.nan
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    if at == low or ordered[low] == ordered[high]:  # infinities have no difference
        return ordered[low]
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summarize(measurement: Measurement) -> Summary:
    """The measured part of a run: calls that were due in the window, and answers that came in it."""
    columns, window = measurement.columns, measurement.report.window_ns
    latencies: list[float] = []
    outcomes: Counter[int] = Counter()
    ended: list[int] = []
    begin = 0
    for at in range(len(columns)):
        outcome = columns.outcome[at]
        done = columns.done_ns[at]
        intended = columns.intended_ns[at]
        begin = min(begin, intended)
        if outcome == OK:
            ended.append(done)
        if 0 <= intended < window:
            outcomes[outcome] += 1
            if outcome in (OK, TIMEOUT, NOT_SENT):
                latencies.append((done - intended) / 1e6)
    latencies.sort()
    ended.sort()
    answered = ended_by(ended, window, begin) - ended_by(ended, 0, begin)
    cut = {f"{share:g}": round(quantile(latencies, share), 6) for share in QUANTILES}
    cut = {key: 0.0 if math.isnan(value) else value for key, value in cut.items()}
    return Summary(
        calls=outcomes.total(),
        ok=outcomes[OK],
        errors={OUTCOMES[kind]: count for kind, count in sorted(outcomes.items()) if kind != OK},
        throughput_rps=round(answered / (window / 1e9), 3) if window else 0.0,
        p50_ms=cut["0.5"],
        p95_ms=cut["0.95"],
        p99_ms=cut["0.99"],
        max_ms=round(latencies[-1], 6) if latencies else 0.0,
        mean_ms=round(sum(latencies) / len(latencies), 6) if latencies else 0.0,
        quantiles_ms=cut,
    )


def ended_by(ended: Sequence[int], at: int, begin: int) -> float:
    """How many of the sorted ends are not after `at`, and the part of the next one that has passed since the last."""
    count = bisect_right(ended, at)
    if count == len(ended):
        return float(count)
    last = ended[count - 1] if count else begin
    return count + max(0, at - last) / (ended[count] - last)


class Estimate(msgspec.Struct, frozen=True):
    """A number measured by repetitions, and its 95 % interval; of fewer than three that is no interval to trust."""

    value: float
    low: float
    high: float
    repetitions: int = 1

    def shown(self, unit: str = "") -> str:
        """`41x (38-44)`, or `41x (1 round)`."""
        if self.repetitions < LEAST:
            return f"{self.value:.3g}{unit} ({self.repetitions} round{'s' * (self.repetitions > 1)})"
        return f"{self.value:.3g}{unit} ({self.low:.3g}-{self.high:.3g})"


def tails(count: int) -> float:
    """The share of resamples to cut at each end for a 95 % interval from `count` repetitions.

    Few repetitions make a percentile interval too narrow; this widens it as Student's t would ("expanded
    percentile": T. Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 5.3).
    """
    if count < 2:
        return 0.0
    freedom = count - 1
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.5 / freedom
    return NormalDist().cdf(-t * math.sqrt(count / freedom))


def interval(
    draw: Callable[[random.Random], float], value: float, count: int, *, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """The estimate `value` with the interval of `resamples` draws.

    Args:
        draw: the statistic of one resample.
        count: the repetitions of the smaller side.
    """
    chance = random.Random(seed)  # noqa: S311
    return _between([draw(chance) for _ in range(resamples)], value, count)


def _between(drawn: list[float], value: float, count: int) -> Estimate:
    drawn.sort()
    cut = tails(count)
    return Estimate(value, quantile(drawn, cut), quantile(drawn, 1 - cut), count)


@lru_cache(maxsize=64)
def _middles(count: int, seed: int) -> tuple[tuple[int, int], ...]:
    """Which of `count` sorted values the two in the middle of each resample are: that depends on no value."""
    chance = random.Random(seed)  # noqa: S311
    low, high = (count - 1) // 2, count // 2
    drawn = (sorted(chance.choices(range(count), k=count)) for _ in range(RESAMPLES))
    return tuple((each[low], each[high]) for each in drawn)


def _medians(values: Sequence[float], seed: int) -> list[float]:
    """The medians of `RESAMPLES` resamples."""
    ordered = sorted(values)
    return [(ordered[low] + ordered[high]) / 2 for low, high in _middles(len(ordered), seed)]


def estimate(values: Sequence[float], *, seed: int = 1) -> Estimate:
    """The median of repetitions and its interval."""
    return _between(_medians(values, seed), median(values), len(values))


def paired_ratio(over: Sequence[float], under: Sequence[float], *, seed: int = 1) -> Estimate | None:
    """How many times `under` is in `over`, by the repetitions that ran side by side: the median of their ratios.

    None if `under` is 0 in all of them.
    """
    ratios = [a / b for a, b in zip(over, under, strict=True) if b > 0]
    return estimate(ratios, seed=seed) if ratios else None


def ratio(new: Sequence[float], base: Sequence[float], *, seed: int = 1) -> Estimate:
    """The ratio of the medians of two independent sets of repetitions."""
    over, under = _medians(new, 2 * seed), _medians(base, 2 * seed + 1)  # independent of each other
    drawn = [_divide(a, b) for a, b in zip(over, under, strict=True)]
    return _between(drawn, _divide(median(new), median(base)), min(len(new), len(base)))


def _divide(a: float, b: float) -> float:
    return a / b if b else (1.0 if a == b else math.inf)
