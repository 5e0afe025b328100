"""Is a difference real, how large is it, is it too much; and the refusals to say so."""

from __future__ import annotations

import random
from statistics import median

import pytest
from msgspec.structs import replace

from mcpdiag.bench.compare import compare, parse_limits, regressions, sentences, unlike
from mcpdiag.bench.matrix import nothing
from mcpdiag.bench.result import Cell
from mcpdiag.bench.significance import ALPHA, least_change, least_p, p_values
from mcpdiag.bench.spec import Call
from mcpdiag.bench.statistics import estimate, interval, paired_ratio, ratio, tails
from mcpdiag.errors import ConfigError
from tests.bench import made

LIMITS = parse_limits("p95=5%,throughput=5%,rss=10%")


def test_a_slowdown_of_ten_percent_is_significant() -> None:
    for seed in range(5):
        found = compare(made.result(seed), made.result(seed + 100, slowdown=1.1))
        worse = {each.metric for each in found.significant}
        assert {"throughput", "p50", "p95"} <= worse
        assert "rss" not in worse
        assert all(each.verdict == "worse" for each in found.significant)
        assert "significantly worse" in " ".join(sentences(found))


def test_a_speedup_is_better_not_worse() -> None:
    found = compare(made.result(1), made.result(2, slowdown=0.8))
    assert {each.verdict for each in found.significant} == {"better"}
    assert regressions(found, LIMITS) == []


def test_the_same_against_the_same_is_significant_at_most_once_in_twenty() -> None:
    """48 comparisons each time: it is the rate of all of them together that is held."""
    alarms = [compare(made.result(seed), made.result(seed + 1000)) for seed in range(20)]
    assert sum(bool(each.significant) for each in alarms) <= 1
    assert sum(bool(regressions(each, LIMITS)) for each in alarms) <= 1


def test_a_result_against_itself_shows_nothing() -> None:
    found = compare(made.result(1), made.result(1))
    assert {each.verdict for each in found.differences} == {"not significant"}
    assert "no difference beyond noise in 48 comparisons" in sentences(found)[0]


def test_comparing_twice_says_the_same() -> None:
    assert compare(made.result(1), made.result(2)) == compare(made.result(1), made.result(2))


def test_a_regression_is_judged_on_its_interval() -> None:
    """20 % slower is beyond 5 %; 6 % slower is at the point, but its interval reaches below 5 %."""
    far = regressions(compare(made.result(1), made.result(2, slowdown=1.2)), LIMITS)
    assert {each.metric for each in far} == {"throughput", "p95"}
    assert len(far) == 24
    near = compare(made.result(1), made.result(2, slowdown=1.06))
    above = [each for each in near.differences if each.metric == "p95" and each.ratio.value > 1.05]
    failing = [each for each in regressions(near, LIMITS) if each.metric == "p95"]
    assert len(above) > 6
    assert len(failing) < len(above) / 2
    assert all(each.ratio.low > 1.05 for each in failing)


def test_too_few_repetitions_are_no_evidence() -> None:
    found = compare(made.result(1, repeat=3), made.result(2, slowdown=2.0, repeat=3))
    assert found.significant == []
    assert "cannot show a difference" in sentences(found)[0]
    assert least_p(5, 5) <= ALPHA < least_p(4, 4)
    with pytest.raises(ConfigError, match="at least 3"):
        regressions(compare(made.result(1, repeat=2), made.result(2, repeat=2)), LIMITS)


def test_where_the_noise_hides_a_change_it_says_how_large_one_would_have_to_be() -> None:
    loud = compare(made.result(1, noise=0.2), made.result(2, noise=0.2))
    assert loud.significant == []
    assert loud.least > 0.2
    assert f"a change of about {loud.least:.0%} or more" in sentences(loud)[1]
    quiet = compare(made.result(1), made.result(2))
    assert quiet.least < 0.1
    assert len(sentences(quiet)) == 1


def test_unlike_results_are_refused_unless_forced() -> None:
    base, other = made.result(1), made.elsewhere(made.result(2))
    other = replace(other, workload=replace(other.workload, calls=(Call(method="ping"),)))
    other = replace(other, config=replace(other.config, max_connections=4))
    assert len(unlike(base, other)) == 3
    with pytest.raises(ConfigError) as error:
        compare(base, other)
    assert "the machines differ: linux-x86_64-2cpu-abcdef" in error.value.problems[0]
    assert "the workloads differ: tools/call echo and ping" in error.value.problems[1]
    assert "max_connections differs: 1 and 4" in error.value.problems[2]
    assert compare(base, other, force=True).differences


def test_results_without_a_common_cell_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="no cell in common"):
        compare(made.result(1, clients=(1,)), made.result(2, clients=(2,)))
    with pytest.raises(ConfigError, match="no cell in common"):
        compare(made.result(1, repeat=1), made.result(2))


