"""JSON-RPC envelopes. `params`, `result` and `error` stay raw bytes: they are relayed, not understood.

Called by the endpoint for what clients send and by the upstreams for what servers send.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar

import msgspec

from mcpdiag.errors import INVALID_REQUEST, PARSE_ERROR

Kind = Literal["request", "notification", "response"]
Id = str | int | float
_ABSENT = msgspec.Raw()
_WHITE = b" \t\r\n"
# Small numbers, because `10 in data` is several times faster than `b"\n" in data`.
_LF: Final = 10
_CR: Final = 13
_BACKSLASH: Final = 92
_CACHED_CHARS: Final = 128
_T = TypeVar("_T")


class MessageError(Exception):
    """Bytes that are not a JSON-RPC message. `code` is -32700 (not JSON) or -32600 (not JSON-RPC)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Message(msgspec.Struct, gc=False):
    """One JSON-RPC message. Absent members are empty; `id` is exactly the bytes the peer wrote.

    Only the id of an error that names no request is empty both for `null` (JSON-RPC 2.0, 5) and for none at all
    (MCP 2025-11-25, schema, `JSONRPCErrorResponse`), so that `if message.id` asks the one question there is.
    """

    jsonrpc: str = ""
    id: msgspec.Raw = _ABSENT
    method: str = ""
    params: msgspec.Raw = _ABSENT
    result: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT

    @property
    def kind(self) -> Kind:
        if self.method:
            return "request" if self.id else "notification"
        return "response"

    def id_key(self) -> Id:
        """The id as a value to look up by: `1` and `1.0` are one id, `1` and `"1"` are two.

        Raises:
            msgspec.DecodeError: it has none: a notification, or an error that names no request.
        """
        return decode_id(self.id)


_decoder = msgspec.json.Decoder(Message)
_batch_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_id_decoder: msgspec.json.Decoder[Id] = msgspec.json.Decoder(Id)
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.encode


def decode_id(raw: bytes | msgspec.Raw) -> Id:
    """The value of a raw id.

    Raises:
        msgspec.DecodeError: it is neither a string nor a number.
    """
    return _id_decoder.decode(raw)


def decode(data: bytes | bytearray) -> Message:
    """One message from its bytes.

    Raises:
        MessageError: -32700 for what is not UTF-8 JSON, -32600 for JSON that is not a JSON-RPC 2.0 message.
    """
    _check_utf8(data)
    return _decode(data)


def decode_batch(data: bytes | bytearray) -> list[Message]:
    """Every message of a JSON-RPC batch (only revision 2025-03-26 has them).

    Raises:
        MessageError: as `decode`, also for an empty batch, or for the first bad message in it.
    """
    _check_utf8(data)
    try:
        parts = _batch_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        parts = _decode_again(_batch_decoder, data, error)
    if not parts:
        raise MessageError("an empty batch", INVALID_REQUEST)
    return [_decode(bytes(part)) for part in parts]


def is_batch(data: bytes | bytearray) -> bool:
    """Whether the JSON text is an array."""
    return data[:1] != b"{" and (data[:1] == b"[" or (data[:1] in _WHITE and data.lstrip(_WHITE)[:1] == b"["))


def _check_utf8(data: bytes | bytearray) -> None:
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise MessageError(f"not UTF-8: {error.reason} at byte {error.start}", PARSE_ERROR) from None


def _decode(data: bytes | bytearray | msgspec.Raw) -> Message:
    try:
        message = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        message = _decode_again(_decoder, data, error)
    if (wrong := _what_is_wrong(message)) is not None:
        raise MessageError(f"not a JSON-RPC message: {wrong}", INVALID_REQUEST)
    if message.error and bytes(message.id) == b"null":
        message.id = _ABSENT
    return message


# Half of a UTF-16 pair, escaped: JavaScript writes one when it cuts a text inside an emoji.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
_MAX_LONE_SURROGATES: Final = 10_000


def _decode_again(decoder: msgspec.json.Decoder[_T], data: bytes | bytearray, error: Exception) -> _T:
    """A second try after `error`, with lone surrogates replaced by U+FFFD; else the error of this module.

    RFC 8259, 8.2 lets a lone surrogate pass and so do the parsers of JavaScript and Python, but msgspec does not.
    """
    repaired = _LONE_SURROGATE.sub(_replacement, bytes(data), count=_MAX_LONE_SURROGATES)
    try:
        if repaired != data:
            return decoder.decode(repaired)
    except (msgspec.DecodeError, RecursionError) as second:
        error = second
    if isinstance(error, msgspec.ValidationError):
        raise MessageError(f"not a JSON-RPC message: {error}", INVALID_REQUEST) from None
    if isinstance(error, RecursionError):
        raise MessageError("not JSON that can be read: nested too deeply", PARSE_ERROR) from None
    raise MessageError(f"not JSON: {error}", PARSE_ERROR) from None


def _replacement(match: re.Match[bytes]) -> bytes:
    text, start = match.string, match.start()
    before = start
    while before and text[before - 1] == _BACKSLASH:
        before -= 1
    # After an odd number of backslashes this one is itself escaped, and `ud83d` is plain text.
    return match[0] if (start - before) % 2 else rb"\ufffd"


