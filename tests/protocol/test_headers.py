"""Header values are read as RFC 9110 and the MCP transports say."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpdiag.protocol.headers import (
    EVENT_STREAM,
    JSON,
    LAST_EVENT_ID,
    MAX_SESSION_ID_BYTES,
    MCP_PROTOCOL_VERSION,
    MCP_SESSION_ID,
    accepts,
    find,
    is_event_stream,
    is_json,
    valid_session_id,
)


def test_find_gives_the_first_of_that_name() -> None:
    headers = [(b"host", b"x"), (MCP_SESSION_ID, b"1"), (MCP_SESSION_ID, b"2"), (LAST_EVENT_ID, b"")]
    assert find(headers, MCP_SESSION_ID) == b"1"
    assert find(headers, LAST_EVENT_ID) == b""
    assert find(headers, MCP_PROTOCOL_VERSION) is None


@pytest.mark.parametrize(
    ("accept", "json", "stream"),
    [
        (b"application/json, text/event-stream", True, True),
        (b"text/event-stream,application/json", True, True),
        (b"application/json", True, False),
        (b"text/event-stream", False, True),
        (b"*/*", True, True),
        (b"application/*", True, False),
        (b"text/*;q=0.1, application/json;q=1.0", True, True),
        (b"APPLICATION/JSON ; charset=utf-8, Text/Event-Stream", True, True),
        (b"application/json;q=0, */*", False, True),
        (b"application/json;q=0.000, */*", False, True),
        (b"application/json;q=0.001, */*;q=0", True, False),
        (b"text/*;q=0, text/event-stream", False, True),
        (b"text/event-stream;q=0, text/*, application/*", True, False),
        (b"application/json; Q = 0", False, False),
        (b"application/json;q=abc", True, False),
        (b"application/json;v=1;q=0, application/json;v=2", True, False),
        (b"application/json;v=2, application/json;v=1;q=0", True, False),
        (b'application/json;p="a, text/event-stream"', True, False),
        (b'application/json;p="\\", text/event-stream;q=0"', True, False),
        (b'application/json;p=";q=0", text/event-stream', True, True),
        (b'application/json;p="never closed, text/event-stream', True, False),
        (b'application/json;p="\\', True, False),
        (b"application/jsonx, xapplication/json", False, False),
        (b"", False, False),
        (b",;,q=1", False, False),
    ],
)
def test_accept(accept: bytes, json: bool, stream: bool) -> None:
    """The most specific range decides; a weight of 0 excludes; quoted parameters hold no ranges."""
    assert accepts(accept, JSON) is json
    assert accepts(accept, EVENT_STREAM) is stream
    assert accepts(accept, JSON, EVENT_STREAM) is (json and stream)


@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_accept_is_the_callers_choice(missing: bool) -> None:
    assert accepts(None, JSON, missing=missing) is missing


def test_a_long_accept_is_read_like_a_short_one() -> None:
    """It only stays out of the cache."""
    padding = b"text/html;level=1, " * 100
    assert accepts(padding + JSON, JSON)
    assert not accepts(padding + JSON, EVENT_STREAM)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from('aq/*;,= "\\01.'), max_size=40).map(str.encode))
def test_any_accept_has_an_answer_that_a_wanted_type_in_front_makes_true(accept: bytes) -> None:
    assert accepts(accept, JSON) in (True, False)
    assert accepts(JSON + b", " + accept, JSON)


@pytest.mark.parametrize("hostile", [b'"\\' * 50_000, b'"' * 100_001, b"," * 100_000, b";q=" * 30_000])
def test_a_hostile_accept_takes_linear_time(hostile: bytes) -> None:
    began = time.perf_counter()
    assert not accepts(hostile, JSON)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("content_type", "json", "stream"),
    [
        (b"application/json", True, False),
        (b"Application/JSON; charset=utf-8", True, False),
        (b" application/json ;charset=utf-8", True, False),
        (b"text/event-stream", False, True),
        (b"TEXT/event-stream;charset=UTF-8", False, True),
        (b"application/json-rpc", False, False),
        (b"text/plain; application/json", False, False),
        (b"", False, False),
        (None, False, False),
    ],
)
def test_content_type(content_type: bytes | None, json: bool, stream: bool) -> None:
    """Parameters and case do not matter, the whole media type does."""
    assert is_json(content_type) is json
    assert is_event_stream(content_type) is stream


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (b"1868a90c-\x21\x7e", True),
        (b"a" * MAX_SESSION_ID_BYTES, True),
        (b"a" * (MAX_SESSION_ID_BYTES + 1), False),
        (b"", False),
        (b"a b", False),
        (b"a\n", False),
        (b"a\x7f", False),
        (b"a\xc3\xa9", False),
    ],
)
def test_session_id(value: bytes, valid: bool) -> None:
    """Visible ASCII, up to a length (2025-11-25, basic/transports, "Session Management" 1)."""
    assert valid_session_id(value) is valid
