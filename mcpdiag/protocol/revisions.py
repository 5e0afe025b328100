"""The MCP revisions this proxy knows, their era, and where they differ for someone in the middle.

Asked by the proxy and the upstreams, so that no other file compares dates. Facts are from the specification of each
revision, basic/transports and the changelogs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Era = Literal["handshake", "stateless"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One revision of the protocol. Every flag is about what the revision itself defines."""

    name: str
    era: Era
    """`handshake`: `initialize` begins a session; `stateless`: each request carries its version in `_meta`."""
    streamable_http: bool = True
    """One MCP endpoint; before 2025-03-26 there were an SSE endpoint and a POST endpoint (HTTP+SSE)."""
    sessions: bool = False
    """A server may hand out an `Mcp-Session-Id`, and DELETE ends it ("Session Management")."""
    get_stream: bool = False
    """A client may open a stream for server messages with GET ("Listening for Messages from the Server")."""
    resumption: bool = False
    """Events may carry ids, and `Last-Event-ID` resumes after one ("Resumability and Redelivery")."""
    priming: bool = False
    """A stream should begin with an id and empty data, and a server may then close it with a `retry`
    and be polled ("Sending Messages to the Server" 6)."""
    batches: bool = False
    """Arrays of messages; `initialize` must not be in one (2025-03-26, basic/lifecycle)."""
    protocol_header: bool = False
    """`MCP-Protocol-Version` is required: after `initialize`, and in the stateless era always."""
    server_requests: bool = False
    """A server may send requests (sampling, elicitation, roots); later it asks in an input-required result."""
    close_cancels: bool = False
    """Closing the response stream cancels the request; in the handshake era it must not be taken for that."""


KNOWN: Final[dict[str, Revision]] = {
    revision.name: revision
    for revision in (
        Revision(name="2024-11-05", era="handshake", streamable_http=False, server_requests=True),
        Revision(
            name="2025-03-26",
            era="handshake",
            sessions=True,
            get_stream=True,
            resumption=True,
            batches=True,
            server_requests=True,
        ),
        Revision(
            name="2025-06-18",
            era="handshake",
            sessions=True,
            get_stream=True,
            resumption=True,
            protocol_header=True,
            server_requests=True,
        ),
        Revision(
            name="2025-11-25",
            era="handshake",
            sessions=True,
            get_stream=True,
            resumption=True,
            priming=True,
            protocol_header=True,
            server_requests=True,
        ),
        Revision(name="2026-07-28", era="stateless", protocol_header=True, close_cancels=True),
    )
}
"""Every known revision by name, the oldest first."""

LATEST_HANDSHAKE: Final = "2025-11-25"
LATEST_STATELESS: Final = "2026-07-28"
# What a request without the header means, where nothing else tells (2025-06-18, "Protocol Version Header").
DEFAULT_WITHOUT_HEADER: Final = "2025-03-26"


def known_names(era: Era | None = None) -> tuple[str, ...]:
    """The names of the known revisions, the oldest first; only those of `era` if one is given."""
    return tuple(name for name, revision in KNOWN.items() if era is None or revision.era == era)
