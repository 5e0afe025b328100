"""JSON-RPC envelopes: what is accepted, what is refused with which code, and what passes byte for byte."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpdiag.errors import INVALID_REQUEST, PARSE_ERROR
from mcpdiag.protocol import message as module
from mcpdiag.protocol.message import (
    Message,
    MessageError,
    decode,
    decode_batch,
    decode_id,
    encode_error,
    encode_notification,
    encode_request,
    encode_response,
    encode_result,
    is_batch,
    members,
    one_line,
    progress_token,
    quoted,
    target_of,
    text_member,
    with_member,
    with_progress_token,
)

quick = settings(max_examples=100, deadline=None)

# Without lone surrogates, for UTF-8 has none; what becomes of their escapes is tested apart.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
raw_ids = st.one_of(
    st.builds(json.dumps, texts | numbers, ensure_ascii=st.booleans()).map(str.encode),
    st.sampled_from([b"1E5", b"-0", b"1e-400", b'"\\u0041\\/"', b'"\\ud83d\\ude00"', b'""', b"9" * 300]),
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
indents = st.sampled_from([None, 0, 2, "\t"])
raw_objects = st.builds(
    lambda value, indent, ascii_only: json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(),
    st.dictionaries(texts, values, max_size=4),
    indents,
    st.booleans(),
)


def crlf(raw: bytes) -> bytes:
    return raw.replace(b"\n", b"\r\n")


# -- what passes unchanged --------------------------------------------------------------------------------


@quick
@given(raw_ids)
def test_an_id_of_any_type_comes_back_exactly_as_it_was_written(raw: bytes) -> None:
    request = decode(encode_request(raw, "ping"))
    assert (bytes(request.id), request.kind, request.method) == (raw, "request", "ping")
    answer = decode(b'{"jsonrpc":"2.0","id":9,"result":{}}')
    response = decode(encode_response(request.id, answer))
    assert (bytes(response.id), response.kind) == (raw, "response")
    assert (
        decode(encode_result(request.id, b"{}")).id_key()
        == decode(encode_error(request.id, -1, "x")).id_key()
    )


@quick
@given(raw_ids, raw_ids)
def test_id_keys_are_equal_exactly_when_the_values_are(one: bytes, other: bytes) -> None:
    keys = [decode(encode_request(raw, "ping")).id_key() for raw in (one, other)]
    assert (keys[0] == keys[1]) is (json.loads(one) == json.loads(other))


@quick
@given(raw_objects, st.sampled_from([bytes, crlf]))
def test_params_and_answers_pass_byte_for_byte_apart_from_line_breaks(raw: bytes, breaks: Any) -> None:
    """Between tokens a line break is white space; inside strings JSON forbids it."""
    raw = breaks(raw)
    line = raw.replace(b"\n", b" ").replace(b"\r", b" ")
    request = decode(b'{"jsonrpc": "2.0",\n"id": 1, "method": "m", "params": ' + raw + b"\n}")
    assert bytes(request.params) == raw
    assert bytes(decode(encode_request(b"1", "m", bytes(request.params))).params) == line
    assert bytes(decode(encode_notification("m", bytes(request.params))).params) == line
    assert bytes(decode(encode_result(b"1", raw)).result) == line
    for member in ("result", "error"):
        answer = decode(b'{"jsonrpc":"2.0","id":1,"%b":%b}' % (member.encode(), raw))
        assert bytes(getattr(decode(encode_response(b"2", answer)), member)) == line
    assert json.loads(line) == json.loads(raw)


@quick
@given(raw_objects)
def test_whatever_is_encoded_is_one_line(raw: bytes) -> None:
    """A line break inside would end the message on a stdio connection."""
    answer = Message(jsonrpc="2.0", id=msgspec.Raw(b"1"), result=msgspec.Raw(crlf(raw)))
    failure = Message(jsonrpc="2.0", id=msgspec.Raw(b"1"), error=msgspec.Raw(crlf(raw)))
    for line in (
        encode_request(b"1", "a\nb", crlf(raw)),
        encode_notification("a\r\nb", crlf(raw)),
        encode_response(b"1", answer),
        encode_response(b"1", failure),
        encode_result(b"1", crlf(raw)),
        encode_error(b"1", -1, "a\nb", {"c\r": "d\n"}),
    ):
        assert not set(line) & set(b"\r\n")
        decode(line)


@quick
@given(texts.filter(bool))
def test_a_method_of_any_characters_comes_back(method: str) -> None:
    assert decode(encode_request(b"1", method)).method == method
    notification = decode(encode_notification(method))
    assert (notification.method, notification.kind, bytes(notification.id)) == (method, "notification", b"")


def test_one_line_leaves_a_line_alone() -> None:
    raw = b'{"a":"\\n"}'
    assert one_line(raw) is raw
    assert one_line(msgspec.Raw(b"[\r\n1]")) == b"[  1]"
    assert (one_line(b"[\n1]"), one_line(b"[\r1]")) == (b"[ 1]", b"[ 1]")


def test_a_bytearray_is_read_like_bytes() -> None:
    data = bytearray(b'{"jsonrpc":"2.0","method":"m","params":[1]}')
    assert bytes(decode(data).params) == b"[1]"
    assert [message.method for message in decode_batch(b"[%b]" % bytes(data))] == ["m"]
    assert is_batch(bytearray(b" ["))


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"hello",
        b'{"jsonrpc":"2.0","method":"m"',
        b'{"jsonrpc":"2.0","method":"m"} x',
        b'{"jsonrpc":"2.0","method":"m","params":{"a":1,}}',
        b'{"jsonrpc":"2.0","method":"m","params":{"a":"\n"}}',
        b'{"jsonrpc":"2.0","method":"m","params":{"a":"\r"}}',
        b'{"jsonrpc":"2.0","method":"m","params":{"a":"\\x"}}',
        b'{"jsonrpc":"2.0","method":"m","params":{"a":NaN}}',
        b'{"jsonrpc":"2.0","method":"m","id":01}',
        b'\xef\xbb\xbf{"jsonrpc":"2.0","method":"m"}',
        b'{"jsonrpc":"2.0","method":"m","params":{"a":"\xff"}}',
        b'{"jsonrpc":"2.0","method":"m","params":{"a":"\xed\xa0\x80"}}',
        b'{"jsonrpc":"2.0","method":"m","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_not_json_is_a_parse_error(data: bytes) -> None:
    for read, text in ((decode, data), (decode_batch, b"[" + data + b"]" if data.strip() else data)):
        with pytest.raises(MessageError, match=r"^not (JSON|UTF-8)") as caught:
            read(text)
        assert caught.value.code == PARSE_ERROR


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"null", "Expected `object`"),
        (b"[]", "Expected `object`"),
        (b"{}", '"jsonrpc" must be "2.0"'),
        (b'{"jsonrpc":"1.0","method":"m"}', '"jsonrpc" must be "2.0"'),
        (b'{"jsonrpc":2.0,"method":"m"}', "Expected `str`"),
        (b'{"jsonrpc":"2.0","method":null}', "Expected `str`"),
        (b'{"jsonrpc":"2.0"}', "it needs a method"),
        (b'{"jsonrpc":"2.0","method":"","id":1}', "it needs a method"),
        (b'{"jsonrpc":"2.0","id":1}', "it needs a method"),
        (b'{"jsonrpc":"2.0","result":{}}', "it needs a method"),
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}', "it needs a method"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","result":{}}', "both a method and an answer"),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","error":{}}', "both a method and an answer"),
        (b'{"jsonrpc":"2.0","method":"m","params":null}', '"params" must be'),
        (b'{"jsonrpc":"2.0","method":"m","params":"x"}', '"params" must be'),
        (b'{"jsonrpc":"2.0","method":"m","id":null}', '"id" must be'),
        (b'{"jsonrpc":"2.0","method":"m","id":true}', '"id" must be'),
        (b'{"jsonrpc":"2.0","method":"m","id":{}}', '"id" must be'),
        (b'{"jsonrpc":"2.0","method":"m","id":1e400}', '"id" must be'),
        (b'{"jsonrpc":"2.0","method":"m","id":' + b"9" * 5000 + b"}", '"id" must be'),
        (b'{"jsonrpc":"2.0","id":null,"result":{}}', '"id" must be'),
        (b'{"jsonrpc":"2.0","id":[],"error":{}}', '"id" must be'),
    ],
)
def test_json_that_is_not_json_rpc_is_an_invalid_request(data: bytes, complaint: str) -> None:
    for read, text in ((decode, data), (decode_batch, b"[" + data + b"]")):
        with pytest.raises(MessageError, match=f"^not a JSON-RPC message: {complaint}") as caught:
            read(text)
        assert caught.value.code == INVALID_REQUEST


@pytest.mark.parametrize(
    "data",
    [b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700}}', b'{"jsonrpc":"2.0","error":{"code":-32700}}'],
)
def test_an_error_may_name_no_request(data: bytes) -> None:
    """Its request could not be read (JSON-RPC 2.0, 5; MCP 2025-11-25, schema, `JSONRPCErrorResponse`)."""
    message = decode(data)
    assert (message.kind, bytes(message.id)) == ("response", b"")
    assert encode_response(message.id, message) == b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700}}'
    with pytest.raises(msgspec.DecodeError):
        message.id_key()
    assert bytes(message.error) == b'{"code":-32700}'


def test_a_null_result_is_an_answer() -> None:
    assert decode(b'{"jsonrpc":"2.0","id":1,"result":null}').kind == "response"


@pytest.mark.parametrize("raw", [b"null", b"true", b"[]", b""])
def test_decode_id_refuses_what_is_no_id(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_id(raw)


# -- lone surrogates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb"\ud83d", rb"\ufffd"),
        (rb"\uDE00", rb"\ufffd"),
        (rb"cut here \ud83d", rb"cut here \ufffd"),
        (rb"\ud83d\ud83d\ude00", rb"\ufffd\ud83d\ude00"),
        (rb"\ud83d\ude00\ude00", rb"\ud83d\ude00\ufffd"),
        (rb"\ud83dx\ude00", rb"\ufffdx\ufffd"),
        (rb"\\ud83d \ud83d", rb"\\ud83d \ufffd"),
        (rb"\\\ud83d", rb"\\\ufffd"),
    ],
)
def test_a_lone_surrogate_does_not_cost_the_message(written: bytes, read: bytes) -> None:
    """JavaScript writes one when it cuts a text inside an emoji; RFC 8259, 8.2 lets it pass, msgspec does not."""
    message = b'{"jsonrpc":"2.0","id":1,"result":{"text":"%b"}}'
    assert bytes(decode(message % written).result) == b'{"text":"%b"}' % read
    (only,) = decode_batch(b"[%b]" % (message % written))
    assert bytes(only.result) == b'{"text":"%b"}' % read


@quick
@given(st.lists(st.sampled_from([r"\ud83d", r"\ude00", r"\\", "ud83d", r"\n", "x", r"\u0041"]), max_size=8))
def test_text_with_surrogates_anywhere_reads_as_python_reads_it(parts: list[str]) -> None:
    """Apart from U+FFFD in place of each lone surrogate."""
    raw = '{"text":"' + "".join(parts) + '"}'
    expected = json.loads(raw)["text"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    try:
        message = decode(b'{"jsonrpc":"2.0","id":1,"result":%b}' % raw.encode())
    except MessageError:
        # Known limit: a lone low half right behind the plain text of an escaped high one.
        assert r"\\ud83d\ude00" in raw
        return
    assert text_member(message.result, "text") == expected


def test_a_message_that_is_also_wrong_otherwise_keeps_its_error() -> None:
    with pytest.raises(MessageError, match="not JSON") as caught:
        decode(rb'{"jsonrpc":"2.0","method":"\ud83d"')
    assert caught.value.code == PARSE_ERROR
    with pytest.raises(MessageError, match="Expected `str`") as caught:
        decode(rb'{"jsonrpc":2,"method":"\ud83d"}')
    assert caught.value.code == INVALID_REQUEST


# -- batches ----------------------------------------------------------------------------------------------


@quick
@given(st.lists(raw_ids, min_size=1, max_size=5), indents)
def test_a_batch_gives_its_messages_in_order(raw: list[bytes], indent: Any) -> None:
    gap = b"\n" if indent is not None else b""
    data = b"[" + (b"," + gap).join(encode_request(one, "ping") for one in raw) + gap + b"]"
    assert is_batch(data)
    assert [bytes(message.id) for message in decode_batch(data)] == raw


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"[]", "an empty batch"),
        (b'{"jsonrpc":"2.0","method":"m"}', "Expected `array`"),
        (b'[{"jsonrpc":"2.0","method":"m"}, 1]', "Expected `object`"),
        (b'[[{"jsonrpc":"2.0","method":"m"}]]', "Expected `object`"),
    ],
)
def test_a_bad_batch_is_an_invalid_request(data: bytes, complaint: str) -> None:
    with pytest.raises(MessageError, match=complaint) as caught:
        decode_batch(data)
    assert caught.value.code == INVALID_REQUEST


def test_a_batch_that_is_nested_too_deeply_is_a_parse_error() -> None:
    with pytest.raises(MessageError, match="nested too deeply") as caught:
        decode_batch(b"[" * 100_000)
    assert caught.value.code == PARSE_ERROR


@pytest.mark.parametrize(
    ("data", "batch"),
    [(b"[", True), (b" \r\n\t[1]", True), (b"{}", False), (b" {}", False), (b"", False), (b" ", False)],
)
def test_is_batch_looks_at_the_first_token(data: bytes, batch: bool) -> None:
    assert is_batch(data) is batch


# -- members ----------------------------------------------------------------------------------------------


@quick
@given(raw_objects, texts, raw_ids)
def test_with_member_sets_one_member_and_leaves_the_rest_byte_for_byte(
    raw: bytes, name: str, value: bytes
) -> None:
    before, after = members(raw), members(with_member(raw, name, value))
    assert bytes(after.pop(name)) == value
    before.pop(name, None)
    assert {key: bytes(part) for key, part in after.items()} == {
        key: bytes(part) for key, part in before.items()
    }


def test_with_member_makes_an_object_of_nothing() -> None:
    assert with_member(b"", "a", b"1") == b'{"a":1}'


@pytest.mark.parametrize("raw", [b"", b"[1]", b"1", b"{", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_what_is_not_an_object_has_no_members(raw: bytes) -> None:
    assert members(raw) == {}


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b'{"a":"\\u0041\\n"}', "A\n"), (b'{"a":1}', ""), (b'{"b":"x"}', ""), (b"", ""), (b"[]", "")],
)
def test_text_member(raw: bytes, text: str) -> None:
    """A string as it reads; the empty one for anything else."""
    assert text_member(raw, "a") == text


# -- progress tokens --------------------------------------------------------------------------------------


@quick
@given(raw_objects, raw_ids, raw_ids)
def test_a_progress_token_can_be_replaced_and_put_back(raw: bytes, token: bytes, ours: bytes) -> None:
    params = with_progress_token(raw, token)
    assert progress_token(params) == token
    replaced = with_progress_token(params, ours)
    assert progress_token(replaced) == ours
    assert with_progress_token(replaced, token) == params


def test_replacing_a_token_leaves_the_rest_of_meta() -> None:
    params = b'{"name":"echo","_meta":{"a/b": [1,  2],"progressToken":"t"},"arguments":{"x": 1}}'
    assert (
        with_progress_token(params, b"7")
        == b'{"name":"echo","_meta":{"a/b":[1,  2],"progressToken":7},"arguments":{"x": 1}}'
    )


@pytest.mark.parametrize(
    "params",
    [
        b"",
        b'{"name":"echo"}',
        b'{"name":"progressToken"}',
        b'{"arguments":{"_meta":{"progressToken":1}}}',
        b'{"progressToken":1}',
        b'{"_meta":5,"x":"progressToken"}',
        b'{"_meta":{"progressToken":null}}',
        b'{"_meta":{"progressToken":[1]}}',
        b'{"_meta":{"progressToken":true}}',
        b'{"x":"\\u0041"}',
        b'{"x":"\\n"}',
    ],
)
def test_no_progress_token(params: bytes) -> None:
    """Only a string or a number at `_meta.progressToken` is one."""
    assert progress_token(params) == b""


@pytest.mark.parametrize("raw", [b"1", b"-1.5", b'""', b'"a\\"b"'])
def test_a_progress_token_is_raw(raw: bytes) -> None:
    assert progress_token(msgspec.Raw(b'{"_meta":{"progressToken": %b }}' % raw)) == raw


def test_an_escaped_name_does_not_hide_a_progress_token() -> None:
    """Else a client could put the number of another client's exchange there, and send it progress."""
    assert progress_token(rb'{"_meta":{"progress\u0054oken":7}}') == b"7"
    assert progress_token(rb'{"\u005fmeta":{"progressToken":7}}') == b"7"


