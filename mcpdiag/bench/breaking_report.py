"""A search for the breaking point, for people: the rows and the sentences of `mcpdiag bench break`."""

from __future__ import annotations

from typing import Final

from mcpdiag.bench.knee import TRIES, Breaking, Step
from mcpdiag.bench.result import Result
from mcpdiag.bench.statistics import LEAST

HEADINGS: Final = (
    "load", "clients", "runs", "answered/s", "p50 ms", "p99 ms", "errors", "generator", "verdict",
)  # fmt: skip


def rows(result: Result) -> list[tuple[str, ...]]:
    """A row a step, the lowest load first, below `HEADINGS`."""
    breaking = result.breaking
    assert breaking is not None
    return [_row(each, breaking) for each in sorted(breaking.steps, key=lambda each: each.load)]


def _row(step: Step, breaking: Breaking) -> tuple[str, ...]:
    unit = "/s" if breaking.by == "rate" else ""
    return (
        f"{step.load:,g}{unit}",
        f"{step.clients:,}",
        f"{step.runs}",
        f"{step.answered_rps:,.4g}" if step.answered_rps < 1000 else f"{step.answered_rps:,.0f}",
        _ms(step.p50_ms),
        _ms(step.p99_ms),
        f"{step.error_rate:.1%}",
        "saturated" if step.saturated else "ok",
        why(step, breaking) if step.departed else "held",
    )


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def why(step: Step, breaking: Breaking) -> str:
    """Why a step departed, in a few words."""
    if step.departed == "errors":
        return f"{step.error_rate:.1%} failed"
    if step.departed == "throughput":
        if breaking.by == "clients":
            return f"{step.answered_rps:,.0f}/s, fewer than before"
        return f"{step.answered_rps / step.due_rps:.0%} answered" if step.due_rps else "none answered"
    return f"p99 {step.p99_ms / breaking.base.value:.1f}x"


def sentences(result: Result) -> list[str]:
    """Where it broke, how, and whether that is the server."""
    breaking = result.breaking
    assert breaking is not None
    lowest = min((each.load for each in breaking.steps), default=0.0)
    low = (
        f" ({_ms(breaking.base.low)}-{_ms(breaking.base.high)})" if breaking.base.repetitions >= LEAST else ""
    )
    said = [f"Low load, {_load(breaking, lowest)}: p99 {_ms(breaking.base.value)} ms{low}."]
    held, departed = breaking.step(breaking.held), breaking.step(breaking.departed)
    if departed is None:
        said.append(f"It did not break up to {_load(breaking, breaking.held)}.")
    else:
        so = f"It departs at {_load(breaking, departed.load)}: {why(departed, breaking)}"
        if departed.first_error and departed.departed == "errors":
            so += f" ({departed.first_error})"
        if held is None:
            said.append(f"{so}. No lower load held.")
        else:
            said.append(
                f"{so}. {_load(breaking, held.load)} hold: {held.answered_rps:,.4g} answered a second, "
                f"p50 {_ms(held.p50_ms)} ms, p99 {_ms(held.p99_ms)} ms."
            )
    if breaking.by == "clients" and (plateau := _plateau(breaking)) is not None:
        said.append(
            f"More than {_load(breaking, plateau.load)} hardly raise the throughput: "
            f"{plateau.answered_rps:,.4g} a second there."
        )
    if breaking.generator_bound:
        said.append(
            f"The generator was the limit there, not surely the server: {breaking.generator_bound}; "
            "read the breaking point as a lower bound."
        )
    if breaking.stopped:
        said.append(f"The search stopped early: {breaking.stopped}.")
    if any(1 < each.runs <= TRIES for each in breaking.steps):
        said.append(f"A step that seemed to depart was run up to {TRIES} times; most of its runs decide.")
    return said


def _load(breaking: Breaking, load: float) -> str:
    if breaking.by == "rate":
        return f"{load:,g} call{'s' * (load != 1)} a second"
    return f"{load:,g} client{'s' * (load != 1)}"


def _plateau(breaking: Breaking) -> Step | None:
    """The fewest clients that get 95 % of the most that any got, if more were tried."""
    steps = sorted(breaking.steps, key=lambda each: each.load)
    most = max((each.answered_rps for each in steps), default=0.0)
    found = next((each for each in steps if each.answered_rps >= 0.95 * most), None)
    return found if found is not None and most and found is not steps[-1] else None
