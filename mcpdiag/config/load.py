"""Reads the settings from all their sources into one `ProxyConfig`, or says every mistake at once.

From weak to strong: TOML files, mcpServers JSON files, the command line, `MCPDIAG_*` variables. The CLI and
`serve` call `load`; `to_public` is what statistics and captures may show of the result.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from mcpdiag.config import ProxyConfig
from mcpdiag.config.masking import MASK, public_args, public_url
from mcpdiag.config.mistakes import DEFAULTS, Place, dotted, found, leaf_at
from mcpdiag.config.sources import (
    COMMAND_LINE,
    Layer,
    Report,
    Setting,
    needed_at,
    read_caller,
    read_environment,
    read_file,
)
from mcpdiag.config.types import ONLY_HTTP
from mcpdiag.errors import ConfigError

_REFERENCE = re.compile(
    r"\$\$\{|\$\{(?:env:)?(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^{}]*))?\}|\$\{", re.ASCII
)
# A valid upstream in the place of a wrong one, so that the rest is checked too.
_STAND_IN = {"command": "true"}
# A stronger source that says what program or URL the server is takes back what weaker ones said of it.
_REPLACED_BY = {
    "command": {"command", "args", "url", *ONLY_HTTP},
    "url": {"url", "command", "args", "env", "cwd"},
}


def load(
    *paths: Path | str,
    cli: Mapping[str, object] | None = None,
    upstreams: Mapping[str, Mapping[str, object]] | None = None,
    environ: Mapping[str, str] | None = None,
    caller: str = COMMAND_LINE,
) -> ProxyConfig:
    """The configuration from files, the command line and the environment (docs/configuration.md).

    Args:
        paths: `.toml` and `.json` files; JSON is stronger than TOML, of two alike the later is stronger.
        cli: options of the command line by the name of the setting, such as `port` or `max_connections`,
            or a whole group, such as `pool`; None means that the option was not given.
        upstreams: upstreams of the command line by name; each has the fields of `UpstreamConfig`, and its
            `command` may be a list.
        environ: where `MCPDIAG_*` and the variables of `${VAR}` are looked up; default `os.environ`.
        caller: what a mistake in `cli` or `upstreams` begins with, where that is not the command line.

    Raises:
        ConfigError: anything is wrong; one line for each mistake, none of them shows a secret.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    report = problems.append
    files = sorted(map(Path, paths), key=lambda path: path.suffix.lower() == ".json")
    read = [read_file(path, report) for path in files]
    layers = [layer for layer in read if layer is not None]
    layers.append(read_caller(cli or {}, upstreams or {}, report, caller=caller))
    layers.append(read_environment(environ, _upstream_names(layers), report))
    if not _upstream_names(layers) and None not in read:
        report(_no_upstream(files, caller))

    settings = _merge([_split_commands(layer) for layer in layers])
    config = _validate(settings, environ, report)
    if config is None or problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def to_public(config: ProxyConfig) -> dict[str, Any]:
    """The configuration as plain JSON types; secrets are `"***"`."""
    public: dict[str, Any] = _plain(config.model_dump())
    for name, upstream in config.upstreams.items():
        public["upstreams"][name] |= {"url": upstream.public_url, "args": public_args(upstream.args)}
    return public


