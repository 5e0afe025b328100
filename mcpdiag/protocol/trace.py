"""W3C trace context in `params._meta`, where SEP-414 of MCP and OpenTelemetry's conventions have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from mcpdiag.protocol.message import members, text_member, with_member

_NAMES: Final = ("traceparent", "tracestate")
LONGEST: Final = 4096  # characters; W3C wants at least 512 of a tracestate to be passed on


def trace_context(params: bytes | msgspec.Raw) -> dict[str, str]:
    """`traceparent` and `tracestate` of a request, as far as it has them as text that is not overlong."""
    meta = members(params).get("_meta", b"")
    found = {name: text_member(meta, name) for name in _NAMES}
    return {name: text for name, text in found.items() if 0 < len(text) <= LONGEST}


def with_trace_context(params: bytes | msgspec.Raw, context: Mapping[str, str]) -> msgspec.Raw:
    """The params with this context in place of theirs; every other member stays byte for byte.

    Params that are no object, or have a `_meta` that is none, stay as they are: they are the server's to refuse.
    """
    given = bytes(params) or b"{}"
    meta = bytes(members(given).get("_meta", b"{}"))
    if given.lstrip()[:1] != b"{" or meta[:1] != b"{":
        return msgspec.Raw(bytes(params))
    kept = {name: value for name, value in members(meta).items() if name not in _NAMES}
    context = {name: context[name] for name in _NAMES if name in context}
    return msgspec.Raw(with_member(given, "_meta", msgspec.json.encode({**kept, **context})))
