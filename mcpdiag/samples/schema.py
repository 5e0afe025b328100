"""What each frame holds: the one place that says a column's dtype, unit and meaning.

Recorder, frames, captures and docs/frames.md are all made from `SCHEMA`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Dtype = Literal["datetime64[ns, UTC]", "category", "float64", "int64", "bool", "string"]
FrameName = Literal["requests", "pool", "memory", "heap", "events"]


class Column(NamedTuple):
    """One column of a frame.

    Attributes:
        dtype: of pandas; `category` and `string` hold text and never a missing value.
        unit: empty where there is none.
        meaning: for people, one phrase.
        recent: a category whose values come and go: of those, the newest are kept instead of the first.
    """

    dtype: Dtype
    unit: str
    meaning: str
    recent: bool = False


def _ts(what: str) -> Column:
    return Column("datetime64[ns, UTC]", "", what)


def _category(meaning: str, *, recent: bool = False) -> Column:
    return Column("category", "", meaning, recent)


def _ms(meaning: str) -> Column:
    return Column("float64", "ms", meaning)


def _count(meaning: str, unit: str = "") -> Column:
    return Column("int64", unit, meaning)


_REQUESTS = {
    "ts": _ts("when it ended"),
    "upstream": _category("the server"),
    "transport": _category("how the server is spoken to: `stdio`, `http` or `sse`"),
    "method": _category("JSON-RPC method (`mcp.method.name`)"),
    "target": _category(
        "the tool, prompt or resource it names (`gen_ai.tool.name`); empty for other methods"
    ),
    "session": _category("the client's session (`mcp.session.id`); empty in the stateless era", recent=True),
    "protocol": _category("MCP revision that the client speaks (`mcp.protocol.version`)"),
    "outcome": _category(
        "`ok`, `rpc_error` (the server answered with an error), `cancelled`, or the type of error that ended it"
    ),
    "queue_ms": _ms("waiting for a connection that was there"),
    "connect_ms": _ms("opening a connection: TCP and TLS, or spawn and initialize"),
    "first_ms": _ms("from sending the request to the first byte or message of the answer; 0 if none came"),
    "total_ms": _ms("from the request's arrival to the end of the answer (`mcp.server.operation.duration`)"),
    "reused": Column("bool", "", "whether the connection had been used before"),
    "attempts": _count("tries at the server, the first one included"),
    "messages": _count("messages that came before the answer, such as progress"),
    "inflight": _count("other calls of the same session at its end"),
    "bytes_in": _count("received from the server", "bytes"),
    "bytes_out": _count("sent to the client", "bytes"),
    "operation": _category(
        "joins the requests of one operation that the server interrupted to ask for input; else empty",
        recent=True,
    ),
    "sent_ms": _ms(
        "from the request's arrival until it was sent, of several tries the last; 0 if it never was"
    ),
}
_POOL = {
    "ts": _ts("when it was read"),
    "upstream": _category("the server"),
    "mode": _category("whose a connection is: `session`, `request` or `multiplex`"),
    "era": _category("whose requests the pool serves: `handshake`, `stateless` (2026-07-28) or `both`"),
    "max": _count("`max_connections`"),
    "size": _count("connections that take a place: idle + busy + opening + returning"),
    "idle": _count("open, healthy, with no exchange"),
    "busy": _count("leased"),
    "opening": _count("being connected or spawned"),
    "closing": _count("given up, still closing; they take no place"),
    "waiting": _count("callers in the queue"),
    "returning": _count("released, on the return channel"),
    "acquires": _count("leases granted, since the start like all that follow"),
    "acquires_ready": _count("granted at once"),
    "acquires_waited": _count("granted after waiting for an open or a release"),
    "wait_s": Column("float64", "s", "time that granted and failed callers waited, summed"),
    "acquire_timeouts": _count("callers that met `acquire_timeout`"),
    "acquire_cancelled": _count("callers that went away while they waited"),
    "opens": _count("connections opened"),
    "open_s": Column("float64", "s", "time spent opening them, summed"),
    "open_errors": _count("opens that failed"),
    "reuses": _count("leases on a connection that had been leased before"),
    "returns": _count("leases given back"),
    "returns_bad": _count("of these, given back as not reusable"),
    "return_overflows": _count("closed because the return channel was full or closed"),
    "closed_idle": _count("closed after `idle_timeout`"),
    "closed_lifetime": _count("closed after `max_lifetime`"),
    "closed_lost": _count("ended by the server"),
    "closed_single_shot": _count("ended by a server that ends every connection after one exchange"),
    "pins": _count("leases that became a session's own for good"),
}
_MEMORY = {
    "ts": _ts("when it was read"),
    "upstream": _category("the server whose process it is; empty for the proxy"),
    "process": _category("`proxy`, or `server`: a stdio server with all its descendants, summed"),
    "pid": _count("of the proxy, or of the process that it started"),
    "rss_bytes": _count("resident memory; shared pages count in every process", "bytes"),
    "uss_bytes": Column(
        "float64", "bytes", "memory that is in no other process; dear, so NaN but for every tenth row or so"
    ),
    "heap_bytes": Column(
        "float64",
        "bytes",
        "what malloc has given out, of the proxy with glibc, in the rows that have `uss_bytes`; else NaN",
    ),
    "fds": _count("open file descriptors; 0 of a server that runs as another user"),
    "threads": _count("threads"),
    "children": _count("descendants: of the proxy those of all servers, of a server its own"),
    "cpu_s": Column("float64", "s", "processor time of the processes that are alive, user and system"),
}
_HEAP = {
    "ts": _ts("when the window closed; of a server, when it was looked at"),
    "upstream": _category("the server whose process it is; empty for the proxy"),
    "window": _category("the window's name; of a server `pid` and the number of its process", recent=True),
    "seconds": Column("float64", "s", "how long the window was open; NaN of a server"),
    "requests": _count("exchanges of the proxy that ended in the window; 0 of a server"),
    "kind": _category("`high_watermark` (live at the window's peak) or `leaked` (live at its end)"),
    "size_bytes": _count("what the site held, of what was allocated in the window", "bytes"),
    "n_allocations": _count("allocations that make up those bytes"),
    "allocator": _category("`malloc`, `mmap`, `pymalloc_malloc`, ...; empty in the row `(other)`"),
    "function": _category("of the innermost Python frame; `(other)` sums the smaller sites"),
    "file": _category("its file"),
    "line": _count("its line"),
    "stack": Column("string", "", "the call path with the most bytes, innermost first, a line a frame"),
}
_EVENTS = {
    "ts": _ts("when it happened"),
    "upstream": _category("the server"),
    "kind": _category("`child_exit`, `stray_output`, `undelivered`, `session_end`, `reconnect_attempt`, ..."),
    "session": _category("the client's session; empty if it concerns none", recent=True),
    "attempt": _count("of a reconnection, since the last message; else 0"),
    "delay_ms": _ms("before a reconnection; else 0"),
    "detail": Column("string", "", "what is known, cut after 500 characters"),
}
SCHEMA: Final[Mapping[FrameName, Mapping[str, Column]]] = {
    "requests": _REQUESTS,
    "pool": _POOL,
    "memory": _MEMORY,
    "heap": _HEAP,
    "events": _EVENTS,
}
ABOUT: Final[Mapping[FrameName, str]] = {
    "requests": "One row an exchange: a JSON-RPC request and everything that came back for it.",
    "pool": "One row a pool and tick (`sample_every`): gauges of that moment, and counters that only grow.",
    "memory": "One row a process and tick: the proxy, and each stdio server that runs.",
    "heap": "One row a call site, kind and heap window ([heap](heap.md)): candidates of what grows, never proof.",
    "events": "One row for whatever happens that is no exchange.",
}
