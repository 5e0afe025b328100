"""`mcpdiag show`: a capture, or a running proxy, as tables in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mcpdiag.errors import StartError
from mcpdiag.samples.base import Samples
from mcpdiag.samples.capture import load
from mcpdiag.samples.remote import attach

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

ROWS = 20
DETAIL = 200  # characters
SITES = 5  # call sites of a process
_SUMMARY = {
    "count": "calls", "error_rate": "errors", "rps": "per s", "total_p50_ms": "p50 ms", "total_p99_ms": "p99 ms",
    "queue_p99_ms": "queue p99", "first_p99_ms": "first p99",
}  # fmt: skip
_POOL = {
    "max": "max", "size": "size", "busy": "busy", "idle": "idle", "waiting": "waiting", "opens": "opens",
    "reuses": "reuses", "acquire_timeouts": "timeouts", "closed_lost": "lost",
}  # fmt: skip


def show(
    source: Annotated[str, typer.Argument(help="A folder of --capture, or the URL of an admin port.")],
    token: Annotated[str | None, typer.Option(envvar="MCPDIAG_TOKEN", help="The proxy's token.")] = None,
) -> None:
    """Show what a run did: calls and percentiles, pools, memory, events.

    Examples:

    `mcpdiag show captures/monday`

    `mcpdiag show http://127.0.0.1:9464`
    """
    try:
        samples: Samples = attach(source, token=token) if "://" in source else load(Path(source))
        tables = [
            _calls(samples.summary()),
            _pools(samples.pool),
            _processes(samples.memory),
            _heap(samples.frame("heap")),
            _events(samples.events),
        ]
    except ImportError as error:
        raise StartError(str(error)) from None
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="SOURCE") from None
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    console.print(f"{source}: {samples!r}", highlight=False)
    for table in tables:
        if table.row_count:
            console.print(table)


def _table(title: str, *columns: str, words: int = 1) -> Table:
    """A table whose first `words` columns are text, and the others numbers that are never cut."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        text = number < words
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    return table


def _calls(summary: DataFrame) -> Table:
    table = _table("calls", "server", "call", *_SUMMARY.values(), words=2)
    for key, row in summary.head(ROWS).iterrows():
        upstream, method, target = (str(part) for part in _parts(key))
        table.add_row(
            upstream,
            target or method,
            *(_number(row[name], percent=name == "error_rate") for name in _SUMMARY),
        )
    return table


def _parts(key: Any) -> tuple[Any, Any, Any]:
    upstream, method, target = key
    return upstream, method, target


def _pools(pool: DataFrame) -> Table:
    table = _table("pools, at the end", "server", "mode", *_POOL.values(), words=2)
    for _, row in pool.groupby(["upstream", "era"], observed=True).tail(1).iterrows():
        table.add_row(str(row["upstream"]), str(row["mode"]), *(f"{row[name]:,}" for name in _POOL))
    return table


def _processes(memory: DataFrame) -> Table:
    table = _table(
        "processes", "process", "pid", "MiB first", "MiB last", "fds", "threads", "children", "cpu s"
    )
    for (upstream, process, pid), rows in memory.groupby(["upstream", "process", "pid"], observed=True):
        last = rows.iloc[-1]
        mib = (f"{rows['rss_bytes'].iloc[place] / 2**20:,.1f}" for place in (0, -1))
        counts = (f"{last[name]:,}" for name in ("fds", "threads", "children"))
        table.add_row(str(upstream or process), str(pid), *mib, *counts, f"{last['cpu_s']:,.1f}")
    return table


def _heap(heap: DataFrame) -> Table:
    table = _table(
        "heap, live at the end of the newest window: candidates", "window", "call site", "KiB", words=2
    )
    table.columns[1].ratio = 1
    live = heap[(heap["kind"] == "leaked") & (heap["size_bytes"] > 0)]
    for upstream, rows in live.groupby("upstream", observed=True):
        newest = rows[rows["ts"] == rows["ts"].max()].sort_values("size_bytes", ascending=False)
        for _, row in newest.head(SITES).iterrows():
            window = f"{upstream!s}: {row['window']}" if upstream else str(row["window"])
            where = (
                f"{row['function']} ({row['file']}:{row['line']})" if row["file"] else str(row["function"])
            )
            table.add_row(window, where, f"{row['size_bytes'] / 1024:,.1f}")
    return table


def _events(events: DataFrame) -> Table:
    table = _table("events", "times", "kind", "server", words=0)
    table.columns[1].justify = table.columns[2].justify = "left"
    table.add_column("last detail", overflow="fold", ratio=1)
    for (kind, upstream), rows in events.groupby(["kind", "upstream"], observed=True):
        table.add_row(f"{len(rows):,}", str(kind), str(upstream), str(rows["detail"].iloc[-1])[:DETAIL])
    return table


def _number(value: float, *, percent: bool = False) -> str:
    if percent:
        return f"{value:.1%}"
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:,.3g}"
