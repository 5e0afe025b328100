"""`mcpdiag demo`: an embedded server behind the proxy, real traffic from the official client, what it found."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import Annotated, Any

import anyio
import typer
from rich.console import Console
from rich.table import Table

from mcpdiag.config.types import PoolMode
from mcpdiag.embedded import COMMAND
from mcpdiag.errors import StartError
from mcpdiag.serve import Proxy, run_loop

MODES: tuple[tuple[PoolMode, int], ...] = (("session", 10), ("request", 4), ("multiplex", 1))


@dataclass(frozen=True, slots=True)
class Row:
    """What one pool mode did with the same traffic; times in milliseconds."""

    mode: str
    calls: int
    processes: int
    p50_ms: float
    p95_ms: float
    calls_per_s: float


def demo(
    clients: Annotated[int, typer.Option(min=1, max=10, help="Clients at once.")] = 8,
    calls: Annotated[int, typer.Option(min=2, max=10_000, help="Calls of each client.")] = 25,
) -> None:
    """Run an embedded MCP server behind the proxy, send it traffic with the official client, print what it found.

    Example:

    `mcpdiag demo --clients 8 --calls 25`
    """
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise StartError(
            "the demo sends its traffic with the official MCP client, which is not installed; "
            "pip install 'mcpdiag[demo]'"
        ) from None
    run_loop(lambda: _demo(Console(), clients, calls))


async def _demo(console: Console, clients: int, calls: int) -> None:
    console.print(f"One embedded stdio server, {clients} official clients, {calls} calls of `echo` each:")
    rows = []
    with console.status("sending traffic ...") if console.is_terminal else _Quiet():
        for mode, connections in MODES:
            rows.append(await _measure(mode, connections, clients, calls))
    console.print(_table(rows))
    console.print("The client takes most of that time: it shares the processor with proxy and server.\n")
    console.print("What a caller sees when things go wrong, in the same session:")
    for title, words in await _faults():
        console.print(f"  {title:<28} {words}", highlight=False, soft_wrap=True)
    console.print("\nNext: mcpdiag proxy -- npx -y @modelcontextprotocol/server-everything", highlight=False)


class _Quiet:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """An initialized session of the official client."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async with streamable_http_client(url) as streams, ClientSession(streams[0], streams[1]) as session:
        await session.initialize()
        yield session


async def _measure(mode: PoolMode, connections: int, clients: int, calls: int) -> Row:
    times: list[float] = []
    ready, go = anyio.Semaphore(0), anyio.Event()

    async def client(url: str) -> None:
        async with connected(url) as session:
            await session.call_tool("echo", {"text": "warm"})
            ready.release()
            await go.wait()
            for number in range(calls):
                began = perf_counter()
                result = await session.call_tool("echo", {"text": str(number)})
                times.append((perf_counter() - began) * 1000)
                assert result.content[0].text == str(number)

    async with Proxy({"demo": COMMAND}, port=0, pool_mode=mode, max_connections=connections) as proxy:
        async with anyio.create_task_group() as tasks:
            for _ in range(clients):
                tasks.start_soon(client, proxy.url)
            for _ in range(clients):
                await ready.acquire()
            began = perf_counter()
            go.set()
        took = perf_counter() - began
        processes = proxy.stats()["upstreams"]["demo"]["pool"]["opens"]
    cut = quantiles(times, n=100, method="inclusive")
    return Row(mode, len(times), processes, cut[49], cut[94], len(times) / took)


def _table(rows: list[Row]) -> Table:
    table = Table()
    table.add_column("pool mode")
    for name in ("calls", "processes", "p50 ms", "p95 ms", "calls/s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.mode, f"{row.calls}", f"{row.processes}", f"{row.p50_ms:.1f}", f"{row.p95_ms:.1f}",
            f"{row.calls_per_s:.0f}",
        )  # fmt: skip
    return table


async def _faults() -> list[tuple[str, str]]:
    """Provoke a timeout and a crash; each with the words that reached the caller, and what came after."""
    from mcp import McpError

    seen: list[tuple[str, str]] = []
    async with Proxy({"demo": COMMAND}, port=0, request_timeout=0.3) as proxy:
        async with connected(proxy.url) as session:
            for title, tool, arguments in (
                ("a call that hangs:", "sleep", {"seconds": 30}),
                ("a server that crashes:", "exit", {"code": 7}),
            ):
                try:
                    await session.call_tool(tool, arguments)
                except McpError as error:
                    seen.append((title, str(error)))
                after = await session.call_tool("echo", {"text": "works"})
                seen.append(("  the next call", after.content[0].text))
    stats = proxy.stats()["upstreams"]["demo"]["pool"]
    left = stats["size"] + stats["closing"]
    seen.append(("processes left behind:", f"{left} of {stats['opens']}"))
    return seen
