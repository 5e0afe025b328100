"""Each source of settings as a layer: files, the command line, the environment.

A layer maps the place of a setting to its value and to the words that name where it stands. Only the
shape is checked here (known keys, tables where tables belong); `load` merges and validates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pydantic import BaseModel

from mcpdiag.config.documents import DocumentError, read_document
from mcpdiag.config.mistakes import (
    ANY,
    SETTINGS,
    UPSTREAM,
    Leaf,
    Place,
    Shape,
    alternatives,
    close_to,
    dotted,
    found,
    leaf_at,
    leaves,
    meant_by,
    quoted,
    unknown_key,
)

PREFIX = "MCPDIAG_"
_PATHS = {"cwd": "folder", "tls_ca": "file", "tls_cert": "file", "tls_key": "file"}
COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it stands, as a mistake names it: `mcpdiag.toml: pool.max_connections`."""

    value: object
    where: str
    expands: bool = False  # from a file, in a setting where ${VAR} is replaced


Layer: TypeAlias = dict[Place, Setting]
Report: TypeAlias = Callable[[str], None]


def read_file(path: Path, report: Report) -> Layer | None:
    """The layer of a .toml or .json file; None, and one line reported, where it cannot be read as such."""
    try:
        document = read_document(path, report)
    except DocumentError as error:
        report(str(error))
        return None
    layer = _flatten(document.table, document.where, report, expands=True)
    return {place: _from_folder(place, setting, path.parent) for place, setting in layer.items()}


def read_caller(
    options: Mapping[str, object],
    upstreams: Mapping[str, Mapping[str, object]],
    report: Report,
    *,
    caller: str,
) -> Layer:
    """The layer of what the command line, or a caller in Python, gives.

    Args:
        options: by the name of the setting, of a group too (`max_connections`, `port`), or whole groups (`pool`).
        upstreams: the fields of each by its name.
        report: called with each mistake.
        caller: who said so, in a mistake; of the command line, places are named as its options.
    """
    places = {place[-1]: place for place in leaves(SETTINGS)} | {name: (name,) for name in SETTINGS}
    arguments = {"url": "--url", "command": "COMMAND", "args": "COMMAND"}

    def where(place: Place) -> str:
        if caller != COMMAND_LINE:
            name = dotted(place)
        elif place[0] == "upstreams":
            name = (len(place) == 3 and arguments.get(place[2])) or dotted(place)
        else:
            name = "--" + dotted(place[-1:]).replace("_", "-")
        return f"{caller}: {name}"

    table: dict[str, object] = {"upstreams": upstreams}
    layer: Layer = {}
    for name, value in options.items():
        place = places.get(name, (name,))
        if len(place) == 1:
            table |= {name: value}
        elif value is not None:
            layer[place] = Setting(value, where(place))
    return _flatten(table, where, report) | layer


def read_environment(environ: Mapping[str, str], upstreams: Iterable[str], report: Report) -> Layer:
    """The layer of `MCPDIAG_*`. A name in it means the upstream of that name, with `-` and `.` written as `_`."""
    known = list(upstreams)
    layer: Layer = {}
    for variable, value in environ.items():
        if not variable.upper().startswith(PREFIX):
            continue
        where = f"environment: {variable if variable.isprintable() else quoted(variable)}"
        parts = variable[len(PREFIX) :].split("__")
        try:
            place = _place_of(parts, known)
        except _NameError as error:
            report(f"{where}: {error}")
            continue
        if place in layer:
            report(
                f"{where}: found the same setting in {layer[place].where.partition(': ')[2]}; remove one of them"
            )
            continue
        if place[0] == "upstreams":
            layer.setdefault(place[:2], Setting({}, f"environment: {PREFIX}UPSTREAMS__{parts[1]}"))
            known += [place[1]] if place[1] not in known else []
        leaf = leaf_at(place)
        items = tuple(item for part in value.split(",") if (item := part.strip()))
        layer[place] = Setting(items if leaf is not None and leaf.many else value, where)
    return layer


