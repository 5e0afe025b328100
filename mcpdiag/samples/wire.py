"""Rows of a frame as bytes: an Arrow IPC stream, or JSON lines. What `/frames/{name}` answers, and `attach` reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.schema import SCHEMA

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

ARROW: Final = "application/vnd.apache.arrow.stream"
NDJSON: Final = "application/x-ndjson"
NEXT: Final = "mcpdiag-next"  # the number of the first row that is not in the answer
RUN: Final = "mcpdiag-run"  # another one after a restart, when numbers begin anew


def answer(recorder: Recorder, name: str, since: int, accept: str) -> tuple[bytes, str, dict[str, str]]:
    """Body, content type and headers for the rows of a frame from number `since` on; for an empty name what there is.

    Raises:
        KeyError: there is no frame of that name.
        ImportError: pyarrow, or for JSON lines pandas, is missing; the message says what to install.
    """
    if not name:
        return _overview(recorder), "application/json", {}
    frame_name = next((each for each in SCHEMA if each == name), None)
    if frame_name is None:
        raise KeyError(name)
    rows = recorder.rows(frame_name, since)
    headers = {NEXT: str(rows.stop), RUN: str(recorder.started_ns)}
    if NDJSON in accept:
        from mcpdiag.samples.frame import build

        body = build(frame_name, rows).to_json(
            orient="records", lines=True, date_format="iso", date_unit="ns"
        )
        return (body or "").encode(), NDJSON, headers
    pa = _pyarrow()
    from mcpdiag.samples.parts import table

    sink = pa.BufferOutputStream()
    found = table(frame_name, rows)
    with pa.ipc.new_stream(sink, found.schema) as stream:
        stream.write_table(found)
    return sink.getvalue().to_pybytes(), ARROW, headers


def read(body: bytes) -> DataFrame:
    """The frame of an Arrow `answer`, as pandas makes it. Raises ImportError, whose message says what to install."""
    frame: DataFrame = _pyarrow().ipc.open_stream(body).read_all().to_pandas()
    return frame


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            f"frames of a running proxy need {error.name}; pip install 'mcpdiag[notebook]'"
        ) from None
    return pyarrow


def _overview(recorder: Recorder) -> bytes:
    """Of each frame the rows written and dropped, and the run that they are of."""
    written, dropped = recorder.written, recorder.dropped
    frames = {name: {"written": written[name], "dropped": dropped[name]} for name in SCHEMA}
    return json.dumps({"run": str(recorder.started_ns), "frames": frames}).encode()
