"""What a proxy adds, for people: the rows and the sentences of `mcpdiag bench overhead`."""

from __future__ import annotations

from typing import Final

from mcpdiag.bench.result import Result
from mcpdiag.bench.split import At, Overhead
from mcpdiag.bench.statistics import LEAST, Estimate

HEADINGS: Final = (
    "ms", "direct", "proxied", "ratio", "added", "queue", "conn.", "first", "relay", "hop",
)  # fmt: skip


def rows(result: Result) -> list[tuple[str, ...]]:
    """A row a transport, number of clients and percentile, below `HEADINGS`, in milliseconds."""
    return [
        _row(f"{each.transport} x{each.clients} {name}", found)
        for each in result.overhead
        for name, found in (("p50", each.p50), ("p95", each.p95))
    ]


def _row(name: str, found: At) -> tuple[str, ...]:
    parts = found.parts
    return (
        name,
        number(found.direct_ms),
        number(found.proxied_ms),
        found.ratio.shown("x") if found.ratio.repetitions < LEAST else _ratio(found.ratio),
        _with_interval(found.added),
        *(number(each) for each in (parts.queue_ms, parts.connect_ms, parts.first_ms, parts.relay_ms)),
        number(found.hop_ms),
    )


def _ratio(each: Estimate) -> str:
    return f"{each.value:.2g}x ({each.low:.2g}-{each.high:.2g})"


def _with_interval(each: Estimate) -> str:
    if each.repetitions < LEAST:
        return number(each.value)
    joint = "-" if each.low >= 0 else " to "
    return f"{number(each.value)} ({number(each.low)}{joint}{number(each.high)})"


def number(ms: float) -> str:
    """Two places below 10, none from 100 on."""
    places = 2 if abs(ms) < 10 else 1 if abs(ms) < 100 else 0
    return f"{ms + 0.0:,.{places}f}".replace("-0.00", "0.00")


def sentences(result: Result) -> list[str]:
    """What was found at the fewest clients of each transport; the parts of what is added sum up to it."""
    least = {each.transport: each for each in sorted(result.overhead, key=lambda each: -each.clients)}
    said = [_sentence(least[transport]) for transport in dict.fromkeys(e.transport for e in result.overhead)]
    if any(each.exchanges == 0 for each in result.overhead):
        said.append("The proxy's recorder had no exchange of this workload, so its parts are unknown.")
    for each in result.overhead:
        if each.sampling is not None:
            low, value, high = (100 * x for x in (each.sampling.low, each.sampling.value, each.sampling.high))
            interval = "" if each.sampling.repetitions < LEAST else f" ({low:.1f} to {high:.1f})"
            said.append(
                f"Sampling costs {value:.1f} %{interval} of the proxy's throughput over {_where(each)}."
            )
    return said


def _where(each: Overhead) -> str:
    return f"{each.transport} at {each.clients} client{'s' * (each.clients > 1)}"


def _sentence(each: Overhead) -> str:
    found = each.p50
    parts = {
        "waiting for a connection": found.parts.queue_ms,
        "opening one": found.parts.connect_ms,
        "relay": found.parts.relay_ms,
        "the hop to it and back": found.hop_ms,
    }
    shown = [f"{number(ms)} ms {name}" for name, ms in parts.items() if abs(ms) >= 0.005]
    if abs(found.server_ms) >= 0.005:
        less = "less" if found.server_ms < 0 else "more"
        shown.append(f"{number(abs(found.server_ms))} ms {less} at the server")
    change = f"{each.throughput.value:.2g}x" if each.throughput.value < 1 else f"{each.throughput.value:.3g}x"
    return (
        f"Over {_where(each)} the proxy adds {number(found.added.value)} ms at p50 and "
        f"{number(each.p95.added.value)} ms at p95; at p50: {', '.join(shown) or 'nothing'}. "
        f"Throughput is {change} of direct."
    )
