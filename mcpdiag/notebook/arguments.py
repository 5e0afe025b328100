"""The arguments of the magics, with mistakes that are a line and not the end of the kernel."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from typing import NoReturn

from IPython.core.error import UsageError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser of a magic."""

    def __init__(self, prog: str, usage: str) -> None:
        super().__init__(prog, usage=usage, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; usage: {self.usage}")


@dataclass(frozen=True, slots=True)
class ProxyArguments:
    """What `%mcp_proxy` was given. `command` is what stands after `--`."""

    options: argparse.Namespace
    command: list[str]


def proxy_arguments(line: str) -> ProxyArguments:
    """Raises UsageError."""
    parser = Parser("%mcp_proxy", "%mcp_proxy [NAME] [--url URL | --config FILE] [options] [-- COMMAND ...]")
    parser.add_argument("server", nargs="?", metavar="NAME")
    parser.add_argument("--url")
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--name", default="proxy")
    parser.add_argument("--pool-mode")
    for option in ("--port", "--admin-port", "--max-connections"):
        parser.add_argument(option, type=int)
    parser.add_argument("--request-timeout")
    parser.add_argument("--capture")
    parser.add_argument("--stop", action="store_true")
    words = split(parser, line)
    at = words.index("--") if "--" in words else len(words)
    options, command = parser.parse_args(words[:at]), words[at + 1 :]
    _check_name(parser, options.name)
    given = [name for name, value in (("--url", options.url), ("--config", options.config), ("a command", command)) if value]  # fmt: skip
    if options.stop:
        if given or options.server:
            parser.error("--stop takes nothing but --name")
    elif len(given) != 1:
        parser.error(
            f"give one of --url, --config and a command after --, found {' and '.join(given) or 'none'}"
        )
    elif options.server and options.config:
        parser.error("the servers of a file have their names there; leave out NAME")
    return ProxyArguments(options, command)


def window_arguments(line: str) -> argparse.Namespace:
    """`label` and `proxy`. Raises UsageError."""
    parser = Parser("%%mcp_window", "%%mcp_window [LABEL] [--proxy NAME]")
    parser.add_argument("label", nargs="?", default="window")
    parser.add_argument("--proxy", default="proxy")
    options = parser.parse_args(split(parser, line))
    _check_name(parser, options.label)
    if options.label == options.proxy:
        parser.error(f"the window would take the place of {options.proxy!r}; give another label")
    return options


def split(parser: Parser, line: str) -> list[str]:
    """The line as a shell would split it."""
    try:
        return shlex.split(line)
    except ValueError as error:
        parser.error(f"found {line!r}: {error}")


def _check_name(parser: Parser, name: str) -> None:
    if not name.isidentifier():
        parser.error(f"found {name!r}, which is no name of a variable")
