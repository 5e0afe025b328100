"""One source for the metrics: the page is made from it, and what is not installed is said in one line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mcpdiag.export.catalog import METRICS, POOL, PROCESS
from mcpdiag.export.page import document
from mcpdiag.pool.stats import PoolStats


def test_the_page_is_the_catalog() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text() == document(), "run: python -m mcpdiag.export.page > docs/metrics.md"


def test_every_pool_field_is_a_metric() -> None:
    assert [*POOL] == [field.name for field in fields(PoolStats)]


def test_gauges_are_the_fields_that_can_fall() -> None:
    gauges = {name for name, metric in POOL.items() if metric.kind == "gauge"}
    assert gauges == {"max", "size", "idle", "busy", "opening", "closing", "waiting", "returning"}


def test_no_metric_is_told_twice_and_none_knows_of_sessions() -> None:
    names = [metric.name for metric in (*METRICS, *PROCESS)]
    assert len(set(names)) == len(names) == len({metric.scraped for metric in (*METRICS, *PROCESS)})
    assert not any("session" in name for metric in METRICS for name in metric.labels)


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("mcpdiag.export.prometheus", "prometheus_client", "prometheus"),
        ("mcpdiag.export.otel", "opentelemetry", "otel"),
    ],
)
def test_what_is_not_installed_is_said_in_one_line(module: str, missing: str, extra: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import {module}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    *_, last = found.stderr.splitlines()
    assert last.startswith("ImportError: ")
    assert last.endswith(f"; pip install 'mcpdiag[{extra}]'")


def test_the_package_does_without_either() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = sys.modules['opentelemetry'] = None; "
        "import mcpdiag, mcpdiag.serve, mcpdiag.cli, mcpdiag.export.catalog"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert found.returncode == 0, found.stderr
