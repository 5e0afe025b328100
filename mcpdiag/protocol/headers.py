"""The HTTP headers that MCP gives a meaning to: their names, and the questions a proxy asks of their values.

Called by the endpoint for what clients send and by the HTTP upstreams for what servers answer. Names are lower-case
bytes, as ASGI and `connection/http1` give them; values are bytes as they came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

MCP_SESSION_ID: Final = b"mcp-session-id"
MCP_PROTOCOL_VERSION: Final = b"mcp-protocol-version"
LAST_EVENT_ID: Final = b"last-event-id"
ACCEPT: Final = b"accept"
CONTENT_TYPE: Final = b"content-type"

JSON: Final = b"application/json"
EVENT_STREAM: Final = b"text/event-stream"

MAX_SESSION_ID_BYTES: Final = 1024
_SESSION_ID = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_SESSION_ID_BYTES)
_CACHED_BYTES: Final = 256  # a longer value is worked out each time, so that clients cannot fill the caches
# The quote that never closes reaches to the end, so no value makes this search its rest twice.
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)
_ZERO = re.compile(rb"0(?:\.0*)?")


def find(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of the first header called `name` (lower case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def accepts(accept: bytes | None, *media: bytes, missing: bool = True) -> bool:
    """Whether an `Accept` value admits every one of the media types (RFC 9110, 12.5.1).

    The most specific range decides, so `text/event-stream;q=0, */*` does not admit an event stream. Parameters
    other than `q` are ignored, for a JSON-RPC message has only one form; a weight that is no number counts as 1.

    Args:
        accept: the header's value; None if there is none.
        media: types in lower case, such as `JSON` and `EVENT_STREAM`; MCP wants a POST to admit both and a GET
            the second (2025-11-25, basic/transports).
        missing: the answer for `None`. RFC 9110 reads it as "anything"; MCP says clients must send one.
    """
    if accept is None:
        return missing
    if len(accept) <= _CACHED_BYTES:
        return _accepts_cached(accept, media)
    return _accepts(accept, media)


def is_json(content_type: bytes | None) -> bool:
    """Whether a `Content-Type` is `application/json`, in any case and with any parameters."""
    return content_type == JSON or _media_type(content_type) == JSON


def is_event_stream(content_type: bytes | None) -> bool:
    """Whether a `Content-Type` is `text/event-stream`, in any case and with any parameters."""
    return content_type == EVENT_STREAM or _media_type(content_type) == EVENT_STREAM


def valid_session_id(value: bytes) -> bool:
    """Whether `value` can be a session id: 1 to 1024 bytes of visible ASCII, 0x21 to 0x7E.

    The characters are those of 2025-11-25, basic/transports, "Session Management" 1; the length is our limit.
    """
    return _SESSION_ID.fullmatch(value) is not None


def _media_type(content_type: bytes | None) -> bytes:
    return (content_type or b"").partition(b";")[0].strip().lower()


def _accepts(accept: bytes, media: tuple[bytes, ...]) -> bool:
    admitted = _ranges(accept)
    for kind in media:
        group = kind.partition(b"/")[0] + b"/*"
        if not admitted.get(kind, admitted.get(group, admitted.get(b"*/*", False))):
            return False
    return True


_accepts_cached = lru_cache(maxsize=256)(_accepts)


def _ranges(accept: bytes) -> dict[bytes, bool]:
    """Each media range of an `Accept` value, in lower case, and whether it is wanted (`q` above 0)."""
    ranges: dict[bytes, bool] = {}
    # Quoted parameters may hold commas and semicolons; nothing here needs what is in them.
    for part in _QUOTED.sub(b"", accept).lower().split(b","):
        kind, *parameters = (piece.strip() for piece in part.split(b";"))
        wanted = True
        for parameter in parameters:
            name, _, value = parameter.partition(b"=")
            if name.strip() == b"q":
                wanted = _ZERO.fullmatch(value.strip()) is None
        ranges[kind] = ranges.get(kind, False) or wanted
    return ranges
