"""Frames as pictures. Each function takes the axes to draw on, or makes some, and returns them.

Lines differ by dash and areas by hatch as well as by shade, so that a picture can be read in grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

try:
    import matplotlib.dates as mdates
    import numpy as np
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
except ImportError as error:
    raise ImportError(f"plots need {error.name}; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.samples.frame import DataFrame
from mcpdiag.samples.phases import WAIT_MS
from mcpdiag.samples.phases import phases as split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE: Final = (8.0, 3.2)  # inches: 800 px at 100 dpi
DASHES: Final = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
HATCHES: Final = ("", "///", "...", "xxx", "\\\\\\", "++")
SHADES: Final = ("#1b4f72", "#2e86c1", "#85c1e9", "#d5dbdb", "#f5b041", "#c0392b")
TICKS: Final = (50, 90, 99, 99.9, 99.99, 99.999)
LABEL: Final = 28  # characters
SITE: Final = 44  # characters of a call site
SHORT: Final = 16  # of these, a legend has four in a line, else two
TOP: Final = 12  # bars of a bar plot


def latency(
    requests: DataFrame,
    *,
    every: str = "1s",
    quantiles: tuple[float, ...] = (0.5, 0.95, 0.99),
    ax: Axes | None = None,
) -> Axes:
    """Percentiles of `total_ms` over time, in milliseconds on a logarithmic axis, with the errors as marks.

    Args:
        requests: the frame `requests`.
        every: the width of a bin, as pandas writes durations.
        quantiles: of the calls that ended in each bin.
    """
    ax = _axes(ax)
    if len(requests):
        bins = requests.set_index("ts")["total_ms"].resample(every)
        for number, quantile in enumerate(quantiles):
            line = bins.quantile(quantile).dropna()
            _line(
                ax,
                line.index,
                line.to_numpy(),
                f"p{quantile * 100:g}",
                number,
                marker="o" if len(line) == 1 else "",
            )
        bad = requests[~requests["outcome"].isin(["ok", "cancelled"])]
        if len(bad):
            ax.plot(bad["ts"], bad["total_ms"], "x", color=SHADES[5], label=f"errors ({len(bad):,})")
        ax.set_yscale("log")
    return _finish(ax, "time a call takes", "ms", time=True)


def percentiles(
    requests: DataFrame, *, by: str | None = None, column: str = "total_ms", ax: Axes | None = None
) -> Axes:
    """How long the slowest part of the calls takes: percentile on an axis that stretches the tail, as HDR plots do.

    Args:
        requests: the frame `requests`.
        by: a column; one line for each of its values, the most frequent first.
        column: what to plot, in milliseconds.
    """
    ax = _axes(ax)
    groups = [("all calls", requests)] if by is None else _groups(requests, by)
    longest = 0
    for number, (name, part) in enumerate(groups):
        values = np.sort(part[column].to_numpy())
        if len(values):
            share = np.arange(len(values)) / len(values)
            _line(ax, 1 / (1 - share), values, f"{_short(name)} ({len(values):,})", number)
            longest = max(longest, len(values))
    ax.set_xscale("log")
    ax.set_yscale("log")
    shown = [tick for tick in TICKS if 1 / (1 - tick / 100) <= max(longest, 10)]
    ax.set_xticks([1 / (1 - tick / 100) for tick in shown], [f"{tick:g}" for tick in shown])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("percentile of the calls")
    return _finish(ax, f"distribution of {column}", "ms")


def pool(frame: DataFrame, *, ax: Axes | None = None) -> Axes:
    """What the places of a pool are doing, as stacked areas up to `max_connections`, and the queue on top of them.

    Args:
        frame: the frame `pool`; of several pools the sums.
    """
    ax = _axes(ax)
    states = ("busy", "opening", "returning", "idle")
    if len(frame):
        ticks = frame.assign(ts=frame["ts"].dt.floor("1s")) if frame["upstream"].nunique() > 1 else frame
        sums = ticks.groupby("ts")[[*states, "waiting", "max"]].sum()
        areas = ax.stackplot(
            sums.index,
            *(sums[state] for state in (*states, "waiting")),
            labels=(*states, "waiting"),
            colors=(SHADES[0], SHADES[2], SHADES[3], "#f4f6f6", SHADES[4]),
        )
        for area, hatch in zip(areas, ("", "///", "...", "", "xxx"), strict=True):
            area.set_hatch(hatch)
            area.set_edgecolor("#566573")
            area.set_linewidth(0.4)
        ax.plot(sums.index, sums["max"], color="black", linestyle="--", linewidth=1, label="max_connections")
        ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half of a connection
    return _finish(ax, "connections", "connections, callers", time=True)


def phases(requests: DataFrame, *, by: str = "target", ax: Axes | None = None) -> Axes:
    """Where a call spends its time: the mean of each phase, one bar for each value of `by`, the slowest on top."""
    ax = _axes(ax)
    names = ("queue", "connect", "first byte", "relay")
    if len(requests):
        means = split(requests).groupby(_named(requests, by), observed=True).mean()
        means = means.loc[means.sum(axis=1).sort_values().index[-TOP:]]
        left = np.zeros(len(means))
        for number, (name, column) in enumerate(zip(names, WAIT_MS, strict=True)):
            ax.barh(
                [_short(label) for label in means.index], means[column], left=left, label=name, color=SHADES[number], hatch=HATCHES[number],
                edgecolor="white", linewidth=0.5,
            )  # fmt: skip
            left += means[column].to_numpy()
        ax.set_xlabel("mean, ms")
    ax.set_title("where calls spend their time", loc="left", fontsize=10)
    ax.margins(y=0.02)
    return _dressed(ax)


def heap(frame: DataFrame, *, kind: str = "leaked", ax: Axes | None = None) -> Axes:
    """The call sites that hold most, as bars in KiB, of the newest window. They are candidates, not proof.

    Args:
        frame: the frame `heap`, `recorder.heap.frame`.
        kind: `leaked` or `high_watermark`.
    """
    ax = _axes(ax)
    title = f"heap by call site ({kind}; candidates)"
    rows = frame[frame["kind"] == kind]
    if len(rows):
        last = rows.iloc[-1]
        newest = rows[(rows["window"] == last["window"]) & (rows["ts"] == last["ts"])]
        sizes = newest.assign(site=_sites(newest)).groupby("site")["size_bytes"].sum()
        _site_bars(ax, sizes / 1024)
        title = f"{title}, window '{_short(last['window'])}'"
    ax.set_xlabel("KiB")
    ax.set_title(title, loc="left", fontsize=10)
    return _dressed(ax)


def growth(frame: DataFrame, *, ax: Axes | None = None) -> Axes:
    """The call sites that grow most, as bars in bytes a request. They are candidates, not proof.

    Args:
        frame: what `recorder.heap.growth` or `recorder.heap.diff` has given; without requests the bars are KiB.
    """
    ax = _axes(ax)
    a_request = len(frame) == 0 or bool(frame["growth_bytes_per_request"].notna().any())
    column, unit = ("growth_bytes_per_request", 1) if a_request else ("size_bytes", 1024)
    sizes = frame.assign(site=_sites(frame)).groupby("site")[column].sum()
    _site_bars(ax, sizes[sizes > 0] / unit)
    ax.set_xlabel("bytes a request" if a_request else "KiB")
    ax.set_title("heap growth by call site (candidates)", loc="left", fontsize=10)
    return _dressed(ax)


def memory(frame: DataFrame, *, ax: Axes | None = None) -> Axes:
    """Resident memory of the proxy and of each server's processes, in MiB over time."""
    ax = _axes(ax)
    for number, ((process, upstream), part) in enumerate(
        frame.groupby(["process", "upstream"], observed=True)
    ):
        sums = part.groupby("ts")["rss_bytes"].sum() / 2**20
        name = "proxy" if process == "proxy" else f"{_short(upstream)}: processes"
        _line(ax, sums.index, sums.to_numpy(), name, number)
    ax.set_ylim(bottom=0)
    return _finish(ax, "resident memory", "MiB", time=True)


