"""What each setting may hold, read off the models, and how a mistake about one is worded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from mcpdiag.config import ProxyConfig, UpstreamConfig
from mcpdiag.config.types import ONLY_HTTP, ONLY_STDIO

ANY = "*"  # the key of a shape that stands for every name: of an upstream, a variable, a header


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: what it may hold, in words, and how it is read and shown."""

    allowed: str
    many: bool = False  # a list of strings; the environment writes it with commas
    hidden: bool = False  # a mistake says "a string", never which
    expands: bool = False  # ${VAR} in a file is replaced


Shape: TypeAlias = "Mapping[str, Leaf | Shape]"
Place: TypeAlias = tuple[str, ...]

_SAID_BETTER = {
    "command": "a program, or a list of a program and its arguments",
    "url": "an http:// or https:// URL",
    "token": "visible ASCII characters without spaces",
}


def alternatives(options: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join(filter(None, [", ".join(options[:-1]), options[-1]]))


def _core(annotation: Any) -> tuple[Any, list[Any]]:
    """An annotation without its `Annotated` and `| None`, and the constraints found on the way."""
    constraints: list[Any] = []
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation, *metadata = get_args(annotation)
            for item in metadata:
                constraints += item.metadata if isinstance(item, FieldInfo) else [item]
        elif origin in (Union, UnionType):
            (annotation,) = (arm for arm in get_args(annotation) if arm is not type(None))
        else:
            return annotation, constraints


def _allowed(kind: Any, constraints: Sequence[Any]) -> str:
    limits = {name: getattr(c, name) for c in constraints for name in ("ge", "gt", "le") if hasattr(c, name)}
    if get_origin(kind) is Literal:
        return alternatives([f'"{option}"' for option in get_args(kind)])
    if get_origin(kind) is tuple:
        return "a list of strings"
    if kind is bool:
        return "true or false"
    if kind is float:
        above = f", above {limits['gt']}" if "gt" in limits else ""
        return f"seconds (30) or a number with ms, s, m or h{above}"
    if kind is int:
        low, high = limits["ge"], limits.get("le")
        return f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"
    return "a path" if kind is Path else "a string"


def _leaf(name: str, annotation: Any, constraints: Sequence[Any] = ()) -> Leaf:
    kind, more = _core(annotation)
    secret = kind is SecretStr
    return Leaf(
        allowed=_SAID_BETTER.get(name) or _allowed(kind, [*constraints, *more]),
        many=get_origin(kind) is tuple,
        hidden=secret or name == "args",  # a program's arguments often carry a key
        expands=secret or name == "url",
    )


def _shape(model: type[BaseModel]) -> Shape:
    shape: dict[str, Leaf | Shape] = {}
    for name, field in model.model_fields.items():
        kind, _ = _core(field.annotation)
        if get_origin(kind) is dict:
            inner, _ = _core(get_args(kind)[1])
            shape[name] = {ANY: _shape(inner) if issubclass(inner, BaseModel) else _leaf(ANY, inner)}
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            shape[name] = _shape(kind)
        else:
            shape[name] = _leaf(name, field.annotation, field.metadata)
    return shape


UPSTREAM = _shape(UpstreamConfig)
SERVER_FIELDS = frozenset({"command", "url", *ONLY_STDIO, *ONLY_HTTP})  # what the server is
DEFAULTS: Shape = {name: inner for name, inner in UPSTREAM.items() if name not in SERVER_FIELDS}
SETTINGS: Shape = {
    **_shape(ProxyConfig),
    **DEFAULTS,
}  # the top level: the proxy's own, and defaults for upstreams


def leaf_at(place: Place) -> Leaf | None:
    """The setting at `place`, or None where there is a group or nothing."""
    inner: Leaf | Shape | None = SETTINGS
    for part in place:
        if not isinstance(inner, Mapping):
            return None
        inner = inner.get(part) or inner.get(ANY)
    return inner if isinstance(inner, Leaf) else None


def leaves(shape: Shape) -> Iterator[Place]:
    """The place of every setting that has a fixed name."""
    for name, inner in shape.items():
        if name == ANY:
            continue
        if isinstance(inner, Leaf):
            yield (name,)
        else:
            yield from ((name, *rest) for rest in leaves(inner))


def close_to(word: str, options: Sequence[str], *, cutoff: float = 0.7) -> list[str]:
    """At most three of the options, most alike first; upper and lower case are alike."""
    by_lower = {option.lower(): option for option in reversed(options)}
    return [by_lower[match] for match in get_close_matches(word.lower(), list(by_lower), n=3, cutoff=cutoff)]


def meant_by(key: str, shape: Shape) -> str | None:
    """The known key that an unknown one is most like: of the group itself, or dotted of a group inside it."""
    places = {place[-1]: ".".join(place) for place in leaves(shape)} | {name: name for name in shape}
    matches = close_to(key, list(places))
    return places[matches[0]] if matches else None


def unknown_key(key: str, shape: Shape) -> str:
    """What to say of a key that the group has not."""
    meant = meant_by(key, shape)
    return "found an unknown key; " + (f"did you mean {meant}?" if meant else f"allowed: {', '.join(shape)}")


def found(value: object, *, hidden: bool = False) -> str:
    """A value as a mistake shows it: short, on one line, a table or list only by its kind."""
    if isinstance(value, str):
        if hidden:
            return "a string" if value else "an empty string"
        return quoted(value if len(value) <= 60 else value[:57] + "...")
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, Sequence):
        return "a list"
    if hidden:
        return (
            "a number" if isinstance(value, int | float) and not isinstance(value, bool) else "another value"
        )
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number beyond 64 bits"
    return str(value).lower() if isinstance(value, bool) else str(value)


def quoted(text: str) -> str:
    """In double quotes; what a terminal could act on is escaped."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def dotted(place: Place) -> str:
    """`upstreams.github.url`; a part with other characters than letters, digits, `_` and `-` is quoted."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else quoted(part) for part in place)
