"""HTML for notebooks is escaped, takes no colours and fetches nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from mcpdiag.html import cut, line, number, pairs, table

EVIL = '<script>alert("1")</script>&'


class Tags(HTMLParser):
    """The tags and attributes of a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "made",
    [
        table((EVIL, "b"), [(EVIL, EVIL)], caption=EVIL),
        pairs([(EVIL, EVIL)], caption=EVIL),
        line(EVIL, strong=EVIL),
    ],
)
def test_whatever_comes_in_is_text(made: str) -> None:
    found = Tags(made)
    assert "script" not in found.tags
    assert found.attributes <= {"style"}
    assert EVIL in found.text


def test_nothing_is_fetched_and_no_colour_is_set_but_grey() -> None:
    made = table(("a", "b"), [("x", 1)], caption="c") + pairs([("n", 1)]) + line("t", strong="s")
    assert not re.search(r"url\(|http|<style|<link|<img", made)
    assert not re.search(r"background|#[0-9a-f]{3}", made)
    assert {*re.findall(r"rgba?\([^)]*\)", made)} == {"rgba(128,128,128,.6)"}


def test_a_table_without_rows_is_nothing() -> None:
    assert table(("a",), []) == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (7, "7"), (1234567, "1,234,567"), (1234.5, "1,234"), (12.34, "12.3"), (1.234, "1.23"),
        (0.01234, "0.012"), (float("nan"), "-"), (True, "True"), ("text", "text"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_or_so(value: object, shown: str) -> None:
    assert number(value) == shown


def test_a_text_is_cut_and_on_one_line() -> None:
    assert cut("a\n b", 10) == "a b"
    assert cut("x" * 20, 10) == "x" * 9 + "…"
