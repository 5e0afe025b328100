"""Headers of the stateless era repeat the body; the checks find every difference and invent none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpdiag.errors import HEADER_MISMATCH, INVALID_PARAMS, UNSUPPORTED_VERSION, ClientError
from mcpdiag.protocol.annotations import (
    Annotated,
    AnnotationError,
    annotated,
    check_arguments,
    header_value,
    value_at,
)
from mcpdiag.protocol.message import Message, decode
from mcpdiag.protocol.mirror import (
    META_CAPABILITIES,
    META_VERSION,
    check_request,
    claims_version,
    decode_value,
    encode_value,
    mirror_headers,
)

VERSION = "2026-07-28"
META = {META_VERSION: VERSION, META_CAPABILITIES: {}}
Headers = list[tuple[bytes, bytes]]


def request(method: str = "tools/call", **params: Any) -> Message:
    params = {"_meta": META, **params}
    return decode(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())


def standard(
    method: str = "tools/call", name: bytes | None = b"echo", version: bytes = b"2026-07-28"
) -> Headers:
    found = [(b"mcp-protocol-version", version), (b"mcp-method", method.encode())]
    return found if name is None else [*found, (b"mcp-name", name)]


def refused(message: Message, headers: Headers) -> ClientError:
    with pytest.raises(ClientError) as caught:
        check_request(message, headers)
    assert caught.value.status == 400
    return caught.value


# -- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("us-west1", b"us-west1"),
        ("Hello, 世界", b"=?base64?SGVsbG8sIOS4lueVjA==?="),
        (" padded ", b"=?base64?IHBhZGRlZCA=?="),
        ("line1\nline2", b"=?base64?bGluZTEKbGluZTI=?="),
        ("=?base64?literal?=", b"=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
        ("", b""),
        ("in\tside", b"in\tside"),
    ],
)
def test_values_are_written_as_the_specification_shows(text: str, header: bytes) -> None:
    """Streamable HTTP, "Value Encoding"."""
    assert encode_value(text) == header
    assert decode_value(header) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_a_header(text: str) -> None:
    header = encode_value(text)
    assert decode_value(header) == text
    assert header == header.strip(b" \t")
    assert all(0x20 <= byte <= 0x7E or byte == 9 for byte in header)


@given(st.binary())
def test_any_header_is_text_or_refused(header: bytes) -> None:
    text = decode_value(header)
    assert text is None or decode_value(encode_value(text)) == text


@pytest.mark.parametrize(
    "header",
    [
        b"caf\xc3\xa9",
        b"a\x00b",
        b"a\x7f",
        b"=?base64?SGVsbG8?=",
        b"=?base64?SGVs!!!bG8=?=",
        b"=?base64?/w==?=",
    ],
)
def test_bad_characters_and_bad_base64_are_no_value(header: bytes) -> None:
    assert decode_value(header) is None


@pytest.mark.parametrize("header", [b"SGVsbG8=", b"=?base64?SGVsbG8=", b"=?BASE64?SGVsbG8=?=", b"=?base64?="])
def test_without_the_whole_marker_a_value_is_literal(header: bytes) -> None:
    assert decode_value(header) == header.decode()


# -- the standard headers -----------------------------------------------------------------------------------


def test_a_request_that_says_the_same_twice_has_its_version() -> None:
    assert check_request(request(name="echo"), standard()) == VERSION
    assert check_request(request("prompts/get", name="p"), standard("prompts/get", b"p")) == VERSION
    assert check_request(request("resources/read", uri="a:b"), standard("resources/read", b"a:b")) == VERSION
    assert check_request(request("tools/list"), standard("tools/list", None)) == VERSION
    assert check_request(request("tools/list"), standard("tools/list", b"no meaning here")) == VERSION


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_name_fits_its_own_header_and_no_other(name: str, other: str) -> None:
    assert check_request(request(name=name), standard(name=encode_value(name))) == VERSION
    if other != name:
        assert refused(request(name=name), standard(name=encode_value(other))).code == HEADER_MISMATCH


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        (standard(name=None), "Mcp-Name is missing"),
        (standard(name=b"Echo"), "Mcp-Name is 'Echo'"),
        (standard(name=b"=?base64?ZWNobw?="), "Mcp-Name is"),
        (standard("TOOLS/CALL"), "Mcp-Method is 'TOOLS/CALL'"),
        (standard(version=b"2025-11-25"), "MCP-Protocol-Version is '2025-11-25'"),
        (standard()[:1], "Mcp-Method is missing"),
        (standard()[1:], "MCP-Protocol-Version is missing"),
        ([*standard(), (b"mcp-name", b"echo")], "Mcp-Name comes more than once"),
        ([*standard(), (b"mcp-method", b"tools/call")], "Mcp-Method comes more than once"),
    ],
)
def test_a_header_that_is_missing_different_or_double_is_named(headers: Headers, named: str) -> None:
    error = refused(request(name="echo"), headers)
    assert error.code == HEADER_MISMATCH
    assert named in error.message


@pytest.mark.parametrize(
    "meta",
    [
        None,
        {},
        {META_VERSION: VERSION},
        {META_CAPABILITIES: {}},
        {META_VERSION: 2026, META_CAPABILITIES: {}},
        {META_VERSION: VERSION, META_CAPABILITIES: None},
    ],
)
def test_the_required_fields_of_meta_come_before_the_headers(meta: Any) -> None:
    error = refused(request(name="echo", _meta=meta), [])
    assert error.code == INVALID_PARAMS
    assert "io.modelcontextprotocol/" in error.message


def test_client_info_is_optional_and_an_unknown_version_names_the_known() -> None:
    unknown = {META_VERSION: "v999", META_CAPABILITIES: {}}
    error = refused(request(name="echo", _meta=unknown), standard(version=b"v999"))
    assert error.code == UNSUPPORTED_VERSION
    assert error.data == {"supported": [VERSION], "requested": "v999"}


def test_a_call_without_a_name_is_the_servers_to_judge() -> None:
    assert check_request(request(), standard(name=None)) == VERSION
    assert refused(request(), standard()).code == HEADER_MISMATCH


def test_what_claims_a_version() -> None:
    assert claims_version(request().params)
    assert not claims_version(b"{}")
    assert not claims_version(b'{"name":"io.modelcontextprotocol/protocolVersion"}')
    assert not claims_version(b'{"_meta":{"x":"io.modelcontextprotocol/protocolVersion"}}')


def test_mirror_headers_are_trimmed_and_others_left_out() -> None:
    sent = [
        (b"host", b"x"),
        (b"mcp-name", b" \techo "),
        (b"mcp-param-region", b" us "),
        (b"mcp-session-id", b"1"),
    ]
    assert mirror_headers(sent) == [(b"mcp-name", b"echo"), (b"mcp-param-region", b"us")]


# -- tool parameters ----------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "options": {
            "type": "object",
            "properties": {
                "limit": {"type": "integer", "x-mcp-header": "Limit"},
                "dry": {"type": "boolean", "x-mcp-header": "Dry-Run"},
            },
        },
        "x-mcp-header": {"type": "string"},
        "free": {"type": "array", "items": {"type": "string"}, "default": {"x-mcp-header": "data"}},
    },
}
KNOWN = annotated(SCHEMA)


def test_annotations_are_found_along_properties() -> None:
    assert (
        Annotated(("region",), b"mcp-param-region", "string"),
        Annotated(("options", "limit"), b"mcp-param-limit", "integer"),
        Annotated(("options", "dry"), b"mcp-param-dry-run", "boolean"),
    ) == KNOWN
    assert annotated({"type": "object"}) == annotated(None) == annotated([1]) == ()


def parameter(**schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"p": {"type": "string", "x-mcp-header": "P", **schema}}}


@pytest.mark.parametrize(
    "schema",
    [
        parameter(**{"x-mcp-header": ""}),
        parameter(**{"x-mcp-header": "a b"}),
        parameter(**{"x-mcp-header": "a\r\nb"}),
        parameter(**{"x-mcp-header": 7}),
        parameter(type="number"),
        parameter(type="object"),
        parameter(type=["string", "null"]),
        {"x-mcp-header": "Root", "type": "string"},
        {"type": "array", "items": parameter()},
        {"anyOf": [parameter()]},
        {"$defs": {"d": parameter()}},
        {"properties": {"a": {"type": "array", "items": {"type": "string", "x-mcp-header": "A"}}}},
        {"properties": {"a": parameter()["properties"]["p"], "b": {"type": "string", "x-mcp-header": "p"}}},
    ],
)
def test_a_tool_with_a_wrong_annotation_has_none_that_count(schema: Any) -> None:
    with pytest.raises(AnnotationError):
        annotated(schema)


def test_a_schema_without_end_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(500):
        schema = {"properties": {"a": schema}}
    with pytest.raises(AnnotationError):
        annotated(schema)


def headers_for(known: tuple[Annotated, ...], arguments: object) -> Headers:
    """What a client that keeps to the specification sends."""
    found = [(each.header, header_value(value_at(arguments, each.path))) for each in known]
    return [(name, value) for name, value in found if value is not None]


ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "region": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        "options": st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "limit": st.none() | st.integers(-(2**53) + 1, 2**53 - 1),
                "dry": st.none() | st.booleans(),
            },
        ),
    },
)


@given(ARGUMENTS)
def test_a_client_that_keeps_to_the_rules_is_never_refused(arguments: dict[str, Any]) -> None:
    sent = headers_for(KNOWN, arguments)
    check_arguments(KNOWN, arguments, sent)
    check_arguments(KNOWN, arguments, [*sent, (b"mcp-param-unknown", b"\xff")])


@given(ARGUMENTS, ARGUMENTS)
def test_headers_of_other_arguments_are_refused(arguments: dict[str, Any], others: dict[str, Any]) -> None:
    sent = headers_for(KNOWN, others)
    if sent != headers_for(KNOWN, arguments):
        with pytest.raises(ClientError) as caught:
            check_arguments(KNOWN, arguments, sent)
        assert (caught.value.status, caught.value.code) == (400, HEADER_MISMATCH)


@pytest.mark.parametrize(
    ("header", "value", "equal"),
    [
        (b"42", 42, True),
        (b"42.0", 42, True),
        (b"42", 42.0, True),
        (b"-7", -7, True),
        (b"42.5", 42, False),
        (b"4e1", 40, False),
        (b"", 0, False),
        (b"9007199254740993", 9007199254740992, False),
        (b"=?base64?NDI=?=", 42, True),
    ],
)
def test_integers_are_compared_as_numbers(header: bytes, value: float, equal: bool) -> None:
    arguments, sent = {"options": {"limit": value}}, [(b"mcp-param-limit", header)]
    if equal:
        check_arguments(KNOWN, arguments, sent)
    else:
        with pytest.raises(ClientError):
            check_arguments(KNOWN, arguments, sent)


@pytest.mark.parametrize("value", [None, [], {}, ["x"]])
def test_without_a_primitive_value_the_header_must_be_absent(value: Any) -> None:
    check_arguments(KNOWN, {"region": value}, [])
    with pytest.raises(ClientError):
        check_arguments(KNOWN, {"region": value}, [(b"mcp-param-region", b"x")])


def test_a_parameter_header_that_comes_twice_is_refused() -> None:
    twice = [(b"mcp-param-region", b"us")] * 2
    with pytest.raises(ClientError, match="more than once"):
        check_arguments(KNOWN, {"region": "us"}, twice)
