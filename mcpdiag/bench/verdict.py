"""Does it leak: leak, none or inconclusive, from readings taken under steady load. Pure functions on numbers.

`soak.py` calls `judge` on what it has read and, where that suspects growth, `conclude` on twice the requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median
from typing import Final, Literal

import msgspec

Verdict = Literal["leak", "none", "inconclusive"]
FEWEST: Final = 12
"""Readings: four in each third."""
MOST: Final = 240
"""Points that slopes are computed of; more are first put together, neighbours to their median."""
HOLDS: Final = 0.5
"""The part of the slope that each third must hold, and that the second half must have of the first."""
CLEAR: Final = 3.0
"""Growth that would be one of `Rule.per_request` must be so many times the noise to be ruled out."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What counts as growth of one metric.

    Attributes:
        metric: its name in the readings.
        unit: of the metric.
        per_request: the smallest slope that matters, in units a request; 0 where any steady growth does.
        floor: growth over the readings below it is none, in units.
        slack: what can be taken without being seen, in units a process: free memory that a process already has.
        per_call: what a call that is under way may hold, in units.
    """

    metric: str
    unit: str
    per_request: float
    floor: float
    slack: float = 0.0
    per_call: float = 0.0


BLOCKS: Final = Rule(metric="blocks", unit="blocks", per_request=0.5, floor=500, per_call=100)
HEAP: Final = Rule(metric="heap_bytes", unit="B", per_request=32, floor=128 * 1024, per_call=4096)
PRIVATE: Final = Rule(
    metric="private_bytes", unit="B", per_request=32, floor=2 << 20, slack=3 << 20, per_call=16384
)
FDS: Final = Rule(metric="fds", unit="fds", per_request=0, floor=10)
THREADS: Final = Rule(metric="threads", unit="threads", per_request=0, floor=4)
CHILDREN: Final = Rule(metric="children", unit="children", per_request=0, floor=4)
SESSIONS: Final = Rule(metric="sessions", unit="sessions", per_request=0, floor=20)
RULES: Final = (BLOCKS, HEAP, PRIVATE, FDS, THREADS, CHILDREN, SESSIONS)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one metric of one process says.

    Attributes:
        slope: Theil-Sen, in units a request.
        thirds: the same of the first, second and last third of the readings.
        growth: what the slope makes over all of them, in units.
        requests: that they cover.
        readings: how many they are.
        noise: spread of the readings about the line, in units (median absolute deviation, as a standard deviation).
        suspected: it grows; only twice the requests make that a leak.
        why: the reason for the verdict, in words.
    """

    process: str
    metric: str
    verdict: Verdict
    slope: float = 0.0
    thirds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    growth: float = 0.0
    requests: int = 0
    readings: int = 0
    noise: float = 0.0
    suspected: bool = False
    why: str = ""


