"""The official Python SDK 2.x in its 2026-07-28 mode as a caller of the proxy, in front of `stateless_sdk.py`.

`.tools/mcp2/bin/python tests/clients/stateless_client.py URL MODE` does everything that the era has; prints one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib import import_module
from typing import Any

LIMIT_S = 60.0
mcp: Any = import_module("mcp")
types: Any = import_module("mcp_types")


def said(result: Any) -> str:
    return "".join(getattr(block, "text", "") for block in result.content)


async def visit(url: str, mode: str) -> dict[str, Any]:
    asked: list[str] = []
    steps: list[float] = []

    async def elicit(context: Any, params: Any) -> Any:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": "Ada", "color": "blue"})

    async def progress(done: float, total: float | None, message: str | None) -> None:
        steps.append(done)

    seen: dict[str, Any] = {}
    async with mcp.Client(url, mode=mode, elicitation_callback=elicit) as client:
        seen["protocol"] = client.protocol_version
        seen["tools"] = len((await client.list_tools()).tools)
        seen["text"] = said(await client.call_tool("test_simple_text", {}))
        await client.call_tool("test_tool_with_progress", {}, progress_callback=progress)
        seen["steps"] = steps
        arguments = {"region": " Köln\n", "limit": 42, "query": "x"}
        seen["mirrored"] = json.loads(said(await client.call_tool("test_mirrored_parameters", arguments)))
        seen["rounds"] = said(await client.call_tool("test_input_required_result_multi_round", {}))
        seen["asked"] = asked
        try:
            await client.call_tool("no_such_tool", {})
        except mcp.MCPError as error:
            seen["error"] = error.code
        async with client.listen(tools_list_changed=True) as subscription:
            await client.call_tool("test_trigger_tool_change", {})
            seen["event"] = type(await anext(aiter(subscription))).__name__
        seen["after"] = said(await client.call_tool("test_simple_text", {}))
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(asyncio.wait_for(visit(sys.argv[1], sys.argv[2]), LIMIT_S))))
