"""A ring gives what a deque of its size would give, also while it is being written."""

from __future__ import annotations

import threading
from collections import deque
from struct import Struct

from hypothesis import given
from hypothesis import strategies as st

from mcpdiag.samples.buffer import Ring, Rows, layout
from mcpdiag.samples.schema import SCHEMA, Column

COLUMNS = {
    "number": Column("int64", "", ""),
    "half": Column("float64", "", ""),
    "odd": Column("bool", "", ""),
    "name": Column("category", "", ""),
    "text": Column("string", "", ""),
}
RECORD = Struct("<" + "".join(layout(COLUMNS).values()))


def write(ring: Ring, number: int) -> None:
    ring.append((number, number / 2, number % 2 == 1, ring.names["name"][f"n{number % 3}"]), f"t{number}")


def numbers(rows: Rows) -> list[int]:
    """The rows' numbers, each row checked to be whole."""
    found = []
    for (number, half, odd, name), text in zip(
        RECORD.iter_unpack(rows.records), rows.texts["text"], strict=True
    ):
        assert (half, odd, text) == (number / 2, number % 2 == 1, f"t{number}")
        assert rows.lookups["name"].names[name] == f"n{number % 3}"
        found.append(number)
    assert len(found) == len(rows)
    return found


@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=8), st.integers(-2, 50))
def test_it_keeps_the_last_rows_and_counts_the_others(size: int, bursts: list[int], since: int) -> None:
    ring = Ring(COLUMNS, size)
    kept: deque[int] = deque(maxlen=size)
    for burst in bursts:
        for number in range(ring.written, ring.written + burst):
            write(ring, number)
            kept.append(number)
        assert numbers(ring.read()) == [*kept]
        assert numbers(ring.read(since)) == [number for number in kept if number >= since]
        assert ring.dropped == ring.written - len(kept)


@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=8))
def test_reading_on_from_where_the_last_read_stopped_gives_each_row_once(
    size: int, bursts: list[int]
) -> None:
    ring = Ring(COLUMNS, size)
    since, seen, missed = 0, [], 0
    for burst in bursts:
        for number in range(ring.written, ring.written + burst):
            write(ring, number)
        rows = ring.read(since)
        missed += rows.start - since
        since = rows.stop
        seen += numbers(rows)
    assert seen == sorted(set(seen))
    assert len(seen) + missed == ring.written


def test_a_reader_in_another_thread_only_ever_sees_whole_rows() -> None:
    ring = Ring(COLUMNS, 50)
    stop = threading.Event()
    failures: list[BaseException] = []
    reads = 0

    def read() -> None:
        nonlocal reads
        since = 0
        try:
            while not stop.is_set():
                whole, newer = numbers(ring.read()), numbers(rows := ring.read(since))
                assert whole == list(range(whole[0], whole[0] + len(whole))) if whole else True
                assert newer == list(range(rows.start, rows.stop))
                assert rows.start >= since
                since = rows.stop
                reads += 1
        except BaseException as failure:
            failures.append(failure)

    reader = threading.Thread(target=read)
    reader.start()
    written = 0
    while (written < 20_000 or reads < 200) and not failures:
        write(ring, written)
        written += 1
    stop.set()
    reader.join()
    assert failures == []


class Overtaken(Ring):
    """A ring into which `burst` rows are written while a reader has copied half of what it wants."""

    burst = 0

    def _copy(self, first: int, last: int) -> bytearray:
        copy = super()._copy(first, last)
        for number in range(self.written, self.written + self.burst):
            write(self, number)
        return copy


@given(st.integers(1, 6), st.integers(0, 12), st.integers(0, 12), st.integers(0, 30))
def test_rows_that_are_overwritten_during_a_read_are_left_out(
    size: int, before: int, burst: int, since: int
) -> None:
    ring = Overtaken(COLUMNS, size)
    for number in range(before):
        write(ring, number)
    ring.burst = burst
    rows = ring.read(since)
    assert numbers(rows) == [
        number for number in range(before) if number >= max(since, before + burst - size)
    ]
    assert rows.stop == before


def test_the_frames_rings_take_their_rows() -> None:
    """A text column is the last one, as `append` wants it."""
    for columns in SCHEMA.values():
        ring = Ring(columns, 3)
        ring.append((0,) * len(layout(columns)))
        assert len(ring.read()) == 1
        assert [*columns][: len(layout(columns))] == [*layout(columns)]
