"""An MCP server on the official Python SDK 2.x that offers what the conformance suite of 2026-07-28 asks for.

`.tools/mcp2/bin/python tests/servers/stateless_sdk.py --stdio` or `--port N`; with a port it prints one line with its
URL on stderr. `tools/conformance.py` runs it bare and behind the proxy; `tools/setup-clients` makes its interpreter.
The SDK's other line is what the type checker sees here, so the names of 2.x are looked up at run time.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import hmac
import json
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

import anyio
import uvicorn

types: Any = import_module("mcp_types")
Server: Any = import_module("mcp.server.lowlevel.server").Server
Hint: Any = import_module("mcp.server.caching").CacheHint
ListenHandler: Any = import_module("mcp.server.subscriptions").ListenHandler
Bus: Any = import_module("mcp.server.subscriptions").InMemorySubscriptionBus
changes: Any = import_module("mcp.server.subscriptions")
stdio_server: Any = import_module("mcp.server.stdio").stdio_server
MCPError: Any = import_module("mcp.shared.exceptions").MCPError

Json = dict[str, Any]
INVALID_PARAMS = -32602
MISSING_CAPABILITY = -32021
KEY = b"every process of this server has it, so that any of them can go on where another one asked"
RED_PIXEL_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"
SILENCE_WAV = "UklGRiwAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQgAAACAgICAgICAgA=="
BUS = Bus()


class Call:
    """One tools/call or prompts/get: what came with it, and a way back on its own stream."""

    def __init__(self, context: Any, params: Any) -> None:
        self.context = context
        self.arguments: Json = params.arguments or {}
        raw = context.params or {}
        self.responses: Json = raw.get("inputResponses") or {}
        self.state: str | None = raw.get("requestState")
        self.capabilities: Json = raw["_meta"].get("io.modelcontextprotocol/clientCapabilities") or {}

    async def progress(self, done: float, total: float) -> None:
        await self.context.session.report_progress(done, total)


Handler = Callable[[Call], Awaitable[Json]]
TOOLS: dict[str, tuple[Json, Handler]] = {}


def tool(
    name: str, description: str, properties: Json | None = None, **schema: Any
) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        accepts = {"type": "object", "properties": properties or {}, **schema}
        TOOLS[name] = {"name": name, "description": description, "inputSchema": accepts}, handler
        return handler

    return register


def text(value: str) -> Json:
    return {"type": "text", "text": value}


def said(*content: Json | str, **more: Any) -> Json:
    return {"content": [text(each) if isinstance(each, str) else each for each in content], **more}


def image() -> Json:
    return {"type": "image", "data": RED_PIXEL_PNG, "mimeType": "image/png"}


def resource(uri: str, mime_type: str, value: str) -> Json:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": value}}


def always(name: str, description: str, *content: Json | str) -> None:
    async def answer(_: Call) -> Json:
        return said(*content)

    tool(name, description)(answer)


always("test_simple_text", "A text", "This is a simple text response for testing.")
always("test_image_content", "A red pixel", image())
always("test_audio_content", "Silence", {"type": "audio", "data": SILENCE_WAV, "mimeType": "audio/wav"})
embedded = resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")
always("test_embedded_resource", "An embedded resource", embedded)
embedded = resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
always("test_multiple_content_types", "Three kinds", "Multiple content types test:", image(), embedded)
always("test_logging_tool", "Logs nothing, for nobody has asked for it here", "Logging evaluated")


@tool("test_tool_with_progress", "Reports progress three times while it runs")
async def with_progress(call: Call) -> Json:
    for done in (0, 50, 100):
        await call.progress(done, 100)
        await anyio.sleep(0.05)
    return said("reported progress three times")


@tool("test_streaming_elicitation", "Streams progress, and asks nothing on that stream")
async def streaming(call: Call) -> Json:
    await call.progress(50, 100)
    return said("Streaming complete")


@tool("test_error_handling", "Always fails")
async def error_handling(_: Call) -> Json:
    return said("This tool intentionally returns an error for testing", isError=True)


@tool(
    "json_schema_2020_12_tool",
    "Has an input schema whose keywords a relay could lose",
    {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contact": {
            "type": "object",
            "properties": {"phone": {"type": "string"}, "email": {"type": "string"}},
        },
    },
    **{
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "allOf": [{"anyOf": [{"required": ["name"]}, {"required": ["address"]}]}],
        "if": {"properties": {"name": {"const": "x"}}, "required": ["name"]},
        "then": {"required": ["address"]},
        "else": {},
        "additionalProperties": False,
    },
)
async def json_schema(call: Call) -> Json:
    return said(json.dumps(call.arguments))


@tool(
    "test_mirrored_parameters",
    "Has parameters that clients repeat in headers",
    {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "limit": {"type": "integer", "x-mcp-header": "Limit"},
        "query": {"type": "string"},
    },
)
async def mirrored(call: Call) -> Json:
    return said(json.dumps(call.arguments))


@tool("test_missing_capability", "Needs a client that can sample")
async def missing_capability(call: Call) -> Json:
    if "sampling" not in call.capabilities:
        needed: Json = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(MISSING_CAPABILITY, "this tool needs the client's capability 'sampling'", needed)
    return said("Success")


@tool("test_trigger_tool_change", "Tells listeners that the tools have changed")
async def tool_change(_: Call) -> Json:
    await BUS.publish(changes.ToolsListChanged())
    return said("told")


@tool("test_trigger_prompt_change", "Tells listeners that the prompts have changed")
async def prompt_change(_: Call) -> Json:
    await BUS.publish(changes.PromptsListChanged())
    return said("told")


# -- results that ask for input -----------------------------------------------------------------------------


def seal(**claims: Any) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({**claims, "nonce": uuid.uuid4().hex}).encode()).decode()
    return f"{payload}.{hmac.new(KEY, payload.encode(), hashlib.sha256).hexdigest()}"


def unseal(state: str) -> Json:
    payload, _, signature = state.partition(".")
    if not hmac.compare_digest(hmac.new(KEY, payload.encode(), hashlib.sha256).hexdigest(), signature):
        raise MCPError(INVALID_PARAMS, "the request state has been changed")
    claims: Json = json.loads(base64.urlsafe_b64decode(payload))
    return claims


def ask(state: str | None = None, **requests: Json) -> Json:
    asked: Json = {"resultType": "input_required", "inputRequests": requests}
    return asked if state is None else {**asked, "requestState": state}


def elicit(message: str, name: str, kind: str = "string") -> Json:
    schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sample(prompt: str) -> Json:
    messages = [{"role": "user", "content": text(prompt)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": 50}}


ROOTS: Json = {"method": "roots/list", "params": {}}


@tool("test_input_required_result_elicitation", "Asks for a name")
async def needs_elicitation(call: Call) -> Json:
    if isinstance(answer := call.responses.get("user_name"), dict):
        return said(f"Hello, {answer.get('content', {}).get('name')}!")
    return ask(user_name=elicit("What is your name?", "name"))


@tool("test_input_required_result_sampling", "Asks the client's model")
async def needs_sampling(call: Call) -> Json:
    if "sample_request" in call.responses:
        return said(f"Sampling result: {call.responses['sample_request'].get('content', {}).get('text')}")
    return ask(sample_request=sample("What is the capital of France?"))


@tool("test_input_required_result_list_roots", "Asks for the roots")
async def needs_roots(call: Call) -> Json:
    if "roots_request" in call.responses:
        return said(f"Found {len(call.responses['roots_request'].get('roots', []))} root(s)")
    return ask(roots_request=ROOTS)


@tool("test_input_required_result_request_state", "Asks, and keeps its place in the request state")
async def needs_state(call: Call) -> Json:
    if call.state is not None and unseal(call.state)["kind"] == "state" and "confirm" in call.responses:
        return said("state-ok: the request state was valid")
    return ask(seal(kind="state"), confirm=elicit("Please confirm", "ok", "boolean"))


@tool("test_input_required_result_tampered_state", "Asks, and finds out whether its state was changed")
async def needs_honest_state(call: Call) -> Json:
    if call.state is not None and unseal(call.state)["kind"] == "tamper" and "confirm" in call.responses:
        return said("integrity-ok: state verified")
    return ask(seal(kind="tamper"), confirm=elicit("Please confirm", "ok", "boolean"))


@tool("test_input_required_result_multiple_inputs", "Asks three things at once")
async def needs_three(call: Call) -> Json:
    if call.state is not None and {"user_name", "greeting", "client_roots"} <= call.responses.keys():
        unseal(call.state)
        return said("got a name, a greeting and roots")
    return ask(
        seal(kind="three"),
        user_name=elicit("What is your name?", "name"),
        greeting=sample("Generate a greeting"),
        client_roots=ROOTS,
    )


@tool("test_input_required_result_multi_round", "Asks twice, one after the other")
async def needs_two_rounds(call: Call) -> Json:
    claims = {} if call.state is None else unseal(call.state)
    if claims.get("round") == 1 and "step1" in call.responses:
        return ask(seal(round=2), step2=elicit("Step 2: What is your favorite color?", "color"))
    if claims.get("round") == 2 and "step2" in call.responses:
        return said("both rounds done")
    return ask(seal(round=1), step1=elicit("Step 1: What is your name?", "name"))


@tool("test_input_required_result_capabilities", "Asks only what the client can answer")
async def needs_what_there_is(call: Call) -> Json:
    if call.responses:
        return said(f"capabilities-ok: {', '.join(call.responses)}")
    possible = {
        "elicitation": ("elicit_input", elicit("Elicitation input", "value")),
        "sampling": ("sample_input", sample("Sample request")),
    }
    return ask(seal(kind="can"), **dict(each for kind, each in possible.items() if kind in call.capabilities))


# -- resources, prompts -------------------------------------------------------------------------------------

RESOURCES: dict[str, tuple[str, str]] = {
    "test://static-text": ("text/plain", "This is the content of the static text resource."),
    "test://static-binary": ("image/png", RED_PIXEL_PNG),
}
TEMPLATE = "test://template/{id}/data"
PROMPTS: dict[str, dict[str, str]] = {
    "test_simple_prompt": {},
    "test_prompt_with_arguments": {"arg1": "the first", "arg2": "the second"},
    "test_prompt_with_embedded_resource": {"resourceUri": "which resource"},
    "test_prompt_with_image": {},
    "test_input_required_result_prompt": {},
}


async def list_tools(context: Any, params: Any) -> Any:
    return types.ListToolsResult(
        tools=[types.Tool.model_validate(definition) for definition, _ in TOOLS.values()]
    )


async def call_tool(context: Any, params: Any) -> Any:
    if params.name not in TOOLS:
        raise MCPError(INVALID_PARAMS, f"there is no tool '{params.name}'")
    return {"resultType": "complete", **await TOOLS[params.name][1](Call(context, params))}


async def list_resources(context: Any, params: Any) -> Any:
    found = [types.Resource(uri=uri, name=uri, mime_type=kind) for uri, (kind, _) in RESOURCES.items()]
    return types.ListResourcesResult(resources=found)


async def list_templates(context: Any, params: Any) -> Any:
    template = types.ResourceTemplate(uri_template=TEMPLATE, name="template", mime_type="application/json")
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(context: Any, params: Any) -> Any:
    uri = str(params.uri)
    head, tail = TEMPLATE.split("{id}")
    if uri.startswith(head) and uri.endswith(tail):
        number = uri[len(head) : -len(tail)]
        data = json.dumps({"id": number, "templateTest": True, "data": f"Data for ID: {number}"})
        contents: Json = {"uri": uri, "mimeType": "application/json", "text": data}
    elif uri in RESOURCES:
        kind, value = RESOURCES[uri]
        contents = {"uri": uri, "mimeType": kind, "text" if kind.startswith("text/") else "blob": value}
    else:
        raise MCPError(INVALID_PARAMS, f"there is no resource '{uri}'", {"uri": uri})
    return types.ReadResourceResult.model_validate({"contents": [contents]})


async def list_prompts(context: Any, params: Any) -> Any:
    found = [
        types.Prompt(
            name=name,
            description=name,
            arguments=[
                types.PromptArgument(name=n, description=d, required=True) for n, d in arguments.items()
            ],
        )
        for name, arguments in PROMPTS.items()
    ]
    return types.ListPromptsResult(prompts=found)


async def get_prompt(context: Any, params: Any) -> Any:
    call = Call(context, params)
    if params.name == "test_simple_prompt":
        content = [text("This is a simple prompt for testing.")]
    elif params.name == "test_prompt_with_arguments":
        arg1, arg2 = call.arguments.get("arg1"), call.arguments.get("arg2")
        content = [text(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'")]
    elif params.name == "test_prompt_with_embedded_resource":
        value = "Embedded resource content for testing."
        embedded = resource(str(call.arguments.get("resourceUri")), "text/plain", value)
        content = [embedded, text("Please process the embedded resource above.")]
    elif params.name == "test_prompt_with_image":
        content = [image(), text("Please analyze the image above.")]
    elif params.name == "test_input_required_result_prompt":
        if "user_context" not in call.responses:
            return ask(user_context=elicit("What context should the prompt use?", "context"))
        content = [text(f"With this context: {json.dumps(call.responses['user_context'])}")]
    else:
        raise MCPError(INVALID_PARAMS, f"there is no prompt '{params.name}'")
    messages = [{"role": "user", "content": each} for each in content]
    return {"resultType": "complete", "messages": messages}


async def complete(context: Any, params: Any) -> Any:
    values = ["paris", "park", "party"]
    return types.CompleteResult.model_validate(
        {"completion": {"values": values, "total": 3, "hasMore": False}}
    )


def make_server() -> Any:
    hint = Hint(ttl_ms=1000, scope="public")
    cacheable = (
        "server/discover", "tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read",
    )  # fmt: skip
    return Server(
        "mcpdiag-stateless",
        version="1.0.0",
        cache_hints=dict.fromkeys(cacheable, hint),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscriptions_listen=ListenHandler(BUS),
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
    )


async def serve_http(host: str, port: int) -> None:
    listener = socket.create_server((host, port))
    app = make_server().streamable_http_app(host=host)
    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1)
    url = f"http://{host}:{listener.getsockname()[1]}/mcp"
    print(f"stateless server ready at {url}", file=sys.stderr, flush=True)
    await uvicorn.Server(config).serve(sockets=[listener])


async def serve_stdio() -> None:
    server = make_server()
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--stdio", action="store_true", help="speak MCP on stdin and stdout")
    way.add_argument("--port", type=int, help="speak Streamable HTTP on this port; 0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        if options.stdio:
            anyio.run(serve_stdio)
        else:
            anyio.run(serve_http, options.host, options.port)


if __name__ == "__main__":
    main()
