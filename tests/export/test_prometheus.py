"""`/metrics`: what real traffic leaves there, and what must never be in it."""

from __future__ import annotations

import sys
import threading
from dataclasses import fields
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pydantic import SecretStr

from mcpdiag.config import ProxyConfig, UpstreamConfig
from mcpdiag.embedded import COMMAND
from mcpdiag.export import catalog, prometheus
from mcpdiag.export.prometheus import Metrics
from mcpdiag.hooks import ExchangeDone, Happened
from mcpdiag.pool.stats import PoolStats
from mcpdiag.proxy.admin import admin_app
from mcpdiag.proxy.guard import Guard
from tests.export.traffic import NUMBERS, SECRET, chat, watched
from tests.proxy import client
from tests.proxy.client import Client, until

pytestmark = pytest.mark.anyio
SERVER = "mcp_server_operation_duration_seconds"
CLIENT = "mcp_client_operation_duration_seconds"
Sample = tuple[dict[str, str], float]


def scrape(metrics: Metrics) -> dict[str, list[Sample]]:
    """Every sample by name, as Prometheus' own parser reads it."""
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    found: dict[str, list[Sample]] = {}
    for family in parse_text(body.decode()):
        found.setdefault(family.name, [])
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(samples: list[Sample], **labels: str) -> float:
    """The value of the only sample with these labels."""
    (found,) = [number for have, number in samples if labels.items() <= have.items()]
    return found


def done(**changed: Any) -> ExchangeDone:
    usual: dict[str, Any] = {
        "upstream": "up",
        "transport": "stdio",
        "method": "tools/call",
        "target": "echo",
        "session": "session-id",
        "protocol": "2025-11-25",
        "outcome": "ok",
        "total_ms": 30.0,
        "sent_ms": 10.0,
    }
    return ExchangeDone(**{**usual, **changed})


async def test_every_exchange_is_in_the_histogram_of_its_tool_and_outcome() -> None:
    async with watched(Metrics) as (proxy, metrics):
        session = await chat(proxy)
        found = scrape(metrics)
    count, labels = found[f"{SERVER}_count"], {"upstream": "up", "mcp_protocol_version": "2025-11-25"}
    assert value(count, mcp_method_name="tools/call", gen_ai_tool_name="echo", error_type="", **labels) == 1
    assert value(count, gen_ai_tool_name="nonsense", error_type="rpc_error", **labels) == 1
    assert value(count, mcp_method_name="tools/list", gen_ai_tool_name="", **labels) == 1
    assert {have["network_transport"] for have, _ in count} == {"tcp"}
    assert {have["network_transport"] for have, _ in found[f"{CLIENT}_count"]} == {"pipe"}
    bounds = {float(have["le"]) for have, _ in found[f"{SERVER}_bucket"]} - {float("inf")}
    assert bounds == {0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300}
    text = metrics.render()[0].decode()
    assert session not in text
    assert SECRET not in text


async def test_every_field_of_the_pool_is_there_with_its_value() -> None:
    async with watched(Metrics, pool_mode="request") as (proxy, metrics):
        await chat(proxy)
        await until(lambda: not (client.pool(proxy)["busy"] or client.pool(proxy)["returning"]))
        found, stats = scrape(metrics), proxy.stats()
    for field in fields(PoolStats):
        metric = catalog.POOL[field.name]
        assert value(found[metric.scraped], upstream="up", era="handshake") == pytest.approx(
            stats["upstreams"]["up"]["pool"][field.name]
        ), field.name
    assert value(found["mcpdiag_pool_acquires_total"]) > 0
    assert value(found["mcpdiag_sessions"]) == stats["sessions"] == 1
    assert value(found["mcpdiag_upstream_info"], upstream="up", transport="stdio", mode="request") == 1


async def test_events_are_counted_by_kind() -> None:
    async with watched(Metrics) as (proxy, metrics):
        async with Client.session(proxy.url) as session:
            await session.call("exit", code=3)
            await until(lambda: scrape(metrics).get("mcpdiag_events_total"))
        found = scrape(metrics)
    assert value(found["mcpdiag_events_total"], upstream="up", kind="child_exit") == 1


async def test_two_proxies_in_one_process_do_not_see_each_other() -> None:
    async with watched(Metrics) as (first, one), watched(Metrics, COMMAND, COMMAND) as (_, two):
        await chat(first)
        assert scrape(one)[f"{SERVER}_count"]
        assert scrape(two).get(f"{SERVER}_count", []) == []
        assert {labels["upstream"] for labels, _ in scrape(two)["mcpdiag_pool_size"]} == {"up", "up2"}


def test_every_metric_of_the_catalog_is_exported_and_nothing_else() -> None:
    metrics = Metrics(lambda: NUMBERS)
    metrics.emit(done(queue_ms=1.0, connect_ms=2.0, first_ms=3.0))
    metrics.emit(Happened("child_exit", "up"))
    found = {family.name: family for family in parse_text(metrics.render()[0].decode())}
    ours = {name: family for name, family in found.items() if not name.startswith("process_")}
    assert ours.keys() == {metric.family for metric in catalog.METRICS}
    for metric in catalog.METRICS:
        family = ours[metric.family]
        assert family.type == metric.kind
        assert family.documentation == metric.meaning
        wanted = {catalog.label(name) for name in metric.labels}
        assert all(sample.labels.keys() - {"le"} == wanted for sample in family.samples), metric.name


