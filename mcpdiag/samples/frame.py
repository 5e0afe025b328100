"""Rows become DataFrames, of the dtypes that SCHEMA says; and the page that describes them.

python -m mcpdiag.samples.frame > docs/frames.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

try:
    import pandas as pd
except ImportError as error:
    raise ImportError(f"frames need {error.name}; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.samples.buffer import Rows
from mcpdiag.samples.columns import Texts, columns
from mcpdiag.samples.schema import ABOUT, SCHEMA, Dtype, FrameName

if TYPE_CHECKING:
    from pandas import DataFrame
else:
    DataFrame = pd.DataFrame

__all__ = ["SCHEMA", "DataFrame", "build", "conform", "document", "empty"]
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
    made: dict[str, Any] = {}
    for column, values in columns(name, rows).items():
        dtype = SCHEMA[name][column].dtype
        if isinstance(values, Texts):
            names = pd.Index(values.names, dtype="str")
            made[column] = pd.Categorical.from_codes(values.codes, categories=names)
        elif dtype == "datetime64[ns, UTC]":
            made[column] = pd.DatetimeIndex(values.view("datetime64[ns]"), tz="UTC")
        else:
            made[column] = pd.array(values, dtype="string") if dtype == "string" else values
    return pd.DataFrame(made, copy=False)


def empty(name: FrameName) -> DataFrame:
    """The frame without a row, with all its columns and dtypes."""
    each = {column: pd.Series([], dtype=_pandas(about.dtype)) for column, about in SCHEMA[name].items()}
    return pd.DataFrame(each)


def conform(name: FrameName, frame: DataFrame) -> DataFrame:
    """The same rows with the columns and dtypes of the schema; columns that an older capture lacks are empty."""
    made = {}
    for column, about in SCHEMA[name].items():
        values = frame[column] if column in frame else pd.Series(_MISSING[about.dtype], index=frame.index)
        made[column] = values.astype(_pandas(about.dtype, values))
    return pd.DataFrame(made, copy=False)


def _pandas(dtype: Dtype, values: Any = ()) -> Any:
    if dtype != "category" or isinstance(getattr(values, "dtype", None), pd.CategoricalDtype):
        return dtype
    return pd.CategoricalDtype(pd.Index([], dtype="str")) if not len(values) else dtype


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
    for name, each in SCHEMA.items():
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
            for column, about in each.items()
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201