def _flatten(
    table: Mapping[str, object], where: Callable[[Place], str], report: Report, *, expands: bool = False
) -> Layer:
    layer: Layer = {}

    def walk(table: Mapping[str, object], shape: Shape, at: Place) -> None:
        for key, given in table.items():
            place = (*at, key)
            value = given.model_dump(exclude_unset=True) if isinstance(given, BaseModel) else given
            inner = shape.get(key) or shape.get(ANY)
            if inner is None:
                report(f"{where(place)}: {unknown_key(key, shape)}")
                # Go on as if it were spelled right: else a server without its 'comand' is a second mistake.
                meant = meant_by(key, shape)
                if meant is None or meant not in shape or meant in table:
                    continue
                place, inner = (*at, meant), shape[meant]
            if value is None and place[-1] in shape:
                continue  # clients write null for "not given"
            if isinstance(inner, Leaf):
                layer[place] = Setting(value, where((*at, key)), expands and inner.expands)
            elif isinstance(value, Mapping):
                if at == ("upstreams",):
                    layer[place] = Setting({}, where(place))
                walk(value, inner, place)
            else:
                report(f"{where(place)}: found {found(value, hidden=True)}; allowed: a table")

    walk(table, SETTINGS, ())
    return layer


def needed_at(place: Place) -> str | None:
    """What has to exist where a setting of an upstream is a path: a `folder` or a `file`."""
    return _PATHS.get(place[2]) if place[0] == "upstreams" and len(place) == 3 else None


def _from_folder(place: Place, setting: Setting, folder: Path) -> Setting:
    """A path in a file is relative to the file."""
    if (needed_at(place) is None and place != ("capture",)) or not isinstance(setting.value, str):
        return setting
    try:
        folder = folder / Path(setting.value).expanduser()
    except RuntimeError:  # ~nobody
        folder = folder / setting.value
    return Setting(str(folder), setting.where)


class _NameError(Exception):
    """What is wrong with the name of a variable."""


def _place_of(parts: list[str], upstreams: list[str]) -> Place:
    """The setting that a variable names, given its parts between the double underscores."""
    place: Place = ()
    inner: Leaf | Shape = SETTINGS
    for number, part in enumerate(parts):
        if isinstance(inner, Leaf) or not part:
            raise _NameError(_unknown_variable(parts, place))
        if ANY not in inner:
            key = part.lower()
            if key not in inner:
                raise _NameError(_unknown_variable(parts, place))
            place, inner = (*place, key), inner[key]
        elif place == ("upstreams",):
            place, inner = (*place, _upstream_of(part, upstreams)), inner[ANY]
        else:
            name = "__".join(parts[number:])  # a variable of the program may have double underscores itself
            return (*place, name.replace("_", "-") if place[-1] == "headers" else name)
    if isinstance(inner, Leaf):
        return place
    keys = "NAME" if ANY in inner else alternatives([key.upper() for key in inner])
    raise _NameError(f"found a group of settings; add __ and {keys}")


def _upstream_of(part: str, upstreams: list[str]) -> str:
    matches = [name for name in upstreams if re.sub(r"[-.]", "_", name).lower() == part.lower()]
    if len(matches) > 1:
        raise _NameError(f"found a name that means {alternatives(matches)}; rename one of these upstreams")
    return matches[0] if matches else part.lower()


def _unknown_variable(parts: list[str], place: Place) -> str:
    of_upstream = 2 if len(place) >= 2 and place[0] == "upstreams" else 0
    names = ["__".join(leaf).upper() for leaf in leaves(UPSTREAM if of_upstream else SETTINGS)]
    prefix = PREFIX + "".join(f"{part}__" for part in parts[:of_upstream])
    if matches := close_to("__".join(parts[of_upstream:]), names):
        return (
            f"found a name of no setting; did you mean {alternatives([prefix + match for match in matches])}?"
        )
    return "found a name of no setting; docs/configuration.md lists them all"
