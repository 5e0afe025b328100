"""Tables and lines of HTML for notebooks: everything escaped, nothing fetched, readable on light and on dark.

What has a `_repr_html_` calls it. No style sheet: a notebook that is not trusted keeps inline styles only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

__all__ = ["cut", "escape", "line", "number", "pairs", "table"]
# No colour of its own but a grey that is seen on both: text is of the page's colour.
_TABLE: Final = (
    "border-collapse:collapse;margin:2px 0 8px 0;text-align:right;font-variant-numeric:tabular-nums"
)
_LEFT: Final = "text-align:left;overflow-wrap:break-word;white-space:normal;max-width:32em"
_HEAD: Final = "border-bottom:1px solid rgba(128,128,128,.6);font-weight:600;vertical-align:bottom"
_CAPTION: Final = "caption-side:top;text-align:left;font-weight:600;padding:2px 0;color:inherit"


def table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1, caption: str = ""
) -> str:
    """A table.

    Args:
        headings: of the columns.
        rows: a value for each column; what is no text is written with `number`.
        words: columns that hold text and stand to the left: the first ones; -1 for the last one as well.
        caption: above it.

    Returns:
        HTML, all texts escaped; empty if there is no row.
    """
    lines = [
        "".join(_cell("td", value, _is_left(at, words, len(row))) for at, value in enumerate(row))
        for row in rows
    ]
    if not lines:
        return ""
    head = "".join(
        _cell("th", name, _is_left(at, words, len(headings)), _HEAD) for at, name in enumerate(headings)
    )
    title = f'<caption style="{_CAPTION}">{escape(caption)}</caption>' if caption else ""
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table style="{_TABLE}">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def pairs(items: Iterable[tuple[str, object]], *, columns: int = 4, caption: str = "") -> str:
    """Names and their values, some pairs a row."""
    cells = [
        _cell("th", name, True, "font-weight:400;opacity:.75") + _cell("td", value, False)
        for name, value in items
    ]
    rows = ["".join(cells[at : at + columns]) for at in range(0, len(cells), columns)]
    title = f'<caption style="{_CAPTION}">{escape(caption)}</caption>' if caption else ""
    return (
        f'<table style="{_TABLE}">{title}<tbody>{"".join(f"<tr>{row}</tr>" for row in rows)}</tbody></table>'
    )


def line(text: str, *, strong: str = "") -> str:
    """A line of text, that begins with some words in bold."""
    first = f"<b>{escape(strong)}</b> " if strong else ""
    return f'<div style="margin:2px 0;overflow-wrap:anywhere">{first}{escape(text)}</div>'


def number(value: object) -> str:
    """A number as people read it: three digits or so, thousands apart; NaN as a dash. Text stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value != value:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}"


def cut(text: str, longest: int) -> str:
    """A text of at most so many characters, on one line."""
    words = " ".join(text.split())
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


def _is_left(at: int, words: int, columns: int) -> bool:
    return at < abs(words) or (words < 0 and at == columns - 1)


def _cell(tag: str, value: object, left: bool, style: str = "") -> str:
    styles = ";".join(each for each in (_LEFT if left else "", style) if each)
    return f"<{tag}{f' style={chr(34)}{styles}{chr(34)}' if styles else ''}>{escape(number(value))}</{tag}>"
