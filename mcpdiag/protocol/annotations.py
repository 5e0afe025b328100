"""Tool parameters that a client repeats in `Mcp-Param-*` headers: which ones, and whether the headers fit the call.

Learned from the `x-mcp-header` annotations of a tool's `inputSchema` (2026-07-28, basic/transports/streamable-http,
"Custom Headers from Tool Parameters"); asked by the proxy where it is the one that reads headers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple

from mcpdiag.protocol.mirror import MCP_PARAM, decode_value, encode_value, mismatch

KEY: Final = "x-mcp-header"
MAX_DEPTH: Final = 64
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_NUMBER = re.compile(r"-?[0-9]{1,1000}(?:\.[0-9]{1,1000})?")
_TYPES: Final = ("string", "integer", "boolean")
# JSON Schema keywords whose values are data or names, not schemas: an annotation there is none.
_DATA: Final = frozenset({"const", "default", "enum", "examples", "required"})


class Annotated(NamedTuple):
    """One parameter that is repeated in a header."""

    path: tuple[str, ...]  # of property names, from the arguments down
    header: bytes  # its full name in lower case
    type: Literal["string", "integer", "boolean"]


class AnnotationError(Exception):
    """A schema whose annotations break the rules: clients must not use the tool, so no header means anything."""


def annotated(schema: object) -> tuple[Annotated, ...]:
    """The annotated parameters of a decoded `inputSchema`.

    Raises:
        AnnotationError: the annotations are not as the specification says; the text names the first mistake.
    """
    found = [*_walk(schema, (), reachable=True, depth=0)]
    if len({each.header for each in found}) < len(found):
        raise AnnotationError(f"two parameters have the same {KEY}")
    return tuple(found)


def _walk(node: object, path: tuple[str, ...], *, reachable: bool, depth: int) -> Iterator[Annotated]:
    if depth > MAX_DEPTH:
        raise AnnotationError(f"the schema is nested deeper than {MAX_DEPTH}")
    if isinstance(node, list):
        for each in node:
            yield from _walk(each, path, reachable=False, depth=depth + 1)
    if not isinstance(node, dict):
        return
    if KEY in node:
        yield _read(node, path, reachable=reachable and bool(path))
    for keyword, value in node.items():
        if keyword == KEY or keyword in _DATA:
            continue
        if keyword == "properties" and isinstance(value, dict):
            for name, schema in value.items():
                yield from _walk(schema, (*path, name), reachable=reachable, depth=depth + 1)
        elif keyword in {"$defs", "definitions", "patternProperties", "dependentSchemas"} and isinstance(
            value, dict
        ):
            for schema in value.values():
                yield from _walk(schema, path, reachable=False, depth=depth + 1)
        else:
            yield from _walk(value, path, reachable=False, depth=depth + 1)


def _read(node: Mapping[str, Any], path: tuple[str, ...], *, reachable: bool) -> Annotated:
    name, kind = node[KEY], node.get("type")
    where = ".".join(path) or "the schema itself"
    if not reachable:
        raise AnnotationError(f"{KEY} at {where} is not on a parameter that properties alone lead to")
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise AnnotationError(f"{KEY} of {where} is {name!r}, which is no part of a header name")
    if kind not in _TYPES:
        raise AnnotationError(f"{KEY} of {where} is on type {kind!r}; it may be on {', '.join(_TYPES)}")
    return Annotated(path, MCP_PARAM + name.lower().encode(), kind)


def value_at(arguments: object, path: Sequence[str]) -> object:
    """The argument at a path of property names; None if there is none, or if it is null."""
    for name in path:
        if not isinstance(arguments, dict):
            return None
        arguments = arguments.get(name)
    return arguments


def header_value(value: object) -> bytes | None:
    """What a client writes into the header of an argument; None for what has no header: null, objects, arrays.

    Integers are written in full, and a fraction or exponent as JSON has it.
    """
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, str):
        return encode_value(value)
    if isinstance(value, int | float):
        return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value).encode()
    return None


def check_arguments(
    known: Sequence[Annotated], arguments: object, mirrored: Sequence[tuple[bytes, bytes]]
) -> None:
    """Whether the headers of a call fit its arguments: there, once and equal; absent where there is no argument.

    Args:
        known: the annotated parameters of the tool.
        arguments: decoded.
        mirrored: the request's headers, from `mirror_headers`; headers of unknown parameters are not looked at.

    Raises:
        ClientError: 400 with -32020; the message names the header and the parameter.
    """
    for each in known:
        values = [value for name, value in mirrored if name == each.header]
        body, title, where = value_at(arguments, each.path), each.header.decode().title(), ".".join(each.path)
        if header_value(body) is None:  # null, absent, or no primitive: then there is nothing to repeat
            if values:
                raise mismatch(f"{title} is there, but the argument {where} is not")
        elif not values:
            raise mismatch(f"{title} is missing; it must repeat the argument {where}")
        elif len(values) > 1:
            raise mismatch(f"{title} comes more than once; send it once")
        elif not _equal(each, decode_value(values[0]), body):
            raise mismatch(f"{title} does not repeat the argument {where}")


def _equal(each: Annotated, header: str | None, body: object) -> bool:
    if header is None:
        return False
    if isinstance(body, str):
        return header == body
    if isinstance(body, bool):
        return header == ("true" if body else "false")
    if each.type == "integer" and _NUMBER.fullmatch(header) and isinstance(body, int | float):
        return Decimal(header) == Decimal(body)  # "42.0" is 42 ("Server Validation")
    return header.encode() == header_value(body)
