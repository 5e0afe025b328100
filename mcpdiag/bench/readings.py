"""What a soak reads of the processes, one row a process and moment, and its file: Parquet, or CSV.gz without pyarrow."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mcpdiag.bench.tally import Pace
from mcpdiag.bench.vitals import NAN, Vitals

METRICS: Final = (
    "rss_bytes", "private_bytes", "blocks", "heap_bytes", "fds", "threads", "children", "sessions", "cpu_s",
)  # fmt: skip
COLUMNS: Final = (
    "at_s", "requests", "process", "processes", *METRICS, "calls", "failed", "p50_ms", "p99_ms", "max_ms", "waiting", "busy",
)  # fmt: skip
_WHOLE: Final = {"requests", "processes", "calls", "failed", "waiting"}


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a soak: the load of the interval before it, and the processes.

    Attributes:
        at_s: seconds since the load began.
        requests: calls that had ended, the failed ones too.
        sessions: that the proxy had.
        busy: calls that were under way in it.
        vitals: by the name of the process: `proxy`, `server`.
        waiting: calls due that had found no client free.
    """

    at_s: float
    requests: int
    vitals: dict[str, Vitals]
    sessions: float = NAN
    busy: float = NAN
    pace: Pace = Pace()
    waiting: int = 0

    def value(self, process: str, metric: str) -> float:
        """One number; nan if it could not be read. `sessions` is the proxy's."""
        if metric == "sessions":
            return self.sessions if process == "proxy" else NAN
        found = self.vitals.get(process)
        return NAN if found is None else float(getattr(found, metric))


def rows(readings: Sequence[Reading]) -> list[tuple[Any, ...]]:
    """A row a process and moment, below `COLUMNS`."""
    return [
        (
            round(each.at_s, 3),
            each.requests,
            process,
            vitals.processes,
            *(each.value(process, metric) for metric in METRICS),
            each.pace.calls,
            each.pace.failed,
            each.pace.p50_ms,
            each.pace.p99_ms,
            each.pace.max_ms,
            each.waiting,
            each.busy,
        )
        for each in readings
        for process, vitals in each.vitals.items()
    ]


def write(readings: Sequence[Reading], folder: Path) -> Path:
    """Write them as readings.parquet, or readings.csv.gz; what could not be read is empty."""
    body = [
        [None if isinstance(each, float) and math.isnan(each) else each for each in row]
        for row in rows(readings)
    ]
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        path = folder / "readings.csv.gz"
        with gzip.open(path, "wb") as packed, io.TextIOWrapper(packed, encoding="utf-8", newline="") as sink:
            writer = csv.writer(sink)
            writer.writerows([COLUMNS, *body])
        return path
    kinds = [pa.string() if n == "process" else pa.int64() if n in _WHOLE else pa.float64() for n in COLUMNS]
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    columns = [list(column) for column in zip(*body, strict=True)] or [[] for _ in COLUMNS]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    path = folder / "readings.parquet"
    parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")
    return path
