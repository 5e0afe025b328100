"""A client's trace goes on at the server behind the proxy, whatever that is, with the proxy's spans in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.export.collector import CLIENT, SERVER, Collector, attributes
from tests.export.traffic import traced
from tests.proxy.client import Client, proxied
from tests.proxy.modern import Modern, upstream
from tests.servers import marked

pytestmark = pytest.mark.anyio
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "rojo=00f067aa0ba902b7"}


def seen(journal: Path, method: str = "tools/call") -> dict[str, Any]:
    """The `_meta` of the only such request that reached the server."""
    (message,) = [
        message
        for line in journal.read_text().splitlines()
        if (message := json.loads(line)).get("method") == method
    ]
    meta: dict[str, Any] = message["params"]["_meta"]
    return meta


def traceparent(span: Any, flags: str = "01") -> str:
    return f"00-{span.trace_id.hex()}-{span.span_id.hex()}-{flags}"


async def test_a_client_s_trace_goes_on_at_a_stdio_server(collector: Collector, tmp_path: Path) -> None:
    """The rest of `_meta` is untouched; baggage passes."""
    journal = tmp_path / "journal"
    async with traced(collector.url, [*marked.COMMAND, str(journal)]) as (proxy, _):
        async with Client.session(proxy.url) as asking:
            meta = {**PARENT, "baggage": "who=alice", "progressToken": "mine"}
            params = {"name": "talk", "arguments": {"mark": "m"}, "_meta": meta}
            assert "result" in await asking.request("tools/call", params)
            assert [
                each["params"]["progressToken"]
                for each in asking.messages
                if "progress" in each.get("method", "")
            ]
    outer, inner = collector.one(SERVER, "tools/call talk"), collector.one(CLIENT, "tools/call talk")
    assert outer.trace_id.hex() == inner.trace_id.hex() == TRACE
    assert outer.parent_span_id.hex() == SPAN
    found = seen(journal)
    assert found["traceparent"] == traceparent(inner)
    assert found["tracestate"] == PARENT["tracestate"]
    assert found["baggage"] == "who=alice"


async def test_a_client_s_trace_goes_on_at_an_http_server(collector: Collector, tmp_path: Path) -> None:
    """Two proxies in a row: each one's server span is beneath the client span of the one before."""
    journal = tmp_path / "journal"
    async with traced(collector.url, [*marked.COMMAND, str(journal)]) as (behind, _):
        async with (
            traced(collector.url, {"url": behind.url}) as (proxy, _),
            Client.session(proxy.url) as asking,
        ):
            params = {"name": "remember", "arguments": {"text": "x"}, "_meta": PARENT}
            assert "result" in await asking.request("tools/call", params)
    spans = [*collector.of(SERVER, "tools/call remember"), *collector.of(CLIENT, "tools/call remember")]
    assert len(spans) == 4
    by_id = {span.span_id: span for span in spans}
    (outermost,) = [span for span in spans if span.parent_span_id.hex() == SPAN]
    chain = [outermost]
    while below := [span for span in by_id.values() if span.parent_span_id == chain[-1].span_id]:
        chain += below
    assert [span.kind for span in chain] == [SERVER, CLIENT, SERVER, CLIENT]
    assert seen(journal)["traceparent"] == traceparent(chain[-1])


@pytest.mark.parametrize("kind", ["stdio", "multiplex", "http"])
async def test_a_trace_goes_on_in_the_stateless_era(collector: Collector, kind: str) -> None:
    with upstream(kind) as server:
        async with traced(collector.url, server) as (proxy, _), Modern.at(proxy.url) as asking:
            response = await asking.send(asking.call("request", meta=PARENT))
            got = json.loads(response.json()["result"]["content"][0]["text"])
    inner = collector.one(CLIENT, "tools/call request")
    assert inner.trace_id.hex() == TRACE
    assert got["message"]["params"]["_meta"]["traceparent"] == traceparent(inner)
    assert "mcp.session.id" not in attributes(inner.attributes)


@pytest.mark.parametrize("given", [{}, {"traceparent": "nonsense", "tracestate": "a=b"}])
async def test_a_request_without_a_trace_begins_one(
    collector: Collector, tmp_path: Path, given: dict[str, str]
) -> None:
    journal = tmp_path / "journal"
    async with traced(collector.url, [*marked.COMMAND, str(journal)]) as (proxy, _):
        async with Client.session(proxy.url) as asking:
            params = {"name": "remember", "arguments": {"text": "x"}, "_meta": given}
            await asking.request("tools/call", params)
    outer, inner = collector.one(SERVER, "tools/call remember"), collector.one(CLIENT, "tools/call remember")
    assert outer.parent_span_id == b""
    found = seen(journal)
    assert found["traceparent"][:55] in {traceparent(inner, flags) for flags in ("01", "03")}
    assert "tracestate" not in found


async def test_a_trace_that_is_not_sampled_goes_on_unsampled(collector: Collector, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with traced(collector.url, [*marked.COMMAND, str(journal)]) as (proxy, _):
        async with Client.session(proxy.url) as asking:
            meta = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
            await asking.request(
                "tools/call", {"name": "remember", "arguments": {"text": "x"}, "_meta": meta}
            )
    assert not [span for span in collector.spans if span.name.startswith("tools/call")]
    version, trace_id, _, flags = seen(journal)["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "00")


async def test_without_a_tracer_a_request_passes_as_it_came(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with proxied([*marked.COMMAND, str(journal)]) as proxy, Client.session(proxy.url) as asking:
        params = {"name": "remember", "arguments": {"text": "x"}, "_meta": PARENT}
        await asking.request("tools/call", params)
    assert seen(journal) == PARENT
