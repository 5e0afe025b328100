"""Whether a step of load departs from what low load was like, and where a server broke. `breaking.py` makes the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from mcpdiag.bench.statistics import Estimate, Summary

By = Literal["rate", "clients"]
Departure = Literal["", "errors", "throughput", "p99"]
TRIES: Final = 3
"""Runs of a step that seems to depart: it does if most of them do, so that one hiccup breaks nothing."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a step must hold.

    Args:
        p99_factor: how many times the p99 of low load, counted from the upper end of its interval, p99 may be.
        max_errors: the share of calls that may fail.
        least_answered: of the calls a second that were due, the share that must be answered in that time; with
            `clients`, of the most that any smaller number of clients got.
    """

    p99_factor: float = 5.0
    max_errors: float = 0.01
    least_answered: float = 0.95


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One load: a rate in calls a second, or a number of clients. The numbers are those of one of its runs.

    `due_rps` is what it was to answer, `departed` why it did not hold, `saturated` why the generator may be to blame.
    """

    load: float
    clients: int
    runs: int
    due_rps: float
    answered_rps: float
    error_rate: float
    p50_ms: float
    p99_ms: float
    departed: Departure = ""
    saturated: str = ""
    first_error: str = ""


class Breaking(msgspec.Struct, frozen=True, kw_only=True):
    """The search for the breaking point: steps in the order in which they ran.

    `base` is p99 in ms at the lowest load, from several runs. `held` is the highest load below all that departed,
    0 if there is none; `departed` the lowest that did not, 0 if there is none. `stopped` says why the search ended
    before it was as precise as asked.
    """

    by: By
    limits: Limits
    precision: float
    base: Estimate
    steps: tuple[Step, ...]
    held: float = 0.0
    departed: float = 0.0
    stopped: str = ""

    def step(self, load: float) -> Step | None:
        """The step of this load."""
        return next((each for each in self.steps if each.load == load), None)

    @property
    def generator_bound(self) -> str:
        """Why the breaking point may be the generator's and not the server's; empty if it is the server's."""
        found = self.step(self.departed)
        return found.saturated if found is not None else ""


def judge(
    summary: Summary,
    *,
    due_rps: float,
    limits: Limits,
    base: Estimate,
    answered_before: float = 0.0,
    edge_rps: float = 0.0,
) -> Departure:
    """Why a run does not hold; empty if it does.

    Args:
        due_rps: calls a second that were due; 0 in a closed loop.
        answered_before: in a closed loop, the most calls a second that fewer clients got.
        edge_rps: one call in the measured time, which its edges may cut: of few calls that is a large share.
    """
    if error_rate(summary) > limits.max_errors:
        return "errors"
    if summary.throughput_rps + edge_rps < limits.least_answered * max(due_rps, answered_before):
        return "throughput"
    return "p99" if summary.p99_ms > limits.p99_factor * base.high else ""


def error_rate(summary: Summary) -> float:
    """The share of a run's calls that failed; of no calls, all."""
    return (summary.calls - summary.ok) / summary.calls if summary.calls else 1.0


def around(steps: Sequence[Step]) -> tuple[float, float]:
    """The highest load that held below all that departed, and the lowest that departed; 0 where there is none."""
    departed = min((each.load for each in steps if each.departed), default=0.0)
    held = max(
        (each.load for each in steps if not each.departed and (not departed or each.load < departed)),
        default=0.0,
    )
    return held, departed


def between(by: By, held: float, departed: float, precision: float) -> float:
    """The load to try next, in the geometric middle of the two; 0 if they are as close as `precision`."""
    if departed <= held * (1 + precision):
        return 0.0
    middle = (held * departed) ** 0.5
    if by == "rate":
        return tidy(middle)
    whole = float(round(middle))
    return whole if held < whole < departed else 0.0


def tidy(load: float) -> float:
    """Three digits, as a person would write it."""
    return float(f"{load:.3g}")
