"""Call sites as DataFrames: the difference of two heap windows, and candidates of growth.

Imported when somebody looks, because it needs pandas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

try:
    import pandas as pd
except ImportError as error:
    raise ImportError(f"frames need {error.name}; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.samples.frame import DataFrame
from mcpdiag.samples.heap_records import Grown
from mcpdiag.samples.schema import Dtype

SITE: Final = ["function", "file", "line"]
GROWTH: Final[Mapping[str, Dtype]] = {
    "function": "string",
    "file": "string",
    "line": "int64",
    "growth_2_bytes_per_request": "float64",
    "growth_3_bytes_per_request": "float64",
    "growth_bytes_per_request": "float64",
    "live_1_bytes": "int64",
    "live_2_bytes": "int64",
    "live_3_bytes": "int64",
    "n_allocations": "int64",
    "stack": "string",
}


def named(frame: DataFrame, window: str, *, cut: bool) -> DataFrame:
    """The rows of a window; of several with its name the newest.

    Args:
        frame: the frame `heap`.
        cut: rows before it were overwritten, and so perhaps the first ones of its first window.

    Raises:
        KeyError: there is none, or it is not whole.
    """
    rows: DataFrame = frame[frame["window"] == window]
    rows = rows[rows["ts"] == rows["ts"].max()]
    if not len(rows):
        names = ", ".join(frame["window"].astype(str).drop_duplicates()) or "none"
        raise KeyError(f"there is no heap window '{window}'; kept are: {names}")
    if cut and rows.index[0] == 0:
        raise KeyError(f"of the heap window '{window}' the first rows are overwritten; take a newer one")
    return rows


def difference(a: DataFrame, b: DataFrame, kind: str, per_request: tuple[int, int] | None) -> DataFrame:
    """What the rows of two windows hold, side by side; see `HeapWindows.diff`."""
    both = _by_site(a[a["kind"] == kind], "a").join(_by_site(b[b["kind"] == kind], "b"), how="outer")
    numbers = (
        both[["size_bytes_a", "n_allocations_a", "size_bytes_b", "n_allocations_b"]].fillna(0).astype("int64")
    )
    found = numbers.assign(
        size_bytes=numbers["size_bytes_b"] - numbers["size_bytes_a"],
        n_allocations=numbers["n_allocations_b"] - numbers["n_allocations_a"],
    )
    counts = per_request or (int(a["requests"].iloc[0]), int(b["requests"].iloc[0]))
    known = min(counts) > 0
    n_a, n_b = counts if known else (float("nan"), float("nan"))
    found["bytes_per_request_a"] = numbers["size_bytes_a"] / n_a
    found["bytes_per_request_b"] = numbers["size_bytes_b"] / n_b
    found["growth_bytes_per_request"] = found["bytes_per_request_b"] - found["bytes_per_request_a"]
    found["stack"] = both["stack_b"].fillna(both["stack_a"]).astype("string")
    order = "growth_bytes_per_request" if known else "size_bytes"
    return (
        found.reset_index().astype({"line": "int64"}).sort_values(order, ascending=False, ignore_index=True)
    )


def _by_site(rows: DataFrame, which: str) -> DataFrame:
    """Sums over allocators. The sites come by size, so the first stack is the heaviest."""
    texts = rows.astype(dict.fromkeys(("function", "file", "stack"), "string"))
    sums = texts.groupby(SITE, sort=False).agg(
        size_bytes=("size_bytes", "sum"), n_allocations=("n_allocations", "sum"), stack=("stack", "first")
    )
    return sums.add_suffix(f"_{which}")


def candidates(grown: Iterable[Grown], requests: tuple[int, int, int], least: float) -> DataFrame:
    """Sites that grew by at least `least` bytes a request in each of the last two thirds; see `Heap.growth`."""
    second, third = requests[1] - requests[0], requests[2] - requests[1]
    rows = []
    for site in grown:
        in_second, in_third = site.live_2_bytes - site.live_1_bytes, site.live_3_bytes - site.live_2_bytes
        if in_second >= least * second and in_third >= least * third:
            each = (in_second / second, in_third / third, (in_second + in_third) / (second + third))
            rows.append((*site[4:7], *each, *site[:4], site.stack))
    found = pd.DataFrame(rows, columns=list(GROWTH)).astype(dict(GROWTH))
    found = found.sort_values("growth_bytes_per_request", ascending=False, ignore_index=True)
    found.attrs["requests"] = requests
    return found