def expand(text: str, environ: Mapping[str, str], report: Report) -> str:
    """`text` with each `${VAR}` or `${VAR:-default}` replaced; `$${` stands for `${`, any other `$` for itself.

    As in a shell, the default is taken where the variable is unset or empty. `${env:VAR}`, which VS Code and
    Cursor write, is `${VAR}`.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match[0] == "$${":
            return "${"
        if name is None:
            report(
                'found "${" that begins no ${VAR} or ${VAR:-default}; write "$${" for the characters themselves'
            )
            return ""
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            report(f"found the variable {name}, which is not set; set it, or write ${{{name}:-default}}")
        return environ.get(name, "")

    return _REFERENCE.sub(value, text)


def _upstream_names(layers: Sequence[Layer]) -> list[str]:
    return list(dict.fromkeys(place[1] for layer in layers for place in layer if place[0] == "upstreams"))


def _no_upstream(files: Sequence[Path], caller: str) -> str:
    if not files:
        remedy = (
            "give --url URL, -- COMMAND or --config FILE"
            if caller == COMMAND_LINE
            else "allowed: at least one"
        )
        return f"{caller}: found no upstream; {remedy}"
    if files[-1].suffix.lower() == ".json":
        return f'{files[-1]}: found no upstream; allowed: at least one server that is not "disabled"'
    return f"{files[-1]}: found no upstream; allowed: at least one table [upstreams.NAME] with command or url"


def _split_commands(layer: Layer) -> Layer:
    """A `command` that is a list becomes the program and its arguments, before those of `args`."""
    result = dict(layer)
    for place, setting in layer.items():
        words = setting.value
        if place[0] != "upstreams" or place[2:] != ("command",) or not _strings(words) or not words:
            continue
        program, *arguments = words
        result[place] = Setting(program, setting.where)
        args = layer.get((*place[:2], "args"), Setting((), setting.where))
        if _strings(args.value):
            result[*place[:2], "args"] = Setting([*arguments, *args.value], args.where)
    return result


def _strings(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _merge(layers: Sequence[Layer]) -> Layer:
    """The strongest setting at each place. Within a layer, defaults for all upstreams come before their own."""
    merged: Layer = {}
    for layer in layers:
        for name in _upstream_names(layers):
            for given, replaced in _REPLACED_BY.items():
                if ("upstreams", name, given) in layer:
                    weaker = [place for place in merged if place[:2] == ("upstreams", name)]
                    for place in weaker:
                        if len(place) > 2 and place[2] in replaced:
                            del merged[place]
            for place, setting in layer.items():
                if place[0] in DEFAULTS:
                    merged["upstreams", name, *place] = setting
        for place, setting in layer.items():
            if place[0] not in DEFAULTS:
                merged[_as_written_before(place, merged)] = setting
    return merged


def _as_written_before(place: Place, merged: Layer) -> Place:
    """Header names are alike in any case, and the environment cannot write a `-`: keep the first spelling."""
    if place[0] != "upstreams" or place[2:3] != ("headers",):
        return place
    name = place[3].lower().replace("_", "-")
    spellings = (p for p in merged if p[:3] == place[:3] and p[3].lower().replace("_", "-") == name)
    return next(spellings, place)


def _validate(settings: Layer, environ: Mapping[str, str], report: Report) -> ProxyConfig | None:
    """The models' verdict. What is wrong is reported and taken out, then the rest is checked again.

    Pydantic checks a rule between two fields only once every field is right, so one pass would hide mistakes.
    A rule about a field that was taken out says nothing and is passed over.
    """
    taken_out: set[Place] = set()
    tree = _tree(settings, environ, report, taken_out)
    while True:
        if not tree.setdefault("upstreams", {}):
            tree["upstreams"]["stand-in"] = dict(_STAND_IN)
        try:
            config = ProxyConfig.model_validate(tree)
        except ValidationError as error:
            progress = False
            for mistake in error.errors(include_url=False):
                group = _group(mistake["loc"], settings)
                fields = mistake["ctx"]["fields"] if mistake["type"] == "rule" else ()
                places = [(*group, field) for field in fields] or [group]
                if not fields or taken_out.isdisjoint(places):
                    report(_mistake(mistake, places, settings))
                taken_out.update(places)
                removed = [_take_out(tree, place) for place in places]
                if fields and not any(removed):  # of an upstream: it has neither command nor url
                    tree["upstreams"][group[1]] = dict(_STAND_IN)
                progress |= bool(fields) or any(removed)
            if not progress:
                return None
        else:
            break
    for name, upstream in config.upstreams.items():
        url = settings.get(("upstreams", name, "url"))
        if url is not None and url.expands and "${" in str(url.value):
            upstream.show_url_as(str(url.value))
    return config


def _group(loc: tuple[int | str, ...], settings: Layer) -> Place:
    """Pydantic's place without the number of a list's item, and without its mark for a wrong name."""
    place = tuple(part for part in loc if isinstance(part, str))
    return place[:-1] if place[-1:] == ("[key]",) and place[:-1] in settings else place


def _tree(
    settings: Layer, environ: Mapping[str, str], report: Report, taken_out: set[Place]
) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for place, setting in settings.items():
        value = setting.value
        if setting.expands and isinstance(value, str):
            wrong: list[str] = []
            value = expand(value, environ, wrong.append)
            for text in wrong:
                report(f"{setting.where}: {text}")
            if wrong:
                taken_out.add(place)
                continue
        needed = needed_at(place)
        if needed is not None and isinstance(value, str) and not _is_there(value, needed):
            report(f"{setting.where}: found {found(value)}; allowed: a {needed} that exists")
        node = tree
        for part in place[:-1]:
            node = node.setdefault(part, {})
        if len(place) == 2:  # an upstream by itself: where it stands
            node.setdefault(place[1], {})
        else:
            node[place[-1]] = value
    return tree


def _is_there(path: str, kind: str) -> bool:
    try:
        return Path(path).is_dir() if kind == "folder" else Path(path).is_file()
    except OSError:  # a name too long, a parent that may not be read
        return False


def _take_out(tree: dict[str, Any], place: Place) -> bool:
    node = tree
    for part in place[:-1]:
        node = node.get(part, {})
    return node.pop(place[-1], None) is not None


def _mistake(mistake: ErrorDetails, places: Sequence[Place], settings: Layer) -> str:
    """One line for what pydantic found, in our words and with the place where the operator wrote it."""
    place = next((place for place in places if place in settings), places[0])
    setting = settings.get(place) or next(
        (setting for p, setting in settings.items() if p[: len(place)] == place), settings.get(place[:2])
    )
    where = setting.where if setting is not None else dotted(place)
    if mistake["type"] == "rule":
        return f"{where}: {mistake['ctx']['text']}"
    value = setting.value if setting is not None else mistake["input"]
    leaf = leaf_at(place)
    hidden, allowed = (leaf.hidden, leaf.allowed) if leaf is not None else (True, "something else")
    if isinstance(index := mistake["loc"][-1], int):
        where, value, allowed = f"{where}[{index}]", mistake["input"], "a string"
    if place[2:] == ("url",) and isinstance(value, str):
        expanded = " after expansion" if setting is not None and setting.expands and "${" in value else ""
        return f"{where}: found {found(public_url(value))}{expanded}; allowed: {allowed}"
    return f"{where}: found {found(value, hidden=hidden)}; allowed: {allowed}"


def _plain(value: object) -> Any:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
