"""The official Python SDK as a caller of the proxy; one file for its 1.x and its 2.x line, run by the interpreter that has it.

`python tests/clients/python_client.py URL [--slow-tool NAME --slow-args JSON]` lists the tools of server-everything,
calls `echo`, calls the slow tool and, in the same session, `echo` once more. Prints one JSON line.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import mcp

LIMIT_S = 60.0
ClientOf2x: Any = getattr(mcp, "Client", None)
CallError: type[Exception] = getattr(mcp, "MCPError", None) or mcp.McpError  # 2.x, 1.x


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[Any, str]]:
    """A session, each line's own way, and the revision it negotiated."""
    if ClientOf2x is not None:
        async with ClientOf2x(url) as client:
            yield client, client.protocol_version
    else:
        from mcp.client.streamable_http import streamable_http_client

        async with streamable_http_client(url) as (read, write, _), mcp.ClientSession(read, write) as session:
            initialized = await session.initialize()
            yield session, str(initialized.protocolVersion)


async def call(session: Any, name: str, arguments: dict[str, Any]) -> tuple[str | None, str | None]:
    """The answer's text and no error, or no text and the message that the caller of a failed tool sees."""
    try:
        result = await session.call_tool(name, arguments)
    except CallError as error:
        return None, str(error)
    said = "".join(getattr(block, "text", "") for block in result.content)
    failed = result.is_error if ClientOf2x is not None else result.isError
    return (None, said) if failed else (said, None)


async def visit(url: str, slow_tool: str | None, slow_arguments: dict[str, Any]) -> dict[str, Any]:
    error = echo_after = None
    async with connected(url) as (session, protocol):
        tools = (await session.list_tools()).tools
        echo = await spoken(session, "hello")
        if slow_tool is not None:
            _, error = await call(session, slow_tool, slow_arguments)
            echo_after = await spoken(session, "still here")
    return {"tools": len(tools), "echo": echo, "error": error, "echo_after": echo_after, "protocol": protocol}


async def spoken(session: Any, message: str) -> str:
    said, error = await call(session, "echo", {"message": message})
    if said is None:
        raise RuntimeError(f"echo failed: {error}")
    return said


def first_cause(error: BaseException) -> BaseException:
    """What went wrong first inside the task groups that the SDK wraps a failure in."""
    return first_cause(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--slow-tool", help="a tool that the proxy is expected to time out")
    parser.add_argument("--slow-args", type=json.loads, default={}, metavar="JSON")
    options = parser.parse_args()
    try:
        visited = asyncio.run(
            asyncio.wait_for(visit(options.url, options.slow_tool, options.slow_args), LIMIT_S)
        )
    except TimeoutError:
        print(f"python client: not done after {LIMIT_S} s", file=sys.stderr)
        return 1
    except Exception as error:
        cause = first_cause(error)
        print(f"python client: {type(cause).__name__}: {' '.join(str(cause).split())}", file=sys.stderr)
        return 1
    print(json.dumps(visited))
    return 0


if __name__ == "__main__":
    sys.exit(main())
