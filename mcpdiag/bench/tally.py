"""Calls counted as they come, in memory that does not grow: what a soak keeps of millions of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from mcpdiag.bench.columns import NOT_SENT, OK, OUTCOMES, TIMEOUT, Columns
from mcpdiag.bench.statistics import QUANTILES, Summary

STEP: Final = math.log(1.01)  # latencies within 1 % are one


class Latencies:
    """A histogram of latencies, true to 1 %."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = self.total_ns = self.max_ns = 0

    def add(self, latencies_ns: Sequence[int]) -> None:
        """Some more, in nanoseconds."""
        log = math.log
        self._counts.update(int(log(each) / STEP) if each > 1 else 0 for each in latencies_ns)
        self.count += len(latencies_ns)
        self.total_ns += sum(latencies_ns)
        self.max_ns = max(self.max_ns, max(latencies_ns, default=0))

    def quantile_ms(self, share: float) -> float:
        """The quantile in milliseconds; 0 of none."""
        rank, seen = share * (self.count - 1), 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen > rank:
                return min(math.exp((bucket + 0.5) * STEP), self.max_ns) / 1e6
        return 0.0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The load of one interval."""

    calls: int = 0
    failed: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0


class Tally:
    """Outcomes and latencies of a run, or of a part of it."""

    def __init__(self) -> None:
        self.outcomes: Counter[int] = Counter()
        self.latencies = Latencies()

    def add(self, columns: Columns) -> None:
        """The calls of an interval."""
        count = len(columns)
        outcomes = columns.outcome[:count]
        self.outcomes.update(outcomes)
        waited = [
            done - due
            for due, done, outcome in zip(
                columns.intended_ns[:count], columns.done_ns[:count], outcomes, strict=True
            )
            if outcome in (OK, TIMEOUT, NOT_SENT)
        ]
        self.latencies.add(waited)

    @property
    def calls(self) -> int:
        return self.outcomes.total()

    @property
    def failed(self) -> int:
        return self.calls - self.outcomes[OK]

    def summary(self, seconds: float) -> Summary:
        """All of them, over so many seconds."""
        latencies = self.latencies
        cut = {f"{share:g}": round(latencies.quantile_ms(share), 6) for share in QUANTILES}
        return Summary(
            calls=self.calls,
            ok=self.outcomes[OK],
            errors={
                OUTCOMES[kind]: count for kind, count in sorted(self.outcomes.items()) if kind != OK and count
            },
            throughput_rps=round(self.outcomes[OK] / seconds, 3) if seconds else 0.0,
            p50_ms=cut["0.5"],
            p95_ms=cut["0.95"],
            p99_ms=cut["0.99"],
            max_ms=round(latencies.max_ns / 1e6, 6),
            mean_ms=round(latencies.total_ns / 1e6 / latencies.count, 6) if latencies.count else 0.0,
            quantiles_ms=cut,
        )

    def pace(self) -> Pace:
        """All of them, as a reading has it."""
        return Pace(
            calls=self.calls,
            failed=self.failed,
            p50_ms=round(self.latencies.quantile_ms(0.5), 3),
            p99_ms=round(self.latencies.quantile_ms(0.99), 3),
            max_ms=round(self.latencies.max_ns / 1e6, 3),
        )
