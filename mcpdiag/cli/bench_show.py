"""What `mcpdiag bench` shows: a progress bar, tables for people, formats for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mcpdiag.bench import report
from mcpdiag.bench.result import Result
from mcpdiag.cli.bench_store import Outcome, Tell

T = TypeVar("T")


@contextmanager
def progress(*, quiet: bool) -> Iterator[Tell]:
    """A bar with the time left, on stderr, where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda words, done, total: None
        return
    columns = (BarColumn(30), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(compact=True))
    with Progress(
        *columns, TextColumn("{task.description}"), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("", total=1)
        yield lambda words, done, total: bar.update(task, description=words, completed=done, total=total)


def kept(outcome: T | None) -> T:
    """What was measured. Raises typer.Exit(130): nothing was, before an interruption."""
    if outcome is None:
        print("mcpdiag: interrupted before anything was measured", file=sys.stderr)
        raise typer.Exit(130)
    return outcome


def finish(outcome: Outcome, *, quiet: bool, format_: str) -> None:
    """Say what came of it and where it is. Raises typer.Exit(130): it was interrupted."""
    if quiet:
        print(outcome.folder)
    else:
        show(outcome.result, outcome.folder, format_)
        if outcome.plot and format_ == "table":
            print(f"Plot: {outcome.plot}")
    if outcome.interrupted:
        raise typer.Exit(130)


def show(measured: Result, folder: Path, format_: str) -> None:
    if format_ == "json":
        print(msgspec.json.format(msgspec.json.encode(measured), indent=1).decode())
    elif format_ in ("md", "junit", "csv"):
        write = {"md": report.markdown, "junit": report.junit, "csv": report.comma_separated}[format_]
        print(write(measured), end="")
    else:
        against = "" if measured.duet is None else f" against {measured.duet.base.shown}"
        print(f"{measured.target.shown}{against}: {measured.workload.shown}{_how(measured)}")
        table(report.headings(measured), report.rows(measured))
        for sentence in report.sentences(measured):
            print(sentence)
        print(f"Result: {folder}")
        if measured.duet is not None:
            print(f"Judge: mcpdiag bench compare {folder} --max-regression p50=5%,throughput=5%")
        elif measured.breaking is None:
            print(f"Compare: mcpdiag bench compare {folder} NEW")


def _how(measured: Result) -> str:
    config = measured.config
    pool = f"at most {config.max_connections} connection{'s' * (config.max_connections > 1)} a pool"
    if measured.locust is not None:
        return f"; {config.seconds:.4g} s of it by Locust"
    if measured.duet is not None:
        return f"; {config.repeat} rounds of {config.seconds:g} s each, in slices of {measured.duet.slice_s * 1000:g} ms"
    if measured.breaking is not None:
        way = "" if any(cell.way == "direct" for cell in measured.cells) else f" through the proxy, {pool}"
        return f"; steps of {config.seconds:g} s or more{way}"
    return f"; {config.repeat} rounds of {config.seconds:g} s, {pool}"


def table(headings: tuple[str, ...], body: Sequence[Sequence[str]]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        print(report.plain(headings, body))
        return
    shown = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True)
    for row in body:
        shown.add_row(*row)
    console.print(shown)
