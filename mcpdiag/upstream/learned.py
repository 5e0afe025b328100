"""What passing answers have told about a server: the revisions it speaks, and which parameters its tools mirror.

Only answers of the stateless era are looked at. The proxy asks before it relays a request.
"""

from __future__ import annotations

import logging

import msgspec

from mcpdiag.protocol.annotations import KEY, Annotated, AnnotationError, annotated
from mcpdiag.protocol.message import members
from mcpdiag.protocol.revisions import KNOWN

log = logging.getLogger("mcpdiag.upstream")
MAX_TOOLS = 1000  # with mirrored parameters, of one server; the latest listed
METHODS = frozenset({"server/discover", "tools/list"})


class _Tool(msgspec.Struct):
    name: str
    input_schema: msgspec.Raw = msgspec.field(name="inputSchema", default_factory=lambda: msgspec.Raw(b"{}"))


class _Tools(msgspec.Struct):
    tools: list[_Tool]


class _Discovered(msgspec.Struct):
    supported: list[str] = msgspec.field(name="supportedVersions")


class Learned:
    """
    Attributes:
        versions: the revisions that the server says it speaks; empty if it was not asked.
        mirrored: by tool, the parameters that a client repeats in headers; only tools that have some.
    """

    def __init__(self, name: str) -> None:
        self.versions: tuple[str, ...] = ()
        self.mirrored: dict[str, tuple[Annotated, ...]] = {}
        self._name = name
        self._warned: set[str] = set()

    @property
    def only_stateless(self) -> bool:
        """Whether the server is known to speak no revision of the handshake era."""
        return bool(self.versions) and not any(
            name in KNOWN and KNOWN[name].era == "handshake" for name in self.versions
        )

    def take(self, method: str, answer: bytes) -> None:
        """An answer without error to one of `METHODS`, as it came."""
        result = members(answer).get("result", msgspec.Raw())
        if method == "server/discover":
            self.versions = supported_versions(result) or self.versions
        elif self.mirrored or KEY.encode() in bytes(result):
            self._take_tools(result)

    def _take_tools(self, result: msgspec.Raw) -> None:
        try:
            tools = msgspec.json.decode(result, type=_Tools).tools
        except msgspec.DecodeError:
            return
        for tool in tools:
            self.mirrored.pop(tool.name, None)
            try:
                found = annotated(msgspec.json.decode(tool.input_schema))
            except (AnnotationError, msgspec.DecodeError) as error:
                log.warning(
                    "the tool %r of '%s' has headers that clients cannot send: %s",
                    tool.name,
                    self._name,
                    error,
                )
                continue
            if found:
                self.mirrored[tool.name] = found
        while len(self.mirrored) > MAX_TOOLS:
            del self.mirrored[next(iter(self.mirrored))]

    def _warn(self, tool: str, error: Exception) -> None:
        """Once a tool: clients list again and again."""
        if tool not in self._warned and len(self._warned) < MAX_TOOLS:
            self._warned.add(tool)
            log.warning(
                "the tool %r of '%s' has headers that clients cannot send: %s", tool, self._name, error
            )


def supported_versions(result: bytes | msgspec.Raw) -> tuple[str, ...]:
    """What a raw DiscoverResult says the server speaks; empty for anything else."""
    try:
        return tuple(msgspec.json.decode(result, type=_Discovered).supported) if result else ()
    except msgspec.DecodeError:
        return ()