# -- our own answers --------------------------------------------------------------------------------------


def test_encode_error_without_and_with_data() -> None:
    assert (
        encode_error(b"null", -1, "no") == b'{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"no"}}'
    )
    error = decode(encode_error(b'"a"', -1, "no", {"type": "client"})).error
    assert json.loads(bytes(error)) == {"code": -1, "message": "no", "data": {"type": "client"}}


def test_long_texts_are_quoted_but_not_kept() -> None:
    """A peer that invents method names of megabytes must not fill the cache with them."""
    module._quoted_short.cache_clear()
    assert quoted("x" * 1000) == b'"' + b"x" * 1000 + b'"'
    assert module._quoted_short.cache_info().currsize == 0
    assert quoted("tools/call") == b'"tools/call"'
    assert module._quoted_short.cache_info().currsize == 1


@pytest.mark.parametrize(
    ("method", "params", "target"),
    [
        ("tools/call", b'{"arguments":{"name":"inner"},"name":"echo"}', "echo"),
        ("tools/call", b'{"name":5}', ""),
        ("tools/call", b'{"uri":7,"name":"echo"}', "echo"),
        ("tools/call", b"[1]", ""),
        ("tools/call", b"", ""),
        ("prompts/get", b'{"name":"p"}', "p"),
        ("resources/read", b'{"name":"n","uri":"test://x"}', "test://x"),
        ("resources/list", b"{}", ""),
        ("tools/list", b'{"name":"x"}', ""),
    ],
)
def test_what_a_request_names(method: str, params: bytes, target: str) -> None:
    assert target_of(method, params) == target
