"""SCHEMA is the truth: of the events, of the pool's numbers, of what frames look like, of the page."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from mcpdiag.hooks import ExchangeDone, Happened
from mcpdiag.pool.stats import PoolStats
from mcpdiag.samples.frame import build, conform, document, empty
from mcpdiag.samples.heap_records import Site
from mcpdiag.samples.heap_rows import Window
from mcpdiag.samples.processes import Usage
from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.schema import SCHEMA, FrameName

FRAMES: list[FrameName] = [*SCHEMA]
DONE = ExchangeDone(
    "up", "stdio", "tools/call", "echo", "s1", "2025-11-25", "ok",
    1.5, 2.5, 3.5, 9.5, True, 2, 3, 4, 500, 600, "op1", 4.5,
)  # fmt: skip
# The hook's own object for an exporter of traces is no sample.
DONE_FIELDS = [field.name for field in msgspec.structs.fields(ExchangeDone) if field.name != "trace"]


def test_every_field_of_an_exchange_is_a_column() -> None:
    assert [*SCHEMA["requests"]][1:] == DONE_FIELDS


def test_every_field_of_an_event_is_a_column() -> None:
    assert {*SCHEMA["events"]} == {"ts", *(field.name for field in fields(Happened))}


def test_every_number_of_the_pool_is_a_column() -> None:
    assert [*SCHEMA["pool"]][4:] == [field.name for field in fields(PoolStats)]


def test_every_number_of_a_site_is_a_column_of_heap() -> None:
    assert [*SCHEMA["heap"]][5:] == [*Site._fields]


def test_what_processes_use_are_the_last_columns_of_memory() -> None:
    assert [*SCHEMA["memory"]][3:] == [*Usage._fields]


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_begins_with_the_time_and_the_upstream(name: FrameName) -> None:
    columns = SCHEMA[name]
    assert [*columns][:2] == ["ts", "upstream"]
    assert (columns["ts"].dtype, columns["upstream"].dtype) == ("datetime64[ns, UTC]", "category")
    assert all(about.meaning for about in columns.values())
    units = {"_ms": "ms", "_s": "s", "_bytes": "bytes"}
    for column, about in columns.items():
        for end, unit in units.items():
            if column.endswith(end):
                assert about.unit == unit


@pytest.mark.parametrize("name", FRAMES)
def test_frames_have_the_dtypes_of_the_schema_with_and_without_rows(name: FrameName) -> None:
    recorder = Recorder()
    without = recorder.frame(name)
    recorder.emit(DONE)
    recorder.emit(Happened("child_exit", "up", "s1", "why", 1, 2.5))
    recorder.pool_row("up", "session", "handshake", PoolStats(size=3))
    recorder.memory_row("", "proxy", *Usage(1, 2, float("nan"), 4.0, 5, 6, 7, 8.0))
    recorder.heap.rows.keep(
        Window(1, "up", "pid 1", 2.5, 3, (Site("leaked", 1, 2, "malloc", "f", "f.py", 3, "f (f.py:3)"),))
    )
    kinds = 2 if name == "heap" else 1
    for frame, rows in ((empty(name), 0), (without, 0), (recorder.frame(name), kinds)):
        assert len(frame) == rows
        assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == {
            column: about.dtype for column, about in SCHEMA[name].items()
        }
        pd.testing.assert_frame_equal(conform(name, frame), frame, check_categorical=False)


def test_every_value_of_an_exchange_arrives_in_its_column() -> None:
    recorder = Recorder(clock=lambda: 1_700_000_000_123_456_789)
    recorder.emit(DONE)
    (row,) = recorder.requests.to_dict("records")
    assert row.pop("ts") == pd.Timestamp(1_700_000_000_123_456_789, tz="UTC")
    assert row == {name: getattr(DONE, name) for name in DONE_FIELDS}


def test_every_number_of_a_pool_arrives_in_its_column() -> None:
    stats = PoolStats(*range(1, len(fields(PoolStats)) + 1))
    recorder = Recorder()
    recorder.pool_row("up", "request", "both", stats)
    (row,) = recorder.pool.to_dict("records")
    assert {field.name: row[field.name] for field in fields(PoolStats)} == {
        field.name: getattr(stats, field.name) for field in fields(PoolStats)
    }
    assert (row["upstream"], row["mode"], row["era"]) == ("up", "request", "both")


def test_every_value_of_a_heap_window_arrives_in_its_column() -> None:
    """A kind in which nothing was found has a row too, so that each window is in the frame."""
    site = Site("leaked", 1, 2, "malloc", "f", "f.py", 3, "f (f.py:3)")
    recorder = Recorder()
    assert recorder.heap.rows.keep(Window(4, "up", "w", 2.5, 6, (site,))) == (0, 2)
    first, second = recorder.heap.frame.to_dict("records")
    assert [*first.values()] == [pd.Timestamp(4, tz="UTC"), "up", "w", 2.5, 6, *site]
    assert (second["kind"], second["function"], second["size_bytes"]) == ("high_watermark", "(other)", 0)


def test_a_category_has_only_the_texts_of_its_rows_and_other_for_those_that_were_too_many() -> None:
    recorder = Recorder(names=3)
    for number in range(5):
        recorder.emit(Happened(f"kind{number}", "up", f"session{number}"))
    events = recorder.events
    assert [*events["kind"]] == ["kind0", "kind1", "(other)", "(other)", "(other)"]
    assert [*events["session"]] == ["(other)", "(other)", "session2", "session3", "session4"]
    newest = build("events", recorder.rows("events", 4))
    assert [*newest["session"].cat.categories] == ["session4"]


def test_a_frame_can_be_changed_and_the_recorder_stays_as_it_was() -> None:
    recorder = Recorder()
    recorder.emit(DONE)
    frame = recorder.requests
    frame.loc[0, "total_ms"] = 0.0
    assert recorder.requests["total_ms"][0] == 9.5


def test_what_an_older_capture_lacks_is_filled_up() -> None:
    recorder = Recorder()
    recorder.emit(DONE)
    old = recorder.requests.drop(columns=["operation", "bytes_in", "connect_ms"])
    frame = conform("requests", old)
    assert [str(dtype) for dtype in frame.dtypes] == [about.dtype for about in SCHEMA["requests"].values()]
    assert (frame["operation"][0], frame["bytes_in"][0]) == ("", 0)
    assert frame["connect_ms"].isna().all()


def test_the_page_is_what_the_schema_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "frames.md"
    assert page.read_text() == document(), "run: python -m mcpdiag.samples.frame > docs/frames.md"
