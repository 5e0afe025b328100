"""What a server's answers teach: versions and mirrored parameters, bounded, and never more than it said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mcpdiag.upstream.learned import MAX_TOOLS, Learned, supported_versions


def listed(*tools: tuple[str, Any]) -> bytes:
    found = [{"name": name, "inputSchema": schema} for name, schema in tools]
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"tools": found}}).encode()


def schema(header: str) -> Any:
    return {"type": "object", "properties": {"p": {"type": "string", "x-mcp-header": header}}}


PLAIN: Any = {"type": "object", "properties": {"p": {"type": "string"}}}


def test_tools_are_learned_page_by_page_and_forgotten_when_listed_without() -> None:
    learned = Learned("up")
    learned.take("tools/list", listed(("a", schema("A")), ("plain", PLAIN)))
    learned.take("tools/list", listed(("b", schema("B"))))
    assert {name: known[0].header for name, known in learned.mirrored.items()} == {
        "a": b"mcp-param-a", "b": b"mcp-param-b",
    }  # fmt: skip
    learned.take("tools/list", listed(("a", PLAIN)))
    assert learned.mirrored.keys() == {"b"}


def test_a_tool_with_a_wrong_annotation_is_not_known(caplog: pytest.LogCaptureFixture) -> None:
    learned = Learned("up")
    learned.take("tools/list", listed(("bad", schema("a b")), ("good", schema("G"))))
    assert learned.mirrored.keys() == {"good"}
    assert "'bad'" in caplog.text


def test_it_is_bounded() -> None:
    learned = Learned("up")
    learned.take("tools/list", listed(*((f"t{number}", schema("A")) for number in range(MAX_TOOLS + 5))))
    assert len(learned.mirrored) == MAX_TOOLS
    assert "t0" not in learned.mirrored


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b'{"result":7}', b'{"result":{"tools":[{"x-mcp-header":1}]}}', b'{"result":{"tools":{}}}'],
)
def test_nonsense_teaches_nothing(answer: bytes) -> None:
    learned = Learned("up")
    learned.take("tools/list", answer)
    learned.take("server/discover", answer)
    assert learned.mirrored == {}
    assert learned.versions == ()


@pytest.mark.parametrize(
    ("versions", "only"),
    [([], False), (["2026-07-28"], True), (["2026-07-28", "2025-11-25"], False), (["2099-01-01"], True)],
)
def test_versions(versions: list[str], only: bool) -> None:
    learned = Learned("up")
    result = {"supportedVersions": versions}
    learned.take("server/discover", json.dumps({"result": result}).encode())
    assert learned.versions == tuple(versions) == supported_versions(json.dumps(result).encode())
    assert learned.only_stateless is only
