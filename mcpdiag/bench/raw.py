"""Raw samples as a file beside the result: Parquet where pyarrow is installed, else CSV.gz with the same columns.

`cell` and `round` say which run; `intended_us`, `sent_us`, `done_us` count from the start of the measured time, so
that warm-up is negative; `sent_us` is empty for a call that was never sent; `call` and `outcome` are words.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from mcpdiag.bench.columns import NEVER, OUTCOMES, Measurement

COLUMNS: Final = ("cell", "round", "intended_us", "sent_us", "done_us", "call", "outcome")
BATCH: Final = 50_000
Row = tuple[str, int, int, "int | None", int, str, str]
Run = tuple[str, int, Measurement]


class RawFile:
    """`with RawFile(folder) as raw: raw.add(cell, round, measurement)`: written as it comes, nothing is kept.

    Attributes:
        path: samples.parquet or samples.csv.gz in the folder.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._arrow = _arrow()
        self.path = folder / ("samples.csv.gz" if self._arrow is None else "samples.parquet")
        self._sink: Any = None

    def __enter__(self) -> RawFile:
        if self._arrow is not None:
            pa, parquet = self._arrow
            words = pa.dictionary(pa.int16(), pa.string())
            kinds = [words, pa.int32(), pa.int64(), pa.int64(), pa.int64(), words, words]
            self._schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
            self._sink = parquet.ParquetWriter(self.path, self._schema)
            return self
        packed = gzip.open(self.path, "wb", compresslevel=3)
        self._sink = io.TextIOWrapper(packed, encoding="utf-8", newline="")
        self._csv = csv.writer(self._sink)
        self._csv.writerow(COLUMNS)
        return self

    def add(self, cell: str, number: int, measurement: Measurement) -> None:
        """The samples of one run."""
        rows = rows_of(cell, number, measurement)
        if self._arrow is None:
            self._csv.writerows(rows)
            return
        pa, _ = self._arrow
        for batch in _batches(rows):
            columns = [list(column) for column in zip(*batch, strict=True)]
            arrays = [pa.array(c, type=f.type) for c, f in zip(columns, self._schema, strict=True)]
            self._sink.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def __exit__(self, *_: object) -> None:
        self._sink.close()


def rows_of(cell: str, number: int, measurement: Measurement) -> Iterator[Row]:
    """The samples of a run, times in whole microseconds."""
    columns, calls = measurement.columns, measurement.report.calls
    for at in range(len(columns)):
        sent = columns.sent_ns[at]
        yield (
            cell,
            number,
            columns.intended_ns[at] // 1000,
            None if sent == NEVER else sent // 1000,
            columns.done_ns[at] // 1000,
            calls[columns.call[at]],
            OUTCOMES[columns.outcome[at]],
        )


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _arrow() -> tuple[Any, Any] | None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return None
    return pyarrow, pyarrow.parquet
