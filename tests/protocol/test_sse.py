"""The event stream format, against a plain model of the WHATWG standard and under any chunking."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import cycle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcpdiag.protocol.sse import COMMENT_KEEPALIVE, Decoder, Event, SseError, encode, encode_message

BOM = b"\xef\xbb\xbf"
quick = settings(max_examples=100, deadline=None)
sizes = st.lists(st.integers(1, 12), min_size=1, max_size=6)
stream = st.lists(
    st.sampled_from(
        [
            *[b"data: {}", b"data:", b"data", b"data:  x", b"id: 7", b"id", b"id: a\0b", b"event: message"],
            *[b"event:e", b"retry: 10", b"retry: 1x", b"retry:", b": c", b"foo: 1", b"a", b"\xc3\xa9", BOM],
            *[b"\n", b"\r", b"\r\n", b"\n\n"],
        ]
    ),
    max_size=30,
).map(b"".join)
text = st.text(st.sampled_from("a: é\t😀\N{LINE SEPARATOR}\x0b\0"), max_size=12).map(str.encode)
field = text.map(lambda value: value.replace(b"\0", b""))
multiline = st.lists(st.one_of(text, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=6).map(b"".join)
retries = st.none() | st.integers(0, 10**15 - 1)
events = st.builds(Event, multiline, field, st.none() | field, retries, st.booleans(), multiline)


def cut(data: bytes, lengths: list[int]) -> Iterator[bytes]:
    """`data` in pieces of these lengths, over and over."""
    position = 0
    for length in cycle(lengths):
        if position >= len(data):
            return
        yield data[position : position + length]
        position += length


def decode(chunks: Iterator[bytes], max_bytes: int = 1 << 20) -> list[Event]:
    decoder = Decoder(max_bytes)
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def model(data: bytes) -> list[Event]:
    """WHATWG 9.2.6 word by word, over a whole stream; dispatches also events without data, as MCP needs."""
    found: list[Event] = []
    event, buffer = Event(), b""
    *lines, _ = re.split(rb"\r\n|\r|\n", data.removeprefix(BOM))
    for line in lines:
        if line == b"":
            event.data = buffer.removesuffix(b"\n")
            event.empty_data = buffer == b"\n"
            if buffer or event.id is not None or event.retry is not None:
                found.append(event)
            event, buffer = Event(), b""
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            event.event = value
        elif name == b"data":
            buffer += value + b"\n"
        elif name == b"id" and b"\0" not in value:
            event.id = value
        elif name == b"retry" and re.fullmatch(rb"[0-9]+", value):
            event.retry = int(value)
    return found


def as_read(event: Event) -> Event:
    """What a decoder sees of an encoded event: one kind of line end, no comment."""
    data = event.data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return Event(data, event.event, event.id, event.retry, event.empty_data and not data)


@quick
@given(stream, sizes)
def test_any_bytes_under_any_chunking_agree_with_the_standard(data: bytes, lengths: list[int]) -> None:
    assert decode(cut(data, lengths)) == model(data)


@quick
@given(st.lists(events, max_size=5), st.sampled_from([b"\n", b"\r", b"\r\n"]), st.booleans(), sizes)
def test_encoded_events_are_read_back_under_any_chunking(
    written: list[Event], end: bytes, bom: bool, lengths: list[int]
) -> None:
    """With each line end, with and without BOM, with keep-alives between the events."""
    data = COMMENT_KEEPALIVE.join(encode(event) for event in written).replace(b"\n", end)
    expected = [as_read(event) for event in written]
    dispatched = [
        event for event in expected if event.has_data or event.id is not None or event.retry is not None
    ]
    assert decode(cut(BOM * bom + data, lengths)) == dispatched


@quick
@given(stream)
def test_whatever_a_decoder_gives_out_can_be_encoded_again(data: bytes) -> None:
    given_out = decode(iter([data]))
    assert decode(iter([b"".join(map(encode, given_out))])) == given_out


@quick
@given(multiline)
def test_a_message_is_one_message_event(data: bytes) -> None:
    assert decode(iter([encode_message(b"{" + data)])) == [as_read(Event(b"{" + data, b"message"))]


@quick
@given(stream, sizes, st.integers(1, 30))
@example(BOM + b"\n", [1], 1)
def test_the_limit_does_not_depend_on_the_chunking(data: bytes, lengths: list[int], max_bytes: int) -> None:
    """The same events come out before the same failure, or there is none."""

    def outcome(chunks: Iterator[bytes]) -> tuple[list[Event], bool]:
        decoder = Decoder(max_bytes)
        found: list[Event] = []
        try:
            for chunk in chunks:
                found += decoder.feed(chunk)
        except SseError as error:
            return found + error.events, True
        return found, False

    assert outcome(cut(data, lengths)) == outcome(iter([data]))


@pytest.mark.parametrize(
    ("event", "encoded"),
    [
        (Event(b"{}"), b"data: {}\n\n"),
        (Event(b"{}", b"message", b"7"), b"id: 7\nevent: message\ndata: {}\n\n"),
        (Event(b"1\n2\r\n3\r"), b"data: 1\ndata: 2\ndata: 3\ndata: \n\n"),
        (Event(id=b"7", empty_data=True), b"id: 7\ndata: \n\n"),
        (Event(id=b""), b"id: \n\n"),
        (Event(retry=500), b"retry: 500\n\n"),
        (Event(b"{}", comment=b"a\nb"), b": a\n: b\ndata: {}\n\n"),
        (Event(b"{}", b"nul\0l"), b"event: nul\0l\ndata: {}\n\n"),
    ],
)
def test_encode(event: Event, encoded: bytes) -> None:
    """Fields come in one order, each data and comment line by itself."""
    assert encode(event) == encoded


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        *[(Event(b"{}", id=b"a" + bad), "an event id cannot hold") for bad in (b"\n", b"\r", b"\0")],
        *[(Event(b"{}", b"a" + bad), "an event name cannot hold") for bad in (b"\n", b"\r")],
        (Event(retry=-1), "retry is -1 ms"),
    ],
)
def test_what_would_break_the_stream_is_not_encoded(event: Event, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        encode(event)


@pytest.mark.parametrize("data", [b'{\n"a":1}', b'{\r"a":1}'])
def test_a_message_on_several_lines_stays_one_event(data: bytes) -> None:
    """A raw line end in JSON must not end the data field, let alone begin another field."""
    (event,) = decode(iter([encode_message(data)]))
    assert event.data == b'{\n"a":1}'


def test_a_priming_event_is_given_out_and_told_from_one_without_data() -> None:
    """2025-11-25, basic/transports, "Sending Messages to the Server" 6."""
    primed, lone, retry = decode(iter([b"id: 1\ndata:\n\nid: 2\n\nretry: 500\n\n"]))
    assert (primed.id, primed.data, primed.has_data) == (b"1", b"", True)
    assert (lone.id, lone.data, lone.has_data) == (b"2", b"", False)
    assert (retry.retry, retry.id, retry.has_data) == (500, None, False)
    assert Event(b"{}").has_data


def test_a_crlf_cut_in_two_ends_one_line() -> None:
    """Neither is a blank line seen between the halves, nor is the event held back for the second."""
    decoder = Decoder(100)
    assert decoder.feed(b"data: 1\r") == []
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\ndata: 2\r\n\r") == [Event(b"1\n2")]
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"data: 3\r\r") == [Event(b"3")]


def test_a_retry_without_end_is_ignored() -> None:
    """CPython would raise on a number of more than 4300 digits."""
    assert decode(iter([b"retry: " + b"9" * 5000 + b"\ndata: {}\n\n"])) == [Event(b"{}")]


@pytest.mark.parametrize(
    ("data", "pending"),
    [
        (b"", False),
        (b"data: 1\n\n", False),
        (b"data: 1\n", True),
        (b"data: 1", True),
        (b"event: message\n", True),
        (b"data: 1\n\n: keep-al", False),
        (b": keep-alive\n\n", False),
        (b"\xef\xbb", False),
        (b"\n\xef\xbb", True),
        (BOM + b"data: 1", True),
    ],
)
def test_pending_tells_whether_the_end_would_cut_off_an_event(data: bytes, pending: bool) -> None:
    decoder = Decoder(100)
    decoder.feed(data)
    assert decoder.pending is pending


@pytest.mark.parametrize(
    "data",
    [
        b"data: 12345",
        b"data: 12345\n",
        b"data: 1\ndata: 2\n",
        b": 12345678901",
        b"id: 1\n: 123456",
        b"id: 1\ndata: 2",
    ],
)
def test_an_event_that_is_too_large_raises_and_loses_none_before_it(data: bytes) -> None:
    """Many small data lines are as large as one long one, and an unfinished line counts too."""
    with pytest.raises(SseError, match="larger than 10 bytes") as caught:
        Decoder(10).feed(b"data: {}\n\n" + data)
    assert caught.value.events == [Event(b"{}")]


def test_the_largest_event_may_have_exactly_max_bytes() -> None:
    """Its line ends do not count, nor do the events before it, in the same chunk or in others."""
    decoder = Decoder(16)
    for _ in range(3):
        assert decoder.feed(b"id: 1\r\n: x\ndata: 12345\n\n" * 2) == [Event(b"12345", id=b"1")] * 2
    assert decoder.feed(b"id: 1\ndata: 12345") == []
    with pytest.raises(SseError):
        decoder.feed(b"6")


def test_only_the_start_of_the_stream_may_hold_a_bom() -> None:
    assert decode(iter([BOM + b"data: 1\n\n", BOM + b"data: 2\nid: 2\n\n"])) == [Event(b"1"), Event(id=b"2")]


def test_keep_alives_do_not_add_up_to_an_event() -> None:
    """A stream may be idle for days."""
    decoder = Decoder(20)
    for _ in range(100):
        assert decoder.feed(b": keep-alive\n") == []
    assert decoder.feed(b"data: {}\n\n") == [Event(b"{}")]


def test_a_large_event_in_small_chunks_takes_linear_time() -> None:
    """16 MiB in 4 KiB chunks: 20 ms when linear, minutes when each chunk costs what is already there."""
    decoder, chunk = Decoder(1 << 25), b"x" * 4096
    began = time.perf_counter()
    decoder.feed(b"data: ")
    for _ in range(4096):
        assert decoder.feed(chunk) == []
    (event,) = decoder.feed(b"\n\n")
    assert len(event.data) == 1 << 24
    assert time.perf_counter() - began < 5
