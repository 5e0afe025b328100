"""`/metrics`: a hook that counts exchanges and events, and a collector that reads the rest when it is scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from mcpdiag.export import catalog
from mcpdiag.export.catalog import Metric, label
from mcpdiag.export.operation import UPSTREAM_TRANSPORT, Names, Transport, client_ms, waited
from mcpdiag.export.stats import Stats, pools, read
from mcpdiag.hooks import Event, ExchangeDone
from mcpdiag.samples.interned import OTHER

try:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(f"/metrics needs {error.name}; pip install 'mcpdiag[prometheus]'") from None

MAX_SERIES = 5000  # of one histogram


class Metrics:
    """A hook whose numbers Prometheus scrapes. It has a registry of its own, so any number of proxies can have one.

    `emit` is called on the event loop; `render` in any thread.

    Args:
        stats: as `Proxy.stats`, called at each scrape.
        front: how clients speak to the proxy.
    """

    def __init__(self, stats: Stats, *, front: Transport = "tcp") -> None:
        self._front = front
        self._names = Names()
        self._server = _Histogram(catalog.SERVER_DURATION)
        self._client = _Histogram(catalog.CLIENT_DURATION)
        self._queue = _Histogram(catalog.QUEUE)
        self._connect = _Histogram(catalog.CONNECT)
        self._first_byte = _Histogram(catalog.FIRST_BYTE)
        self._events: dict[tuple[str, str], int] = {}
        self.registry = CollectorRegistry()
        self.registry.register(_Scraped(self, stats))
        ProcessCollector(registry=self.registry)

    def emit(self, event: Event, /) -> None:
        """Count an exchange or an event."""
        if not isinstance(event, ExchangeDone):
            key = (event.upstream, event.kind)
            self._events[key] = self._events.get(key, 0) + 1
            return
        labels = self._names.operation(event, self._front)
        self._server.observe(labels, event.total_ms / 1000)
        at_server = client_ms(event)
        if at_server is not None:
            behind = UPSTREAM_TRANSPORT.get(event.transport, "tcp")
            self._client.observe((*labels[:5], behind, labels[6]), at_server / 1000)
        phase = labels[:2]
        if waited(event):
            self._queue.observe(phase, event.queue_ms / 1000)
        if event.connect_ms > 0:
            self._connect.observe(phase, event.connect_ms / 1000)
        if event.first_ms > 0:
            self._first_byte.observe(phase, event.first_ms / 1000)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The body of `/metrics` and its content type: OpenMetrics if `accept` names it, else text."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def counted(self) -> Iterator[HistogramMetricFamily | CounterMetricFamily]:
        """What `emit` has counted."""
        for each in (self._server, self._client, self._queue, self._connect, self._first_byte):
            yield each.family()
        events = _counter(catalog.EVENTS)
        for key, count in list(self._events.items()):
            events.add_metric(key, count)
        yield events


class _Histogram:
    """Counts by labels. Written on the event loop, read in any thread: a row is copied in one step."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._bounds = metric.buckets
        self._rows: dict[tuple[str, ...], list[float]] = {}

    def observe(self, labels: tuple[str, ...], seconds: float) -> None:
        row = self._rows.get(labels)
        if row is None:
            row = self._new(labels)
        row[bisect_left(self._bounds, seconds)] += 1
        row[-1] += seconds

    def _new(self, labels: tuple[str, ...]) -> list[float]:
        if len(self._rows) >= MAX_SERIES:
            labels = (labels[0], *(OTHER for _ in labels[1:]))
        return self._rows.setdefault(labels, [0.0] * (len(self._bounds) + 2))

    def family(self) -> HistogramMetricFamily:
        metric = self._metric
        family = HistogramMetricFamily(metric.family, metric.meaning, labels=_labels(metric), unit="seconds")
        les = [*map(str, self._bounds), "+Inf"]
        for labels, row in list(self._rows.items()):
            *counts, total = row.copy()
            buckets, sofar = [], 0.0
            for le, count in zip(les, counts, strict=True):
                sofar += count
                buckets.append((le, sofar))
            family.add_metric(labels, buckets, total)
        return family


class _Scraped(Collector):
    """What is read when somebody asks."""

    def __init__(self, metrics: Metrics, stats: Stats) -> None:
        self._metrics = metrics
        self._stats = stats

    def collect(self) -> Iterator[HistogramMetricFamily | CounterMetricFamily | GaugeMetricFamily]:
        yield from self._metrics.counted()
        numbers = read(self._stats)
        for name, metric in catalog.WHOLE.items():
            family = _family(metric)
            family.add_metric((), numbers[name])
            yield family
        info = _family(catalog.UPSTREAM_INFO)
        for name, upstream in numbers["upstreams"].items():
            info.add_metric((name, upstream["transport"], upstream["mode"]), 1)
        yield info
        for field, metric in catalog.POOL.items():
            family = _family(metric)
            for name, era, pool in pools(numbers):
                family.add_metric((name, era), pool[field])
            yield family


def _family(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily:
    if metric.kind == "counter":
        return _counter(metric)
    return GaugeMetricFamily(metric.family, metric.meaning, labels=_labels(metric))


def _counter(metric: Metric) -> CounterMetricFamily:
    return CounterMetricFamily(metric.family, metric.meaning, labels=_labels(metric))


def _labels(metric: Metric) -> Sequence[str]:
    return [label(each) for each in metric.labels]
