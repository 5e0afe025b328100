"""Reads a workload or targets file into typed values, and says every mistake of it at once, as mcpdiag.config does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mcpdiag.config.documents import DocumentError, read_document
from mcpdiag.config.mistakes import Place, close_to, dotted, found
from mcpdiag.config.types import parse_duration
from mcpdiag.errors import ConfigError


class Document:
    """A TOML file under inspection. Each `get` takes a key, checks it and notes the mistake there is.

    `with_mistakes` at the end raises them all.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.problems: list[str] = []
        if path.suffix.lower() != ".toml":
            raise ConfigError([f"{self.name}: found the suffix {found(path.suffix)}; allowed: .toml"])
        try:
            self.root = Table(self, (), read_document(path, self.problems.append).table)
        except DocumentError as error:
            raise ConfigError([str(error)]) from None

    def report(self, place: Place, text: str) -> None:
        self.problems.append(f"{self.name}: {dotted(place)}: {text}")

    def with_mistakes(self) -> None:
        """Raises ConfigError if there were any."""
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))


class Table:
    """A table of the document and where it is."""

    def __init__(self, document: Document, place: Place, values: Mapping[str, Any]) -> None:
        self.document, self.place, self.values = document, place, values

    def report(self, key: str, text: str) -> None:
        self.document.report((*self.place, key), text)

    def only(self, known: Collection[str]) -> None:
        """Any other key is a mistake."""
        for key in self.values:
            if key not in known:
                near = close_to(key, list(known))
                hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}"
                self.report(key, f"found an unknown key; {hint}")

    def _wrong(self, key: str, allowed: str) -> None:
        self.report(key, f"found {found(self.values[key])}; allowed: {allowed}")

    def text(self, key: str, default: str = "", *, allowed: Collection[str] | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or (
            allowed is not None and key in self.values and value not in allowed
        ):
            self._wrong(key, "a string" if allowed is None else ", ".join(f'"{each}"' for each in allowed))
            return default
        return value

    def number(self, key: str, default: float, *, above: float | None = None) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong(key, "a number" + ("" if above is None else f" above {above:g}"))
            return default
        if above is not None and not value > above:
            self._wrong(key, f"a number above {above:g}")
            return default
        return float(value)

    def count(self, key: str, default: int, *, least: int) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self._wrong(key, f"a whole number, {least} or more")
            return default
        return value

    def seconds(self, key: str, default: float) -> float:
        try:
            return parse_duration(self.values.get(key, default))
        except ValueError:
            self._wrong(key, "seconds (30) or a number with ms, s, m or h")
            return default

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, "true or false")
            return default
        return value

    def table(self, key: str) -> Table:
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            self._wrong(key, "a table")
            value = {}
        return Table(self.document, (*self.place, key), value)

    def tables(self, key: str) -> list[Table]:
        """The tables of an array of tables; the place of each is its number from 1."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
            self._wrong(key, f"[[{key}]] tables")
            return []
        return [
            Table(self.document, (*self.place, key, str(number)), each)
            for number, each in enumerate(value, start=1)
        ]
