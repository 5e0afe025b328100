"""Rows become columns of numbers, without pandas: what `frame` makes DataFrames of, and `parts` Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

try:
    import numpy as np
except ImportError as error:
    raise ImportError(f"frames need {error.name}; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.samples.buffer import Rows, layout
from mcpdiag.samples.interned import OTHER, Lookup
from mcpdiag.samples.schema import SCHEMA, FrameName

BLOCK: Final = 4096  # rows
_NUMPY: Final = {"q": "<i8", "d": "<f8", "?": "?", "i": "<i4"}


@dataclass(frozen=True, slots=True)
class Texts:
    """A category column: the text of a row is `names[codes[row]]`. Each name occurs, and is there once.

    codes: int32, one a row.
    """

    codes: Any
    names: list[str]


def columns(name: FrameName, rows: Rows) -> dict[str, Any]:
    """Every column in the order of the schema: a numpy array that owns its memory (`ts` as int64 nanoseconds),
    `Texts` for a category, a list of str for a string."""
    numbers = _split(np.frombuffer(rows.records, _records(name)))
    found: dict[str, Any] = {}
    for column, about in SCHEMA[name].items():
        if about.dtype == "string":
            found[column] = rows.texts[column]
        elif about.dtype == "category":
            found[column] = _texts(numbers[column], rows.lookups[column])
        else:
            found[column] = numbers[column]
    return found


def _records(name: FrameName) -> Any:
    return np.dtype([(column, _NUMPY[code]) for column, code in layout(SCHEMA[name]).items()])


def _split(records: Any) -> dict[str, Any]:
    """An array for each column. In blocks that stay in the cache: each column by itself would read all rows anew."""
    whole = {name: np.empty(len(records), records.dtype[name]) for name in records.dtype.names}
    for start in range(0, len(records), BLOCK):
        block = records[start : start + BLOCK]
        for name, values in whole.items():
            values[start : start + BLOCK] = block[name]
    return whole


def _texts(numbers: Any, lookup: Lookup) -> Texts:
    names = [*lookup.names, OTHER]
    codes = numbers
    if lookup.oldest:  # else nothing was pushed out, and a number is a place
        codes = numbers % len(lookup.names)
        codes[numbers < lookup.oldest] = len(lookup.names)
    used = np.flatnonzero(np.bincount(codes, minlength=len(names)))
    dense = np.zeros(len(names), "int32")
    dense[used] = np.arange(len(used), dtype="int32")
    return Texts(dense[codes], [names[code] for code in used])


def bits(values: Any) -> Any:
    """Booleans as bits, the first one the lowest of its byte: Arrow's way."""
    return np.packbits(values, bitorder="little")


def offsets(parts: Sequence[bytes]) -> Any:
    """Where each of the parts begins when they are joined, and where the last ends. Shape (n + 1,), int32."""
    ends = np.zeros(len(parts) + 1, "int32")
    np.cumsum([len(part) for part in parts], out=ends[1:])
    return ends
