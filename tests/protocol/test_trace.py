"""Trace context in `_meta`: read, replaced, and nothing else touched."""

from __future__ import annotations

import json

import pytest

from mcpdiag.protocol.trace import trace_context, with_trace_context

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OURS = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-1111111111111111-01"}


def test_what_a_request_carries_is_read() -> None:
    params = {"_meta": {"traceparent": PARENT, "tracestate": "a=b", "baggage": "who=alice"}}
    assert trace_context(json.dumps(params).encode()) == {"traceparent": PARENT, "tracestate": "a=b"}


@pytest.mark.parametrize(
    "params",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"_meta":7}',
        b'{"_meta":{"traceparent":7}}',
        b'{"_meta":{"traceparent":null}}',
        b'{"_meta":{"traceparent":"%b"}}' % (b"0" * 5000),
    ],
)
def test_what_is_no_context_is_none(params: bytes) -> None:
    assert trace_context(params) == {}


@pytest.mark.parametrize("params", [b"", b"{}", b' {"_meta":{}}'])
def test_a_request_without_context_gets_one(params: bytes) -> None:
    assert json.loads(bytes(with_trace_context(params, OURS))) == {"_meta": OURS}


def test_the_context_is_replaced_and_the_rest_stays_byte_for_byte() -> None:
    params = (
        b'{"name":"x","arguments":{"a": 1.0e2,"\\u0061":[ ]},"_meta":{"progressToken": 1.50,"traceparent":"%b",'
        b'"tracestate":"a=b","baggage":"who=alice"}}' % PARENT.encode()
    )
    found = bytes(with_trace_context(params, OURS))
    assert b'"arguments":{"a": 1.0e2,"\\u0061":[ ]}' in found
    assert b'"progressToken":1.50' in found
    assert json.loads(found)["_meta"] == {"progressToken": 1.5, "baggage": "who=alice", **OURS}


@pytest.mark.parametrize("params", [b"[1,2]", b'{"_meta":[]}', b'{"_meta":7,"name":"x"}', b'{"_meta":null}'])
def test_what_has_no_place_for_it_stays_as_it_is(params: bytes) -> None:
    assert bytes(with_trace_context(params, OURS)) == params
