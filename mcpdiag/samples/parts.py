"""One part of a frame is one Parquet file; all parts of a frame have the same Arrow schema."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

try:
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError(f"captures need {error.name}; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.samples.buffer import Rows
from mcpdiag.samples.frame import DataFrame, build, conform, empty
from mcpdiag.samples.schema import SCHEMA, FrameName


@cache
def arrow_schema(name: FrameName) -> pa.Schema:
    """Fixed by the frame: pandas would choose the width of a category's numbers by how many there are."""
    types = {
        "datetime64[ns, UTC]": pa.timestamp("ns", tz="UTC"),
        "category": pa.dictionary(pa.int32(), pa.string()),
        "float64": pa.float64(),
        "int64": pa.int64(),
        "bool": pa.bool_(),
        "string": pa.string(),
    }
    return pa.schema([(column, types[about.dtype]) for column, about in SCHEMA[name].items()])


def write(name: FrameName, rows: Rows, path: Path) -> None:
    """Write rows as a part. Until it is whole it has another name, which readers of folders pass over."""
    table = pa.Table.from_pandas(build(name, rows), schema=arrow_schema(name), preserve_index=False)
    unfinished = path.with_name(f".{path.name}.tmp")
    categories: Any = [column for column, about in SCHEMA[name].items() if about.dtype == "category"]
    pq.write_table(
        table.replace_schema_metadata(None), unfinished, compression="zstd", use_dictionary=categories
    )
    unfinished.replace(path)


def read(name: FrameName, parts: Sequence[Path]) -> DataFrame:
    """The rows of all parts, in their order, with a RangeIndex.

    Raises:
        ValueError: one is damaged; the message names it.
    """
    if not parts:
        return empty(name)
    try:
        table = ds.dataset([str(part) for part in parts], format="parquet").to_table()
    except pa.ArrowInvalid as error:
        raise ValueError(f"a part of {parts[0].parent} cannot be read: {error}") from None
    return conform(name, table.to_pandas())


def count(parts: Sequence[Path]) -> int:
    """How many rows they hold."""
    return sum(pq.read_metadata(part).num_rows for part in parts)
