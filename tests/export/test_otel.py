"""Spans and metrics over OTLP, decoded by a receiver: whose parent is whose, what is in them and what is not."""

from __future__ import annotations

import socket
import threading

import pytest
from anyio import to_thread

from mcpdiag.export import catalog
from mcpdiag.export.otel import Otel
from mcpdiag.hooks import ExchangeDone
from tests.export.collector import CLIENT, SERVER, Collector, attributes
from tests.export.traffic import NUMBERS, SECRET, chat, traced, watched
from tests.proxy.client import Client, until

pytestmark = pytest.mark.anyio
ERROR = 2  # STATUS_CODE_ERROR


# -- spans ------------------------------------------------------------------------------------------------


async def test_an_exchange_is_a_server_span_with_a_client_span_beneath_it(collector: Collector) -> None:
    async with traced(collector.url) as (proxy, _):
        session = await chat(proxy)
    outer, inner = collector.one(SERVER, "tools/call echo"), collector.one(CLIENT, "tools/call echo")
    assert inner.parent_span_id == outer.span_id
    assert inner.trace_id == outer.trace_id
    assert outer.parent_span_id == b""
    assert outer.start_time_unix_nano <= inner.start_time_unix_nano <= inner.end_time_unix_nano
    assert inner.end_time_unix_nano == outer.end_time_unix_nano
    found = attributes(outer.attributes)
    assert (
        found.items()
        >= {
            "mcp.method.name": "tools/call",
            "gen_ai.tool.name": "echo",
            "gen_ai.operation.name": "execute_tool",
            "mcp.protocol.version": "2025-11-25",
            "mcp.session.id": session,
            "jsonrpc.request.id": "2",
            "network.transport": "tcp",
            "mcpdiag.upstream": "up",
        }.items()
    )
    assert attributes(inner.attributes)["network.transport"] == "pipe"
    assert "error.type" not in found
    assert collector.one(SERVER, "initialize").kind == SERVER
    assert collector.resource["service.name"] == "mcpdiag"


async def test_an_exchange_that_failed_has_its_error(collector: Collector) -> None:
    async with traced(collector.url) as (proxy, _):
        await chat(proxy)
    for kind in (SERVER, CLIENT):
        span = collector.one(kind, "tools/call nonsense")
        assert attributes(span.attributes)["error.type"] == "rpc_error"
        assert span.status.code == ERROR
    assert collector.one(SERVER, "tools/call echo").status.code != ERROR


async def test_what_was_never_sent_has_no_client_span(collector: Collector) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}/mcp"
    async with traced(collector.url, {"url": closed, "transport": "http"}) as (proxy, _):
        async with Client.bare(proxy.url) as asking:
            assert "error" in await asking.initialize()
    assert attributes(collector.one(SERVER, "initialize").attributes)["error.type"] == "connect_error"
    assert collector.of(CLIENT) == []


async def test_no_payload_header_or_secret_of_a_uri_leaves_the_process(collector: Collector) -> None:
    async with traced(collector.url) as (proxy, _):
        await chat(proxy)
        async with Client.session(proxy.url) as asking:
            uri = f"postgres://alice:{SECRET}@db.example/orders?key={SECRET}#{SECRET}"
            await asking.request("resources/subscribe", {"uri": uri})
    assert attributes(collector.one(SERVER, "resources/subscribe").attributes)["mcp.resource.uri"] == (
        "postgres://db.example/orders"
    )
    assert SECRET.encode() not in collector.raw


def test_names_that_are_no_text_do_not_cost_the_others_of_their_batch(collector: Collector) -> None:
    otel = Otel(lambda: NUMBERS, endpoint=collector.url)
    bad = "\ud800" + "x" * 1000
    begun = otel.tracer.begin(bad, bad, {"traceparent": bad, "tracestate": bad})
    otel.emit(ExchangeDone("up", "stdio", bad, bad, bad, bad, bad, total_ms=2.0, sent_ms=1.0, trace=begun))
    otel.emit(ExchangeDone("up", "stdio", "tools/call", bad, "", "", "ok", total_ms=2.0, sent_ms=1.0))
    otel.emit(ExchangeDone("up", "stdio", "ping", "", "", "", "ok", total_ms=2.0, sent_ms=1.0))
    otel.close()
    assert collector.one(CLIENT, "ping")
    assert len(collector.spans) == 6
    assert (
        max(len(str(text)) for span in collector.spans for text in attributes(span.attributes).values())
        == 256
    )


# -- metrics ----------------------------------------------------------------------------------------------


async def test_every_metric_arrives_with_the_advised_buckets(collector: Collector) -> None:
    async with traced(collector.url) as (proxy, _):
        await chat(proxy)
        async with Client.session(proxy.url) as asking:
            await asking.call("exit", code=3)
    assert collector.metrics.keys() == {metric.name for metric in (*catalog.METRICS, *catalog.PROCESS)}
    for metric in (*catalog.METRICS, *catalog.PROCESS):
        assert collector.metrics[metric.name].unit == metric.unit
    durations = collector.metrics["mcp.server.operation.duration"].histogram.data_points
    assert tuple(durations[0].explicit_bounds) == catalog.OPERATION_BUCKETS
    by_tool = {attributes(point.attributes).get("gen_ai.tool.name"): point for point in durations}
    assert by_tool["echo"].count == 1
    assert attributes(by_tool["nonsense"].attributes)["error.type"] == "rpc_error"
    assert not any("session" in name for point in durations for name in attributes(point.attributes))
    (memory,) = collector.metrics["process.memory.usage"].gauge.data_points
    assert memory.as_int > 1_000_000
    opens = collector.metrics["mcpdiag.pool.opens"].sum
    assert opens.is_monotonic
    assert opens.data_points[0].as_int == proxy.stats()["upstreams"]["up"]["pool"]["opens"] > 0


async def test_the_environment_says_where_to_send_and_who_sends(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "edge-proxy")
    async with traced("") as (proxy, _):
        await chat(proxy)
    assert collector.resource["service.name"] == "edge-proxy"
    assert collector.one(SERVER, "tools/call echo")
    assert "mcpdiag.pool.size" in collector.metrics


# -- a collector that is not there ------------------------------------------------------------------------


def nothing_is_sent() -> bool:
    """Whether the threads of closed hooks have ended."""
    return not any(thread.name.startswith(("Otel", "mcpdiag-otel")) for thread in threading.enumerate())


async def test_a_collector_that_hangs_delays_nobody(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls go on while a request to it hangs, spans beyond the queue are dropped, and closing does not wait."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    collector.answers.clear()
    async with watched(lambda stats: Otel(stats, endpoint=collector.url)) as (proxy, otel):
        await chat(proxy)
        await to_thread.run_sync(collector.asked.wait, 30)
        assert collector.asked.is_set()
        for _ in range(3):
            await chat(proxy)
        for _ in range(5000):
            otel.emit(ExchangeDone("up", "stdio", "ping", "", "", "2025-11-25", "ok", total_ms=1.0))
        await chat(proxy)
        await to_thread.run_sync(otel.close, 0.01)
        assert collector.spans == []
        collector.answers.set()
        await until(nothing_is_sent)


async def test_a_collector_that_refuses_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    async with watched(lambda stats: Otel(stats, endpoint=closed)) as (proxy, otel):
        for _ in range(3):
            await chat(proxy)
        await to_thread.run_sync(otel.close, 0.01)
        await chat(proxy)
        await until(nothing_is_sent)