def theil_sen(x: Sequence[float], y: Sequence[float]) -> float:
    """The median of the slopes of all pairs of points (Theil 1950, Sen 1968); nan without two different x.

    Up to 29 % of the points may be anywhere.
    """
    slopes = [
        (y[right] - y[left]) / (x[right] - x[left])
        for left in range(len(x))
        for right in range(left + 1, len(x))
        if x[right] != x[left]
    ]
    return median(slopes) if slopes else math.nan


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `MOST` points: neighbours in groups of one size, each as its medians."""
    size = math.ceil(len(x) / MOST) or 1
    groups = range(0, len(x), size)
    return [median(x[at : at + size]) for at in groups], [median(y[at : at + size]) for at in groups]


def judge(
    rule: Rule,
    requests: Sequence[float],
    values: Sequence[float],
    *,
    process: str = "",
    processes: int = 1,
    swing: int = 0,
) -> Finding:
    """What the readings of one metric say, without a second look: `none`, or `inconclusive`, perhaps `suspected`.

    Suspected is a slope of at least `rule.per_request` that each third of the readings holds half of, and that makes
    at least `rule.floor` over all of them. None is a slope below that, of readings in which such a growth would have
    been seen: it is larger than the slack and clear of the noise.

    Args:
        requests: served until each reading, ascending.
        values: of the metric; one that is nan is left out.
        processes: how many the values are the sum of; each has its own slack.
        swing: by how many the calls under way may differ from one reading to another: what they hold is no growth.
    """
    known = [(a, b) for a, b in zip(requests, values, strict=True) if not math.isnan(b)]
    x, y = thinned([a for a, _ in known], [b for _, b in known])
    start = Finding(process=process, metric=rule.metric, verdict="inconclusive", readings=len(known))
    if len(known) < FEWEST or x[-1] <= x[0]:
        return msgspec.structs.replace(start, why=f"{len(known)} readings; {FEWEST} are needed")
    span = x[-1] - x[0]
    slope = theil_sen(x, y)
    thirds = _thirds(x, y)
    noise = _noise(x, y, slope)
    found = msgspec.structs.replace(
        start, slope=slope, thirds=thirds, growth=slope * span, requests=round(span), noise=noise
    )
    least = max(rule.per_request * span, rule.floor)  # growth over all readings that would matter
    held = rule.per_call * swing
    if slope * span >= least + held and min(thirds) >= HOLDS * slope:
        return msgspec.structs.replace(found, suspected=True, why="grows in every third; not confirmed")
    tail = 2 * len(x) // 3
    late = CLEAR * _noise(x[tail:], y[tail:], thirds[2])  # a jump before that is no noise
    return _without_suspicion(rule, found, least, median(y), rule.slack * processes + held, late)


def _without_suspicion(
    rule: Rule, found: Finding, least: float, level: float, slack: float, late: float
) -> Finding:
    hidden = slack + CLEAR * found.noise  # growth that these readings could not tell from none
    last = found.thirds[2] * found.requests / 3
    if not rule.per_request:  # any growth counts, so all that can be said is how much there is none of
        if found.growth >= rule.floor and last < rule.floor / 3 and late < rule.floor:
            return _replace(found, "none", "grew, and has stopped")
        if hidden > max(rule.floor, level / 10):
            return _replace(found, "inconclusive", f"varies by {found.noise:,.0f}: too much to tell")
        if max(found.growth, last) < max(rule.floor, hidden):
            return _replace(found, "none", "does not grow")
    elif found.growth >= least > 3 * (slack + late) and last < least / 3:
        return _replace(found, "none", "grew, and has stopped")
    elif least <= hidden:
        needed = math.ceil(hidden / rule.per_request / 1000) * 1000
        return _replace(found, "inconclusive", f"needs {needed:,} requests to show")
    elif found.growth < least and last < max(least / 3, CLEAR * found.noise):
        return _replace(found, "none", "does not grow")
    return _replace(found, "inconclusive", "grows, but not in every third")


def conclude(first: Finding, whole: Finding, second: Finding) -> Finding:
    """The verdict on a metric that was suspected, after twice the requests.

    A leak goes on at the same pace; a cache that was filling has slowed down or stopped.

    Args:
        first: of the readings that raised the suspicion.
        whole: of all.
        second: of those after `first`.
    """
    steady = whole.suspected and second.slope >= HOLDS * first.slope
    if steady and (second.suspected or min(second.thirds) > 0):
        return _replace(whole, "leak", "grows in every third of twice the requests")
    if second.verdict == "none":
        return _replace(whole, "none", "grew, and has stopped")
    return _replace(whole, "inconclusive", "grows, but more slowly than at first")


def overall(findings: Iterable[Finding]) -> Verdict:
    """The verdict on all: one leak is enough; none only if every metric that decides says so.

    `private_bytes` decides for a process of which neither `blocks` nor `heap_bytes` could be read: beside them it
    grows as well where memory is touched for the first time.
    """
    deciding = decisive(findings)
    if any(each.verdict == "leak" for each in deciding):
        return "leak"
    return "none" if deciding and all(each.verdict == "none" for each in deciding) else "inconclusive"


def decisive(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that `overall` looks at."""
    every = list(findings)
    inside = {each.process for each in every if each.metric in (BLOCKS.metric, HEAP.metric) and each.readings}
    return [each for each in every if each.metric != PRIVATE.metric or each.process not in inside]


def _replace(found: Finding, verdict: Verdict, why: str) -> Finding:
    return msgspec.structs.replace(found, verdict=verdict, why=why, suspected=False)


def _thirds(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    cuts = [round(len(x) * part / 3) for part in range(4)]
    slopes = [theil_sen(x[a:b], y[a:b]) for a, b in pairwise(cuts)]
    one, two, three = (0.0 if math.isnan(each) else each for each in slopes)
    return one, two, three


def _noise(x: Sequence[float], y: Sequence[float], slope: float) -> float:
    rest = [b - slope * a for a, b in zip(x, y, strict=True)]
    middle = median(rest)
    return 1.4826 * median(abs(each - middle) for each in rest)
