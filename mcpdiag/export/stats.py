"""`Proxy.stats()` as the numbers of metrics, read from whatever thread asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Stats = Callable[[], Mapping[str, Any]]


def read(stats: Stats) -> Mapping[str, Any]:
    """What `stats` returns. It may be called beside the event loop, which may change a table that it walks through."""
    for _ in range(10):
        try:
            return stats()
        except RuntimeError:  # "changed size during iteration"
            continue
    return stats()


def pools(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    """Upstream, era and fields of every pool."""
    for name, upstream in numbers["upstreams"].items():
        era = "both" if upstream["transport"] == "http" else "handshake"
        yield name, era, upstream["pool"]
        if "stateless_pool" in upstream:
            yield name, "stateless", upstream["stateless_pool"]
