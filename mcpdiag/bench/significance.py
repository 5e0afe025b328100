"""Which of many comparisons are more than noise: permutation tests that count how many they make."""

from __future__ import annotations

import math
import operator
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import combinations, islice, product
from statistics import NormalDist, fmean, variance
from typing import Final

ALPHA: Final = 0.01
"""How often all comparisons together may find a difference between two runs of the same thing."""
EXACT: Final = 1000  # ways to split; of more, so many are drawn
FLOOR: Final = 0.002  # of a standard error in logarithms: below it no machine repeats itself
POWER: Final = 0.8
Sample = tuple[Sequence[float], Sequence[float]]


def p_values(samples: Sequence[Sample], *, seed: int = 1) -> list[float]:
    """For each comparison, how often chance alone would show one as large anywhere among them.

    The repetitions of base and new are dealt out anew in every way, the same in all comparisons, and the largest
    studentized difference of logarithms is compared with the one found ("maxT": Westfall and Young, 1993). That holds
    the rate of false alarms of all comparisons together, however many there are and however they depend on another.

    Args:
        samples: base and new of each comparison; the n-th repetition of all is of the same round.
        seed: for drawing splits, where there are too many to try all.
    """
    if not samples:
        return []
    sizes = {(len(base), len(new)) for base, new in samples}
    if len(sizes) > 1 or min(min(sizes)) < 2:
        raise ValueError("all comparisons need the same number of repetitions, at least two")
    ((size, other),) = sizes
    pooled = [_Pooled([*base, *new], size) for base, new in samples]
    found = [each.student(range(size)) for each in pooled]
    exceeded = [0] * len(samples)
    total = 0
    for chosen in _splits(size, other, seed):
        total += 1
        largest = max(each.student(chosen) for each in pooled)
        for at, value in enumerate(found):
            exceeded[at] += largest >= value - 1e-9
    return [count / total for count in exceeded]


def paired_p_values(samples: Sequence[Sample], *, seed: int = 1) -> list[float]:
    """The same, where the n-th repetitions of base and new ran side by side.

    Ranks instead of the differences themselves, because a process may get unlucky addresses and be slower by a tenth
    for all of its life: Wilcoxon's signed ranks of the logarithms of the ratios, and each round's sign turned at
    random, the same in all comparisons (maxT).
    """
    if not samples:
        return []
    rounds = {len(side) for sample in samples for side in sample}
    if len(rounds) > 1 or min(rounds) < 2:
        raise ValueError("all comparisons need the same number of rounds, at least two")
    (count,) = rounds
    ranked = [_signed_ranks(base, new) for base, new in samples]
    scales = [math.sqrt(sum(rank * rank for rank in ranks)) or 1.0 for ranks in ranked]
    found = [abs(sum(ranks)) / scale for ranks, scale in zip(ranked, scales, strict=True)]
    exceeded = [0] * len(samples)
    total = 0
    for signs in _signs(count, seed):
        total += 1
        largest = max(
            abs(sum(map(operator.mul, signs, ranks))) / scale
            for ranks, scale in zip(ranked, scales, strict=True)
        )
        for at, value in enumerate(found):
            exceeded[at] += largest >= value - 1e-9
    return [each / total for each in exceeded]


def _signed_ranks(base: Sequence[float], new: Sequence[float]) -> list[float]:
    """The rank of each round's difference by its size, with its sign; equal ones share the mean, none is 0."""
    logs = [math.log(max(b, 1e-9) / max(a, 1e-9)) for a, b in zip(base, new, strict=True)]
    sizes = sorted(abs(each) for each in logs)
    return [
        math.copysign((bisect_left(sizes, abs(each)) + bisect_right(sizes, abs(each)) + 1) / 2, each)
        if each
        else 0.0
        for each in logs
    ]


def _signs(count: int, seed: int) -> Iterable[Sequence[int]]:
    if 2 ** (count - 1) <= EXACT:
        return ((1, *rest) for rest in product((1, -1), repeat=count - 1))  # the opposites say the same
    chance = random.Random(seed)  # noqa: S311
    return [(1,) * count, *(chance.choices((1, -1), k=count) for _ in range(EXACT - 1))]


def least_p(base: int, new: int, *, paired: bool = False) -> float:
    """The smallest p value that so many repetitions can give."""
    if paired:
        return 2.0 ** (1 - base)
    return (2 if base == new else 1) / math.comb(base + new, base)


def least_change(samples: Sequence[Sample]) -> float:
    """The change (0.1: a tenth) that would have been found in 8 of 10 tries; smaller ones are hidden by the noise.

    By the textbook's formula for two means, from the spread of the logarithms within base and new, with Bonferroni's
    correction for all comparisons; that of the quietest comparison, because one is enough.
    """
    normal = NormalDist()
    reach = normal.inv_cdf(1 - ALPHA / (2 * len(samples)))
    base, new = (len(side) for side in samples[0])
    # Less a quarter of the reach squared: the spread is itself estimated (Guenther, 1981).
    count = max(2 / (1 / base + 1 / new) - reach**2 / 4, 1.0)
    return math.expm1((reach + normal.inv_cdf(POWER)) * math.sqrt(2 * min(map(_spread, samples)) / count))


def _spread(sample: Sample) -> float:
    """The variance of logarithms within the two sides."""
    parts = [(len(side) - 1, variance([math.log(max(value, 1e-9)) for value in side])) for side in sample]
    return sum(freedom * part for freedom, part in parts) / sum(freedom for freedom, _ in parts)


def _splits(size: int, other: int, seed: int) -> Iterable[Sequence[int]]:
    count = size + other
    if math.comb(count, size) <= EXACT:
        all_of_them = combinations(range(count), size)
        # Of equal halves each split comes twice, the second time with its sides exchanged.
        return islice(all_of_them, math.comb(count, size) // (2 if size == other else 1))
    chance = random.Random(seed)  # noqa: S311
    drawn = [chance.sample(range(count), size) for _ in range(EXACT - 1)]
    return [range(size), *drawn]  # the split that was found is one of them


class _Pooled:
    """The logarithms of both sides together; sums of parts of them are all that a split needs."""

    def __init__(self, values: Sequence[float], size: int) -> None:
        logs = [math.log(max(value, 1e-9)) for value in values]
        mean = fmean(logs)
        self._values = [value - mean for value in logs]  # so that nothing is lost in the squares
        self._squares = [value * value for value in self._values]
        self._sum, self._square = sum(self._values), sum(self._squares)
        self._size, self._other = size, len(values) - size

    def student(self, chosen: Iterable[int]) -> float:
        """The studentized difference between the chosen ones and the others, without its sign."""
        values, squares, size, other = self._values, self._squares, self._size, self._other
        one = square = 0.0
        for at in chosen:
            one += values[at]
            square += squares[at]
        two = self._sum - one
        within = (square - one * one / size) / (size - 1) / size
        within += (self._square - square - two * two / other) / (other - 1) / other
        return abs(two / other - one / size) / (math.sqrt(max(within, 0.0)) + FLOOR)
