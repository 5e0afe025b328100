"""The bytes that the generator sends: heads and bodies in two halves with the request id between them.

An id has always ten digits, so that content-length is the same for every call and nothing is formatted but the id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from mcpdiag.protocol.mirror import META_CAPABILITIES, META_VERSION, NAMED_BY, encode_value
from mcpdiag.protocol.revisions import Era

FIRST_ID: Final = 1_000_000_000
META_CLIENT: Final = "io.modelcontextprotocol/clientInfo"
CLIENT_INFO: Final = {"name": "mcpdiag-bench", "version": "1"}
INITIALIZED: Final = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
Halves = tuple[bytes, bytes]


def initialize(version: str) -> tuple[str, dict[str, Any]]:
    """Method and params that open a session of the handshake era."""
    return "initialize", {"protocolVersion": version, "capabilities": {}, "clientInfo": CLIENT_INFO}


def body(method: str, params: Mapping[str, Any], era: Era, version: str) -> Halves:
    """A request's body; in the stateless era with what every request must carry in `_meta`."""
    if era == "stateless":
        meta = {META_VERSION: version, META_CLIENT: CLIENT_INFO, META_CAPABILITIES: {}}
        params = {**params, "_meta": {**meta, **params.get("_meta", {})}}
    text = json.dumps(params, separators=(",", ":"), ensure_ascii=False).encode()
    name = json.dumps(method).encode()
    return b'{"jsonrpc":"2.0","id":', b',"method":%b,"params":%b}' % (name, text)


class Head:
    """The head of a POST to one endpoint.

    Args:
        url: the endpoint.
        headers: further ones, sent as they are.
        era, version: what is spoken; after the handshake, and in the stateless era always, a header says it.
    """

    def __init__(self, url: str, headers: Mapping[str, str], era: Era, version: str) -> None:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.host, self.tls = parts.hostname or "", parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.era, self.version = era, version
        self._target = target.encode()
        self._common = b"host: %b\r\n" % parts.netloc.rpartition("@")[2].encode()
        self._common += b"".join(
            b"%b: %b\r\n" % (k.encode(), v.encode("latin-1")) for k, v in headers.items()
        )

    def post(
        self, method: str, params: Mapping[str, Any], session: bytes, extra: Mapping[str, str] | None = None
    ) -> bytes:
        """Everything of a POST's head before `content-length`."""
        head = [b"POST %b HTTP/1.1\r\n" % self._target, self._common]
        head.append(b"content-type: application/json\r\naccept: application/json, text/event-stream\r\n")
        if session:
            head.append(b"mcp-session-id: %b\r\n" % session)
        if self.era == "stateless":
            head.append(b"mcp-method: %b\r\n" % method.encode())
            if (member := NAMED_BY.get(method)) is not None:
                head.append(b"mcp-name: %b\r\n" % encode_value(str(params.get(member, ""))))
            head += [b"%b: %b\r\n" % (k.encode(), v.encode()) for k, v in (extra or {}).items()]
        if self.era == "stateless" or method != "initialize":
            head.append(b"mcp-protocol-version: %b\r\n" % self.version.encode())
        return b"".join(head)

    def request(
        self, method: str, params: Mapping[str, Any], session: bytes, extra: Mapping[str, str] | None = None
    ) -> Halves:
        """A whole POST around its id."""
        before, after = body(method, params, self.era, self.version)
        length = len(before) + 10 + len(after)
        head = self.post(method, params, session, extra)
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, length, before), after

    def notification(self, session: bytes) -> bytes:
        """The POST of `notifications/initialized`."""
        head = self.post("notifications/initialized", {}, session)
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(INITIALIZED), INITIALIZED)

    def without_body(self, verb: str, session: bytes) -> bytes:
        """A GET or DELETE of the session."""
        head = b"%b %b HTTP/1.1\r\n%b" % (verb.encode(), self._target, self._common)
        head += b"accept: text/event-stream\r\nmcp-session-id: %b\r\n" % session
        return head + b"mcp-protocol-version: %b\r\n\r\n" % self.version.encode()
