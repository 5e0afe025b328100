"""One part of a frame is one Parquet file; all parts of a frame have the same Arrow schema."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError(f"captures need {error.name}; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.samples.buffer import Rows
from mcpdiag.samples.columns import Texts, bits, columns, offsets
from mcpdiag.samples.schema import SCHEMA, FrameName

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame


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


def table(name: FrameName, rows: Rows) -> pa.Table:
    """Rows as an Arrow table.

    It needs no pandas, so a proxy that is looked at from elsewhere stays without it: from buffers, because `pa.array`
    imports pandas to ask whether it was given something of it.
    """
    arrays: list[Any] = []
    for field, values in zip(arrow_schema(name), columns(name, rows).values(), strict=True):
        if isinstance(values, Texts):
            arrays.append(
                pa.DictionaryArray.from_arrays(_numbers(values.codes, pa.int32()), _strings(values.names))
            )
        else:
            arrays.append(_strings(values) if isinstance(values, list) else _numbers(values, field.type))
    return pa.Table.from_arrays(arrays, schema=arrow_schema(name))


def _numbers(values: Any, dtype: pa.DataType) -> Any:
    data = bits(values) if pa.types.is_boolean(dtype) else values
    return pa.Array.from_buffers(dtype, len(values), [None, pa.py_buffer(data)])


def _strings(values: Sequence[str]) -> Any:
    encoded = [value.encode(errors="replace") for value in values]
    ends = pa.py_buffer(offsets(encoded))
    return pa.StringArray.from_buffers(len(encoded), ends, pa.py_buffer(b"".join(encoded)))


def write(name: FrameName, rows: Rows, path: Path) -> None:
    """Write rows as a part. Until it is whole it has another name, which readers of folders pass over."""
    unfinished = path.with_name(f".{path.name}.tmp")
    categories: Any = [column for column, about in SCHEMA[name].items() if about.dtype == "category"]
    pq.write_table(table(name, rows), unfinished, compression="zstd", use_dictionary=categories)
    unfinished.replace(path)


def read(name: FrameName, parts: Sequence[Path]) -> DataFrame:
    """The rows of all parts, in their order, with a RangeIndex.

    Raises:
        ValueError: one is damaged; the message names it.
    """
    import pyarrow.dataset as ds  # imports pandas

    from mcpdiag.samples.frame import conform, empty

    if not parts:
        return empty(name)
    try:
        found = ds.dataset([str(part) for part in parts], format="parquet").to_table()
    except pa.ArrowInvalid as error:
        raise ValueError(f"a part of {parts[0].parent} cannot be read: {error}") from None
    return conform(name, found.to_pandas())


def count(parts: Sequence[Path]) -> int:
    """How many rows they hold."""
    return sum(pq.read_metadata(part).num_rows for part in parts)
