"""The pool's numbers as one immutable record, every field always present."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from mcpdiag.html import pairs


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A moment of one pool. Gauges describe now; counters only grow; times are float seconds.

    Invariants: `size == idle + busy + opening + returning` and `acquires == acquires_ready + acquires_waited`.
    """

    # gauges
    max: int = 0  # max_connections
    size: int = 0  # connections that take a place: idle + busy + opening + returning
    idle: int = 0  # open, healthy, with no exchange
    busy: int = 0  # leased
    opening: int = 0  # being connected or spawned
    closing: int = 0  # given up, still closing; they take no place
    waiting: int = 0  # callers in the queue
    returning: int = 0  # released, on the return channel
    # counters
    acquires: int = 0  # leases granted
    acquires_ready: int = 0  # granted at once
    acquires_waited: int = 0  # granted after waiting for an open or a release
    wait_s: float = 0.0  # time that granted and failed callers waited, summed
    acquire_timeouts: int = 0  # callers that met acquire_timeout
    acquire_cancelled: int = 0  # callers that went away while they waited
    opens: int = 0  # connections opened
    open_s: float = 0.0  # time spent opening them, summed
    open_errors: int = 0  # opens that failed
    reuses: int = 0  # leases on a connection that had been leased before
    returns: int = 0  # leases given back
    returns_bad: int = 0  # ... of these, given back as not reusable
    return_overflows: int = 0  # closed because the return channel was full or closed
    closed_idle: int = 0  # closed after idle_timeout
    closed_lifetime: int = 0  # closed after max_lifetime
    closed_lost: int = 0  # the server ended them
    closed_single_shot: int = 0  # the server ends every connection after one exchange
    pins: int = 0  # leases that became a session's own for good

    def _repr_html_(self) -> str:
        numbers = [*asdict(self).items()]
        now, counted = numbers[:_GAUGES], numbers[_GAUGES:]
        return pairs(now, caption="pool, now") + pairs(counted, caption="since the start")


_GAUGES: Final = 8
