"""Where memory may leak: what a probe tells of, and a result keeps."""

from __future__ import annotations

import msgspec


class Site(msgspec.Struct, frozen=True):
    """A call site whose live bytes grew with the requests: a candidate, no proof."""

    function: str
    file: str
    line: int
    growth_bytes_per_request: float
