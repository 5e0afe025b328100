"""The verdict on made readings, whose slope and noise are known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpdiag.bench.verdict import (
    BLOCKS,
    CHILDREN,
    FDS,
    HEAP,
    MOST,
    PRIVATE,
    Finding,
    Rule,
    conclude,
    decisive,
    judge,
    overall,
    theil_sen,
    thinned,
)

READINGS, REQUESTS = 60, 30_000
X = [REQUESTS * number / (READINGS - 1) for number in range(READINGS)]
quick = settings(max_examples=60, deadline=None)
numbers = st.floats(-1e6, 1e6)


def judged(rule: Rule, of: Callable[[float], float], noise: float = 0.0, seed: int = 1) -> Finding:
    chance = random.Random(seed)
    return judge(rule, X, [1e6 + of(x) + chance.gauss(0, noise) for x in X])


# -- the slope ---------------------------------------------------------------------------------------------


@quick
@given(numbers, numbers, st.lists(numbers, min_size=2, max_size=30, unique=True))
def test_the_slope_of_a_line_is_its_own(slope: float, start: float, x: list[float]) -> None:
    x = sorted(round(each) for each in {round(each): each for each in x})
    if len(x) < 2:
        assert math.isnan(theil_sen(x, x))
        return
    found = theil_sen(x, [start + slope * each for each in x])
    assert found == pytest.approx(slope, rel=1e-6, abs=1e-3)


@quick
@given(
    st.lists(st.integers(-1000, 1000), min_size=5, max_size=40), st.integers(1, 50), st.integers(-500, 500)
)
def test_the_slope_follows_scale_and_shift_and_turns_with_time(y: list[int], scale: int, shift: int) -> None:
    x = list(range(len(y)))
    slope = theil_sen(x, y)
    assert theil_sen(x, [scale * each + shift for each in y]) == pytest.approx(scale * slope)
    assert theil_sen(x, y[::-1]) == pytest.approx(-slope)


@quick
@given(st.integers(0, 10_000), st.integers(20, 60))
def test_a_quarter_of_wild_readings_does_not_move_the_slope_far(seed: int, count: int) -> None:
    """The breakdown point is 29 %: with 25 % anywhere, the slope stays that of the others, within the noise they have."""
    chance = random.Random(seed)
    y = [5.0 * x for x in range(count)]
    for at in chance.sample(range(count), count // 4):
        y[at] = chance.choice((-1, 1)) * 1e9
    assert theil_sen(range(count), y) == pytest.approx(5.0)


@quick
@given(st.integers(1, 3000))
def test_many_readings_are_put_together_in_order(count: int) -> None:
    x, y = thinned([float(n) for n in range(count)], [2.0 * n for n in range(count)])
    assert len(x) == len(y) <= MOST
    assert x == sorted(x)
    assert y == [2 * each for each in x]
    assert min(count, MOST) / 2 <= len(x)


# -- one look ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "slope"), [(BLOCKS, 1.0), (HEAP, 56.0), (PRIVATE, 1024.0), (FDS, 0.01)])
def test_steady_growth_is_suspected_and_measured(rule: Rule, slope: float) -> None:
    found = judged(rule, lambda x: slope * x)
    assert found.suspected
    assert found.verdict == "inconclusive"
    assert found.slope == pytest.approx(slope)
    assert found.growth == pytest.approx(slope * REQUESTS)
    assert found.thirds == pytest.approx((slope, slope, slope))


def test_a_leak_of_one_block_is_suspected_through_noise() -> None:
    """Noise of 2,000 blocks, 30,000 requests: 15 times the noise in all, 5 in each third. Missed in 3 of 2,000 draws."""
    seen = [judged(BLOCKS, lambda x: x, noise=2000, seed=seed).suspected for seed in range(200)]
    assert sum(seen) >= 198


@quick
@given(st.integers(0, 10_000), st.sampled_from((BLOCKS, HEAP)))
def test_noise_alone_is_none(seed: int, rule: Rule) -> None:
    found = judged(rule, lambda x: 0.0, noise=rule.per_request * REQUESTS / 20, seed=seed)
    assert (found.verdict, found.suspected) == ("none", False)


def test_growth_below_the_slope_or_the_floor_is_none() -> None:
    assert judged(BLOCKS, lambda x: 0.4 * x).verdict == "none"
    assert judged(FDS, lambda x: 9 * x / REQUESTS).verdict == "none"
    short = judge(BLOCKS, [x / 100 for x in X], [x / 100 for x in X])  # one a request, 300 blocks in all
    assert not short.suspected


def test_noise_as_large_as_a_leak_is_inconclusive_and_says_what_it_needs() -> None:
    found = judged(BLOCKS, lambda x: 0.0, noise=20_000)
    assert found.verdict == "inconclusive"
    assert not found.suspected
    needed = 3 * found.noise / 0.5
    assert found.why == f"needs {math.ceil(needed / 1000) * 1000:,} requests to show"


def test_from_outside_none_needs_growth_beyond_what_a_process_hides() -> None:
    """32 B a request must make more than 3 MiB: 98,304 requests; of two processes twice that."""
    quiet = [50e6] * READINGS
    x = [98_304 * 1.01 * number / (READINGS - 1) for number in range(READINGS)]
    assert judge(PRIVATE, x, quiet).verdict == "none"
    assert judge(PRIVATE, x, quiet, processes=2).verdict == "inconclusive"
    assert judge(PRIVATE, [each * 0.98 for each in x], quiet).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("shape", "verdict"),
    [
        (lambda x: min(x, REQUESTS / 4), "none"),  # full after a quarter
        (lambda x: REQUESTS / 2 if x > REQUESTS / 2 else 0, "none"),  # a jump
        (lambda x: 3 * max(0.0, x - REQUESTS * 2 / 3), "inconclusive"),  # begins in the last third
        (lambda x: 2000 * math.sin(x / REQUESTS * 40), "none"),  # turns over
    ],
)
def test_growth_that_is_not_in_every_third_is_no_suspicion(
    shape: Callable[[float], float], verdict: str
) -> None:
    found = judged(BLOCKS, shape)
    assert (found.suspected, found.verdict) == (False, verdict), found


def test_a_child_now_and_then_is_suspected() -> None:
    """Six steps of one over the run, as a process a hundred sessions makes."""
    found = judge(CHILDREN, X, [float(int(6.5 * x / REQUESTS)) for x in X])
    assert found.suspected
    assert found.growth == pytest.approx(6, abs=1)


def test_a_count_that_swings_is_inconclusive_but_a_large_one_may_swing_a_little() -> None:
    chance = random.Random(3)
    swing = [chance.gauss(0, 20) for _ in X]
    assert judge(FDS, X, [60 + each for each in swing]).verdict == "inconclusive"
    assert judge(FDS, X, [2000 + each for each in swing]).verdict == "none"


def test_a_count_that_grew_at_first_is_none() -> None:
    assert judge(FDS, X, [min(x, REQUESTS / 5) / 10 for x in X]).why == "does not grow"
    assert judge(FDS, X, [min(x, REQUESTS / 2) / 10 for x in X]).why == "grew, and has stopped"


def test_calls_under_way_are_no_growth() -> None:
    """70 blocks for each of 1,000 calls more: a server that falls behind, not one that leaks."""
    behind = [70_000 * x / REQUESTS for x in X]
    assert judge(BLOCKS, X, behind).suspected
    found = judge(BLOCKS, X, behind, swing=1000)
    assert (found.suspected, found.verdict) == (False, "inconclusive")
    assert judge(BLOCKS, X, [4 * x for x in X], swing=1000).suspected  # 120,000 blocks


def test_too_few_readings_or_no_requests_say_nothing() -> None:
    assert judge(BLOCKS, X[:11], X[:11]).why == "11 readings; 12 are needed"
    assert judge(BLOCKS, [5.0] * 60, X).verdict == "inconclusive"
    holes = [math.nan if at % 2 else x for at, x in enumerate(X)]
    assert judge(BLOCKS, X, holes).readings == 30
    assert judge(BLOCKS, X, holes).slope == pytest.approx(1)


# -- twice the requests --------------------------------------------------------------------------------------


def twice(rule: Rule, of: Callable[[float], float], noise: float = 0.0, seed: int = 1) -> Finding:
    """What a soak does: a look at `REQUESTS`, then at twice as many."""
    chance = random.Random(seed)
    x = [*X, *(REQUESTS + each for each in X[1:])]
    y = [of(each) + chance.gauss(0, noise) for each in x]
    first = judge(rule, x[:READINGS], y[:READINGS])
    assert first.suspected
    return conclude(first, judge(rule, x, y), judge(rule, x[READINGS:], y[READINGS:]))


@quick
@given(st.integers(0, 10_000))
def test_a_leak_goes_on(seed: int) -> None:
    found = twice(BLOCKS, lambda x: x, noise=1000, seed=seed)
    assert found.verdict == "leak"
    assert found.slope == pytest.approx(1, abs=0.1)
    assert found.requests == 2 * REQUESTS


@quick
@given(st.integers(0, 10_000), st.floats(1.0, 1.3))
def test_a_cache_that_fills_soon_after_the_first_look_is_no_leak(seed: int, full: float) -> None:
    found = twice(BLOCKS, lambda x: min(x, full * REQUESTS), noise=200, seed=seed)
    assert found.verdict in ("none", "inconclusive")
    assert found.verdict == "none" or full > 1.01


@quick
@given(st.floats(1.0, 1.6))
def test_a_cache_that_fills_during_the_second_look_is_never_called_a_leak(full: float) -> None:
    assert twice(BLOCKS, lambda x: min(x, full * REQUESTS)).verdict != "leak"


def test_growth_that_slows_down_is_inconclusive() -> None:
    assert twice(BLOCKS, lambda x: REQUESTS * math.log1p(3 * x / REQUESTS)).verdict == "inconclusive"


# -- together ----------------------------------------------------------------------------------------------


def test_the_verdict_on_all() -> None:
    def finding(metric: str, verdict: str, process: str = "server") -> Finding:
        return Finding(process=process, metric=metric, verdict=verdict, readings=60)  # type: ignore[arg-type]

    none = [finding(metric, "none") for metric in ("blocks", "heap_bytes", "fds")]
    assert overall(none) == "none"
    assert overall([*none, finding("children", "leak")]) == "leak"
    assert overall([*none, finding("children", "inconclusive")]) == "inconclusive"
    assert overall([]) == "inconclusive"
    outside = finding("private_bytes", "inconclusive")
    assert overall([*none, outside]) == "none"  # blocks and heap are known: it is shown, and does not decide
    assert outside not in decisive([*none, outside])
    other = finding("private_bytes", "leak", "proxy")
    assert overall([*none, other]) == "leak"  # of another process
    assert other in decisive([*none, other])
