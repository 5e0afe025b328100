"""Every property of the pool holds on asyncio and on trio, both on virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pool.virtual_time import backend_options


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, backend_options(request.param)
