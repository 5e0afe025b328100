"""The metrics of `catalog` as instruments of OpenTelemetry: exchanges are measured, all else is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from opentelemetry.metrics import CallbackOptions, Histogram, Observation
from opentelemetry.sdk.metrics import MeterProvider

from mcpdiag.export import catalog
from mcpdiag.export.catalog import Metric
from mcpdiag.export.operation import UPSTREAM_TRANSPORT, Names, Transport, client_ms, waited
from mcpdiag.export.stats import Stats, pools, read
from mcpdiag.hooks import Event, ExchangeDone
from mcpdiag.samples.processes import ProcessReader

Read = Callable[[], Iterable[tuple[float, Sequence[str]]]]


class Instruments:
    """Measures on the event loop. What is asked for is read in the thread of the SDK that sends it."""

    def __init__(self, provider: MeterProvider, stats: Stats, names: Names, front: Transport) -> None:
        self._meter = provider.get_meter("mcpdiag")
        self._stats = stats
        self._names = names
        self._front: Transport = front
        self._server = self._histogram(catalog.SERVER_DURATION)
        self._client = self._histogram(catalog.CLIENT_DURATION)
        self._queue = self._histogram(catalog.QUEUE)
        self._connect = self._histogram(catalog.CONNECT)
        self._first_byte = self._histogram(catalog.FIRST_BYTE)
        self._events = self._meter.create_counter(
            catalog.EVENTS.name, catalog.EVENTS.unit, catalog.EVENTS.meaning
        )
        for name, metric in catalog.WHOLE.items():
            self._observed(metric, partial(self._whole, name))
        self._observed(catalog.UPSTREAM_INFO, self._infos)
        for field, metric in catalog.POOL.items():
            self._observed(metric, partial(self._pools, field))
        self._reader = ProcessReader(dear_every=1_000_000_000)
        for metric, field in zip(catalog.PROCESS, ("rss_bytes", "cpu_s", "fds"), strict=True):
            self._observed(metric, partial(self._usage, field))

    def emit(self, event: Event, /) -> None:
        """Measure an exchange, or count an event."""
        if not isinstance(event, ExchangeDone):
            self._events.add(1, _attributes(catalog.EVENTS, (event.upstream, event.kind)))
            return
        values = self._names.operation(event, self._front)
        self._server.record(event.total_ms / 1000, _attributes(catalog.SERVER_DURATION, values))
        at_server = client_ms(event)
        if at_server is not None:
            behind = UPSTREAM_TRANSPORT.get(event.transport, "tcp")
            attributes = _attributes(catalog.CLIENT_DURATION, (*values[:5], behind, values[6]))
            self._client.record(at_server / 1000, attributes)
        phase = _attributes(catalog.QUEUE, values[:2])
        if waited(event):
            self._queue.record(event.queue_ms / 1000, phase)
        if event.connect_ms > 0:
            self._connect.record(event.connect_ms / 1000, phase)
        if event.first_ms > 0:
            self._first_byte.record(event.first_ms / 1000, phase)

    def _histogram(self, metric: Metric) -> Histogram:
        return self._meter.create_histogram(
            metric.name,
            metric.unit,
            metric.meaning,
            explicit_bucket_boundaries_advisory=metric.buckets,
        )

    def _observed(self, metric: Metric, numbers: Read) -> None:
        def observe(options: CallbackOptions) -> Iterator[Observation]:
            for number, values in numbers():
                yield Observation(number, _attributes(metric, values))

        meter = self._meter
        create = (
            meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
        )
        create(metric.name, [observe], metric.unit, metric.meaning)

    def _whole(self, name: str) -> Iterator[tuple[float, Sequence[str]]]:
        yield read(self._stats)[name], ()

    def _infos(self) -> Iterator[tuple[float, Sequence[str]]]:
        for name, upstream in read(self._stats)["upstreams"].items():
            yield 1, (name, upstream["transport"], upstream["mode"])

    def _pools(self, field: str) -> Iterator[tuple[float, Sequence[str]]]:
        for name, era, pool in pools(read(self._stats)):
            yield pool[field], (name, era)

    def _usage(self, field: str) -> Iterator[tuple[float, Sequence[str]]]:
        for _, _, usage in self._reader.read({}):
            yield getattr(usage, field), ()


def _attributes(metric: Metric, values: Sequence[str]) -> dict[str, str]:
    return {name: value for name, value in zip(metric.labels, values, strict=True) if value}
