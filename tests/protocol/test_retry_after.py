"""`Retry-After` in every form of RFC 9110, 10.2.3, and in none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcpdiag.protocol.retry_after import retry_after

quick = settings(max_examples=200, deadline=None)
NOW = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)
EPOCH = NOW.timestamp()
printable = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)


@quick
@given(st.integers(0, 10**9 - 1))
def test_a_number_is_seconds(seconds: int) -> None:
    assert retry_after(b"%d" % seconds, EPOCH) == seconds


@pytest.mark.parametrize("value", [b" 120", b"120 ", b"\t120\t", b"0120"])
def test_space_around_the_number_and_zeros_before_it_do_not_matter(value: bytes) -> None:
    assert retry_after(value, EPOCH) == 120


@quick
@given(st.integers(0, 10**8))
def test_a_date_is_the_time_until_then(seconds: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert retry_after(date.encode(), EPOCH) == seconds


@quick
@given(st.integers(0, 10**8))
def test_a_date_in_the_past_is_no_wait(seconds: int) -> None:
    date = format_datetime(NOW - timedelta(seconds=seconds), usegmt=True)
    assert retry_after(date.encode(), EPOCH) == 0


@pytest.mark.parametrize(
    "date",
    [
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-94 08:49:37 GMT",
        b"Sun Nov  6 08:49:37 1994",
        b"Sun, 06 Nov 1994 09:49:37 +0100",
    ],
)
def test_the_three_formats_of_a_date_and_one_with_an_offset(date: bytes) -> None:
    assert retry_after(date, EPOCH - 30) == 30


def test_a_date_counts_in_fractions_of_a_second() -> None:
    assert retry_after(b"Sun, 06 Nov 1994 08:49:37 GMT", EPOCH - 0.25) == 0.25


@pytest.mark.parametrize(
    "value",
    [None, b"", b" ", b"-5", b"+5", b"1.5", b"5s", b"1e3", b"soon", b"\xb2", b"9999999999", b"1" * 5000],
)
def test_what_is_neither_is_no_wait(value: bytes | None) -> None:
    assert retry_after(value, EPOCH) == 0


@pytest.mark.parametrize(
    "date",
    [
        b"Sun, 06 Nov 0000 08:49:37 GMT",
        b"Sun, 99 Foo 1994 08:49:37 GMT",
        b"Sun, 31 Feb 99999 08:49:37 GMT",
        b"Sun, 06 Nov 1994 99:99:99 GMT",
        b"Sun, 06 Nov 1994 08:49:37 +99999999999999999999",
    ],
)
def test_a_date_that_no_calendar_has_is_no_error(date: bytes) -> None:
    assert retry_after(date, EPOCH) >= 0


@quick
@given(st.binary(max_size=40) | printable.map(lambda text: text.encode("latin-1")), st.floats(0, 1e11))
@example(b"Sun, 06 Nov 1994", 0.0)
@example(b"06 Nov", 0.0)
@example(b",", 0.0)
@example(b"Mon, ", 0.0)
@example(b"a b c d e f g", 0.0)
def test_no_bytes_raise_and_none_give_a_negative_or_endless_wait(value: bytes, now: float) -> None:
    assert 0 <= retry_after(value, now) < float("inf")


words = st.sampled_from(
    [
        *b"Sun Sunday, Sun, 06 6 31 Nov 06-Nov-94 1994 0 99999 08:49:37 08.49.37 08:49 GMT -0000 +x +- ,".split()
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(words, max_size=8).map(b" ".join))
def test_no_jumble_of_the_parts_of_a_date_raises(value: bytes) -> None:
    assert 0 <= retry_after(value, EPOCH) < float("inf")
