"""Every metric, told once: name, kind, labels, unit and meaning. Both exporters and docs/metrics.md are made from it."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from mcpdiag.samples.schema import SCHEMA

Kind = Literal["counter", "gauge", "histogram"]
_SUFFIX = {"s": "_seconds", "By": "_bytes"}  # of a unit; counts in braces have none
# "Semantic conventions for Model Context Protocol", the advice for both operation durations.
OPERATION_BUCKETS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# A phase is often over in less than a millisecond.
PHASE_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, *OPERATION_BUCKETS)


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: as OpenTelemetry has it.
        kind: a counter only grows.
        labels: attributes, as OpenTelemetry has them.
        unit: of UCUM, as OpenTelemetry wants it.
        meaning: for people, one phrase.
        buckets: upper bounds, of a histogram.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    meaning: str
    buckets: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """The name in Prometheus without `_total`: dots become underscores, the unit comes last."""
        return self.name.replace(".", "_") + _SUFFIX.get(self.unit, "")

    @property
    def scraped(self) -> str:
        """The name in Prometheus."""
        return f"{self.family}_total" if self.kind == "counter" else self.family


def label(attribute: str) -> str:
    """An attribute's name in Prometheus, where `mcpdiag` is in the name of the metric already."""
    return attribute.removeprefix("mcpdiag.").replace(".", "_")


UPSTREAM: Final = "mcpdiag.upstream"
ERA: Final = "mcpdiag.era"
METHOD: Final = "mcp.method.name"
OPERATION: Final = (
    UPSTREAM,
    METHOD,
    "gen_ai.tool.name",
    "gen_ai.prompt.name",
    "error.type",
    "network.transport",
    "mcp.protocol.version",
)
_POOL_GAUGES = frozenset({"max", "size", "idle", "busy", "opening", "closing", "waiting", "returning"})
_POOL_UNITS = {
    **dict.fromkeys(("waiting", "acquire_timeouts", "acquire_cancelled"), "{caller}"),
    **dict.fromkeys(
        ("acquires", "acquires_ready", "acquires_waited", "reuses", "returns", "returns_bad", "pins"),
        "{lease}",
    ),
}
# Where a column's meaning leans on the line above it.
_POOL_MEANINGS = {
    "acquires": "leases granted",
    "acquires_ready": "leases granted at once",
    "acquires_waited": "leases granted after waiting for an open or a release",
    "open_s": "time spent opening connections, summed",
    "returns_bad": "leases given back as not reusable",
}
POOL_FIELDS: Final = tuple(SCHEMA["pool"])[4:]


def _pool(field: str) -> Metric:
    column = SCHEMA["pool"][field]
    kind: Kind = "gauge" if field in _POOL_GAUGES else "counter"
    unit = "s" if column.unit == "s" else _POOL_UNITS.get(field, "{connection}")
    meaning = _POOL_MEANINGS.get(field, column.meaning)
    return Metric(f"mcpdiag.pool.{field.removesuffix('_s')}", kind, (UPSTREAM, ERA), unit, meaning)


SERVER_DURATION: Final = Metric(
    "mcp.server.operation.duration",
    "histogram",
    OPERATION,
    "s",
    "a request, from its arrival at the proxy to the end of the answer",
    OPERATION_BUCKETS,
)
CLIENT_DURATION: Final = Metric(
    "mcp.client.operation.duration",
    "histogram",
    OPERATION,
    "s",
    "from sending a request to the server behind the proxy to the end of the answer; of requests that were sent",
    OPERATION_BUCKETS,
)


def _phase(name: str, meaning: str) -> Metric:
    return Metric(f"mcpdiag.{name}.duration", "histogram", (UPSTREAM, METHOD), "s", meaning, PHASE_BUCKETS)


QUEUE: Final = _phase("queue", "waiting for a connection that was there; of requests that got one")
CONNECT: Final = _phase("connect", "opening a connection; of requests that had to")
FIRST_BYTE: Final = _phase(
    "first_byte", "from sending the request to the first byte or message of the answer"
)
EVENTS: Final = Metric(
    "mcpdiag.events", "counter", (UPSTREAM, "mcpdiag.kind"), "{event}", "what happens that is no exchange"
)
UPSTREAM_INFO: Final = Metric(
    "mcpdiag.upstream.info",
    "gauge",
    (UPSTREAM, "mcpdiag.transport", "mcpdiag.mode"),
    "",
    "always 1, for how an upstream is spoken to and whose its connections are",
)
# Of the proxy as a whole, by their names in `Proxy.stats()`.
WHOLE: Final = {
    "uptime_s": Metric("mcpdiag.uptime", "gauge", (), "s", "since the start of the proxy"),
    "sessions": Metric("mcpdiag.sessions", "gauge", (), "{session}", "client sessions that are open"),
    "calls": Metric("mcpdiag.calls.in_flight", "gauge", (), "{call}", "calls in flight"),
    "events_dropped": Metric(
        "mcpdiag.stream.events.dropped",
        "counter",
        (),
        "{event}",
        "stored stream events that were dropped because a client did not fetch them",
    ),
}
POOL: Final = {field: _pool(field) for field in POOL_FIELDS}
METRICS: Final = (
    SERVER_DURATION,
    CLIENT_DURATION,
    QUEUE,
    CONNECT,
    FIRST_BYTE,
    EVENTS,
    UPSTREAM_INFO,
    *WHOLE.values(),
    *POOL.values(),
)
# The proxy's own process: here the two libraries have names of their own.
PROCESS: Final = (
    Metric("process.memory.usage", "gauge", (), "By", "resident memory of the proxy"),
    Metric("process.cpu.time", "counter", (), "s", "processor time of the proxy, user and system"),
    Metric(
        "process.unix.file_descriptor.count",
        "gauge",
        (),
        "{file_descriptor}",
        "open descriptors of the proxy",
    ),
)
SCRAPED_PROCESS: Final = {
    "process.memory.usage": "process_resident_memory_bytes",
    "process.cpu.time": "process_cpu_seconds_total",
    "process.unix.file_descriptor.count": "process_open_fds",
}
