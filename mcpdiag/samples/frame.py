"""Rows become DataFrames, of the dtypes that SCHEMA says; and the page that describes them.

python -m mcpdiag.samples.frame > docs/frames.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

try:
    import numpy as np
    import pandas as pd
except ImportError as error:
    raise ImportError(f"frames need {error.name}; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.samples.buffer import Rows, layout
from mcpdiag.samples.interned import OTHER, Lookup
from mcpdiag.samples.schema import ABOUT, SCHEMA, Dtype, FrameName

if TYPE_CHECKING:
    from pandas import DataFrame
else:
    DataFrame = pd.DataFrame

__all__ = ["SCHEMA", "DataFrame", "build", "conform", "document", "empty"]
_NUMPY: Final = {"q": "<i8", "d": "<f8", "?": "?", "i": "<i4"}
_MISSING: Final[Mapping[Dtype, Any]] = {  # in a capture of a version that did not have the column yet
    "datetime64[ns, UTC]": pd.NaT,
    "category": "",
    "float64": float("nan"),
    "int64": 0,
    "bool": False,
    "string": "",
}


def build(name: FrameName, rows: Rows) -> DataFrame:
    """A DataFrame of a frame's rows, with a RangeIndex. It owns its memory.

    Args:
        name: of the frame.
        rows: a copy that a ring has made.
    """
    records = np.frombuffer(rows.records, _records(name))
    columns: dict[str, Any] = {}
    for column, about in SCHEMA[name].items():
        if about.dtype == "string":
            columns[column] = pd.array(rows.texts[column], dtype="string")
        elif about.dtype == "category":
            columns[column] = _category(records[column], rows.lookups[column])
        elif about.dtype == "datetime64[ns, UTC]":
            columns[column] = pd.DatetimeIndex(records[column].astype("datetime64[ns]"), tz="UTC")
        else:
            columns[column] = records[column].copy()
    return pd.DataFrame(columns, copy=False)


def _records(name: FrameName) -> Any:
    return np.dtype([(column, _NUMPY[code]) for column, code in layout(SCHEMA[name]).items()])


def empty(name: FrameName) -> DataFrame:
    """The frame without a row, with all its columns and dtypes."""
    columns = {column: pd.Series([], dtype=_pandas(about.dtype)) for column, about in SCHEMA[name].items()}
    return pd.DataFrame(columns)


def conform(name: FrameName, frame: DataFrame) -> DataFrame:
    """The same rows with the columns and dtypes of the schema; columns that an older capture lacks are empty."""
    columns = {}
    for column, about in SCHEMA[name].items():
        values = frame[column] if column in frame else pd.Series(_MISSING[about.dtype], index=frame.index)
        columns[column] = values.astype(_pandas(about.dtype, values))
    return pd.DataFrame(columns, copy=False)


def _pandas(dtype: Dtype, values: Any = ()) -> Any:
    if dtype != "category" or isinstance(getattr(values, "dtype", None), pd.CategoricalDtype):
        return dtype
    return pd.CategoricalDtype(pd.Index([], dtype="str")) if not len(values) else dtype


def _category(numbers: Any, lookup: Lookup) -> Any:
    """The numbers as a Categorical that has only the texts that occur, each once."""
    names = [*lookup.names, OTHER]
    codes = numbers
    if lookup.oldest:  # else nothing was pushed out, and a number is a place
        codes = numbers % len(lookup.names)
        codes[numbers < lookup.oldest] = len(lookup.names)
    used = np.flatnonzero(np.bincount(codes, minlength=len(names)))
    dense = np.zeros(len(names), "int32")
    dense[used] = np.arange(len(used), dtype="int32")
    return pd.Categorical.from_codes(
        dense[codes], categories=pd.Index([names[code] for code in used], dtype="str")
    )


def document() -> str:
    """docs/frames.md."""
    lines = [
        "# Frames",
        "",
        "Every frame is a pandas DataFrame that begins with `ts`, in UTC, and `upstream`; all are on the same clock.",
        "`category` and `string` columns hold text, an empty one where there is nothing to say.",
        "A number is never missing but where its meaning says NaN.",
        "A category tells apart 10,000 values of at most 256 characters; `(other)` stands for the rest.",
        "Payloads are never recorded.",
        "",
        "`python -m mcpdiag.samples.frame > docs/frames.md` has written this page from `mcpdiag/samples/schema.py`.",
    ]
    for name, columns in SCHEMA.items():
        lines += [
            "",
            f"## `{name}`",
            "",
            ABOUT[name],
            "",
            "| column | dtype | unit | meaning |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{column}` | {about.dtype} | {about.unit} | {about.meaning} |"
            for column, about in columns.items()
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201
