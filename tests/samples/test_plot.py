"""Every picture: on the axes it is given, with units, without labels that overlap, also of nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mcpdiag.samples import plot
from mcpdiag.samples.frame import DataFrame, empty
from mcpdiag.samples.heap_frame import candidates
from mcpdiag.samples.heap_records import Site
from mcpdiag.samples.heap_rows import Window
from mcpdiag.samples.recorder import Recorder

mpl.use("agg")
import matplotlib.pyplot as plt

COUNT = 5000
START = "2026-11-24T15:00:00Z"


def requests() -> DataFrame:
    chance = np.random.default_rng(1)
    first = chance.lognormal(1, 0.6, COUNT)
    names = ["echo", "a-tool-with-a-name-that-is-longer-than-any-label-may-be", ""]
    return pd.DataFrame(
        {
            "ts": pd.date_range(START, periods=COUNT, freq="20ms"),
            "upstream": pd.Categorical(["up"] * COUNT),
            "method": pd.Categorical(["tools/call"] * COUNT),
            "target": pd.Categorical(chance.choice(names, COUNT)),
            "outcome": pd.Categorical(chance.choice(["ok", "request_timeout"], COUNT, p=[0.99, 0.01])),
            "queue_ms": np.where(np.arange(COUNT) > COUNT / 2, 3.0, 0.0),
            "connect_ms": 0.1,
            "first_ms": first,
            "total_ms": first + 3.2,
            "sent_ms": 3.1,
        }
    )


def pool() -> DataFrame:
    tick = np.arange(60)
    ups = {
        "upstream": pd.Categorical(["up"] * 60),
        "max": 10,
        "busy": np.minimum(10, tick // 4),
        "opening": tick % 2,
    }
    return pd.DataFrame(
        {
            "ts": pd.date_range(START, periods=60, freq="1s"),
            **ups,
            "returning": 0,
            "idle": 1,
            "waiting": tick // 3,
        }
    )


def memory() -> DataFrame:
    when = pd.date_range(START, periods=60, freq="1s")
    rows = [(ts, "", "proxy", 60e6) for ts in when] + [(ts, "up", "server", 90e6) for ts in when]
    return pd.DataFrame(rows, columns=["ts", "upstream", "process", "rss_bytes"])


def events() -> DataFrame:
    when = pd.date_range(START, periods=20, freq="3s")
    return pd.DataFrame({"ts": when, "kind": pd.Categorical(["reconnect_attempt", "child_exit"] * 10)})


def heap() -> DataFrame:
    """A window, and a later one of the same name, of which one site has no file."""
    long = "a_function_with_a_name_that_is_longer_than_any_label_may_be"
    rows = [
        Site("leaked", n * 1000 * size, n, "malloc", f"{long}_{n}", f"/a/b/mcpdiag/file_{n}.py", n, "")
        for size in (1, 3)
        for n in range(1, 30)
    ]
    recorder = Recorder()
    recorder.heap.rows.keep(Window(1_000_000_000, "", "w", 1.0, 10, (*rows[:29],)))
    other = Site("leaked", 500_000, 7, "", "(other)", "", 0, "")
    recorder.heap.rows.keep(Window(2_000_000_000, "", "w", 1.0, 10, (*rows[29:], other)))
    return recorder.heap.frame


def growth() -> DataFrame:
    frame = heap()
    recorder = Recorder()
    for name, sites in (("a", 10), ("b", 20)):
        rows = frame[frame["ts"] == frame["ts"].max()][list(Site._fields)].head(sites)
        found = tuple(Site(*row) for row in rows.itertuples(index=False))
        recorder.heap.rows.keep(Window(1, "", name, 1.0, 10, found))
    return recorder.heap.diff("a", "b")


PICTURES: dict[str, tuple[Callable[..., Axes], Callable[[], DataFrame], str]] = {
    "latency": (plot.latency, requests, "ms"),
    "percentiles": (plot.percentiles, requests, "ms"),
    "pool": (plot.pool, pool, "connections"),
    "phases": (plot.phases, requests, "ms"),
    "memory": (plot.memory, memory, "MiB"),
    "events": (plot.events, events, "UTC"),
    "heap": (plot.heap, heap, "KiB"),
    "growth": (plot.growth, growth, "bytes a request"),
}


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def overlaps(ax: Axes) -> list[tuple[str, str]]:
    """Pairs of labels on one axis that cover each other."""
    ax.figure.canvas.draw()
    found = []
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        labels = [
            (label.get_text(), label.get_window_extent())
            for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
            if label.get_text() and low <= place <= high
        ]
        for (one, box), (other, next_box) in pairwise(labels):
            if box.overlaps(next_box):
                found.append((one, other))
    return found


@pytest.mark.parametrize("name", PICTURES)
def test_it_says_its_unit_and_no_labels_overlap_at_800_pixels(name: str) -> None:
    draw, data, unit = PICTURES[name]
    ax = draw(data())
    assert plt.gcf().get_size_inches()[0] * 100 == 800
    assert unit in ax.get_xlabel() + ax.get_ylabel()
    assert overlaps(ax) == []
    assert ax.lines or ax.patches or ax.collections


@pytest.mark.parametrize("name", PICTURES)
def test_it_draws_on_the_axes_that_it_is_given(name: str) -> None:
    draw, data, _ = PICTURES[name]
    figure, ax = plt.subplots()
    assert draw(data(), ax=ax) is ax
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", [name for name in PICTURES if name != "growth"])
def test_a_frame_without_rows_gives_a_picture_without_data(name: str) -> None:
    frames: dict[str, Any] = {"latency": "requests", "percentiles": "requests", "phases": "requests"}
    draw, _, _ = PICTURES[name]
    ax = draw(empty(frames.get(name, name)))
    ax.figure.canvas.draw()


def widths(ax: Axes) -> list[float]:
    return [patch.get_width() for patch in ax.patches if isinstance(patch, Rectangle)]


def test_bars_are_of_the_newest_window_one_a_site_although_their_labels_are_cut() -> None:
    bars = widths(plot.heap(heap()))
    assert bars == sorted(bars)
    assert bars[-1] == 500_000 / 1024
    assert bars[-2] == 29 * 3000 / 1024
    assert len(bars) == plot.TOP


def test_growth_is_of_what_grew_a_request_or_in_kib_where_nobody_counts() -> None:
    frame = growth()
    ax = plot.growth(frame)
    assert widths(ax)[-1] == 20 * 3000 / 10
    assert len(ax.patches) == 10
    counted = frame.assign(growth_bytes_per_request=float("nan"))
    assert plot.growth(counted).get_xlabel() == "KiB"
    nothing = plot.growth(frame[frame["size_bytes"] == 0])
    assert [text.get_text() for text in nothing.texts] == ["none"]
    plot.growth(candidates([], (1, 2, 3), 16)).figure.canvas.draw()


def test_the_distribution_by_a_column_has_a_line_for_each_value_and_calls_without_target_go_by_method() -> (
    None
):
    labels = plot.percentiles(requests(), by="target").get_legend_handles_labels()[1]
    assert len(labels) == 3
    assert any(label.startswith("tools/call (") for label in labels)
    assert max(map(len, labels)) <= plot.LABEL + len(" (5,000)")


def test_the_percentiles_of_the_latency_are_those_of_each_bin() -> None:
    frame = requests()
    ax = plot.latency(frame, every="100s", quantiles=(0.5,))
    drawn = float(np.asarray(ax.lines[0].get_ydata(), dtype=float)[0])
    assert drawn == pytest.approx(float(np.quantile(frame["total_ms"], 0.5)), rel=1e-6)


@pytest.mark.parametrize("freq", ["40us", "10ms", "20ms", "1s", "1min"])
def test_no_two_ticks_of_time_say_the_same(freq: str) -> None:
    frame = requests()
    frame["ts"] = pd.date_range(START, periods=COUNT, freq=freq)
    ax = plot.latency(frame, every="100ms")
    ax.figure.canvas.draw()
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert len(labels) == len({*labels})
    assert overlaps(ax) == []
