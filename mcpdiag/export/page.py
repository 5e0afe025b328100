"""docs/metrics.md, made from the catalog.

python -m mcpdiag.export.page > docs/metrics.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from mcpdiag.export.catalog import METRICS, PROCESS, SCRAPED_PROCESS

_HEAD = """\
# Metrics

The proxy tells Prometheus and OpenTelemetry the same numbers, under the names of OpenTelemetry's conventions for MCP where there is one.
Prometheus' names have underscores for the dots, the unit behind, and `_total` behind counters; its labels too have underscores, and no `mcpdiag.` before them.
A label is empty where there is nothing to say: `error_type` of an exchange that went well, `gen_ai_tool_name` of what is no `tools/call`.
`error.type` is the exchange's outcome: `rpc_error` if the server answered with an error, `cancelled`, or a type of [errors.md](errors.md).
`mcpdiag.era` says whose requests a pool serves: `handshake`, `stateless` (2026-07-28) or `both`.

What clients choose is bounded: 1,000 tools, 1,000 prompts and 100 methods have a name of their own, later ones are `(other)`; a histogram has at most 5,000 series in Prometheus.
Session ids are no labels; spans have them as `mcp.session.id`.
No payload, argument, header or resource URI is in a metric.

`python -m mcpdiag.export.page > docs/metrics.md` has written this page from `mcpdiag/export/catalog.py`.

## Prometheus

`pip install 'mcpdiag[prometheus]'`, and the admin port (`--admin-port 9464`) serves `/metrics`, as text or as OpenMetrics:

```yaml
scrape_configs:
  - job_name: mcpdiag
    static_configs: [{targets: ["127.0.0.1:9464"]}]
```

With a `token` in the proxy's settings add `authorization: {credentials: ...}`.
[grafana-dashboard.json](grafana-dashboard.json) is a dashboard of these metrics for Grafana's import.

## OpenTelemetry

`pip install 'mcpdiag[otel]'`; metrics and traces go out over OTLP (http/protobuf).
`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_METRIC_EXPORT_INTERVAL` and the other variables of the SDK hold:

```sh
OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318
```

Each exchange is a span `{mcp.method.name} {target}` of kind SERVER, and beneath it one of kind CLIENT for the time at the server behind the proxy, if the request was sent.
A `traceparent` (and `tracestate`) in the request's `_meta` is the parent of the first; the server gets the second as its own parent in the same place, and begins a trace with it where the client had none.
`baggage` passes as it came.
The SDK sends from threads of its own, and drops the oldest of 2,048 waiting spans; a collector that is down or hangs delays no exchange.
The SDK's work itself costs the proxy some 0.25 ms of processor an exchange, 0.1 ms where the sampler takes no trace (`OTEL_TRACES_SAMPLER=parentbased_traceidratio`), against some 5 us for `/metrics`.

## All metrics

| OpenTelemetry | Prometheus | type | labels | unit | meaning |
|---|---|---|---|---|---|
"""


def document() -> str:
    """docs/metrics.md."""
    return _HEAD + "".join(_rows())


def _rows() -> Iterator[str]:
    for metric in (*METRICS, *PROCESS):
        scraped = SCRAPED_PROCESS.get(metric.name, metric.scraped)
        cells = [
            f"`{metric.name}`",
            f"`{scraped}`",
            metric.kind,
            ", ".join(f"`{each}`" for each in metric.labels),
            metric.unit and f"`{metric.unit}`",
            metric.meaning,
        ]
        yield f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.stdout.write(document())
