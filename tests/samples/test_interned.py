"""Categories stay bounded, whatever a client makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpdiag.samples.interned import LONGEST, OTHER, First, Lookup, Recent

texts = st.lists(st.sampled_from([f"v{number}" for number in range(12)]), max_size=60)


def text_of(lookup: Lookup, number: int) -> str:
    return OTHER if number < lookup.oldest else lookup.names[number % len(lookup.names)]


@given(texts, st.integers(2, 15))
def test_the_first_texts_are_told_apart_and_later_ones_are_other(given: list[str], limit: int) -> None:
    table = First(limit)
    numbers = [table[text] for text in given]
    kept = list(dict.fromkeys(given))[: limit - 1]
    assert [text_of(table.lookup(), number) for number in numbers] == [
        text if text in kept else OTHER for text in given
    ]
    assert len(table.lookup().names) <= limit


@given(texts, st.integers(1, 15))
def test_of_recent_texts_each_is_right_or_other_and_the_newest_are_right(
    given: list[str], limit: int
) -> None:
    table = Recent(limit)
    numbers = [table[text] for text in given]
    seen = [text_of(table.lookup(), number) for number in numbers]
    assert all(found in {text, OTHER} for found, text in zip(seen, given, strict=True))
    newest = len(set(numbers)) - limit  # numbers are given in order
    assert all(
        text == found for number, found, text in zip(numbers, seen, given, strict=True) if number >= newest
    )
    assert len(table.known) <= limit + 1


@pytest.mark.parametrize("table", [First(10), Recent(10)])
def test_a_text_is_cut_and_made_fit_for_utf8(table: First | Recent) -> None:
    """JSON can write half of a surrogate pair; Arrow would refuse the whole part for it."""
    assert table["x" * 1000] == table["x" * 2000]
    number = table["a\ud800"]
    assert text_of(table.lookup(), number) == "a?"
    assert max(map(len, table.lookup().names)) == LONGEST
    assert table["a\ud800"] == number