def test_a_cell_whose_calls_all_fail_is_a_regression_not_a_gap() -> None:
    base, new = made.result(1), made.result(2)
    dead = tuple(replace(each, summary=nothing(8)) for each in new.cells[0].repetitions)
    broken = replace(new, cells=(replace(new.cells[0], repetitions=dead), *new.cells[1:]))
    found = compare(base, broken)
    (worse,) = regressions(found, LIMITS)
    assert (worse.cell, worse.metric, worse.ratio.value) == ("stdio x1 reuse on", "throughput", 0)
    assert worse.verdict == "worse"
    assert sentences(found)[-1] == "Failed calls: 0 in base, 40 in new."


def test_an_interrupted_result_is_compared_by_its_full_rounds() -> None:
    base, new = made.result(1), made.result(2)

    def short(cell: Cell) -> Cell:
        return replace(cell, repetitions=cell.repetitions[:-1])

    cut = replace(new, cells=(*new.cells[:3], *map(short, new.cells[3:])), complete=False)
    assert compare(base, cut).new_repetitions == 4


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["--max-regression: found nothing; allowed: METRIC=PERCENT with throughput, p50, p95, rss"]),
        (
            "through=5%,rss=ten,p95=5%,p95=6%",
            [
                '--max-regression: found "through"; did you mean throughput?',
                '--max-regression: rss: found "ten"; allowed: a percentage such as 5%',
                "--max-regression: p95: found it twice; remove one of them",
            ],
        ),
    ],
)
def test_all_mistakes_of_the_limits_are_said_at_once(text: str, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_limits(text)
    assert error.value.problems == problems


# -- the statistics below ----------------------------------------------------------------------------------------


def test_the_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    """5 repetitions of a noise whose median is 1: a plain percentile interval would hold it in 94 of 100 at best."""
    chance = random.Random(3)
    held = 0
    for seed in range(200):
        found = estimate([chance.lognormvariate(0, 0.1) for _ in range(5)], seed=seed)
        held += found.low <= 1 <= found.high
    assert 180 <= held <= 200


@pytest.mark.parametrize("count", [3, 4, 5, 12])
def test_a_ratio_has_the_interval_of_the_plain_bootstrap(count: int) -> None:
    """Which values are in the middle of a resample is drawn once for all metrics; that changes nothing but the time."""
    chance = random.Random(count)
    new, base = ([chance.lognormvariate(0, 0.1) for _ in range(count)] for _ in range(2))

    def draw(chance: random.Random) -> float:
        return median(chance.choices(new, k=count)) / median(chance.choices(base, k=count))

    plain = interval(draw, median(new) / median(base), count, seed=9)
    found = ratio(new, base, seed=3)
    assert (found.value, found.repetitions) == (plain.value, count)
    assert found.low == pytest.approx(plain.low, rel=0.03)
    assert found.high == pytest.approx(plain.high, rel=0.03)


def test_few_repetitions_widen_the_interval() -> None:
    assert tails(3) < tails(5) < tails(20) < 0.025
    assert abs(tails(1000) - 0.025) < 0.001


def test_ratios() -> None:
    assert ratio([2.0] * 5, [1.0] * 5).value == 2
    assert ratio([0.0] * 5, [0.0] * 5).value == 1
    found = paired_ratio([10, 20, 30], [1, 2, 3])
    assert found is not None
    assert (found.value, found.low, found.high) == (10, 10, 10)
    assert paired_ratio([1.0], [0.0]) is None


def test_many_comparisons_do_not_make_chance_a_finding() -> None:
    """Of 100 comparisons of noise, one alone would look significant nearly always; together they seldom do."""
    chance = random.Random(5)
    alarms = 0
    for _ in range(10):
        noise = [
            ([chance.gauss(10, 1) for _ in range(5)], [chance.gauss(10, 1) for _ in range(5)])
            for _ in range(100)
        ]
        alarms += min(p_values(noise)) <= ALPHA
    assert alarms <= 1


@pytest.mark.parametrize(("count", "low", "high"), [(40, 0.07, 0.13), (10, 0.15, 0.3)])
def test_the_least_change_that_it_names_is_found_in_most_tries(count: int, low: float, high: float) -> None:
    """Six comparisons that move together, as those of one server do; the formula asks for 8 of 10."""
    chance = random.Random(11)

    def side(size: int, factor: float = 1.0) -> list[float]:
        return [factor * chance.lognormvariate(0, 0.1) for _ in range(size)]

    named = [least_change([(side(count), side(count))] * 6) for _ in range(20)]
    assert low < median(named) < high
    factor = 1 + median(named)
    seen = sum(min(p_values([(side(count), side(count, factor))] * 6)) <= ALPHA for _ in range(20))
    assert seen >= 14


def test_more_repetitions_than_can_be_tried_in_all_ways_are_drawn() -> None:
    chance = random.Random(7)
    base = [chance.gauss(10, 0.2) for _ in range(12)]
    (p,) = p_values([(base, [value * 1.1 for value in base])])
    assert p <= ALPHA


@pytest.mark.parametrize("wrong", [[([1.0], [1.0])], [([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0], [1.0])]])
def test_uneven_comparisons_are_refused(wrong: list[tuple[list[float], list[float]]]) -> None:
    with pytest.raises(ValueError, match="same number"):
        p_values(wrong)
