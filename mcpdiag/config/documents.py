"""A configuration file as a table of settings: TOML, or the mcpServers JSON that MCP clients write."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mcpdiag.config.mistakes import UPSTREAM, Place, close_to, dotted, found, quoted

_SERVER_KEYS = ("servers", "mcpServers")
_SERVERS_ALLOWED = 'allowed: {"mcpServers": {NAME: {...}}}'
# The `type` that clients write, in lower case without '-' and '_', as our `transport`.
_KINDS = {"stdio": None, "http": "http", "streamablehttp": "http", "sse": "sse"}
_KIND_KEYS = ("type", "transport", "transportType")
# What clients write beside the server itself. Other keys are ignored too, unless they look like one of ours.
_CLIENT_KEYS = frozenset({*_KIND_KEYS, "disabled", "timeout", "autoApprove", "alwaysAllow", "description"})
_ENV_FILE = "found a key that mcpdiag does not read; put the variables into env, or set them before the start"


class DocumentError(Exception):
    """One line about a file that cannot be read, with its name."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file's settings. `root` is what the file calls `upstreams`."""

    name: str
    root: str
    table: Mapping[str, object]
    written: dict[Place, str] = field(
        default_factory=dict
    )  # the key of a setting that the file calls otherwise

    def where(self, place: Place) -> str:
        """How a mistake names a place in the file: `servers.json: mcpServers.github.url`."""
        place = (*place[:-1], self.written.get(place, place[-1]))
        return f"{self.name}: {dotted((self.root, *place[1:]) if place[0] == 'upstreams' else place)}"


def read_document(path: Path, report: Callable[[str], None]) -> Document:
    """Reads a `.toml` or `.json` file.

    Args:
        path: the file; its suffix says what it is.
        report: called with a line for each mistake in what a client writes beside a server.

    Raises:
        DocumentError: it is missing, unreadable, empty, not what its suffix says, or JSON without servers.
    """
    name = str(path) if str(path).isprintable() else quoted(str(path))
    suffix = path.suffix.lower()
    if suffix not in {".toml", ".json"}:
        raise DocumentError(f"{name}: found the suffix {quoted(path.suffix)}; allowed: .toml or .json")
    text = _text(path, name)
    if suffix == ".toml":
        return Document(name, "upstreams", _parse_toml(text, name))
    root, servers = _servers(_parse_json(text, name), name)
    document = Document(name, root, {"upstreams": servers})
    for key, server in list(servers.items()):
        if isinstance(server, dict):
            if server.get("disabled") is True:
                del servers[key]
            else:
                servers[key] = _without_client_keys(server, document, ("upstreams", key), report)
    return document


def _text(path: Path, name: str) -> str:
    missing = DocumentError(f"{name}: found no such file; give the path of a .toml or .json file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise missing from None
    except IsADirectoryError:
        raise DocumentError(f"{name}: found a folder; give the path of the file in it") from None
    except OSError as error:
        raise DocumentError(
            f"{name}: found a file that cannot be read ({error.strerror}); let the proxy's user read it"
        ) from None
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{name}: found a byte at offset {error.start} that is not UTF-8; save it as UTF-8"
        ) from None
    except ValueError:  # a NUL in the path
        raise missing from None
    if not text.strip():
        raise DocumentError(f"{name}: found an empty file; allowed: at least one upstream")
    return text


def _parse_toml(text: str, name: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = text.splitlines()
        message, line, column = (
            str(error).removesuffix(" (at end of document)"),
            len(lines),
            len(lines[-1]) + 1,
        )
        if position := re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", message, re.DOTALL):
            message, line, column = position[1], int(position[2]), int(position[3])
        raise DocumentError(f"{name}:{line}:{column}: found invalid TOML: {message}") from None
    except (RecursionError, ValueError):  # an integer of more digits than Python converts
        raise DocumentError(
            f"{name}: found tables nested too deeply, or a number too long; shorten it"
        ) from None


def _parse_json(text: str, name: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DocumentError(
                f"{name}: found the key {quoted(twice)} twice in one object; remove one of them"
            )
        return table

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        comment = "; JSON has no comments" if text[error.pos :].lstrip().startswith("/") else ""
        raise DocumentError(
            f"{name}:{error.lineno}:{error.colno}: found invalid JSON: {error.msg}{comment}"
        ) from None
    except (RecursionError, ValueError):
        raise DocumentError(
            f"{name}: found objects nested too deeply, or a number too long; shorten it"
        ) from None


def _servers(document: object, name: str) -> tuple[str, dict[str, object]]:
    """The key under which the servers stand, and the servers."""
    if not isinstance(document, dict):
        raise DocumentError(f"{name}: found {found(document, hidden=True)}; {_SERVERS_ALLOWED}")
    keys = [key for key in _SERVER_KEYS if key in document]
    if not keys:
        near = [match for key in document for match in close_to(key, _SERVER_KEYS)]
        hint = f"; did you mean {quoted(near[0])}?" if near else ""
        raise DocumentError(f'{name}: found no "mcpServers"; {_SERVERS_ALLOWED}{hint}')
    if len(keys) > 1:
        raise DocumentError(f'{name}: found both "servers" and "mcpServers"; allowed: one of them')
    servers = document[keys[0]]
    if not isinstance(servers, dict):
        raise DocumentError(f"{name}: {keys[0]}: found {found(servers, hidden=True)}; {_SERVERS_ALLOWED}")
    return keys[0], servers


def _without_client_keys(
    server: Mapping[str, object], document: Document, at: Place, report: Callable[[str], None]
) -> Mapping[str, object]:
    kinds = {
        key: _kind(server[key], document.where((*at, key)), report) for key in _KIND_KEYS if key in server
    }
    if "envFile" in server:
        report(f"{document.where((*at, 'envFile'))}: {_ENV_FILE}")
    kept = {
        key: value
        for key, value in server.items()
        if key not in _CLIENT_KEYS and (key in UPSTREAM or close_to(key, list(UPSTREAM), cutoff=0.8))
    }
    for key, kind in kinds.items():
        # Clients write "http" beside a command too, and run the command; "sse" there is a mistake.
        if kind == "sse" or (kind is not None and "url" in server):
            kept["transport"] = kind
            document.written[*at, "transport"] = key
    return kept


def _kind(kind: object, where: str, report: Callable[[str], None]) -> str | None:
    """Our `transport` for what a client calls the kind of a server; None if it leaves that to us."""
    plain = re.sub(r"[-_]", "", kind).lower() if isinstance(kind, str) else ""
    if plain not in _KINDS:
        report(f'{where}: found {found(kind)}; allowed: "stdio", "http", "streamable-http" or "sse"')
    return _KINDS.get(plain)
