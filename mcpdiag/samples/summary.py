"""What a requests frame says in a few lines: counts, errors, throughput, percentiles of each phase."""

from __future__ import annotations

from typing import Any, Final

from mcpdiag.html import line, table
from mcpdiag.samples.frame import DataFrame
from mcpdiag.samples.phases import phases

BY: Final = ["upstream", "method", "target"]
PHASES: Final = ("total", "queue", "connect", "first", "relay")
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
NO_ERRORS: Final = ["ok", "cancelled"]
SHOWN: Final = 20  # rows in a notebook
_COLUMNS: Final = (
    "count",
    "error_rate",
    "rps",
    "total_p50_ms",
    "total_p99_ms",
    "queue_p99_ms",
    "first_p50_ms",
)
_HEADINGS: Final = (
    "server",
    "call",
    "calls",
    "errors",
    "per s",
    "p50 ms",
    "p99 ms",
    "queue p99",
    "first p50",
)


def summarize(requests: DataFrame) -> DataFrame:
    """One row for each upstream, method and target, the most called first.

    Args:
        requests: the frame `requests`, or a part of it.

    Returns:
        A DataFrame with the index (upstream, method, target) and the columns `count`; `errors` and `error_rate`
        (0 to 1), which leave out what the client cancelled; `rps`, requests a second from the first one's arrival
        to the last one's end, over all rows; and `{phase}_{p50,p90,p95,p99,max}_ms` for the phases `total`, `queue`
        (waiting for a connection), `connect` (opening one), `first` (until the first byte) and `relay` (the rest),
        as `samples.phases` splits them. Percentiles are interpolated linearly over all rows of the group.
    """
    rows = requests[[*BY, "total_ms"]].join(phases(requests))
    rows["error"] = ~requests["outcome"].isin(NO_ERRORS)
    groups = rows.groupby(BY, observed=True, sort=False)
    table = groups.size().to_frame("count")
    table["errors"] = groups["error"].sum().astype("int64")
    table["error_rate"] = table["errors"] / table["count"]
    table["rps"] = table["count"] / _seconds(requests)
    for phase in PHASES:
        for name, quantile in QUANTILES.items():
            table[f"{phase}_{name}_ms"] = groups[f"{phase}_ms"].quantile(quantile)
    return table.sort_values("count", ascending=False, kind="stable")


def _seconds(requests: DataFrame) -> float:
    """From the first arrival to the last end; NaN where there is nothing."""
    if not len(requests):
        return float("nan")
    ended_ns = requests["ts"].astype("int64")
    began_ns = ended_ns - requests["total_ms"] * 1e6
    return float(ended_ns.max() - began_ns.min()) / 1e9 or float("nan")


def as_html(summary: DataFrame) -> str:
    """The summary as a table for a notebook: the first 20 rows, without the phases' percentiles but p50 and p99."""
    rows = []
    for key, values in summary.head(SHOWN).iterrows():
        upstream, method, target = (str(part) for part in _parts(key))
        count, errors, *numbers = (float(values[name]) for name in _COLUMNS)
        rows.append((upstream, target or method, count, f"{errors:.1%}", *numbers))
    more = len(summary) - SHOWN
    return table(_HEADINGS, rows, words=2) + (line(f"and {more:,} more") if more > 0 else "")


def _parts(key: Any) -> tuple[Any, Any, Any]:
    upstream, method, target = key
    return upstream, method, target
