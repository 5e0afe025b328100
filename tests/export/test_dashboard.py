"""docs/grafana-dashboard.json asks for what the proxy exports, and for nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from mcpdiag.export.catalog import METRICS, PROCESS, SCRAPED_PROCESS
from mcpdiag.export.prometheus import Metrics
from tests.export.traffic import chat, watched
from tests.proxy.client import Client, until

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "docs" / "grafana-dashboard.json").read_text()
)
OF_PROMETHEUS = {"job", "instance", "le"}


def queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (each["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query")


def metrics_in(query: str) -> set[str]:
    return set(re.findall(r"\b(?:mcp|mcpdiag|process)_[a-z_]+", re.sub(r'"[^"]*"', "", query))) - {
        "mcp_method_name",
        "mcp_protocol_version",
    }


def labels_in(query: str) -> set[str]:
    matched = {
        name for inside in re.findall(r"\{([^}]*)\}", query) for name in re.findall(r"(\w+)[=!]", inside)
    }
    grouped = {name.strip() for inside in re.findall(r"by \(([^)]*)\)", query) for name in inside.split(",")}
    return (matched | grouped | set(re.findall(r"label_values\(\w+, (\w+)\)", query))) - OF_PROMETHEUS


@pytest.mark.anyio
async def test_every_metric_and_label_on_it_comes_from_a_proxy_under_traffic() -> None:
    async with watched(Metrics) as (proxy, metrics):
        await chat(proxy)
        async with Client.session(proxy.url) as asking:
            await asking.call("exit", code=3)
            await until(lambda: b'mcpdiag_events_total{kind="child_exit"' in metrics.render()[0])
        families = [*parse_text(metrics.render()[0].decode())]
    exported = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    asked = {name for query in queries() for name in metrics_in(query)}
    assert len(asked) > 25
    assert asked - exported.keys() == set()
    for query in queries():
        known = set().union(*(exported[name] for name in metrics_in(query)))
        assert labels_in(query) <= known, query


def test_every_kind_of_metric_has_its_panel() -> None:
    """Of pools, whose numbers are many, those that say that something is wrong."""
    shown = " ".join(queries())
    left_out = [
        metric.scraped
        for metric in METRICS
        if metric.scraped not in shown and not metric.scraped.startswith("mcpdiag_pool_")
    ]
    assert left_out == ["mcpdiag_upstream_info"]
    assert all(SCRAPED_PROCESS[metric.name] in shown for metric in PROCESS)


def test_panels_have_names_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
