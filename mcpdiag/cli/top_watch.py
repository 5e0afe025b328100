"""The last seconds of a running proxy, kept up to date with new rows only: what `mcpdiag top` shows."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from mcpdiag.bench.statistics import quantile
from mcpdiag.samples.remote import Remote
from mcpdiag.samples.schema import FrameName

FIRST: Final[dict[FrameName, int]] = {"requests": 20_000, "memory": 500, "events": 200}
"""Rows to fetch at the first look: enough for the window of all but the busiest proxies, whose rates say so."""
EVENTS: Final = 50
NO_ERRORS: Final = {"ok", "cancelled"}


Calls = deque[tuple[int, float, bool]]
"""Of one target in the window: when each call ended (ns), how long it took (ms), whether it failed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One target in the window. Times in milliseconds; `spent_ms` is what its callers waited, summed."""

    upstream: str
    call: str
    count: int
    errors: int
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    spent_ms: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes use now: the proxy (`upstream` empty), or all processes of a stdio server together."""

    rss_bytes: int = 0
    children: int = 0
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Happening:
    """An event. `ts_ns` is since 1970."""

    ts_ns: int
    kind: str
    upstream: str
    detail: str


class Watch(Remote):
    """A proxy's admin port, and the rows of the last `window` seconds.

    Args:
        url: of the admin port.
        token: the proxy's, if it has one.
        window: seconds that calls are counted over.
    """

    def __init__(self, url: str, token: str | None = None, *, window: float = 10.0) -> None:
        super().__init__(url, token)
        self.window = window
        self.restarts = 0
        self.restarted_at: float | None = None
        self.numbers: dict[str, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self._next: dict[FrameName, int] = {}
        self._calls: dict[tuple[str, str], Calls] = {}
        self._usage: dict[str, Usage] = {}
        self.latest: deque[Happening] = deque(maxlen=EVENTS)
        self._now_ns = 0
        self._since_ns = 0
        self._looked_at = time.monotonic()

    def look(self) -> None:
        """Fetch what is new. After a restart of the proxy everything begins anew, and `restarts` has grown.

        Raises:
            AttachError: the proxy cannot be reached, or refuses.
        """
        run = self.run
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a restart, which `restarts` tells
            overview = self._overview()  # says which run it is before any row of it is asked for
            if self._note(str(overview["run"])):
                self._forget()
                self.restarts += 1
                self.restarted_at = time.monotonic()
            self.numbers = self.stats()
            newest = 0
            for name, most in FIRST.items():
                first = name not in self._next
                place = max(0, int(overview["frames"][name]["written"]) - most) if first else self._next[name]
                frame, self._next[name], restarted = self._fetch(name, place)
                if restarted:  # between two answers: the next look finds it
                    self.run = run
                    return
                if len(frame):
                    stamps = frame["ts"].astype("int64").tolist()
                    newest = max(newest, stamps[-1])
                    if name == "requests" and first and place:
                        self._since_ns = stamps[0]  # the window may reach further back than the rows do
                    self._take(name, stamps, frame)
        self._tick(newest)

    def _take(self, name: FrameName, stamps: list[int], frame: Any) -> None:
        columns = {column: frame[column].astype(object).tolist() for column in _COLUMNS[name]}
        rows = zip(stamps, *columns.values(), strict=True)
        if name == "requests":
            for ts, upstream, method, target, outcome, total_ms in rows:
                calls = self._calls.setdefault((upstream, target or method), deque())
                calls.append((ts, total_ms, outcome not in NO_ERRORS))
        elif name == "memory":
            self._usage = _usage((row[1:] for row in rows), self._usage)
        else:
            self.latest.extend(Happening(*row) for row in rows)

    def _tick(self, newest: int) -> None:
        """The proxy's clock, not ours, which may be another machine's; between its rows ours measures what passes."""
        passed, self._looked_at = time.monotonic() - self._looked_at, time.monotonic()
        self._now_ns = newest or (self._now_ns and self._now_ns + int(passed * 1e9))
        oldest = self._now_ns - int(self.window * 1e9)
        for key, calls in [*self._calls.items()]:
            while calls and calls[0][0] < oldest:
                calls.popleft()
            if not calls:
                del self._calls[key]

    # -- what it is now -----------------------------------------------------------------------------------

    @property
    def covered_s(self) -> float:
        """Seconds that the counted calls are of: the window, or as long as the proxy runs, or its rows reach back."""
        known = (self._now_ns - self._since_ns) / 1e9 if self._since_ns else self.window
        return max(min(self.window, float(self.numbers["uptime_s"]), known), 0.001)

    def rows(self) -> list[Row]:
        """The targets, those that hurt most first: by failed calls, then by the time that callers spent in them."""
        covered = self.covered_s
        found = [
            _row(key, [ms for _, ms, _ in calls], sum(bad for *_, bad in calls), covered)
            for key, calls in self._calls.items()
        ]
        return sorted(found, key=lambda row: (row.errors, row.spent_ms), reverse=True)

    def usage(self, upstream: str = "") -> Usage:
        """Of the proxy, or of the processes of a stdio server."""
        return self._usage.get(upstream, Usage())

    def pools(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Name, mode and numbers of every pool, those with a queue first, then by how much of it is in use."""
        found = []
        for name, each in self.numbers["upstreams"].items():
            found.append((name, str(each["mode"]), each["pool"]))
            if "stateless_pool" in each:
                found.append((name, "stateless", each["stateless_pool"]))
        return sorted(found, key=lambda pool: (-pool[2]["waiting"], -pool[2]["busy"] / pool[2]["max"]))


_COLUMNS: Final[dict[FrameName, tuple[str, ...]]] = {
    "requests": ("upstream", "method", "target", "outcome", "total_ms"),
    "memory": ("process", "upstream", "rss_bytes", "children"),
    "events": ("kind", "upstream", "detail"),
}


def _row(key: tuple[str, str], times: list[float], errors: int, covered_s: float) -> Row:
    spent = sum(times)
    times.sort()
    p50, p95, p99 = (quantile(times, share) for share in (0.5, 0.95, 0.99))
    return Row(*key, len(times), errors, len(times) / covered_s, p50, p95, p99, times[-1], spent)


def _usage(rows: Iterable[tuple[str, str, int, int]], before: dict[str, Usage]) -> dict[str, Usage]:
    """Of the last reading alone: each begins with the proxy's row, and a look may come in the middle of one."""
    found = dict(before)
    for process, upstream, rss, children in rows:
        if process == "proxy":
            found = {"": Usage(int(rss), int(children), 1)}
            continue
        own = found.get(upstream, Usage())
        found[upstream] = Usage(own.rss_bytes + int(rss), own.children + int(children), own.processes + 1)
    return found
