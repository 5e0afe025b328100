"""What a soak found, as it stands in a result."""

from __future__ import annotations

import msgspec

from mcpdiag.bench.columns import Lateness
from mcpdiag.bench.sites import Site
from mcpdiag.bench.verdict import Finding, Verdict


class Soaked(msgspec.Struct, frozen=True, kw_only=True):
    """What a soak found, for `Result.soak`. Its readings are in a file beside.

    Attributes:
        verdict: on all processes: `leak`, `none` or `inconclusive`.
        findings: of each metric of each process.
        seconds: asked for. `took_s` is longer where a suspicion was looked at over twice the requests (`extended`).
        rate: calls a second; 0 is a closed loop, as fast as it goes.
        every_s: between readings.
        warmup_s: readings before it are in the file, not in the verdict.
        sites: after a verdict of leak, and if asked for: the call sites that grew most, candidates; else `no_sites` says
            why there are none.
        rss_ratio: RSS at the end, over that after the first minute, by process; only of runs of two minutes or more.
        replaced: server processes that were others than at the reading before.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    connections: int
    session_calls: int
    rate: float
    seconds: float
    took_s: float
    every_s: float
    warmup_s: float
    requests: int
    failed: int
    readings: int
    extended: bool = False
    sessions_opened: int = 0
    replaced: int = 0
    lateness: Lateness = Lateness()
    rss_ratio: dict[str, float] = {}
    sites: tuple[Site, ...] = ()
    no_sites: str = ""
