"""What other processes may have done to a result, read by `neighbours.py`: how far `compare` and `check` doubt it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from mcpdiag.bench.result import Cell, Result

MOST_LOST: Final = 0.9  # of a processor; more makes no difference, because nothing can be told then
TAIL: Final = 0.05  # of a processor: when others take more, p95 may be of calls that waited for them


def lost_to_others(result: Result, cells: Sequence[Cell]) -> float:
    """How many processors others kept busy while these cells were measured; 0 where nobody knows.

    The mean of all rounds, because single readings are coarse. Not known of a server at a URL: the others may be it.
    """
    if result.target.kind == "url":
        return 0.0
    seen = [r.others_cpus for cell in cells for r in cell.repetitions if r.others_cpus is not None]
    return round(max(0.0, fmean(seen)), 3) if seen else 0.0


def explained(metric: str, base: float, new: float) -> tuple[float, float]:
    """The least and the largest factor by which the ratio may be wrong because of what others took.

    At worst they took it from the one processor that everything waits for: then a call that took 1 ms while they had
    0.3 of it would have taken 0.7 ms alone.
    """
    if metric == "rss":
        return 1.0, 1.0
    if metric == "p95" and max(base, new) > TAIL:
        return 1 - MOST_LOST, 1 / (1 - MOST_LOST)
    least, most = 1 - min(new, MOST_LOST), 1 / (1 - min(base, MOST_LOST))
    return (1 / most, 1 / least) if metric == "throughput" else (least, most)


def disturbance(result: Result) -> str:
    """What to say of other processes; empty if they took too little to matter."""
    lost = lost_to_others(result, result.cells)
    if lost <= TAIL:
        return ""
    return (
        f"Other processes kept {lost:.2f} processors busy during the measurement; `compare` and `check` allow for that. "
        "Measure again on a quiet machine."
    )
