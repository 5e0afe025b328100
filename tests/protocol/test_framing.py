"""Lines come out of the framer as they went into the pipe, wherever the pipe cuts them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpdiag.protocol.framing import HEAD_BYTES, LineFramer

quick = settings(max_examples=120, deadline=None)
sizes = st.lists(st.integers(1, 12), min_size=1, max_size=6)
pipe = st.lists(
    st.sampled_from([b"{}", b'{"id":1}', b"x" * 9, b"\xc3\xa9", b" ", b"\t", b"\r", b"\n", b"\r\n", b"a\rb"]),
    max_size=30,
).map(b"".join)


def cut(data: bytes, lengths: list[int]) -> Iterator[bytes]:
    """`data` in pieces of these lengths, over and over."""
    position = 0
    for length in cycle(lengths):
        if position >= len(data):
            return
        yield data[position : position + length]
        position += length


def model(data: bytes, max_bytes: int) -> tuple[list[bytes], int]:
    """What the framer should say about a whole stream: its lines, and how many were too long."""
    lines, oversized = [], 0
    for raw in data.split(b"\n"):
        line = raw.removesuffix(b"\r")
        if len(line) > max_bytes:
            oversized += 1
        elif line.strip():
            lines.append(line)
    return lines, oversized


def run(framer: LineFramer, chunks: Iterator[bytes]) -> list[bytes]:
    lines = [line for chunk in chunks for line in framer.feed(chunk)]
    rest = framer.flush()
    return [*lines, rest] if rest else lines


@quick
@given(
    st.lists(
        st.binary(min_size=1, max_size=40).filter(lambda m: not set(m) & set(b"\r\n") and bool(m.strip()))
    ),
    st.sampled_from([b"\n", b"\r\n"]),
    sizes,
)
def test_any_chunking_of_any_messages_gives_the_same_messages(
    messages: list[bytes], end: bytes, lengths: list[int]
) -> None:
    data = b"".join(message + end for message in messages)
    assert run(LineFramer(40), cut(data, lengths)) == messages


@quick
@given(pipe, sizes, st.integers(1, 12))
def test_any_bytes_under_any_chunking_agree_with_the_model(
    data: bytes, lengths: list[int], max_bytes: int
) -> None:
    framer = LineFramer(max_bytes)
    assert (run(framer, cut(data, lengths)), framer.oversized) == model(data, max_bytes)


@quick
@given(pipe, sizes, st.integers(1, 12))
def test_the_head_of_an_oversized_line_does_not_depend_on_the_chunking(
    data: bytes, lengths: list[int], max_bytes: int
) -> None:
    whole, pieces = LineFramer(max_bytes), LineFramer(max_bytes)
    run(whole, iter([data]))
    run(pieces, cut(data, lengths))
    assert pieces.oversized_head == whole.oversized_head


@pytest.mark.parametrize(
    ("chunk", "lines"),
    [
        (b'{"a":1}\n', [b'{"a":1}']),
        (b'{"a":1}\r\n', [b'{"a":1}']),
        (b"1\n2\n3\n", [b"1", b"2", b"3"]),
        (b"1\n2", [b"1"]),
        (b"\n", []),
        (b"\r\n", []),
        (b" \t\n\n1\n", [b"1"]),
        (b" 1\n", [b" 1"]),
        (b"1\r2\n", [b"1\r2"]),
        (b"1\r\r\n", [b"1\r"]),
        (b"", []),
    ],
)
def test_one_chunk(chunk: bytes, lines: list[bytes]) -> None:
    """Only the line end is taken off, and only a line that holds something is given out."""
    assert LineFramer(100).feed(chunk) == lines


def test_flush_gives_the_unterminated_rest_once() -> None:
    framer = LineFramer(100)
    assert framer.feed(b"1\n{}") == [b"1"]
    assert (framer.flush(), framer.flush()) == (b"{}", b"")
    assert framer.feed(b"2\n") == [b"2"]


def test_the_longest_line_may_have_exactly_max_bytes() -> None:
    """Its line end does not count, also when the CR arrives before the LF."""
    framer = LineFramer(4)
    assert framer.feed(b"1234\n") == [b"1234"]
    assert framer.feed(b"1234\r\n") == [b"1234"]
    assert framer.feed(b"1234\r") == []
    assert framer.feed(b"\n") == [b"1234"]
    assert framer.oversized == 0


def test_a_line_that_is_too_long_is_dropped_counted_and_followed_by_the_next() -> None:
    framer = LineFramer(4)
    assert framer.feed(b"1\n12345\n2\n") == [b"1", b"2"]
    assert (framer.oversized, framer.oversized_head) == (1, b"1234")
    assert framer.feed(b"12345\n") == []
    assert framer.oversized == 2


def test_a_line_that_is_too_long_is_counted_before_it_has_ended() -> None:
    framer = LineFramer(1000)
    assert framer.feed(b"{" + b"x" * 700) == []
    assert framer.oversized == 0
    assert framer.feed(b"y" * 700) == []
    assert (framer.oversized, framer.oversized_head) == (1, b"{" + b"x" * (HEAD_BYTES - 1))
    assert framer.feed(b"y" * 700) == []
    assert framer.feed(b"y\n{}\n") == [b"{}"]
    assert framer.oversized == 1


def test_an_oversized_rest_is_not_flushed() -> None:
    """Neither one that was being dropped nor one that is too long by a single byte."""
    framer = LineFramer(4)
    framer.feed(b"123456")
    assert framer.flush() == b""
    framer.feed(b"12345")
    assert framer.flush() == b""
    assert framer.oversized == 2


def test_a_limit_below_one_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes is 0"):
        LineFramer(0)


def test_a_long_line_in_small_chunks_takes_linear_time() -> None:
    """16 MiB in 4 KiB chunks: 20 ms when linear, minutes when each chunk costs what is already there."""
    framer, chunk = LineFramer(1 << 25), b"x" * 4096
    began = time.perf_counter()
    for _ in range(4096):
        assert framer.feed(chunk) == []
    (line,) = framer.feed(b"\n")
    assert len(line) == 1 << 24
    assert time.perf_counter() - began < 5
