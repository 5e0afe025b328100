"""What one run of the load generator does, as it crosses the process boundary in JSON."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from mcpdiag.protocol.revisions import LATEST_HANDSHAKE, LATEST_STATELESS, Era

Loop = Literal["closed", "open"]
Arrivals = Literal["constant", "poisson"]


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request that the load is made of.

    `params` has no `_meta`: the generator adds it where the era wants one. `headers` are those that repeat
    arguments (`Mcp-Param-*`), for the stateless era. `weight` is its share relative to the other calls.
    """

    method: str
    params: dict[str, Any] = {}
    weight: float = 1.0
    headers: dict[str, str] = {}

    @property
    def label(self) -> str:
        """`tools/call echo`, `tools/list`."""
        name = self.params.get("name") or self.params.get("uri") or ""
        return f"{self.method} {name}".strip()


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a load goes: an HTTP server, or a program that each session starts for itself."""

    url: str = ""
    headers: dict[str, str] = {}
    command: tuple[str, ...] = ()


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run against one server.

    Attributes:
        url, command: the server: an HTTP endpoint, or a program that each session starts for itself.
        headers: sent with every HTTP request.
        clients: in a closed loop, how many call one after the other; in an open loop, how many calls can be on
            their way at once. A call that finds no client free waits, and its latency counts from when it was due.
        sessions_per_client: a client's calls go through its sessions in turn.
        session_calls: after so many calls a session is ended and a new one opened; 0 is never.
        think_time_s: what a closed loop's client waits between an answer and its next call.
        rate: calls a second of an open loop.
        warmup_s: calls due before it has passed are not measured.
        seconds: how long calls are measured.
        timeout_s: a call without an answer for so long has failed.
        seed: of the arrivals and of the choice among calls.
    """

    url: str = ""
    command: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    era: Era = "handshake"
    calls: tuple[Call, ...] = (Call(method="tools/list"),)
    clients: int = 1
    sessions_per_client: int = 1
    session_calls: int = 0
    think_time_s: float = 0.0
    loop: Loop = "closed"
    rate: float = 0.0
    arrivals: Arrivals = "constant"
    warmup_s: float = 0.2
    seconds: float = 1.0
    timeout_s: float = 30.0
    seed: int = 1

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.command):
            raise ValueError("a load needs either a url or a command")
        if not self.calls or any(not call.weight > 0 for call in self.calls):
            raise ValueError("a load needs calls, each with a weight above 0")
        if self.clients < 1 or self.sessions_per_client < 1 or self.session_calls < 0:
            raise ValueError("a load needs at least one client with one session")
        times = (self.warmup_s, self.seconds, self.timeout_s, self.think_time_s)
        if not all(math.isfinite(each) and each >= 0 for each in times) or self.seconds == 0:
            raise ValueError("times are finite, not negative, and a run lasts longer than 0 s")
        if self.loop == "open" and not 0 < self.rate <= 1e6:
            raise ValueError("an open loop needs a rate above 0 and at most 1,000,000 a second")

    @property
    def protocol(self) -> str:
        """The revision it speaks."""
        return LATEST_STATELESS if self.era == "stateless" else LATEST_HANDSHAKE


class DuetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Base and new, which are loaded alike: `seconds` and `warmup_s` are of each of them, over all its slices.

    Attributes:
        first: which of the two is started and called first, 0 (base) or 1 (new).
        cpu: the processor that generator and stdio servers share; None: wherever the system puts them.
    """

    sides: tuple[LoadSpec, LoadSpec]
    slice_s: float = 0.05
    first: int = 0
    cpu: int | None = None
