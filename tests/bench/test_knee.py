"""When a step departs, and where the search goes next."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from mcpdiag.bench.breaking_report import HEADINGS
from mcpdiag.bench.knee import Breaking, Limits, Step, around, between, error_rate, judge, tidy
from mcpdiag.bench.report import comma_separated, headings, junit, markdown, rows, sentences
from mcpdiag.bench.result import Result
from mcpdiag.bench.statistics import Estimate, Summary
from tests.bench import made

BASE = Estimate(5.0, 4.8, 5.2, 5)
CALM = replace(
    made.repetition(random.Random(1), 1.0, 1.0).summary,
    calls=1000, ok=1000, throughput_rps=100.0, p50_ms=5.0, p99_ms=6.0,
)  # fmt: skip


def departure(**changes: object) -> str:
    return judge(replace(CALM, **changes), due_rps=100.0, limits=Limits(), base=BASE)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"p99_ms": 26.0}, ""),  # five times the upper end of the interval, not of its middle
        ({"p99_ms": 26.1}, "p99"),
        ({"throughput_rps": 95.0}, ""),
        ({"throughput_rps": 94.9}, "throughput"),
        ({"ok": 990}, ""),
        ({"ok": 989}, "errors"),
        ({"calls": 0, "ok": 0}, "errors"),
        ({"ok": 0, "throughput_rps": 0.0, "p99_ms": 1e4}, "errors"),  # the plainest reason is given
    ],
)
def test_a_step_departs_by_errors_throughput_or_p99(changes: dict[str, object], why: str) -> None:
    assert departure(**changes) == why


def test_a_call_that_the_edges_cut_is_no_departure() -> None:
    """Of 5 calls a second for 5 s, 24 of 25 are answered inside: 4.8 a second are no departure, 4.5 are."""
    for answered, why in ((4.7, ""), (4.5, "throughput")):
        summary = replace(CALM, calls=25, ok=25, throughput_rps=answered)
        assert judge(summary, due_rps=5.0, limits=Limits(), base=BASE, edge_rps=0.2) == why


def test_clients_depart_when_more_of_them_get_less() -> None:
    def judged(now: float) -> str:
        summary = replace(CALM, throughput_rps=now)
        return judge(summary, due_rps=0.0, limits=Limits(), base=BASE, answered_before=100.0)

    assert judged(95.0) == ""
    assert judged(94.0) == "throughput"


def step(load: float, departed: str = "", **changes: object) -> Step:
    made_of: dict[str, object] = {
        "load": load, "clients": 16, "runs": 1, "due_rps": load, "answered_rps": load, "error_rate": 0.0,
        "p50_ms": 5.0, "p99_ms": 6.0, "departed": departed,
    }  # fmt: skip
    return Step(**{**made_of, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([], (0.0, 0.0)),
        ([step(50), step(100)], (100, 0.0)),
        ([step(50, "p99")], (0.0, 50)),
        ([step(50), step(100), step(200, "p99"), step(141)], (141, 200)),
        ([step(50), step(100, "p99"), step(200)], (50, 100)),  # what held above a departure does not count
    ],
)
def test_the_breaking_point_is_between_held_and_departed(
    steps: list[Step], found: tuple[float, float]
) -> None:
    assert around(steps) == found


def test_closing_in_ends_when_it_is_precise_enough() -> None:
    held, departed, tries = 100.0, 200.0, 0
    while load := between("rate", held, departed, 0.1):
        tries += 1
        held, departed = (load, departed) if load < 170 else (held, load)
    assert held < 170 <= departed <= held * 1.1
    assert tries <= 4
    assert between("clients", 3, 4, 0.01) == 0.0  # there is no client between
    assert between("clients", 2, 4, 0.01) == 3.0
    assert tidy(141.421) == 141


def broken(**changes: object) -> Result:
    breaking = Breaking(
        by="rate",
        limits=Limits(),
        precision=0.1,
        base=BASE,
        steps=(step(50), step(100), step(200, "throughput", answered_rps=150.0, p99_ms=900.0)),
        held=100,
        departed=200,
    )
    return replace(made.result(1), breaking=replace(breaking, **changes))


def test_the_table_has_a_row_a_step_and_the_sentences_the_breaking_point() -> None:
    result = broken()
    assert headings(result) == HEADINGS
    assert [row[-1] for row in rows(result)] == ["held", "held", "75% answered"]
    said = sentences(result)
    assert said[0] == "Low load, 50 calls a second: p99 5.00 ms (4.80-5.20)."
    assert said[1] == (
        "It departs at 200 calls a second: 75% answered. 100 calls a second hold: 100 answered a second, "
        "p50 5.00 ms, p99 6.00 ms."
    )
    assert "75% answered" in markdown(result)
    assert len(comma_separated(result).splitlines()) > 1


def test_a_breaking_point_of_the_generator_says_so() -> None:
    busy = step(200, "p99", saturated="its core was 97% busy")
    said = sentences(broken(steps=(step(50), step(100), busy)))
    assert any("The generator was the limit there" in each and "97% busy" in each for each in said)
    held = step(200, saturated="its core was 97% busy")
    quiet = sentences(broken(steps=(step(50), held), departed=0.0, held=200))
    assert not any("was the limit" in each for each in quiet)
    assert "It did not break up to 200 calls a second." in quiet


def test_junit_fails_only_if_the_lowest_load_did_not_hold() -> None:
    assert 'failures="0"' in junit(broken())
    failed = junit(broken(steps=(step(50, "errors", error_rate=0.5),), held=0.0, departed=50.0))
    assert 'failures="1"' in failed
    assert "50.0% failed" in failed


def test_an_error_rate_of_no_calls_is_all() -> None:
    nothing = replace(CALM, calls=0, ok=0)
    assert isinstance(nothing, Summary)
    assert error_rate(nothing) == 1.0
