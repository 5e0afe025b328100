"""OTLP metrics and traces through the OpenTelemetry SDK, as a hook. All sending is done in the SDK's own threads."""

from __future__ import annotations

import threading

from mcpdiag.export.operation import Names, Transport
from mcpdiag.export.stats import Stats
from mcpdiag.hooks import Event, ExchangeDone

try:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from mcpdiag.export.otel.instruments import Instruments
    from mcpdiag.export.otel.spans import SpanIds, Spans
except ImportError as error:
    raise ImportError(f"OTLP needs {error.name}; pip install 'mcpdiag[otel]'") from None


class Otel:
    """A hook that gives each exchange its spans and measures it. Providers are its own; nothing global is set.

    The variables of the SDK hold, `OTEL_EXPORTER_OTLP_ENDPOINT` first of all. `emit` and `tracer` are for the event
    loop, `stats` is called in a thread of the SDK.

    Args:
        stats: as `Proxy.stats`.
        front: how clients speak to the proxy.
        endpoint: base URL of the collector, in place of `OTEL_EXPORTER_OTLP_ENDPOINT`.
    """

    def __init__(self, stats: Stats, *, front: Transport = "tcp", endpoint: str = "") -> None:
        base = endpoint.rstrip("/")
        self._span_exporter = OTLPSpanExporter(endpoint=base and f"{base}/v1/traces")
        self._metric_exporter = OTLPMetricExporter(endpoint=base and f"{base}/v1/metrics")
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "mcpdiag"}))
        ids = SpanIds()
        self._traces = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
        self._traces.add_span_processor(BatchSpanProcessor(self._span_exporter))
        reader = PeriodicExportingMetricReader(self._metric_exporter)
        self._meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        names = Names()
        self.tracer = Spans(self._traces, ids, front)
        self._instruments = Instruments(self._meters, stats, names, front)

    def emit(self, event: Event, /) -> None:
        """Measure an exchange and end its spans, or count an event."""
        self._instruments.emit(event)
        if isinstance(event, ExchangeDone):
            self.tracer.end(event)

    def close(self, timeout: float = 5.0) -> None:
        """Send what is left, for at most about `timeout` seconds; what a collector does not take by then is lost.

        Blocks: call it in a worker thread, once, after the proxy has stopped.
        """
        sender = threading.Thread(target=self._shut_down, name="mcpdiag-otel-close", daemon=True)
        sender.start()
        sender.join(timeout)
        if sender.is_alive():  # no more retries, and no new request after the one that hangs
            self._span_exporter.shutdown()
            self._metric_exporter.shutdown()

    def _shut_down(self) -> None:
        self._traces.shutdown()
        self._meters.shutdown()