def events(frame: DataFrame, *, ax: Axes | None = None) -> Axes:
    """What happened when: a row of marks for each kind of event. Goes under any plot over time with `sharex`."""
    ax = _axes(ax, height=1.8)
    kinds = {str(kind): count for kind, count in frame["kind"].value_counts().items() if count}
    names = [*kinds][::-1]
    for row, kind in enumerate(names):
        when = frame.loc[frame["kind"] == kind, "ts"]
        ax.plot(when, np.full(len(when), row), "|", markersize=11, color=SHADES[0])
    ax.set_yticks(range(len(names)), [f"{name} ({kinds[name]:,})" for name in names])
    ax.set_ylim(-0.6, max(len(names) - 0.4, 0.6))
    ax.set_title("events", loc="left", fontsize=10)
    _time(ax)
    return _dressed(ax, legend=False)


def breaking(
    load: Sequence[float],
    *,
    p50_ms: Sequence[float],
    p99_ms: Sequence[float],
    departed: Sequence[bool],
    limit_ms: float,
    between: tuple[float, float],
    by: str = "rate",
    ax: Axes | None = None,
) -> Axes:
    """What a call takes at each load, up to where the server breaks. Not of a frame: the steps of `bench break`.

    Args:
        load: calls a second (`by` is `rate`) or clients, in rising order.
        p50_ms, p99_ms, departed: of each step; one that departed gets a cross.
        limit_ms: what p99 may be.
        between: the highest load that held and the lowest that departed, which are shaded between; 0 is none.
    """
    ax = _axes(ax)
    x = np.asarray(load, dtype=float)
    for number, (name, values) in enumerate((("p50", p50_ms), ("p99", p99_ms))):
        y = np.asarray(values, dtype=float)
        there = y > 0  # a step whose every call was refused has no latency
        _line(ax, x[there], y[there], name, number, marker="o")
        if name == "p99":
            bad = there & np.asarray(departed, dtype=bool)
            ax.plot(x[bad], y[bad], "x", color=SHADES[5], markersize=9, markeredgewidth=2, label="departed")
    ax.axhline(limit_ms, color="black", linestyle=":", linewidth=1, label="limit of p99")
    held, broke = between
    if held and broke:
        ax.axvspan(held, broke, color=SHADES[4], alpha=0.35, linewidth=0, label="breaks here")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("calls a second that are due" if by == "rate" else "clients")
    return _finish(ax, "time a call takes", "ms")


