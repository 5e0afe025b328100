"""What to send: picked from a server's tools, or written in a TOML file. Nothing is called with a guessed argument."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mcpdiag.bench.arguments import example
from mcpdiag.bench.discover import Tool
from mcpdiag.bench.document import Document, Table
from mcpdiag.bench.spec import Call
from mcpdiag.config.mistakes import close_to, found
from mcpdiag.errors import ConfigError

ECHO_ARGUMENTS: Final = ("message", "text", "input", "msg", "value", "content", "string", "data")
ECHO_TEXT: Final = "hello"
_KEYS: Final = ("call", "think_time", "sessions_per_client", "session_calls")
_CALL_KEYS: Final = ("tool", "method", "arguments", "params", "weight", "generate")


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of a load and how clients make them; `source` says where it comes from."""

    source: str
    calls: tuple[Call, ...]
    think_time_s: float = 0.0
    sessions_per_client: int = 1
    session_calls: int = 0

    @property
    def digest(self) -> str:
        """Equal for equal loads, wherever they come from."""
        same = msgspec.structs.replace(self, source="")
        return hashlib.sha256(msgspec.json.encode(same, order="deterministic")).hexdigest()[:16]

    @property
    def shown(self) -> str:
        """`tools/call echo, tools/list` and at most two more."""
        labels = [call.label for call in self.calls]
        return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def echo_argument(tool: Tool) -> str | None:
    """The argument of a tool that gives back its text: called like echo, one string wanted and it is the text."""
    properties = tool.schema.get("properties")
    if "echo" not in tool.name.lower() or not isinstance(properties, dict) or tool.destructive:
        return None
    required = tool.schema.get("required") or list(properties)
    if len(required) != 1 or required[0] not in properties:
        return None
    (name,) = required
    schema = properties[name]
    plain = (
        isinstance(schema, dict)
        and schema.get("type") == "string"
        and not {"enum", "pattern", "format"} & {*schema}
    )
    return name if plain and name.lower() in ECHO_ARGUMENTS else None


def choose(tools: Sequence[Tool] | None, file: Path | None, *, generate: bool = False) -> Workload:
    """What a file says, or every tool (`generated`), or the default (`pick`). Without tools a file is taken as it is.

    Raises:
        ConfigError: see `read` and `generated`.
    """
    if file is not None:
        return read(file, tools or None)
    return generated(tools or ()) if generate else pick(tools or ())


def pick(tools: Sequence[Tool]) -> Workload:
    """The default: an echo tool if there is one, else `tools/list`."""
    for tool in tools:
        if (name := echo_argument(tool)) is not None:
            return Workload(source="default", calls=(_call(tool, {name: ECHO_TEXT}),))
    return Workload(source="default", calls=(Call(method="tools/list"),))


def generated(tools: Sequence[Tool]) -> Workload:
    """Every tool once, with arguments made from its schema; none with a destructive hint.

    Raises:
        ConfigError: no tool is left.
    """
    calls = tuple(_call(tool, example(tool.schema)) for tool in tools if not tool.destructive)
    if not calls:
        raise ConfigError(
            ["--generate-arguments: found only tools with destructiveHint; name one in a workload"]
        )
    return Workload(source="generated", calls=calls)


def read(path: Path, tools: Sequence[Tool] | None = None) -> Workload:
    """The workload of a TOML file.

    Args:
        path: the file (docs/bench.md has its keys).
        tools: those of the server, for `generate` and for names that do not exist; None leaves that unchecked.

    Raises:
        ConfigError: one line for each mistake.
    """
    document = Document(path)
    root = document.root
    root.only(_KEYS)
    tables = root.tables("call")
    if not tables and "call" not in root.values:
        root.report("call", "found none; allowed: at least one [[call]] with a tool or a method")
    workload = Workload(
        source=path.name,
        calls=tuple(_read_call(table, tools) for table in tables),
        think_time_s=root.seconds("think_time", 0.0),
        sessions_per_client=root.count("sessions_per_client", 1, least=1),
        session_calls=root.count("session_calls", 0, least=0),
    )
    document.with_mistakes()
    return workload


def _read_call(table: Table, tools: Sequence[Tool] | None) -> Call:
    table.only(_CALL_KEYS)
    weight = table.number("weight", 1.0, above=0)
    name, method = table.text("tool"), table.text("method")
    if bool(name) == bool(method):
        table.report("tool", f"found {'both' if name else 'neither'} tool and method; allowed: one of them")
        return Call(method="ping")
    if method:
        for key in ("arguments", "generate"):
            if key in table.values:
                table.report(key, "found it beside method; allowed: params")
        return Call(method=method, params=dict(table.table("params").values), weight=weight)
    if "params" in table.values:
        table.report("params", "found it beside tool; allowed: arguments")
    tool = _named(table, name, tools)
    arguments = dict(table.table("arguments").values)
    if table.flag("generate", default=False):
        arguments = {**example(tool.schema), **arguments}
    return _call(tool, arguments, weight)


def _named(table: Table, name: str, tools: Sequence[Tool] | None) -> Tool:
    for tool in tools or ():
        if tool.name == name:
            return tool
    if tools is not None:
        names = [tool.name for tool in tools]
        near = close_to(name, names)
        hint = f"did you mean {near[0]}?" if near else f"the server has {', '.join(names[:20])}"
        table.report("tool", f"found {found(name)}, which the server does not have; {hint}")
    return Tool(name)


def _call(tool: Tool, arguments: dict[str, Any], weight: float = 1.0) -> Call:
    params = {"name": tool.name, "arguments": arguments}
    return Call(method="tools/call", params=params, weight=weight, headers=tool.mirrored(arguments))
