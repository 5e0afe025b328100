"""A ring of rows: fixed memory, one writer, readers in any thread and no lock.

The recorder writes, on the event loop; frames and captures read. A row is packed as one record, which takes half the
time of a store into each of 20 columns, and becomes columns when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from mcpdiag.samples.interned import First, Lookup, Recent
from mcpdiag.samples.schema import Column, Dtype

_FORMATS: Final[Mapping[Dtype, str]] = {
    "datetime64[ns, UTC]": "q",
    "int64": "q",
    "float64": "d",
    "bool": "?",
    "category": "i",
}


def layout(columns: Mapping[str, Column]) -> dict[str, str]:
    """How each column stands in a packed record, in the letters of `struct`; texts stand beside it."""
    return {
        name: "q" if column.recent else _FORMATS[column.dtype]
        for name, column in columns.items()
        if column.dtype != "string"
    }


@dataclass(frozen=True, slots=True)
class Rows:
    """A copy of the rows numbered `start` to `stop - 1`, counted since the ring began.

    Attributes:
        records: the packed rows, little-endian, without gaps, as `layout` says: times in ns since 1970, categories
            as numbers.
        texts: the values of each `string` column.
        lookups: the texts of each category.
    """

    start: int
    stop: int
    records: bytearray
    texts: Mapping[str, list[str]]
    lookups: Mapping[str, Lookup]

    def __len__(self) -> int:
        return self.stop - self.start


class Ring:
    """The last `size` rows that were appended.

    Args:
        columns: a frame's schema; its `string` column, if there is one, is the last.
        size: rows.
        names: different values that each category tells apart.

    Attributes:
        written: rows appended so far; also the number that the next one gets.
        names: the table of each category, which turns a text into the number that `append` takes.
        pack, records, width, slots: what `append` does, for who writes many rows without a text in one go:
            `pack(records, written % slots * width, *row)`, and then `written += 1`.
    """

    def __init__(self, columns: Mapping[str, Column], size: int, *, names: int = 10_000) -> None:
        self.size = size
        self.written = 0
        self.names: dict[str, First | Recent] = {
            name: Recent(names) if column.recent else First(names)
            for name, column in columns.items()
            if column.dtype == "category"
        }
        # One slot more than rows: the row being written takes the place of none that a reader may see. So one
        # look at `written` after a copy tells what of the copy is whole.
        self.slots = size + 1
        record = Struct("<" + "".join(layout(columns).values()))
        self.width = record.size
        self.pack = record.pack_into
        self.records = bytearray(self.width * self.slots)
        self._texts = {
            name: [""] * self.slots for name, column in columns.items() if column.dtype == "string"
        }

    @property
    def dropped(self) -> int:
        """Rows that were overwritten."""
        return max(0, self.written - self.size)

    def append(self, row: tuple[Any, ...], text: str = "") -> None:
        """Write a row: a value for each column in the order of the schema, a category as its number.

        Only ever called from one thread at a time.
        """
        slot = self.written % self.slots
        self.pack(self.records, slot * self.width, *row)
        if self._texts:
            for texts in self._texts.values():
                texts[slot] = text
        self.written += 1

    def read(self, since: int = 0) -> Rows:
        """A copy of the rows with the number `since` or a higher one, as far as they are still there.

        To go on later, read since the `stop` of what this returns. Any thread may call it.
        """
        stop = self.written
        start = min(max(since, stop - self.size, 0), stop)
        first, last = start % self.slots, stop % self.slots
        records = self._copy(first, last)
        texts = {name: _part(values, first, last) for name, values in self._texts.items()}
        whole = min(max(start, self.written - self.size), stop)
        if whole > start:  # the writer was faster than the copying
            del records[: (whole - start) * self.width]
            for values in texts.values():
                del values[: whole - start]
        # After the rows, so that it knows every number in them.
        lookups = {name: table.lookup() for name, table in self.names.items()}
        return Rows(whole, stop, records, texts, lookups)

    def _copy(self, first: int, last: int) -> bytearray:
        with memoryview(self.records) as view:
            if first <= last:
                return bytearray(view[first * self.width : last * self.width])
            return bytearray().join((view[first * self.width :], view[: last * self.width]))


def _part(values: list[str], first: int, last: int) -> list[str]:
    return values[first:last] if first <= last else values[first:] + values[:last]