def save(ax: Axes, file: Path) -> None:
    """The picture that axes are on, as a PNG; nobody has to close it."""
    import matplotlib.pyplot as plt

    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.savefig(file, dpi=120)
    plt.close(figure)


# -- what they share -----------------------------------------------------------------------------------------------


def _axes(ax: Axes | None, height: float = SIZE[1]) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(SIZE[0], height), layout="constrained")[1]


def _line(ax: Axes, x: Any, y: Any, label: str, number: int, marker: str = "") -> None:
    ax.plot(
        x, y, label=label, marker=marker, color=SHADES[(0, 1, 4, 5, 2, 3)[number % 6]],
        linestyle=DASHES[number % len(DASHES)], linewidth=1.6,
    )  # fmt: skip


def _groups(frame: DataFrame, by: str) -> list[tuple[str, DataFrame]]:
    names = _named(frame, by)
    return [(name, frame[names == name]) for name in names.value_counts().index[:6]]


def _named(frame: DataFrame, by: str) -> Any:
    """The column as text; a call without a target goes by its method."""
    names = frame[by].astype(str)
    return names.where(names != "", frame["method"].astype(str)) if by == "target" else names


def _sites(rows: DataFrame) -> Any:
    """Call sites as text; the row that sums the smaller ones has no file."""
    files = rows["file"].astype(str).str.rsplit("/", n=2).str[-2:].str.join("/")
    where = rows["function"].astype(str) + " " + files + ":" + rows["line"].astype(str)
    return where.where(files != "", rows["function"].astype(str))


def _site_bars(ax: Axes, sizes: Any) -> None:
    """The largest on top. By place and not by label: of two sites the cut labels may be the same."""
    shown = sizes.sort_values().tail(TOP)
    places = range(len(shown))
    ax.barh(places, shown, color=SHADES[1], edgecolor="white")
    ax.set_yticks(places, [_short(site, SITE) for site in shown.index])
    ax.set_ylim(min(len(shown) - 5, 0) - 0.6, max(len(shown), 1) - 0.4)  # a single bar is no wall
    ax.set_xlim(left=0)
    if not len(shown):
        ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", color="#566573")


def _time(ax: Axes) -> None:
    locator = mdates.AutoDateLocator(minticks=3, maxticks=5)
    for unit in (mdates.MINUTELY, mdates.SECONDLY):
        locator.intervald[unit] = [1, 2, 5, 10, 15, 30]  # without the 2, five seconds have a single tick
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(FuncFormatter(_time_of_day))
    ax.set_xlabel("time of day, UTC")


def _time_of_day(days: float, _: int | None) -> str:
    """With as much of a second as ticks that are close together need; at midnight the date."""
    moment = mdates.num2date(days)
    text = (
        f"{moment:%H:%M:%S.%f}".rstrip("0").removesuffix(".") if moment.microsecond else f"{moment:%H:%M:%S}"
    )
    return f"{moment:%m-%d}" if text == "00:00:00" else text


def _short(text: object, longest: int = LABEL) -> str:
    """A label that leaves room for the picture."""
    name, tail = str(text), longest // 3 - 1
    return name if len(name) <= longest else f"{name[: longest - tail - 1]}…{name[-tail:]}"


def _finish(ax: Axes, title: str, unit: str, *, time: bool = False) -> Axes:
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_ylabel(unit)
    if time:
        _time(ax)
    if ax.get_yscale() == "log":
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    return _dressed(ax)


def _dressed(ax: Axes, *, legend: bool = True) -> Axes:
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if legend and ax.get_legend_handles_labels()[0]:
        title = ax.get_title(loc="left")
        ax.set_title("", loc="left")
        longest = max(map(len, ax.get_legend_handles_labels()[1]))
        ax.legend(
            title=title, title_fontsize=10, alignment="left", loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4 if longest <= SHORT else 2,
            frameon=False, fontsize=9, borderaxespad=0.2, borderpad=0.0,
        )  # fmt: skip
    ax.tick_params(labelsize=9)
    return ax
