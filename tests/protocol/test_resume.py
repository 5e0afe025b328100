"""The policy of streams that go on, on virtual time: a number that the test adds to."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpdiag.config import ReconnectPolicy
from mcpdiag.protocol.resume import REMEMBERED, Again, Renew, Resume, Stop, Verdict, session_is_lost

quick = settings(max_examples=100, deadline=None)
DEFAULT = ReconnectPolicy()
ENDLESS = ReconnectPolicy(window=1e12)
DRAWS = 10_000
LATER = [408, 409, 425, 429, 500, 502, 503, 504, 599]
policies = st.builds(
    ReconnectPolicy, base=st.floats(0.1, 0.5), cap=st.floats(1, 100), window=st.floats(0.001, 1000)
)
seeds = st.integers(0, 2**32)


def longest(low: float, high: float) -> float:
    return high


def shortest(low: float, high: float) -> float:
    return low


def again(verdict: Verdict) -> Again:
    assert isinstance(verdict, Again), verdict
    return verdict


def stopped(verdict: Verdict) -> Stop:
    assert isinstance(verdict, Stop), verdict
    return verdict


def failures(resume: Resume, count: int, now: float = 0.0) -> list[float]:
    """The delays after so many failures in a row, each waited for."""
    delays = []
    for _ in range(count):
        verdict = again(resume.failed(now))
        delays.append(verdict.delay)
        now += verdict.delay
    return delays


def until_the_end(resume: Resume, now: float = 0.0, *, takes: float = 0.0) -> tuple[float, list[Again], Stop]:
    """Every attempt fails after `takes` seconds. The time of the end, the attempts, the end."""
    attempts: list[Again] = []
    while isinstance(verdict := resume.failed(now), Again):
        attempts.append(verdict)
        now += verdict.delay + takes
    return now, attempts, stopped(verdict)


def connection(resume: Resume, ids: list[bytes | None], now: float = 0.0) -> list[bool]:
    """One connection that carries messages with these ids and breaks; which of them were new."""
    resume.opened(now)
    admitted = [resume.admit(each, has_message=True) for each in ids]
    resume.failed(now)
    return admitted


def numbered(first: int, last: int) -> list[bytes | None]:
    return [b"%d" % number for number in range(first, last)]


# -- delays --------------------------------------------------------------------------------------------------


def test_the_longest_delays_double_from_base_to_cap() -> None:
    delays = failures(Resume(DEFAULT, longest), 11)
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]


def test_the_shortest_delays_are_none() -> None:
    assert failures(Resume(DEFAULT, shortest), 50) == [0.0] * 50


def test_the_range_of_each_delay_begins_at_zero() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    failures(Resume(DEFAULT, uniform), 9)
    assert asked == [(0.0, min(30.0, 0.2 * 2**n)) for n in range(9)]


@quick
@given(policies, seeds)
def test_every_delay_is_within_its_bounds_and_the_last_ends_with_the_window(
    policy: ReconnectPolicy, seed: int
) -> None:
    resume = Resume(policy, random.Random(seed).uniform)
    now, attempts, end = until_the_end(resume)
    for number, attempt in enumerate(attempts):
        assert attempt.attempt == number + 1
        assert 0 <= attempt.delay <= min(policy.cap, policy.base * 2.0 ** min(number, 60))
    assert end.gave_up
    assert now == pytest.approx(policy.window)


def test_thousands_of_attempts_are_no_overflow() -> None:
    delays = failures(Resume(ENDLESS, longest), 5000)
    assert set(delays[10:]) == {30.0}


def test_attempts_count_from_one_since_the_last_message() -> None:
    resume = Resume(DEFAULT, longest)
    assert [again(resume.failed(0)).attempt for _ in range(3)] == [1, 2, 3]
    resume.admit(None, has_message=True)
    assert again(resume.failed(0)).attempt == 1


# -- jitter --------------------------------------------------------------------------------------------------


def distance_from_uniform(draws: list[float], ceiling: float) -> float:
    """The statistic of Kolmogorov and Smirnov against the uniform distribution on 0 to `ceiling`."""
    shares = [draw / ceiling for draw in sorted(draws)]
    count = len(shares)
    return max(max((rank + 1) / count - share, share - rank / count) for rank, share in enumerate(shares))


CRITICAL = 1.628 / math.sqrt(DRAWS)  # at the level of 1 %


def draw(attempt: int, seed: int) -> list[float]:
    """The delay before this attempt of 10,000 streams."""
    uniform = random.Random(seed).uniform
    draws = []
    for _ in range(DRAWS):
        resume = Resume(DEFAULT, uniform)
        resume.attempts = attempt
        draws.append(again(resume.failed(0.0)).delay)
    return draws


@pytest.mark.parametrize("attempt", [0, 1, 5, 8, 100])
def test_the_jitter_is_uniform_over_the_whole_range(attempt: int) -> None:
    ceiling = min(30.0, 0.2 * 2.0**attempt)
    draws = draw(attempt, seed=attempt)
    assert distance_from_uniform(draws, ceiling) < CRITICAL
    assert 0 <= min(draws) < ceiling / 1000
    assert ceiling * 0.999 < max(draws) <= ceiling


@pytest.mark.parametrize("attempt", [0, 5])
def test_one_delay_says_nothing_about_the_next(attempt: int) -> None:
    draws = draw(attempt, seed=7)
    mean = sum(draws) / DRAWS
    variance = sum((each - mean) ** 2 for each in draws)
    covariance = sum((one - mean) * (two - mean) for one, two in pairwise(draws))
    assert abs(covariance / variance) < 3 / math.sqrt(DRAWS)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda low, high: random.uniform(high / 2, high), id="half of it fixed"),
        pytest.param(lambda low, high: random.uniform(low, high * 0.95), id="a range too short"),
        pytest.param(lambda low, high: random.triangular(low, high), id="not uniform"),
        pytest.param(lambda low, high: high, id="none"),
    ],
)
def test_other_jitter_is_seen(wrong: Callable[[float, float], float]) -> None:
    random.seed(1)
    draws = [again(Resume(DEFAULT, wrong).failed(0.0)).delay for _ in range(DRAWS)]
    assert distance_from_uniform(draws, 0.2) > CRITICAL


# -- back to base --------------------------------------------------------------------------------------------


def test_a_message_sets_the_delay_back_to_base() -> None:
    resume = Resume(DEFAULT, longest)
    failures(resume, 6)
    resume.opened(10)
    assert resume.admit(b"1", has_message=True)
    assert resume.attempts == 0
    assert failures(resume, 2, now=10) == [0.2, 0.4]


def test_a_connection_without_a_message_does_not() -> None:
    resume = Resume(DEFAULT, longest)
    for expected in [0.2, 0.4, 0.8]:
        resume.opened(0)
        resume.admit(b"p", has_message=False)  # an id with nothing to relay
        assert again(resume.failed(0)).delay == expected


def test_a_repeat_is_no_message() -> None:
    """A server that replays the same for ever and breaks is not asked five times a second without end."""
    resume = Resume(DEFAULT, longest)
    connection(resume, [b"1"])
    now, ends = 0.0, 0
    while isinstance(verdict := resume.failed(now), Again):
        now += verdict.delay
        resume.opened(now)
        assert not resume.admit(b"1", has_message=True)
        ends += 1
    assert stopped(verdict).gave_up
    assert ends < 30


def test_a_connection_that_held_for_cap_counts_as_a_message() -> None:
    resume = Resume(DEFAULT, longest)
    failures(resume, 6)
    resume.opened(100)
    assert again(resume.failed(130)) == Again(0.2, 1)


def test_one_that_held_for_less_does_not() -> None:
    resume = Resume(DEFAULT, longest)
    failures(resume, 6)
    resume.opened(100)
    assert again(resume.failed(129.9)) == Again(12.8, 7)


def test_the_time_of_a_connection_counts_once() -> None:
    """A refusal long after a connection that held is no second reset."""
    resume = Resume(DEFAULT, longest)
    resume.opened(0)
    assert again(resume.failed(1000)).attempt == 1
    assert again(resume.failed(1100)).attempt == 2


def test_an_end_in_good_order_is_no_failure_if_the_server_said_when_to_come_back() -> None:
    resume = Resume(DEFAULT, longest)
    resume.retry = 60.0
    now = 0.0
    for _ in range(10):  # ten minutes
        resume.opened(now)
        assert resume.failed(now, polled=True) == Again(60.2, 1)
        now += 60.2


def test_an_end_in_good_order_is_one_if_it_did_not() -> None:
    resume = Resume(DEFAULT, longest)
    delays = []
    for _ in range(3):
        resume.opened(0)
        delays.append(again(resume.failed(0, polled=True)).delay)
    assert delays == [0.2, 0.4, 0.8]


# -- the window ----------------------------------------------------------------------------------------------


def test_attempts_go_on_until_the_window_has_passed() -> None:
    now, attempts, end = until_the_end(Resume(DEFAULT, longest))
    assert now == pytest.approx(300)
    assert [round(each.delay, 3) for each in attempts[-3:]] == [30.0, 30.0, 9.0]  # the last reaches the end
    assert end == Stop(f"{len(attempts)} attempts in 300 s", gave_up=True)


def test_attempts_that_take_long_end_with_the_window_too() -> None:
    now, attempts, end = until_the_end(Resume(DEFAULT, longest), takes=60)
    assert 300 <= now < 360
    assert len(attempts) == 5
    assert end.gave_up


def test_the_window_begins_with_the_first_failure() -> None:
    now, _, _ = until_the_end(Resume(DEFAULT, longest), now=5000)
    assert now == pytest.approx(5300)


def test_a_message_begins_another_window() -> None:
    resume = Resume(DEFAULT, longest)
    resume.failed(0)
    resume.admit(None, has_message=True)
    now, _, _ = until_the_end(resume, now=299)
    assert now == pytest.approx(599)


def test_a_connection_that_held_begins_another_window() -> None:
    resume = Resume(DEFAULT, longest)
    resume.failed(0)
    resume.opened(260)
    now, _, _ = until_the_end(resume, now=299)
    assert now == pytest.approx(599)


def test_a_connection_that_did_not_hold_does_not() -> None:
    resume = Resume(DEFAULT, longest)
    resume.failed(0)
    resume.opened(280)
    now, _, _ = until_the_end(resume, now=299)
    assert now == pytest.approx(300)


def test_on_the_average_the_default_window_takes_some_thirty_attempts() -> None:
    uniform = random.Random(3).uniform
    counts = [len(until_the_end(Resume(DEFAULT, uniform))[1]) for _ in range(500)]
    assert 22 < sum(counts) / len(counts) < 34


# -- what a server asks for ----------------------------------------------------------------------------------


def test_retry_is_added_to_every_delay() -> None:
    resume = Resume(DEFAULT, longest)
    resume.retry = 3.0
    assert failures(resume, 3) == [3.2, 3.4, 3.8]


def test_retry_stays_after_a_message_and_a_renewed_session() -> None:
    resume = Resume(DEFAULT, shortest)
    resume.retry = 3.0
    resume.admit(b"1", has_message=True)
    resume.restarted()
    assert failures(resume, 2) == [3.0, 3.0]


def test_retry_after_holds_for_one_delay() -> None:
    resume = Resume(DEFAULT, longest)
    assert again(resume.failed(0, status=503, retry_after=7)).delay == 7.2
    assert again(resume.failed(7.2, status=503)).delay == 0.4


@pytest.mark.parametrize(("retry", "pause"), [(2.0, 9.0), (9.0, 2.0)])
def test_of_both_the_longer_counts(retry: float, pause: float) -> None:
    resume = Resume(DEFAULT, shortest)
    resume.retry = retry
    assert again(resume.failed(0, status=429, retry_after=pause)).delay == 9.0


def test_a_floor_may_be_above_cap() -> None:
    assert again(Resume(DEFAULT, longest).failed(0, status=503, retry_after=120)).delay == 120.2


def test_a_floor_that_ends_with_the_window_is_waited_for() -> None:
    resume = Resume(DEFAULT, longest)
    assert again(resume.failed(0, status=503, retry_after=300)).delay == 300
    assert stopped(resume.failed(300, status=503)).gave_up


def test_a_floor_beyond_the_window_ends_it_at_once() -> None:
    """No attempt before the time that the server asked for."""
    resume = Resume(DEFAULT, shortest)
    failures(resume, 4)
    end = stopped(resume.failed(10, status=503, retry_after=291))
    assert end == Stop("4 attempts in 10 s, and the server asks for 291 s more", gave_up=True)


def test_a_retry_beyond_the_window_ends_it_too() -> None:
    resume = Resume(DEFAULT, shortest)
    resume.retry = 1e12
    assert stopped(resume.failed(0)).gave_up


@quick
@given(policies, st.floats(0, 2000), st.floats(0, 2000), seeds)
def test_no_attempt_comes_before_the_floor_nor_after_the_window(
    policy: ReconnectPolicy, retry: float, pause: float, seed: int
) -> None:
    resume = Resume(policy, random.Random(seed).uniform)
    resume.retry = retry
    verdict = resume.failed(0, status=503, retry_after=pause)
    if max(retry, pause) > policy.window:
        assert stopped(verdict).gave_up
    else:
        assert max(retry, pause) <= again(verdict).delay <= policy.window


# -- what a status means -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, *LATER])
def test_what_may_pass_is_tried_again(status: int) -> None:
    resume = Resume(DEFAULT, longest)
    assert resume.failed(0, status=status) == Again(0.2, 1)
    assert resume.failed(0.2, status=status) == Again(0.4, 2)


@pytest.mark.parametrize("status", sorted({*range(400, 500)} - {404, *LATER}))
def test_what_will_not_pass_ends_it(status: int) -> None:
    verdict = Resume(DEFAULT, longest).failed(0, status=status)
    assert verdict == Stop(f"the server answered HTTP {status}", gave_up=False)


@pytest.mark.parametrize("status", [200, 202, 204, 301, 307])
def test_neither_does_an_answer_that_is_no_stream(status: int) -> None:
    assert not stopped(Resume(DEFAULT, longest).failed(0, status=status)).gave_up


def test_a_session_that_is_gone_is_renewed_and_if_the_new_one_is_not_known_either_it_ends() -> None:
    resume = Resume(DEFAULT, longest)
    assert resume.failed(0, status=404) == Renew()
    resume.restarted()
    assert resume.failed(0, status=404) == Stop("the server answered HTTP 404", gave_up=False)


def test_a_renewed_session_that_was_known_may_be_lost_again() -> None:
    resume = Resume(DEFAULT, longest)
    for _ in range(3):
        assert resume.failed(0, status=404) == Renew()
        resume.restarted()
        resume.opened(0)


@pytest.mark.parametrize("status", [0, *LATER])
def test_a_server_that_renews_and_fails_by_turns_is_given_up(status: int) -> None:
    """Renewing itself has no delay, so what is between must have one that grows."""
    resume = Resume(DEFAULT, longest)
    now, renewed = 0.0, 0
    while True:
        assert resume.failed(now, status=404) == Renew()
        resume.restarted()
        renewed += 1
        verdict = resume.failed(now, status=status)
        if not isinstance(verdict, Again):
            break
        now += verdict.delay
    assert stopped(verdict).gave_up
    assert now == pytest.approx(300)
    assert renewed < 30


def test_a_server_that_accepts_each_new_session_and_forgets_it_is_given_up() -> None:
    resume = Resume(DEFAULT, longest)
    now, verdict = 0.0, again(resume.failed(0.0))
    while True:
        now += verdict.delay
        assert resume.failed(now, status=404) == Renew()
        resume.restarted()
        resume.opened(now)
        ended = resume.failed(now)
        if not isinstance(ended, Again):
            break
        verdict = ended
    assert stopped(ended).gave_up
    assert now == pytest.approx(300)


def test_renewing_that_fails_is_a_failure_like_any() -> None:
    resume = Resume(DEFAULT, longest)
    delays = []
    for _ in range(3):
        assert resume.failed(0, status=404) == Renew()
        delays.append(again(resume.failed(0)).delay)  # what the caller says if it could not renew
    assert delays == [0.2, 0.4, 0.8]


@pytest.mark.parametrize(
    ("status", "body", "lost"),
    [
        (404, b"", True),
        (404, b"anything", True),
        (400, b'{"error":{"message":"Bad Request: No valid session ID provided"}}', True),
        (400, b"Session not found", True),
        (400, b"Bad Request: SESSION", True),
        (400, b'{"error":{"message":"Invalid protocol version"}}', False),
        (400, b"", False),
        (400, b"x" * 2000 + b"session", False),
        (401, b"session expired", False),
        (500, b"session", False),
        (200, b"session", False),
    ],
)
def test_a_lost_session_is_told_from_other_errors(status: int, body: bytes, lost: bool) -> None:
    assert session_is_lost(status, body) is lost


# -- what was relayed already --------------------------------------------------------------------------------


def test_the_last_id_is_what_is_asked_for() -> None:
    resume = Resume(DEFAULT, longest)
    assert resume.last_id == b""
    connection(resume, [b"a", None, b"b", None])
    assert resume.last_id == b"b"
    resume.admit(b"p", has_message=False)
    assert resume.last_id == b"p"


def test_an_empty_id_takes_the_last_one_back() -> None:
    resume = Resume(DEFAULT, longest)
    assert connection(resume, [b"a", b""]) == [True, True]
    assert resume.last_id == b""
    assert connection(resume, [b"", b""]) == [True, True]  # no id, so no repeat


def test_events_without_an_id_are_all_relayed() -> None:
    resume = Resume(DEFAULT, longest)
    assert connection(resume, [None, None]) == [True, True]
    assert connection(resume, [None]) == [True]


def test_an_id_of_an_earlier_connection_is_a_repeat() -> None:
    resume = Resume(DEFAULT, longest)
    assert connection(resume, [b"1", b"2", b"3"]) == [True, True, True]
    assert connection(resume, [b"2", b"3", b"4"]) == [False, False, True]
    assert connection(resume, [b"1", b"4", b"5"]) == [False, False, True]


def test_an_id_of_the_same_connection_is_another_event() -> None:
    resume = Resume(DEFAULT, longest)
    assert connection(resume, [b"1", b"1", b"2", b"1"]) == [True, True, True, True]
    assert connection(resume, [b"1", b"1"]) == [False, False]


def test_a_refusal_between_changes_nothing() -> None:
    resume = Resume(DEFAULT, longest)
    connection(resume, [b"1"])
    resume.failed(0, status=503)
    assert connection(resume, [b"1", b"2"]) == [False, True]


def test_a_new_session_knows_no_ids() -> None:
    resume = Resume(DEFAULT, longest)
    connection(resume, [b"1", b"2"])
    resume.opened(0)
    resume.admit(b"3", has_message=True)
    resume.restarted()
    assert resume.last_id == b""
    assert connection(resume, [b"1", b"2", b"3"]) == [True, True, True]


def test_a_new_session_does_not_set_the_delay_back() -> None:
    resume = Resume(DEFAULT, longest)
    failures(resume, 3)
    resume.restarted()
    assert again(resume.failed(0)) == Again(1.6, 4)


def test_long_ids_that_differ_at_the_end_are_told_apart() -> None:
    resume = Resume(DEFAULT, longest)
    one, two = b"x" * 5000 + b"1", b"x" * 5000 + b"2"
    assert connection(resume, [one]) == [True]
    assert connection(resume, [one, two]) == [False, True]
    assert resume.last_id == two


@quick
@given(st.integers(1, 100), st.integers(1, 20), st.integers(0, 30), seeds)
def test_every_event_is_relayed_once_over_any_connections(
    total: int, longest_run: int, replays: int, seed: int
) -> None:
    """Each connection starts somewhere at or before where it should, and breaks anywhere."""
    chance = random.Random(seed)
    resume, relayed = Resume(ENDLESS, shortest), list[int]()
    while len(relayed) < total:
        asked = int(resume.last_id or b"0")
        start = max(0, asked - chance.randint(0, replays))
        resume.opened(0)
        for number in range(start + 1, min(total, asked + chance.randint(0, longest_run)) + 1):
            if resume.admit(b"%d" % number, has_message=True):
                relayed.append(number)
        resume.failed(0)
    assert relayed == [*range(1, total + 1)]


def test_as_many_ids_are_remembered_as_it_says_over_one_connection() -> None:
    resume = Resume(DEFAULT, longest)
    connection(resume, numbered(0, REMEMBERED + 10))
    again_all = connection(resume, numbered(0, REMEMBERED + 10))
    assert again_all == [True] * 10 + [False] * REMEMBERED


def test_as_many_ids_are_remembered_as_it_says_over_many_connections() -> None:
    resume = Resume(DEFAULT, longest)
    for first in range(0, REMEMBERED + 10, 10):
        connection(resume, numbered(first, first + 10))
    assert (
        connection(resume, numbered(0, 10)) == [True] * 10
    )  # forgotten, and now remembered instead of 10-19
    assert connection(resume, numbered(10, 20)) == [True] * 10
    assert connection(resume, numbered(REMEMBERED, REMEMBERED + 10)) == [False] * 10


@pytest.mark.parametrize("per_connection", [100, 20_000])
def test_memory_does_not_grow_with_the_events_nor_with_the_length_of_their_ids(per_connection: int) -> None:
    resume = Resume(DEFAULT, longest)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for first in range(0, 20_000, per_connection):
            for number in range(first, first + per_connection):
                resume.admit(b"%d" % number + b"x" * 10_000, has_message=True)
            resume.failed(0)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 2 * REMEMBERED * 250  # two dictionaries of digests; the ids themselves are 10 MB


# -- many streams --------------------------------------------------------------------------------------------


def test_first_connects_are_spread_over_ten_milliseconds_for_each_other_stream() -> None:
    resume = Resume(DEFAULT, longest)
    assert [resume.stagger(others) for others in (0, 1, 100)] == [0.0, 0.01, 1.0]
    assert resume.stagger(1_000_000) == 30.0
    assert Resume(DEFAULT, shortest).stagger(100) == 0.0


def test_the_spread_is_uniform() -> None:
    uniform = random.Random(11).uniform
    draws = [Resume(DEFAULT, uniform).stagger(500) for _ in range(DRAWS)]
    assert distance_from_uniform(draws, 5.0) < CRITICAL


def test_staggering_is_no_attempt() -> None:
    resume = Resume(DEFAULT, longest)
    resume.stagger(100)
    assert resume.failed(0) == Again(0.2, 1)
