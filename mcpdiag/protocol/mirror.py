"""What a request of the stateless era says twice: in its body and, for those who do not read bodies, in headers.

Called by the endpoint for each request of 2026-07-28. Facts are from that revision, basic/transports/streamable-http,
"Request Metadata", and basic/index, "_meta". Tool parameters that are mirrored are `annotations.py`.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from mcpdiag.errors import HEADER_MISMATCH, INVALID_PARAMS, UNSUPPORTED_VERSION, ClientError
from mcpdiag.protocol.headers import MCP_PROTOCOL_VERSION
from mcpdiag.protocol.message import Message, encode_result, members, text_member
from mcpdiag.protocol.revisions import known_names

MCP_METHOD: Final = b"mcp-method"
MCP_NAME: Final = b"mcp-name"
MCP_PARAM: Final = b"mcp-param-"
"""What the names of all headers of tool parameters begin with."""

META_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
META_SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"

NAMED_BY: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""The member of the params that `Mcp-Name` repeats, by method."""

_ONCE: Final = frozenset({MCP_PROTOCOL_VERSION, MCP_METHOD, MCP_NAME})
_PLAIN = re.compile(rb"[\x20-\x7e\t]*")
_OPEN, _SHUT = b"=?base64?", b"?="
_SHOWN: Final = 100


def encode_value(text: str) -> bytes:
    """A header value for `text`: as it is where HTTP can carry that, else in the base64 form ("Value Encoding").

    Raises:
        UnicodeEncodeError: `text` holds half of a surrogate pair.
    """
    raw = text.encode()
    if _PLAIN.fullmatch(raw) and raw == raw.strip(b" \t") and not _is_sentinel(raw):
        return raw
    return _OPEN + b64encode(raw) + _SHUT


def decode_value(raw: bytes) -> str | None:
    """The text of a header value, None if it has characters that it must not have or bad base64."""
    if not _PLAIN.fullmatch(raw):
        return None
    if not (_is_sentinel(raw) and len(raw) >= len(_OPEN) + len(_SHUT)):
        return raw.decode("ascii")
    try:
        return b64decode(raw[len(_OPEN) : -len(_SHUT)], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _is_sentinel(raw: bytes) -> bool:
    return raw.startswith(_OPEN) and raw.endswith(_SHUT)


def mirror_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Those of a request's headers that repeat its body, without the white space around their values."""
    return [
        (name, value.strip(b" \t")) for name, value in headers if name in _ONCE or name.startswith(MCP_PARAM)
    ]


def claims_version(params: bytes | msgspec.Raw) -> bool:
    """Whether the params carry the version of a request of the stateless era.

    A look at the bytes decides most. It is for a part of the name, as some encoders escape the slash in it.
    """
    data = bytes(params)
    if b"protocolVersion" not in data and b"\\u" not in data:
        return False
    return META_VERSION in members(members(data).get("_meta", b""))


def check_request(
    message: Message, mirrored: Iterable[tuple[bytes, bytes]], spoken: Collection[str] = ()
) -> str:
    """The version of a request whose headers say what its body says.

    Args:
        message: the request.
        mirrored: from `mirror_headers`.
        spoken: what the server is known to speak, for the error; default: the known revisions of this era.

    Raises:
        ClientError: 400 with -32602 (a required field of `_meta` is missing), -32020 (a header is missing,
            comes twice or says something else) or -32022 (a version that is not spoken here).
    """
    meta = members(members(message.params).get("_meta", b""))
    for key, start in ((META_VERSION, b'"'), (META_CAPABILITIES, b"{")):
        if not bytes(meta.get(key, b"")).startswith(start):
            raise ClientError(f"params._meta has no {key}; each request must carry it", code=INVALID_PARAMS)
    headers: dict[bytes, bytes] = {}
    for name, value in mirrored:
        if name in headers and name in _ONCE:
            raise mismatch(f"{_title(name)} comes more than once; send it once")
        headers[name] = value
    version = text_member(members(message.params)["_meta"], META_VERSION)
    _same(headers, MCP_PROTOCOL_VERSION, f"_meta {META_VERSION}", version)
    _same(headers, MCP_METHOD, "method", message.method)
    _check_name(message, headers)
    if version not in known_names("stateless"):
        raise unsupported(version, spoken or known_names("stateless"))
    return version


def _check_name(message: Message, headers: Mapping[bytes, bytes]) -> None:
    member = NAMED_BY.get(message.method)
    if member is None:
        return
    raw = members(message.params).get(member)
    if raw is None and MCP_NAME not in headers:
        return  # the server says what is wrong with that
    body = text_member(message.params, member)
    if (value := headers.get(MCP_NAME)) is None:
        raise mismatch(f"Mcp-Name is missing; it must repeat params.{member}, {_short(body)}")
    if decode_value(value) != body or raw is None:
        raise mismatch(f"Mcp-Name is {_short(value)}, which is not params.{member}, {_short(body)}")


def _same(headers: Mapping[bytes, bytes], name: bytes, what: str, body: str) -> None:
    value = headers.get(name)
    if value is None:
        raise mismatch(f"{_title(name)} is missing; it must repeat {what}, {_short(body)}")
    if value != body.encode(errors="replace"):
        raise mismatch(f"{_title(name)} is {_short(value)}, which is not {what}, {_short(body)}")


def mismatch(text: str) -> ClientError:
    """The error for headers that do not fit the body."""
    return ClientError(f"header mismatch: {text}", code=HEADER_MISMATCH)


def unsupported(requested: str, supported: Iterable[str]) -> ClientError:
    """The error for a version that is not spoken, which names those that are."""
    names = [*supported]
    return ClientError(
        f"protocol version {_short(requested)} is not supported here; supported: {', '.join(names)}",
        code=UNSUPPORTED_VERSION,
        data={"supported": names, "requested": requested},
    )


def listen_ended(request_id: bytes) -> bytes:
    """The response that ends a subscription in good order (basic/patterns/subscriptions, "Graceful Closure").

    Args:
        request_id: of the `subscriptions/listen`, raw.
    """
    meta = b'{"%b":%b}' % (META_SUBSCRIPTION.encode(), request_id)
    return encode_result(request_id, b'{"resultType":"complete","_meta":%b}' % meta)


def _title(name: bytes) -> str:
    return "MCP-Protocol-Version" if name == MCP_PROTOCOL_VERSION else name.decode().title()


def _short(value: bytes | str) -> str:
    text = value if isinstance(value, str) else value.decode("latin-1")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
