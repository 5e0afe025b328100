"""Options that several verbs of `mcpdiag bench` have, and the mistakes in them, which are all said at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mcpdiag.config.mistakes import found
from mcpdiag.config.types import parse_duration
from mcpdiag.errors import ConfigError

if TYPE_CHECKING:
    from mcpdiag.bench.result import Transport

FORMATS = ("table", "json", "md", "junit", "csv")
POOL_MODES = ("session", "request", "multiplex")
ERAS = ("handshake", "stateless")
Command = Annotated[
    list[str] | None, typer.Argument(help="After `--`: the stdio server's command.", show_default=False)
]
Url = Annotated[str | None, typer.Option(help="A Streamable HTTP server instead of a command.")]
Header = Annotated[
    list[str] | None, typer.Option(help="'Name: value', sent to --url; may be repeated.", show_default=False)
]
PoolMode = Annotated[str, typer.Option(help=f"Of a stdio server: {', '.join(POOL_MODES)}.")]
Era = Annotated[str, typer.Option(help="handshake, or stateless (2026-07-28).")]
WorkloadFile = Annotated[Path | None, typer.Option(help="A .toml file with what to call (docs/bench.md).")]
Timeout = Annotated[float, typer.Option(help="Seconds until a call has failed.")]
Warmup = Annotated[float, typer.Option(help="Seconds before each run that do not count.")]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]
Name = Annotated[str, typer.Option(help="Of the result.")]
Output = Annotated[
    Path | None, typer.Option(help="Folder of the result. [default: a new one in mcpdiag-results]")
]
Format = Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the path of the result and nothing else.")]
Explain = Annotated[bool, typer.Option("--explain", help="Print the method, measure nothing.")]


class Mistakes:
    """Checks options one after the other; `raise_if_any` says everything that was wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def add(self, option: str, text: str) -> None:
        self.problems.append(f"{option}: {text}")

    def raise_if_any(self) -> None:
        """Raises ConfigError: there was a mistake."""
        if self.problems:
            raise ConfigError(self.problems)

    def target(self, command: Sequence[str] | None, url: str | None, header: Sequence[str] | None) -> None:
        """A command, a URL, or neither; headers only for a URL."""
        if command and url:
            self.add("--url", "found it beside a command after --; allowed: one of them")
        if header and not url:
            self.add("--header", "found it without --url, which it goes with; remove it")

    def transports(
        self, command: Sequence[str] | None, url: str | None, text: str | None
    ) -> tuple[Transport, ...]:
        """That of a target, or those of the embedded server."""
        if not command and not url:
            return cast(
                "tuple[Transport, ...]", self.words("--transports", text or "stdio,http", ("stdio", "http"))
            )
        if text is not None:
            self.add("--transports", "found it beside a target, which has one; remove it")
        return ("http",) if url else ("stdio",)

    def headers(self, texts: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
        """`Name: value` as pairs; the value of a wrong one is not shown, it may be a secret."""
        pairs = []
        for text in texts or ():
            name, colon, value = text.partition(":")
            if colon and name.strip():
                pairs.append((name.strip(), value.strip()))
            else:
                self.add("--header", "found no colon; allowed: 'Name: value'")
        return tuple(pairs)

    def one_of(self, option: str, value: str, allowed: Sequence[str]) -> Any:
        if value not in allowed:
            self.add(option, f"found {found(value)}; allowed: {', '.join(allowed)}")
            return allowed[0]
        return value

    def above(self, option: str, value: float, *, zero: bool = False, most: float = 1e6) -> float:
        if not (value > 0 or (zero and value == 0)) or value > most:
            self.add(
                option, f"found {value:g}; allowed: a number {'from' if zero else 'above'} 0 to {most:,g}"
            )
            return 1.0
        return value

    def whole(self, option: str, value: int, *, least: int = 1, most: int = 10_000) -> int:
        if not least <= value <= most:
            self.add(option, f"found {value}; allowed: a whole number from {least} to {most:,}")
            return least
        return value

    def wholes(self, option: str, text: str, *, most: int = 10_000) -> tuple[int, ...]:
        """Different whole numbers with commas between them."""
        parts = [part.strip() for part in text.split(",")]
        right = all(part.isdecimal() and 1 <= int(part) <= most for part in parts)
        if not right or len({*parts}) < len(parts):
            self.add(
                option,
                f"found {found(text)}; allowed: different whole numbers from 1 to {most}, such as 1,8,32",
            )
            return (1,)
        return tuple(map(int, parts))

    def words(self, option: str, text: str, allowed: Sequence[str]) -> tuple[str, ...]:
        """Different words with commas between them."""
        parts = tuple(part.strip() for part in text.split(","))
        if {*parts} - {*allowed} or len({*parts}) < len(parts):
            self.add(option, f"found {found(text)}; allowed: {', '.join(allowed)} or several with commas")
            return (allowed[0],)
        return parts

    def duration(self, option: str, text: str, *, least: float = 0.001, most: float = 30 * 86400) -> float:
        """Seconds of `90s`, `5m` and the like."""
        try:
            seconds = parse_duration(text)
        except ValueError:
            seconds = 0.0
        if not least <= seconds <= most:
            self.add(
                option,
                f"found {found(text)}; allowed: from {least:g}s to {most / 86400:g} days, such as 90s or 5m",
            )
            return 60.0
        return seconds

    def name(self, name: str) -> None:
        """What can be part of a folder's name."""
        if not name or not all(each.isalnum() or each in "-._" for each in name):
            self.add("--name", f"found {found(name)}; allowed: letters, digits, '-', '.' and '_'")

    def shown(self, quiet: bool, format_: str, formats: Sequence[str] = FORMATS) -> None:
        """One way to say what came of it."""
        self.one_of("--format", format_, formats)
        if quiet and format_ != "table":
            self.add("--quiet", "found it beside --format; allowed: one of them")
