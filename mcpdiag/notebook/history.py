"""The last minute of a proxy, kept up to date with new rows only. The live view looks at it once a tick."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

try:
    import pandas as pd
except ImportError:
    raise ImportError("live views need pandas; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.notebook.source import Source, Stats
from mcpdiag.samples.frame import empty
from mcpdiag.samples.schema import SCHEMA, FrameName

if TYPE_CHECKING:
    from pandas import DataFrame

KEPT: Final = 20_000  # requests to draw; of more than these a part
FIRST: Final = 20_000  # rows of each frame that the first look takes from what is there
ERRORS: Final = 100  # which are kept when others are not
NO_ERRORS: Final = ["ok", "cancelled"]
_DRAWN: Final[dict[FrameName, list[str]]] = {
    "requests": ["ts", "total_ms", "outcome"],
    "pool": [*SCHEMA["pool"]],
}


@dataclass(frozen=True, slots=True)
class Moment:
    """What one look found: of the rows since the look before, and of the window. Times in milliseconds.

    `pools` has a name and the gauges `busy idle opening waiting max` of each pool; `inflight` is None if nobody knows.
    """

    calls: int = 0
    errors: int = 0
    per_s: float = 0.0
    p50_ms: float = float("nan")
    p95_ms: float = float("nan")
    window_calls: int = 0
    window_errors: int = 0
    window_per_s: float = 0.0
    window_p50_ms: float = float("nan")
    window_p95_ms: float = float("nan")
    inflight: int | None = None
    pools: tuple[tuple[str, int, int, int, int, int], ...] = ()
    missed: int = 0
    restarts: int = 0


class History:
    """Rows of the last `window` seconds, of which at most `KEPT` requests are kept to be drawn.

    Attributes:
        requests, pool: frames to draw, with the columns that `samples.plot` needs.
        one_in: `requests` has one call in so many.
    """

    def __init__(self, source: Source, *, window: float) -> None:
        self.window = window
        self.one_in = 1
        self.restarts = 0
        self._source = source
        self._forget()
        places = source.places()
        self._next: dict[FrameName, int] = {name: max(0, places[name] - FIRST) for name in _DRAWN}

    def _forget(self) -> None:
        self.requests = empty("requests")[_DRAWN["requests"]]
        self.pool = empty("pool")
        self._counts: dict[int, tuple[int, int]] = {}  # by second: calls and errors
        self._now_ns = 0
        self._began_ns = 0
        self._looked_at = time.monotonic()
        self._first = True

    def look(self) -> Moment:
        """Take what is new. The work grows with the new rows, and not with what the proxy keeps.

        Raises:
            AttachError: the proxy cannot be reached.
        """
        stats = self._source.stats()
        missed = 0
        fresh: dict[FrameName, DataFrame] = {}
        for name in _DRAWN:
            piece = self._source.piece(name, self._next[name])
            if piece.restarted:
                self._forget()
                self.restarts += 1
                self._next = dict.fromkeys(_DRAWN, 0)
                piece = self._source.piece(name, 0)
            self._next[name] = piece.next
            fresh[name] = piece.build()
            missed += piece.missed if name == "requests" else 0
        elapsed, self._looked_at = time.monotonic() - self._looked_at, time.monotonic()
        first, self._first = self._first, False
        self._tick(fresh, elapsed)
        return self._moment(fresh["requests"], elapsed, stats, missed, first=first)

    def _tick(self, fresh: dict[FrameName, DataFrame], elapsed: float) -> None:
        """The proxy's clock, not ours, which may be another machine's; between its rows ours measures what passes."""
        newest = max((frame["ts"].iloc[-1].value for frame in fresh.values() if len(frame)), default=0)
        self._now_ns = newest or (self._now_ns and self._now_ns + int(elapsed * 1e9))
        oldest = self._now_ns - int(self.window * 1e9)
        requests = fresh["requests"]
        requests = requests[requests["ts"].astype("int64") >= oldest]
        if len(requests):
            self._count(requests)
            self._began_ns = self._began_ns or requests["ts"].iloc[0].value
        for second in [each for each in self._counts if (each + 1) * 10**9 <= oldest]:
            del self._counts[second]
        thinned = self._thinned(requests)  # first: it may thin what is kept, too
        self.requests = _kept(self.requests, thinned, oldest)
        self.pool = _kept(self.pool, fresh["pool"], oldest)

    def _count(self, requests: DataFrame) -> None:
        bad = ~requests["outcome"].isin(NO_ERRORS)
        groups = bad.groupby(requests["ts"].astype("int64") // 10**9)
        for second, calls, errors in zip(groups.size().index, groups.size(), groups.sum(), strict=True):
            had = self._counts.get(int(second), (0, 0))
            self._counts[int(second)] = (had[0] + int(calls), had[1] + int(errors))

    def _thinned(self, requests: DataFrame) -> DataFrame:
        """One row in `one_in`, and the errors. It doubles when there are too many, and is 1 again when there are few."""
        if sum(calls for calls, _ in self._counts.values()) <= KEPT // 2:
            self.one_in = 1
        while len(self.requests) + len(requests) // self.one_in > KEPT:
            self.one_in *= 2
            self.requests = _every(self.requests, 2)
        return _every(requests[_DRAWN["requests"]], self.one_in)

    def _moment(
        self, new: DataFrame, elapsed: float, stats: Stats | None, missed: int, *, first: bool
    ) -> Moment:
        if first:  # rows of before the first look are no rate
            new = new.iloc[:0]
        p50, p95 = _quantiles(new)
        window_p50, window_p95 = _quantiles(self.requests)
        calls = sum(calls for calls, _ in self._counts.values())
        covered = min(self.window, (self._now_ns - self._began_ns) / 1e9) if self._began_ns else 0.0
        return Moment(
            calls=len(new),
            errors=int((~new["outcome"].isin(NO_ERRORS)).sum()),
            per_s=len(new) / max(elapsed, 1e-3),
            p50_ms=p50,
            p95_ms=p95,
            window_calls=calls,
            window_errors=sum(errors for _, errors in self._counts.values()),
            window_per_s=calls / max(covered, 1.0),
            window_p50_ms=window_p50,
            window_p95_ms=window_p95,
            inflight=None if stats is None else int(stats["calls"]),
            pools=_pools(stats, self.pool),
            missed=missed,
            restarts=self.restarts,
        )


def _every(requests: DataFrame, step: int) -> DataFrame:
    if step == 1:
        return requests
    bad = requests[~requests["outcome"].isin(NO_ERRORS)].index[-ERRORS:]
    return requests.loc[requests.index[::step].union(bad)]


def _kept(old: DataFrame, new: DataFrame, oldest_ns: int) -> DataFrame:
    parts = [frame for frame in (old, new) if len(frame)]
    if not parts:
        return old
    both = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
    return both[both["ts"].astype("int64") >= oldest_ns].reset_index(drop=True)


def _quantiles(requests: DataFrame) -> tuple[float, float]:
    if not len(requests):
        return float("nan"), float("nan")
    p50, p95 = requests["total_ms"].quantile([0.5, 0.95])
    return float(p50), float(p95)


_GAUGES: Final = ("busy", "idle", "opening", "waiting", "max")


def _pools(stats: Stats | None, pool: DataFrame) -> tuple[tuple[str, int, int, int, int, int], ...]:
    found: list[Any] = []
    if stats is not None:
        for name, each in stats["upstreams"].items():
            found.append((name, *(int(each["pool"][gauge]) for gauge in _GAUGES)))
            if "stateless_pool" in each:
                found.append(
                    (f"{name}, 2026-07-28", *(int(each["stateless_pool"][gauge]) for gauge in _GAUGES))
                )
    else:
        last = pool.groupby(["upstream", "era"], observed=True).tail(1)
        found = [
            (str(row["upstream"]), *(int(row[gauge]) for gauge in _GAUGES)) for _, row in last.iterrows()
        ]
    return tuple(found)
