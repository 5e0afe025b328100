"""Where the time of each request went, whether it was answered or not."""

from __future__ import annotations

from mcpdiag.samples.frame import DataFrame

WAIT_MS = ("queue_ms", "connect_ms", "first_ms", "relay_ms")
_OPENING = ("connect_error", "connect_timeout")
_ANSWERED = ("ok", "rpc_error")


def phases(requests: DataFrame) -> DataFrame:
    """Four times that add up to `total_ms`, for each row of the frame `requests`.

    The frame says how long a wait took once it was over. A request that ended while it waited spent its time there:
    until the first byte if it had been sent, opening if its outcome is `connect_error` or `connect_timeout`, and
    in the queue otherwise.

    Args:
        requests: the frame `requests`, or a part of it.

    Returns:
        A DataFrame of the same index, all in milliseconds: `queue_ms` (waiting for a connection), `connect_ms`
        (opening one), `first_ms` (from sending to the first byte) and `relay_ms` (the rest: from the first to the
        last byte of the answer, and the proxy's own time).
    """
    known = requests[["queue_ms", "connect_ms", "first_ms"]].copy()
    rest = (requests["total_ms"] - known.sum(axis=1)).clip(lower=0)
    silent = ~requests["outcome"].isin(_ANSWERED) & (known["first_ms"] == 0)
    sent = requests["sent_ms"] > 0
    opening = requests["outcome"].isin(_OPENING)
    for name, here in (
        ("first_ms", silent & sent & ~opening),
        ("connect_ms", silent & opening),
        ("queue_ms", silent & ~sent & ~opening),
    ):
        known[name] += rest.where(here, 0.0)
    return known.assign(relay_ms=rest.mask(silent, 0.0))
