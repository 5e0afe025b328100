"""A server of the HTTP+SSE transport (2024-11-05) made with the official SDK. Prints its URL, then serves."""

from __future__ import annotations

import socket
import sys

import anyio
import uvicorn
from mcp.server.fastmcp import Context, FastMCP

COMMAND = (sys.executable, __file__)
server = FastMCP("legacy")
kept: dict[int, str] = {}


@server.tool()
def echo(text: str) -> str:
    return text


@server.tool()
def remember(text: str, context: Context) -> str:  # type: ignore[type-arg]
    kept[id(context.session)] = text
    return "kept"


@server.tool()
def recall(context: Context) -> str:  # type: ignore[type-arg]
    return kept.get(id(context.session), "")


@server.tool()
async def count(steps: int, context: Context) -> str:  # type: ignore[type-arg]
    for step in range(steps):
        await context.report_progress(step, steps)
    return "counted"


@server.tool()
async def sleep(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "awake"


def main() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0))
        listener.listen()
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/sse", flush=True)
        config = uvicorn.Config(server.sse_app(), log_level="error", timeout_graceful_shutdown=0)
        anyio.run(lambda: uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