def _what_is_wrong(message: Message) -> str | None:
    if message.jsonrpc != "2.0":
        return '"jsonrpc" must be "2.0"'
    answers = bool(message.result) + bool(message.error)
    if message.method:
        if answers:
            return "both a method and an answer"
        if message.params and memoryview(message.params)[0] not in b"{[":
            return '"params" must be an object or an array'
    elif answers != 1 or not (message.id or message.error):
        # An error may come without an id where the request's could not be read (2025-11-25, basic/index).
        return "it needs a method, or an id with either a result or an error"
    if message.id and not (message.error and bytes(message.id) == b"null"):
        try:
            _id_decoder.decode(message.id)
        except msgspec.ValidationError:
            return '"id" must be a string or a number'
    return None


@lru_cache(maxsize=1024)
def _quoted_short(text: str) -> bytes:
    return _encode(text)


def quoted(text: str) -> bytes:
    """A JSON string. Method names come again and again; a peer's long ones must not fill the cache."""
    return _quoted_short(text) if len(text) <= _CACHED_CHARS else _encode(text)


def one_line(raw: bytes | msgspec.Raw) -> bytes:
    """The same JSON without line breaks: between tokens they are white space, inside strings JSON forbids them."""
    data = bytes(raw)
    if _LF in data or _CR in data:
        return data.replace(b"\n", b" ").replace(b"\r", b" ")
    return data


def encode_request(request_id: bytes, method: str, params: bytes = b"") -> bytes:
    """A request as one line of JSON (no trailing newline); `request_id` and `params` are raw JSON."""
    if params:
        params = one_line(params)
        return b'{"jsonrpc":"2.0","id":%b,"method":%b,"params":%b}' % (request_id, quoted(method), params)
    return b'{"jsonrpc":"2.0","id":%b,"method":%b}' % (request_id, quoted(method))


def encode_notification(method: str, params: bytes = b"") -> bytes:
    """A notification as one line of JSON; `params` is raw JSON."""
    if params:
        params = one_line(params)
        return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (quoted(method), params)
    return b'{"jsonrpc":"2.0","method":%b}' % quoted(method)


def encode_response(request_id: bytes, message: Message) -> bytes:
    """The answer in `message` under another id, its result or error as it came, on one line.

    An empty `request_id` is written as `null`.
    """
    request_id = request_id or b"null"
    if message.error:
        return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (request_id, one_line(message.error))
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (request_id, one_line(message.result))


def encode_result(request_id: bytes, result: bytes) -> bytes:
    """A result of our own as one line of JSON; both arguments are raw JSON."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (request_id, one_line(result))


def encode_error(request_id: bytes, code: int, text: str, data: Mapping[str, Any] | None = None) -> bytes:
    """An error of our own. `request_id` is raw JSON, `b"null"` where none is known."""
    error: dict[str, Any] = {"code": code, "message": text}
    if data is not None:
        error["data"] = data
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (request_id, _encode(error))


def members(params: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """The top-level members of a raw object, each still raw; empty for anything that is not an object."""
    try:
        return _object_decoder.decode(params) if params else {}
    except (msgspec.DecodeError, RecursionError):
        return {}


def with_member(params: bytes | msgspec.Raw, name: str, value: bytes) -> bytes:
    """The raw object with one member set to raw JSON; every other member stays byte for byte."""
    return _encode({**members(params), name: msgspec.Raw(value)})


def text_member(params: bytes | msgspec.Raw, name: str) -> str:
    """A top-level string member, or `""`."""
    raw = members(params).get(name)
    try:
        return msgspec.json.decode(raw, type=str) if raw else ""
    except msgspec.DecodeError:
        return ""


class _Named(msgspec.Struct, gc=False):
    name: str = ""
    uri: str = ""


_decode_named = msgspec.json.Decoder(_Named).decode


def target_of(method: str, params: bytes | msgspec.Raw) -> str:
    """The tool, prompt or resource that a request names; `""` for other methods, or if it is no string."""
    resource = False
    if method != "tools/call" and method != "prompts/get":
        resource = method.startswith("resources/")
        if not resource:
            return ""
    try:
        named = _decode_named(params)
    except msgspec.DecodeError:
        return text_member(params, "uri" if resource else "name") if params else ""
    return named.uri if resource else named.name


def progress_token(params: bytes | msgspec.Raw) -> bytes:
    """The raw `_meta.progressToken`, or `b""`; what is neither string nor number is no token.

    A substring test keeps the usual call cheap. A name that is written with a `\\u` escape must not slip
    through it: the token would reach the server as the client chose it, perhaps as that of another client.
    """
    data = bytes(params)
    if data.find(b"progressToken") < 0 and (_BACKSLASH not in data or data.find(b"\\u") < 0):
        return b""
    token = bytes(members(members(data).get("_meta", b"")).get("progressToken", b""))
    return token if token[:1] in b'"-0123456789' else b""


def with_progress_token(params: bytes | msgspec.Raw, token: bytes) -> bytes:
    """The params with `_meta.progressToken` replaced by the raw `token`."""
    meta = members(params).get("_meta", msgspec.Raw(b"{}"))
    return with_member(params, "_meta", with_member(meta, "progressToken", token))
