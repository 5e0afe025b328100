"""Call sites as DataFrames: the frame `heap`, the difference of two windows, and candidates of growth.

Imported when somebody looks, because it needs pandas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

try:
    import pandas as pd
except ImportError as error:
    raise ImportError(f"frames need {error.name}; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.samples.frame import DataFrame
from mcpdiag.samples.heap_records import Grown, Site
from mcpdiag.samples.schema import Column, Dtype

COLUMNS: Final[Mapping[str, Column]] = {
    "ts": Column(
        "datetime64[ns, UTC]", "", "when the window closed; of a server, when its capture was last written"
    ),
    "upstream": Column("category", "", "the server whose process it is; empty for the proxy"),
    "window": Column("category", "", "the window's name; of a server `pid` and the number of its process"),
    "kind": Column(
        "category", "", "`high_watermark` (live at the window's peak) or `leaked` (live at its end)"
    ),
    "size_bytes": Column("int64", "bytes", "what the site held, of what was allocated in the window"),
    "n_allocations": Column("int64", "", "allocations that make up those bytes"),
    "allocator": Column(
        "category", "", "`malloc`, `mmap`, `pymalloc_malloc`, ...; empty in the row `(other)`"
    ),
    "function": Column("category", "", "of the innermost Python frame; `(other)` sums the smaller sites"),
    "file": Column("category", "", "its file"),
    "line": Column("int64", "", "its line"),
    "stack": Column("string", "", "the call path with the most bytes, innermost first, a line a frame"),
}
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


def frame(windows: Iterable[tuple[int, str, str, Sequence[Site]]]) -> DataFrame:
    """The frame `heap`: a row a call site a window, with a RangeIndex.

    Args:
        windows: of each: nanoseconds since 1970, upstream, name, sites.
    """
    rows = [(ts, upstream, name, *site) for ts, upstream, name, sites in windows for site in sites]
    values = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    return pd.DataFrame(
        {
            name: _series(list(column), about.dtype)
            for (name, about), column in zip(COLUMNS.items(), values, strict=True)
        }
    )


def _series(values: list[Any], dtype: Dtype) -> Any:
    if dtype == "category":
        return pd.Series(pd.Categorical(values, categories=pd.Index(sorted(set(values)), dtype="str")))
    if dtype == "datetime64[ns, UTC]":
        return pd.Series(pd.to_datetime(pd.Series(values, dtype="int64"), unit="ns", utc=True), dtype=dtype)
    return pd.Series(values, dtype=dtype)


def difference(a: Sequence[Site], b: Sequence[Site], per_request: tuple[int, int] | None) -> DataFrame:
    """What two windows' sites of one kind hold, side by side; see `Heap.diff`."""
    both = _by_site(a, "a").join(_by_site(b, "b"), how="outer")
    numbers = (
        both[["size_bytes_a", "n_allocations_a", "size_bytes_b", "n_allocations_b"]].fillna(0).astype("int64")
    )
    found = numbers.assign(
        size_bytes=numbers["size_bytes_b"] - numbers["size_bytes_a"],
        n_allocations=numbers["n_allocations_b"] - numbers["n_allocations_a"],
    )
    n_a, n_b = per_request or (float("nan"), float("nan"))
    found["bytes_per_request_a"] = numbers["size_bytes_a"] / n_a
    found["bytes_per_request_b"] = numbers["size_bytes_b"] / n_b
    found["growth_bytes_per_request"] = found["bytes_per_request_b"] - found["bytes_per_request_a"]
    found["stack"] = both["stack_b"].fillna(both["stack_a"]).astype("string")
    order = "size_bytes" if per_request is None else "growth_bytes_per_request"
    return (
        found.reset_index().astype({"line": "int64"}).sort_values(order, ascending=False, ignore_index=True)
    )


def _by_site(sites: Sequence[Site], which: str) -> DataFrame:
    """Sums over allocators. The sites come by size, so the first stack is the heaviest."""
    rows = pd.DataFrame([site[1:] for site in sites], columns=list(Site._fields[1:]))
    rows = rows.astype({"size_bytes": "int64", "n_allocations": "int64", "line": "int64"})
    rows = rows.astype(dict.fromkeys(("function", "file", "stack"), "string"))
    sums = rows.groupby(SITE, sort=False).agg(
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