@pytest.mark.skipif(sys.platform != "linux", reason="prometheus_client reads /proc")
def test_the_proxy_s_own_process_is_there() -> None:
    found = scrape(Metrics(lambda: NUMBERS))
    for name in catalog.SCRAPED_PROCESS.values():
        assert value(found[name]) > 0


def test_openmetrics_is_given_to_whom_it_is_asked_by() -> None:
    metrics = Metrics(lambda: NUMBERS)
    metrics.emit(done())
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0, text/plain; q=0.5")
    assert content_type.startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    assert families[SERVER].unit == "seconds"


def test_durations_are_in_the_bucket_that_they_are_at_most() -> None:
    metrics = Metrics(lambda: NUMBERS)
    for ms in (5.0, 10.0, 10.1, 400_000.0):
        metrics.emit(done(total_ms=ms))
    found = scrape(metrics)
    assert value(found[f"{SERVER}_bucket"], le="0.01") == 2
    assert value(found[f"{SERVER}_bucket"], le="0.02") == 3
    assert value(found[f"{SERVER}_bucket"], le="300.0") == 3
    assert value(found[f"{SERVER}_bucket"], le="+Inf") == 4
    assert value(found[f"{SERVER}_sum"]) == pytest.approx(400.0251)


def test_the_time_at_the_server_is_that_after_sending_and_only_of_what_was_sent() -> None:
    metrics = Metrics(lambda: NUMBERS)
    metrics.emit(done(total_ms=70.0, sent_ms=40.0))
    metrics.emit(done(outcome="pool_timeout", total_ms=5000.0, sent_ms=0.0))
    found = scrape(metrics)
    assert [number for _, number in found[f"{CLIENT}_sum"]] == pytest.approx([0.03])
    assert value(found["mcpdiag_queue_duration_seconds_count"]) == 1
    assert value(found[f"{SERVER}_count"], error_type="pool_timeout") == 1


def test_what_clients_make_up_does_not_grow_without_bound() -> None:
    metrics = Metrics(lambda: NUMBERS)
    for number in range(1500):
        metrics.emit(done(target=f"tool-{number}"))
        metrics.emit(done(method=f"made/up/{number}", target=""))
    counts = [
        line for line in metrics.render()[0].splitlines() if line.startswith(SERVER.encode() + b"_count{")
    ]
    families = parse_text(b"\n".join([*counts, b""]).decode())
    count = [(sample.labels, sample.value) for family in families for sample in family.samples]
    tools = {labels["gen_ai_tool_name"] for labels, _ in count} - {""}
    assert tools == {*(f"tool-{number}" for number in range(1000)), "(other)"}
    assert value(count, gen_ai_tool_name="(other)") == 500
    assert len({labels["mcp_method_name"] for labels, _ in count}) == 101
    assert sum(number for _, number in count) == 3000


def test_a_histogram_has_a_last_series_for_all_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "MAX_SERIES", 10)
    metrics = Metrics(lambda: NUMBERS)
    for number in range(30):
        metrics.emit(done(target=f"tool-{number}"))
    count = scrape(metrics)[f"{SERVER}_count"]
    assert len(count) == 11
    assert value(count, upstream="up", mcp_method_name="(other)") == 20


def test_names_that_are_no_text_do_not_break_the_page() -> None:
    metrics = Metrics(lambda: NUMBERS)
    metrics.emit(done(target='"\\\n' + "\ud800" + "x" * 1000))
    (labels, _), *_ = scrape(metrics)[f"{SERVER}_count"]
    assert labels["gen_ai_tool_name"].startswith('"\\\n?xxx')
    assert len(labels["gen_ai_tool_name"]) == 256


def test_a_page_can_be_made_in_another_thread_while_events_come() -> None:
    turns = 0

    def stats() -> dict[str, Any]:
        nonlocal turns
        turns += 1
        if turns % 3 == 1:
            raise RuntimeError("dictionary changed size during iteration")
        return NUMBERS

    metrics, failures, stop = Metrics(stats), [], threading.Event()

    def render() -> None:
        while not stop.is_set():
            try:
                metrics.render()
            except Exception as failure:
                failures.append(failure)
                return

    thread = threading.Thread(target=render)
    thread.start()
    while turns < 5:
        for number in range(200):
            metrics.emit(done(target=f"tool-{turns}-{number % 20}"))
    stop.set()
    thread.join()
    assert failures == []


@pytest.mark.parametrize("installed", [True, False])
async def test_the_admin_port_serves_it_to_whom_has_the_token(installed: bool) -> None:
    """Where the extra is missing, the answer says how to install it."""
    config = ProxyConfig(
        upstreams={"up": UpstreamConfig(url="http://127.0.0.1:1/mcp")}, token=SecretStr("s3cret-token")
    )
    metrics = Metrics(lambda: NUMBERS)
    app = admin_app(Guard(config), lambda: True, lambda: NUMBERS, metrics.render if installed else None)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.get("/metrics")).status_code == 401
        got = await http.get("/metrics", headers={"authorization": "Bearer s3cret-token"})
    assert got.status_code == (200 if installed else 404)
    assert ("mcpdiag_uptime_seconds 1.5" if installed else "pip install 'mcpdiag[prometheus]'") in got.text
    if installed:
        assert got.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
