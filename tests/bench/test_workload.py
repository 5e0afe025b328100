"""What is called: picked without guessing, or as a file says, with all of its mistakes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcpdiag.bench.arguments import example
from mcpdiag.bench.discover import Tool
from mcpdiag.bench.spec import Call
from mcpdiag.bench.workload import generated, pick, read
from mcpdiag.errors import ConfigError


def tool(name: str, properties: dict[str, Any], required: list[str] | None = None, **hints: bool) -> Tool:
    schema = {
        "type": "object",
        "properties": properties,
        "required": [*properties] if required is None else required,
    }
    return Tool(name, schema, hints)


TEXT = {"type": "string"}
ECHO = tool("echo", {"message": TEXT})


@pytest.mark.parametrize(
    ("chosen", "argument"),
    [
        (ECHO, "message"),
        (tool("echo_text", {"text": TEXT, "loud": {"type": "boolean"}}, ["text"]), "text"),
        (tool("Echo", {"input": TEXT}, readOnlyHint=True), "input"),
    ],
)
def test_an_echo_tool_is_picked(chosen: Tool, argument: str) -> None:
    (call,) = pick([tool("delete", {"path": TEXT}), chosen]).calls
    assert call == Call(method="tools/call", params={"name": chosen.name, "arguments": {argument: "hello"}})


@pytest.mark.parametrize(
    "other",
    [
        tool("add", {"a": {"type": "number"}}),
        tool("echo", {"message": TEXT, "times": {"type": "integer"}}),
        tool("echo", {"number": {"type": "integer"}}),
        tool("echo", {"message": {"type": "string", "enum": ["a"]}}),
        tool("echo", {"path": TEXT}),
        tool("write", {"text": TEXT}),
        tool("echo", {"message": TEXT}, destructiveHint=True),
    ],
)
def test_anything_else_is_not_guessed_at(other: Tool) -> None:
    assert pick([other]).calls == (Call(method="tools/list"),)


def test_a_destructive_tool_is_only_called_when_it_is_named(tmp_path: Path) -> None:
    tools = [tool("wipe", {"text": TEXT}, destructiveHint=True), ECHO]
    assert [call.label for call in generated(tools).calls] == ["tools/call echo"]
    with pytest.raises(ConfigError, match="only tools with destructiveHint"):
        generated(tools[:1])
    file = tmp_path / "calls.toml"
    file.write_text('[[call]]\ntool = "wipe"\narguments = { text = "x" }\n')
    assert [call.label for call in read(file, tools).calls] == ["tools/call wipe"]


def test_a_file_says_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "calls.toml"
    file.write_text(
        """
        think_time = "20ms"
        sessions_per_client = 2
        session_calls = 50
        [[call]]
        tool = "echo"
        arguments = { message = "hi" }
        weight = 3
        [[call]]
        method = "tools/list"
        [[call]]
        tool = "echo"
        generate = true
        """
    )
    found = read(file, [ECHO])
    assert (found.think_time_s, found.sessions_per_client, found.session_calls) == (0.02, 2, 50)
    assert [call.weight for call in found.calls] == [3.0, 1.0, 1.0]
    assert found.calls[2].params["arguments"] == {"message": "text"}
    assert found.shown == "tools/call echo, tools/list, tools/call echo"


def test_equal_loads_have_equal_digests(tmp_path: Path) -> None:
    file = tmp_path / "calls.toml"
    file.write_text('[[call]]\ntool = "echo"\narguments = { message = "hello" }\n')
    assert read(file, [ECHO]).digest == pick([ECHO]).digest
    file.write_text('[[call]]\ntool = "echo"\narguments = { message = "other" }\n')
    assert read(file, [ECHO]).digest != pick([ECHO]).digest


def test_all_mistakes_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "calls.toml"
    file.write_text(
        """
        think_tme = 1
        session_calls = -1
        [[call]]
        tool = "ecko"
        weight = 0
        [[call]]
        tool = "echo"
        method = "ping"
        [[call]]
        method = "ping"
        arguments = { a = 1 }
        """
    )
    with pytest.raises(ConfigError) as error:
        read(file, [ECHO])
    assert error.value.problems == [
        f"{file}: think_tme: found an unknown key; did you mean think_time?",
        f"{file}: call.1.weight: found 0; allowed: a number above 0",
        f'{file}: call.1.tool: found "ecko", which the server does not have; did you mean echo?',
        f"{file}: call.2.tool: found both tool and method; allowed: one of them",
        f"{file}: call.3.arguments: found it beside method; allowed: params",
        f"{file}: session_calls: found -1; allowed: a whole number, 0 or more",
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("calls.json", "{}", "allowed: .toml"),
        ("calls.toml", "x = 1\n", "call: found none"),
        ("calls.toml", "call = 1\n", "allowed: [[call]] tables"),
        ("calls.toml", "[[call]\n", "found invalid TOML"),
    ],
)
def test_a_file_that_is_no_workload_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        read(tmp_path / name)
    assert any(words in problem for problem in error.value.problems)


def test_arguments_satisfy_the_schema_they_are_made_from() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 6},
            "count": {"type": "integer", "minimum": 3, "multipleOf": 2},
            "ratio": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "kind": {"enum": ["a", "b"]},
            "fixed": {"const": 7},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2},
            "either": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            "when": {"type": ["string", "null"], "format": "date-time"},
            "left_out": {"type": "string"},
        },
        "required": ["name", "count", "ratio", "kind", "fixed", "tags", "either", "when"],
        "$defs": {"tag": {"type": "string", "maxLength": 2}},
    }
    made = example(schema)
    assert made == {
        "name": "textxx",
        "count": 4,
        "ratio": 0.001,
        "kind": "a",
        "fixed": 7,
        "tags": ["te", "te"],
        "either": False,
        "when": "2026-01-01T00:00:00Z",
    }


def test_a_schema_that_refers_to_itself_ends() -> None:
    schema = {"type": "object", "properties": {"child": {"$ref": "#"}}, "required": ["child"]}
    assert "child" in example(schema)
