"""The command line: one file a verb. Exit codes: 0 ok, 1 failed, 2 bad usage or config, 3 could not start."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mcpdiag import __version__
from mcpdiag.cli import bench, demo, proxy, report, show, top
from mcpdiag.errors import AttachError, ConfigError, McpDiagError, StartError

app = typer.Typer(
    help="Diagnostics for MCP servers: put a proxy in front of one and see what happens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command(name="proxy", no_args_is_help=True)(proxy.proxy)
app.command(name="demo")(demo.demo)
app.command(name="show", no_args_is_help=True)(show.show)
app.command(name="report", no_args_is_help=True)(report.report)
app.command(name="top", no_args_is_help=True)(top.top)
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mcpdiag {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Diagnostics for MCP servers: put a proxy in front of one and see what happens."""


def main() -> None:
    """Run the command line; mistakes of the user are lines, not tracebacks."""
    try:
        app()
    except ConfigError as error:
        for problem in error.problems:
            print(f"mcpdiag: {problem}", file=sys.stderr)
        sys.exit(2)
    except (StartError, AttachError) as error:
        print(f"mcpdiag: {error}", file=sys.stderr)
        sys.exit(3)
    except McpDiagError as error:
        print(f"mcpdiag: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
