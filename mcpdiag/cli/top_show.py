"""What `mcpdiag top` shows of a look at a proxy: one block of at most 100 columns."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mcpdiag.cli.top_watch import Row, Watch

WIDTH = 100
EVENTS = 5
CALLS = 20
WORD = 26  # characters of a name
SAID_FOR = 60.0  # seconds that a restart is shown
_WORST = 12  # fewest lines that calls and events get, however small the terminal is


def block(watch: Watch, note: str = "", *, height: int | None = None) -> RenderableType:
    """Everything of this moment.

    Args:
        watch: that has looked at least once.
        note: what is wrong with the watching itself.
        height: lines of the terminal; else no limit but `CALLS`.
    """
    pools, rows = watch.pools(), watch.rows()
    left = CALLS if height is None else max(_WORST, height - len(pools) - 14) - min(EVENTS, len(watch.latest))
    parts: list[RenderableType] = [_head(watch)]
    if note:
        parts.append(Text(note, style="bold red"))
    parts += [_pools(watch, pools), _calls(rows[: max(left, 1)], watch)]
    if len(rows) > left:
        parts.append(Text(f"  and {len(rows) - left:,} more calls", style="dim"))
    if watch.latest:
        parts.append(_events(watch))
    return Group(*parts)


def _head(watch: Watch) -> Text:
    numbers, own = watch.numbers, watch.usage()
    words = [
        watch.url,
        f"up {_duration(numbers['uptime_s'])}",
        f"{numbers['sessions']:,} sessions",
        f"{numbers['calls']:,} calls in flight",
        f"proxy {_mib(own.rss_bytes)}",
        f"{own.children:,} children",
    ]
    text = Text("  ".join(words), style="bold", no_wrap=False)
    if watch.restarted_at is not None and time.monotonic() - watch.restarted_at < SAID_FOR:
        times = "" if watch.restarts == 1 else f" {watch.restarts} times"
        text.append(f"\nthe proxy was restarted{times}; everything is counted anew", style="bold yellow")
    return text


def _table(title: str, *columns: str, words: int) -> Table:
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for number, column in enumerate(columns):
        text = number < words
        table.add_column(
            column,
            justify="left" if text else "right",
            no_wrap=True,
            overflow="ellipsis",
            max_width=WORD if text else None,
        )
    return table


def _fitted(table: Table) -> Table:
    """In a narrow terminal names give way, numbers never."""
    for column in table.columns:
        if column.justify == "right":
            column.min_width = max(len(str(cell)) for cell in (column.header, *column.cells))
    return table


def _pools(watch: Watch, pools: list[tuple[str, str, dict[str, Any]]]) -> Table:
    names = ("busy", "waiting", "idle", "opening", "max", "timeouts", "lost")
    table = _table("pools", "server", "mode", *names, "procs", "RSS", words=2)
    for upstream, mode, pool in pools:
        usage = watch.usage(upstream)
        full = bool(pool["waiting"])
        table.add_row(
            upstream, mode, f"{pool['busy']:,}", Text(f"{pool['waiting']:,}", "bold red" if full else ""),
            *(f"{pool[name]:,}" for name in ("idle", "opening", "max", "acquire_timeouts", "closed_lost")),
            *((f"{usage.processes + usage.children:,}", _mib(usage.rss_bytes)) if usage.processes else ("-", "-")),
        )  # fmt: skip
    return _fitted(table)


def _calls(rows: list[Row], watch: Watch) -> Table:
    title = f"calls of the last {watch.covered_s:.0f} s" if watch.covered_s >= 1 else "calls"
    table = _table(
        title, "server", "call", "per s", "p50 ms", "p95 ms", "p99 ms", "max ms", "errors", words=2
    )
    for row in rows:
        times = (row.p50_ms, row.p95_ms, row.p99_ms, row.max_ms)
        errors = Text(f"{row.errors:,}", "bold red" if row.errors else "")
        table.add_row(row.upstream, row.call, _number(row.per_s), *map(_number, times), errors)
    if not rows:
        table.add_row("none", *[""] * 7)
    return _fitted(table)


def _events(watch: Watch) -> Table:
    table = _table("events, the newest first", "UTC", "event", "server", words=3)
    newest = [*watch.latest][: -EVENTS - 1 : -1]
    for column, longest in zip(
        table.columns,
        (8, max(len(each.kind) for each in newest), max(len(each.upstream) for each in newest)),
        strict=True,
    ):
        column.min_width = min(longest, WORD)  # the detail is what gives way
    table.add_column("detail", overflow="ellipsis", no_wrap=True, ratio=1)
    for each in newest:
        when = datetime.fromtimestamp(each.ts_ns / 1e9, UTC)
        table.add_row(f"{when:%H:%M:%S}", each.kind, each.upstream, " ".join(each.detail.split()))
    return table


def _number(value: float) -> str:
    if value >= 100 or not value:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
