"""A proxy with a hook of `export`, and what clients may do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from anyio import to_thread

from mcpdiag.embedded import COMMAND
from mcpdiag.export.otel import Otel
from mcpdiag.hooks import Hook
from mcpdiag.pool.stats import PoolStats
from mcpdiag.serve import Proxy
from tests.proxy.client import Client, proxied

SECRET = "c0rrect-horse"  # in arguments, answers and headers; it must be nowhere else
IDLE = {"transport": "stdio", "mode": "session", "pool": asdict(PoolStats(max=10))}
NUMBERS: dict[str, Any] = {
    "uptime_s": 1.5,
    "sessions": 0,
    "calls": 0,
    "events_dropped": 0,
    "upstreams": {"up": IDLE},
}
H = TypeVar("H", bound=Hook)


@asynccontextmanager
async def watched(
    make: Callable[[Callable[[], dict[str, Any]]], H], *upstreams: Any, **settings: Any
) -> AsyncIterator[tuple[Proxy, H]]:
    """A proxy whose hook can ask for its numbers, as `serve` wires it."""
    running: list[Proxy] = []
    hook = make(lambda: running[0].stats())
    async with proxied(*(upstreams or (COMMAND,)), hook=hook, **settings) as proxy:
        running.append(proxy)
        yield proxy, hook


@asynccontextmanager
async def traced(endpoint: str, *upstreams: Any, **settings: Any) -> AsyncIterator[tuple[Proxy, Otel]]:
    """A proxy whose spans and metrics have arrived at the end of the block."""

    def make(stats: Callable[[], dict[str, Any]]) -> Otel:
        return Otel(stats, endpoint=endpoint)

    async with watched(make, *upstreams, **settings) as (proxy, otel):
        yield proxy, otel
        await to_thread.run_sync(otel.close)


async def chat(proxy: Proxy) -> str:
    """A session with two calls that go well and one that does not. Returns its id."""
    async with Client.session(proxy.url) as client:
        client.headers["authorization"] = f"Bearer {SECRET}"
        assert await client.say("echo", text=SECRET) == SECRET
        assert await client.say("add", a=1, b=2) == "3"
        assert "error" in await client.call("nonsense", text=SECRET)
        await client.request("tools/list")
        return client.session_id
