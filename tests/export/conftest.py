"""What the tests of both exporters share: the event loop, a clean environment, and a collector."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.export.collector import Collector, collecting
from tests.proxy import client


@pytest.fixture
def anyio_backend() -> Any:
    return client.UVLOOP


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting or HTTP proxy of the machine's stands between, and metrics are sent at the end only."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "3600000")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running
