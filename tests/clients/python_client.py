"""The official Python SDK as a caller of the proxy; one file for its 1.x and its 2.x line, run by the interpreter that has it.

`python tests/clients/python_client.py SERVER [--slow-tool NAME --slow-args JSON]` lists the tools of server-everything,
calls `echo`, calls the slow tool and, in the same session, `echo` once more. Prints one JSON line.
SERVER is the URL of a Streamable HTTP endpoint, one that ends in /sse, or a command for stdio as a JSON list.
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


def transport(server: str) -> Any:
    """The context manager of the client's end of a transport; it gives the two streams, and some give more."""
    if server.startswith("["):
        from mcp.client.stdio import StdioServerParameters, stdio_client

        program, *arguments = json.loads(server)
        return stdio_client(StdioServerParameters(command=program, args=arguments))
    if server.endswith("/sse"):
        from mcp.client.sse import sse_client

        return sse_client(server)
    from mcp.client.streamable_http import streamable_http_client

    return streamable_http_client(server)


@asynccontextmanager
async def connected(server: str) -> AsyncIterator[tuple[Any, str]]:
    """A session, each line's own way, and the revision it negotiated."""
    if ClientOf2x is not None:
        async with ClientOf2x(transport(server)) as client:
            yield client, client.protocol_version
    else:
        async with transport(server) as streams, mcp.ClientSession(*streams[:2]) as session:
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


async def visit(server: str, slow_tool: str | None, slow_arguments: dict[str, Any]) -> dict[str, Any]:
    error = echo_after = None
    async with connected(server) as (session, protocol):
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
    parser.add_argument("server")
    parser.add_argument("--slow-tool", help="a tool that the proxy is expected to time out")
    parser.add_argument("--slow-args", type=json.loads, default={}, metavar="JSON")
    options = parser.parse_args()
    try:
        visited = asyncio.run(
            asyncio.wait_for(visit(options.server, options.slow_tool, options.slow_args), LIMIT_S)
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
