"""What a proxy adds to a call, and where in it the time goes. `overhead.py` measures, this computes.

Percentiles do not add up, but means do. So the parts at a percentile are means over the calls around it, and what is
left of the client's own percentile is what no clock of the proxy has seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median
from typing import Final, Literal

import msgspec

from mcpdiag.bench.statistics import Estimate, interval, paired_ratio

AROUND: Final = {0.5: (0.45, 0.55), 0.95: (0.93, 0.97)}
"""The calls that stand for a percentile: those between two others."""


class Phases(msgspec.Struct, frozen=True):
    """The exchanges of one run by the proxy's own clock, in the order of their arrival; a column a phase, ms."""

    queue_ms: Sequence[float]
    connect_ms: Sequence[float]
    first_ms: Sequence[float]
    total_ms: Sequence[float]

    def __len__(self) -> int:
        return len(self.total_ms)

    def without(self, count: int) -> Phases:
        """All but the first ones, which were warm-up."""
        return Phases(*(getattr(self, name)[count:] for name in self.__struct_fields__))


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Mean milliseconds in each phase: waiting for a connection, opening one, waiting for the server's first byte,
    and the rest of the proxy's time."""

    queue_ms: float
    connect_ms: float
    first_ms: float
    relay_ms: float

    @property
    def total_ms(self) -> float:
        return self.queue_ms + self.connect_ms + self.first_ms + self.relay_ms


class At(msgspec.Struct, frozen=True, kw_only=True):
    """One percentile, direct and proxied, in milliseconds, medians of the rounds.

    `added` is proxied minus direct and `ratio` proxied over direct, each with its 95 % interval. `parts` is what the
    proxy saw; `hop_ms` is what the client waited beyond that: the way to the proxy and back, and its HTTP server.
    """

    direct_ms: float
    proxied_ms: float
    added: Estimate
    ratio: Estimate
    parts: Parts
    hop_ms: float

    @property
    def server_ms(self) -> float:
        """How much later the server's answer came to the proxy than to a client of its own; part of `added`."""
        return self.parts.first_ms - self.direct_ms


class Overhead(msgspec.Struct, frozen=True, kw_only=True):
    """What the proxy adds for one transport and number of clients.

    `throughput` is proxied over direct. `exchanges` is how many the proxy's recorder had of the measured time.
    `sampling` is the share of throughput that recording costs, if that was measured.
    """

    transport: Literal["stdio", "http"]
    clients: int
    p50: At
    p95: At
    throughput: Estimate
    exchanges: int
    sampling: Estimate | None = None


def parts_at(phases: Phases, share: float) -> Parts | None:
    """The parts of the calls around a percentile of `total_ms`; None of no calls."""
    count = len(phases)
    if not count:
        return None
    order = sorted(range(count), key=phases.total_ms.__getitem__)
    low, high = AROUND[share]
    chosen = order[int(low * count) : max(int(high * count), int(low * count) + 1)]

    def mean(values: Sequence[float]) -> float:
        return sum(values[at] for at in chosen) / len(chosen)

    queue, connect, first, total = (mean(getattr(phases, name)) for name in phases.__struct_fields__)
    return Parts(
        queue_ms=queue, connect_ms=connect, first_ms=first, relay_ms=max(0.0, total - queue - connect - first)
    )


def at(
    direct_ms: Sequence[float], proxied_ms: Sequence[float], parts: Sequence[Parts], *, seed: int = 1
) -> At | None:
    """One percentile of all rounds; None if a side has none.

    Args:
        direct_ms, proxied_ms: of each round, those of a pair at the same place.
        parts: of each round.
    """
    pairs = [pair for pair in zip(direct_ms, proxied_ms, strict=True) if min(pair) > 0]
    if not pairs or not parts:
        return None
    direct, proxied = [list(side) for side in zip(*pairs, strict=True)]
    ratio = paired_ratio(proxied, direct, seed=seed)
    assert ratio is not None
    typical = Parts(
        **{name: median(getattr(each, name) for each in parts) for name in Parts.__struct_fields__}
    )
    return At(
        direct_ms=median(direct),
        proxied_ms=median(proxied),
        added=difference(proxied, direct, seed=seed),
        ratio=ratio,
        parts=typical,
        hop_ms=median(proxied) - typical.total_ms,
    )


def difference(over: Sequence[float], under: Sequence[float], *, seed: int = 1) -> Estimate:
    """The difference of the medians of repetitions that ran in pairs; pairs are drawn, not single values."""
    pairs = list(zip(over, under, strict=True))

    def draw(chance: random.Random) -> float:
        drawn = chance.choices(pairs, k=len(pairs))
        return median(each[0] for each in drawn) - median(each[1] for each in drawn)

    return interval(draw, median(over) - median(under), len(pairs), seed=seed)


def lost(on: Sequence[float], off: Sequence[float], *, seed: int = 1) -> Estimate | None:
    """The share of throughput that is lost with something on, from pairs; negative where it was faster with it."""
    found = paired_ratio(on, off, seed=seed)
    return found and Estimate(1 - found.value, 1 - found.high, 1 - found.low, found.repetitions)
