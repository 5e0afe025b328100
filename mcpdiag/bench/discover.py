"""What a server offers, asked once before the load: its tools, and whether a call works at all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mcpdiag.bench.client import HttpSession
from mcpdiag.bench.generate import run_loop
from mcpdiag.bench.session import Session, SessionError
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.bench.stdio import StdioSession
from mcpdiag.errors import StartError
from mcpdiag.protocol.annotations import AnnotationError, annotated, header_value, value_at

MAX_PAGES = 100


class Tool(msgspec.Struct, frozen=True):
    """A tool as `tools/list` tells of it."""

    name: str
    schema: Mapping[str, Any] = {}
    annotations: Mapping[str, Any] = {}

    @property
    def destructive(self) -> bool:
        """Whether its hints say that a call may destroy something. Without hints nobody says so."""
        return self.annotations.get("destructiveHint") is True and not self.annotations.get("readOnlyHint")

    def mirrored(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """The `Mcp-Param-*` headers of a call with these arguments."""
        try:
            known = annotated(self.schema)
        except AnnotationError:
            return {}
        values = {each.header.decode(): header_value(value_at(dict(arguments), each.path)) for each in known}
        return {name: value.decode() for name, value in values.items() if value is not None}


def session_of(spec: LoadSpec) -> Session:
    """A session with the server of a load."""
    return HttpSession.of(spec) if spec.url else StdioSession.of(spec)


def tools_of(spec: LoadSpec, *, needed: bool = True) -> list[Tool]:
    """The server's tools.

    Args:
        needed: whether having none is an error; if not, a server that refuses `tools/list` has none.

    Raises:
        StartError: it does not start, does not answer, or has none; with the server's own words.
    """
    try:
        tools = run_loop(_tools(spec, refused=not needed))
    except SessionError as error:
        raise StartError(f"the server cannot be measured: {error}") from None
    if not tools and needed:
        raise StartError("the server cannot be measured: it has no tools; name what to call with --workload")
    return tools


async def _tools(spec: LoadSpec, *, refused: bool) -> list[Tool]:
    session = session_of(spec)
    try:
        await session.open()
        tools: list[Tool] = []
        cursor: dict[str, Any] = {}
        for _ in range(MAX_PAGES):
            try:
                page = msgspec.json.decode(await session.request("tools/list", cursor))
            except SessionError:
                if refused:
                    break
                raise
            tools += [
                Tool(each["name"], each.get("inputSchema") or {}, each.get("annotations") or {})
                for each in page["tools"]
            ]
            if not (following := page.get("nextCursor")):
                break
            cursor = {"cursor": following}
        return tools
    except (msgspec.MsgspecError, LookupError, TypeError, AttributeError):
        raise SessionError("its answer to tools/list is none that MCP knows") from None
    finally:
        await session.close()


def try_calls(spec: LoadSpec) -> None:
    """Make each call of a workload once.

    Raises:
        StartError: all of them fail; with the text of the first error.
    """
    errors = run_loop(_try(spec, spec.calls))
    if len(errors) == len(spec.calls):
        raise StartError(f"the server cannot be measured, every call fails: {errors[0]}")


async def _try(spec: LoadSpec, calls: Sequence[Call]) -> list[str]:
    errors: list[str] = []
    session = session_of(spec)
    try:
        await session.open()
        for call in calls:
            try:
                if not session.usable:
                    await session.revive()
                await session.request(call.method, call.params, call.headers)
            except SessionError as error:
                errors.append(f"{call.label}: {error}")
        return errors
    except SessionError as error:
        return [str(error)] * len(calls)
    finally:
        await asyncio.shield(session.close())
