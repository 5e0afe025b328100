"""What a proxy saw while a cell ran: the frames of that time alone, and how its pools moved. `%%mcp_window` makes them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from mcpdiag.errors import AttachError
from mcpdiag.html import cut, line, number, table
from mcpdiag.notebook.source import NOTHING, Piece, Source, Stats
from mcpdiag.samples.base import Samples
from mcpdiag.samples.schema import SCHEMA, FrameName

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

LAST_CALLS: Final = 0.2  # seconds for the proxy to note a call whose answer is here already
EVENTS: Final = 10
DETAIL: Final = 200  # characters
_NOW: Final = ("busy", "idle", "waiting", "max")
_GREW: Final = ("acquires", "acquires_waited", "opens", "reuses", "acquire_timeouts", "closed_lost")
_HEADINGS: Final = ("pool", *_NOW, "leases", "waited", "opens", "reuses", "timeouts", "lost")


class Window(Samples):
    """The samples of a time, kept: `.requests`, `.pool`, `.events`, `.memory`, `.summary()`.

    `requests` has the calls that ended in the window. `pool` and `memory` have the ticks (`sample_every`) that fell
    into it, of a short one maybe none; `moved` knows the pools at its edges.

    Attributes:
        label: of the cell.
        proxy: the name of the variable that was looked at.
        started: when, in UTC.
        seconds: how long.
        error: the exception that ended the cell, as `Type: words`; empty if none did.
        moved: of each pool, what its counters grew by.
        now: of each pool, its gauges at the end.
        notes: what speaks against trusting it.
    """

    def __init__(self, source: Source, *, label: str, proxy: str) -> None:
        self.label = label
        self.proxy = proxy
        self.started = datetime.now(UTC)
        self.seconds = 0.0
        self.error = ""
        self.moved: dict[str, dict[str, float]] = {}
        self.now: dict[str, dict[str, float]] = {}
        self.notes: list[str] = []
        self._source: Source | None = source
        self._before = source.stats()
        self._begin = source.places()
        self._run = source.run()
        self._pieces: dict[FrameName, Piece] = {}
        self._began = time.perf_counter()

    def close(self, error: BaseException | None = None) -> None:
        """Keep what has come since the start. Whatever is wrong with the looking is a note, not an error."""
        source, self._source = self._source, None
        if source is None:
            return
        self.seconds = time.perf_counter() - self._began
        if error is not None:
            self.error = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        try:
            after = _settled(source, self._before)
            places = source.places()
            if source.run() != self._run:
                self.notes.append("the proxy was restarted meanwhile: what was before that is not known")
                self._begin, self._before = NOTHING, None
            for name in SCHEMA:
                if places[name] != self._begin[name]:
                    self._pieces[name] = source.piece(name, self._begin[name])
        except (AttachError, ImportError) as failure:
            self.notes.append(str(failure))
            return
        missed = ", ".join(f"{piece.missed:,} {name}" for name, piece in self._pieces.items() if piece.missed)
        if missed:
            self.notes.append(f"overwritten before the window's end, and missing: {missed}")
        self._compare(self._before, after)

    def _compare(self, before: Stats | None, after: Stats | None) -> None:
        was = dict(_pools(before)) if before is not None else {}
        for name, pool in _pools(after) if after is not None else ():
            self.now[name] = pool
            self.moved[name] = {key: pool[key] - was.get(name, {}).get(key, 0) for key in _GREW}

    # -- frames -------------------------------------------------------------------------------------------

    def frame(self, name: FrameName) -> DataFrame:
        """The frame of that name, with the rows of the window alone. Raises KeyError, ImportError."""
        from mcpdiag.samples.frame import empty

        if name not in SCHEMA:
            raise KeyError(name)
        piece = self._pieces.get(name)
        return empty(name) if piece is None else piece.build()

    @property
    def written(self) -> Mapping[FrameName, int]:
        return {**NOTHING, **{name: piece.rows + piece.missed for name, piece in self._pieces.items()}}

    @property
    def dropped(self) -> Mapping[FrameName, int]:
        return {**NOTHING, **{name: piece.missed for name, piece in self._pieces.items()}}

    async def stream(self, name: FrameName, *, every: float = 1.0) -> AsyncIterator[DataFrame]:
        """The frame in one piece; `every` has no meaning here."""
        frame = self.frame(name)
        if len(frame):
            yield frame

    # -- shown --------------------------------------------------------------------------------------------

    def _words(self) -> str:
        rows = {name: piece.rows for name, piece in self._pieces.items()}
        calls, events = rows.get("requests", 0), rows.get("events", 0)
        if not calls and not events:
            return f"nothing in {_seconds(self.seconds)}"
        rate = f", {number(calls / self.seconds)} a second" if calls and self.seconds else ""
        return f"{_count(calls, 'call')} in {_seconds(self.seconds)}{rate}; {_count(events, 'event')}"

    def __repr__(self) -> str:
        ended = f"; ended by {cut(self.error, DETAIL)}" if self.error else ""
        return f"<{type(self).__name__} {self.label!r} of {self.proxy}: {self._words()}{ended}>"

    def _repr_html_(self) -> str:
        parts = [line(f"of {self.proxy}: {self._words()}", strong=self.label)]
        if self.error:
            parts.append(line(f"the cell ended by {cut(self.error, DETAIL)}"))
        parts += [line(note) for note in self.notes]
        parts += [part() for part in (self._calls, self._moves, self._memory, self._happened)]
        return "".join(parts)

    def _calls(self) -> str:
        if "requests" not in self._pieces:
            return ""
        return _or_words(lambda: _summary(self))

    def _moves(self) -> str:
        rows = [
            (name, *(self.now[name][key] for key in _NOW), *(_signed(moved[key]) for key in _GREW))
            for name, moved in self.moved.items()
            if any(moved.values()) or self.now[name]["waiting"]
        ]
        return table(_HEADINGS, rows, caption="pools: now, and what changed")

    def _memory(self) -> str:
        return (
            _or_words(lambda: _processes(self.memory))
            if "requests" in self._pieces and "memory" in self._pieces
            else ""
        )

    def _happened(self) -> str:
        return _or_words(lambda: _events(self.events)) if "events" in self._pieces else ""


def _or_words(make: Callable[[], str]) -> str:
    """Without pandas the counts are shown all the same, and what is missing is said."""
    try:
        return make()
    except ImportError as error:
        return line(str(error))


def _summary(window: Window) -> str:
    from mcpdiag.samples.summary import as_html

    return as_html(window.summary())


def _processes(memory: DataFrame) -> str:
    rows = []
    for (upstream, process, pid), part in memory.groupby(["upstream", "process", "pid"], observed=True):
        first, last = (part["rss_bytes"].iloc[place] / 2**20 for place in (0, -1))
        rows.append(
            (str(upstream or process), str(pid), f"{last:,.1f}", f"{round(last - first, 1) + 0.0:+,.1f}")
        )
    return table(("process", "pid", "RSS MiB", "changed"), rows[:EVENTS], caption="memory")


def _events(events: DataFrame) -> str:
    rows = []
    for (kind, upstream), part in events.groupby(["kind", "upstream"], observed=True):
        last = part.iloc[-1]
        detail = cut(str(last["detail"]), DETAIL)
        rows.append((f"{last['ts']:%H:%M:%S}", str(kind), str(upstream), len(part), detail))
    headings = ("last, UTC", "event", "server", "times", "last detail")
    return table(headings, sorted(rows)[-EVENTS:], words=-3, caption="events")


def _settled(source: Source, before: Stats | None) -> Stats | None:
    """The numbers once no call is in flight that was not at the start. The proxy notes a call just after its answer."""
    deadline = time.perf_counter() + LAST_CALLS
    was = 0 if before is None else int(before["calls"])
    while (stats := source.stats()) is not None:
        if stats["calls"] <= was or time.perf_counter() >= deadline:
            break
        time.sleep(0.005)
    time.sleep(0.002)  # between the end of a call and its row there is no wait, but another thread
    return stats


def _pools(stats: Stats) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, each in stats["upstreams"].items():
        found.append((name, each["pool"]))
        if "stateless_pool" in each:
            found.append((f"{name}, 2026-07-28", each["stateless_pool"]))
    return found


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.0f} s"


def _count(value: int, name: str) -> str:
    return f"{value:,} {name}{'' if value == 1 else 's'}"


def _signed(value: float) -> str:
    return f"+{number(value)}" if value else "0"
