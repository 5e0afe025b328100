"""An MCP server that offers what the official conformance suite of 2025-11-25 asks for, over stdio or HTTP.

`python -m tests.servers.conformance --stdio` or `--port N`; with a port it prints one line with its URL on stderr.
`tools/conformance.py` and the tests run it bare and behind the proxy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args
from weakref import WeakKeyDictionary

import anyio
import uvicorn
from mcp import types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.lowlevel.server import request_ctx
from mcp.server.session import ServerSession
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.context import RequestContext
from mcp.shared.exceptions import McpError
from pydantic import AnyUrl
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

RETRY_MS = 200
LEVELS: tuple[types.LoggingLevel, ...] = get_args(types.LoggingLevel)  # ascending severity
RED_PIXEL_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"
SILENCE_WAV = "UklGRiwAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQgAAACAgICAgICAgA=="
WATCHED = "test://watched-resource"

Schema: TypeAlias = dict[str, Any]

# What a client asked for and its session must remember; forgotten with the session.
LEVEL: WeakKeyDictionary[ServerSession, types.LoggingLevel] = WeakKeyDictionary()
WATCHING: WeakKeyDictionary[ServerSession, set[str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Call:
    """One tools/call: its arguments and a way back to the client, on the stream of this very request."""

    arguments: dict[str, Any]
    context: RequestContext[ServerSession, Any, Any]

    async def log(self, text: str) -> None:
        session = self.context.session
        if LEVELS.index("info") >= LEVELS.index(LEVEL.get(session, "debug")):
            await session.send_log_message("info", text, "conformance", self.context.request_id)

    async def progress(self, done: float, total: float) -> None:
        token = self.context.meta.progressToken if self.context.meta else None
        if token is not None:
            await self.context.session.send_progress_notification(
                token, done, total, related_request_id=str(self.context.request_id)
            )

    async def elicit(self, message: str, properties: Schema, required: list[str]) -> str:
        """The user's action and content, as the suite wants them in the answer's text."""
        schema = {"type": "object", "properties": properties, "required": required}
        answer = await self.context.session.elicit(message, schema, self.context.request_id)
        return f"action={answer.action}, content={json.dumps(answer.content or {})}"


Content: TypeAlias = list[types.ContentBlock]
ToolHandler: TypeAlias = Callable[[Call], Awaitable[Content]]
TOOLS: dict[str, tuple[types.Tool, ToolHandler]] = {}


def tool(name: str, description: str, schema: Schema | None = None) -> Callable[[ToolHandler], ToolHandler]:
    def register(handler: ToolHandler) -> ToolHandler:
        accepts = schema or {"type": "object", "properties": {}}
        TOOLS[name] = types.Tool(name=name, description=description, inputSchema=accepts), handler
        return handler

    return register


def required_string(name: str, description: str) -> Schema:
    properties = {name: {"type": "string", "description": description}}
    return {"type": "object", "properties": properties, "required": [name]}


def text(value: str) -> types.TextContent:
    return types.TextContent(type="text", text=value)


def image() -> types.ImageContent:
    return types.ImageContent(type="image", data=RED_PIXEL_PNG, mimeType="image/png")


def audio() -> types.AudioContent:
    return types.AudioContent(type="audio", data=SILENCE_WAV, mimeType="audio/wav")


def resource(uri: str, mime_type: str, value: str) -> types.EmbeddedResource:
    contents = types.TextResourceContents(uri=AnyUrl(uri), mimeType=mime_type, text=value)
    return types.EmbeddedResource(type="resource", resource=contents)


def always(name: str, description: str, *content: types.ContentBlock) -> None:
    async def answer(_: Call) -> Content:
        return list(content)

    tool(name, description)(answer)


always("test_simple_text", "A text", text("This is a simple text response for testing."))
always("test_image_content", "A red pixel", image())
always("test_audio_content", "A millisecond of silence", audio())
embedded = resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")
always("test_embedded_resource", "An embedded resource", embedded)
embedded = resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
always("test_multiple_content_types", "Three kinds", text("Multiple content types test:"), image(), embedded)


@tool("test_tool_with_logging", "Logs three times while it runs")
async def with_logging(call: Call) -> Content:
    await call.log("Tool execution started")
    await anyio.sleep(0.05)
    await call.log("Tool processing data")
    await anyio.sleep(0.05)
    await call.log("Tool execution completed")
    return [text("logged three times")]


@tool("test_tool_with_progress", "Reports progress three times while it runs")
async def with_progress(call: Call) -> Content:
    await call.progress(0, 100)
    await anyio.sleep(0.05)
    await call.progress(50, 100)
    await anyio.sleep(0.05)
    await call.progress(100, 100)
    return [text("reported progress three times")]


@tool("test_error_handling", "Always fails")
async def error_handling(_: Call) -> Content:
    raise RuntimeError("This tool intentionally returns an error for testing")


@tool("test_sampling", "Asks the client's model", required_string("prompt", "what to ask"))
async def sampling(call: Call) -> Content:
    prompt = types.SamplingMessage(role="user", content=text(call.arguments["prompt"]))
    answer = await call.context.session.create_message(
        [prompt], max_tokens=100, related_request_id=call.context.request_id
    )
    said = answer.content.text if isinstance(answer.content, types.TextContent) else answer.content.type
    return [text(f"LLM response: {said}")]


@tool("test_elicitation", "Asks the user for two strings", required_string("message", "what to ask"))
async def elicitation(call: Call) -> Content:
    properties = {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    }
    answer = await call.elicit(call.arguments["message"], properties, ["username", "email"])
    return [text(f"User response: {answer}")]


@tool("test_elicitation_sep1034_defaults", "Asks the user with a default for every primitive type")
async def elicitation_defaults(call: Call) -> Content:
    properties = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    return [text(f"Elicitation completed: {await call.elicit('Please review', properties, [])}")]


@tool(
    "test_elicitation_sep1330_enums", "Asks the user to choose, in each of the five ways a choice is written"
)
async def elicitation_enums(call: Call) -> Content:
    plain = {"type": "string", "enum": ["option1", "option2", "option3"]}
    titled = [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]
    values, names = ["opt1", "opt2", "opt3"], ["Option One", "Option Two", "Option Three"]
    properties = {
        "untitledSingle": plain,
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", "enum": values, "enumNames": names},
        "untitledMulti": {"type": "array", "items": plain},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    return [text(f"Elicitation completed: {await call.elicit('Please choose', properties, [])}")]


@tool(
    "test_reconnection", "Closes its stream before it answers; the answer waits for the client to come back"
)
async def reconnection(call: Call) -> Content:
    # Absent over stdio, which has no stream to close, and for clients too old to resume: then it just answers.
    if call.context.close_sse_stream is not None:
        await call.context.close_sse_stream()
    await anyio.sleep(RETRY_MS / 2 / 1000)
    return [text("answered after the stream was closed")]


@tool(
    "touch_watched_resource",
    "Says that test://watched-resource changed, if this session has subscribed to it",
)
async def touch_watched_resource(call: Call) -> Content:
    subscribed = WATCHED in WATCHING.get(call.context.session, set())
    if subscribed:
        await call.context.session.send_resource_updated(AnyUrl(WATCHED))
    return [text("notified" if subscribed else "not subscribed")]


@tool(
    "json_schema_2020_12_tool",
    "Has an input schema whose keywords a relay could lose",
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
        "additionalProperties": False,
    },
)
async def json_schema(call: Call) -> Content:
    return [text(json.dumps(call.arguments))]


RESOURCES: dict[str, tuple[str, str, str]] = {
    "test://static-text": ("text/plain", "static text", "This is the content of the static text resource."),
    "test://static-binary": ("image/png", "a red pixel", RED_PIXEL_PNG),
    WATCHED: ("text/plain", "can be subscribed to", "Watched resource content"),
}
TEMPLATE = types.ResourceTemplate(
    uriTemplate="test://template/{id}/data",
    name="template",
    description="data of one id",
    mimeType="application/json",
)


def prompt(name: str, description: str, **arguments: str) -> types.Prompt:
    described = [types.PromptArgument(name=a, description=d, required=True) for a, d in arguments.items()]
    return types.Prompt(name=name, description=description, arguments=described)


PROMPTS = [
    prompt("test_simple_prompt", "One text"),
    prompt("test_prompt_with_arguments", "Repeats its arguments", arg1="the first", arg2="the second"),
    prompt("test_prompt_with_embedded_resource", "Embeds a resource", resourceUri="which resource"),
    prompt("test_prompt_with_image", "A red pixel"),
]


async def list_tools(_: types.ListToolsRequest) -> types.ServerResult:
    return types.ServerResult(types.ListToolsResult(tools=[definition for definition, _ in TOOLS.values()]))


async def call_tool(request: types.CallToolRequest) -> types.ServerResult:
    if request.params.name not in TOOLS:
        raise refused(types.INVALID_PARAMS, f"there is no tool '{request.params.name}'")
    _, handler = TOOLS[request.params.name]
    try:
        content = await handler(Call(request.params.arguments or {}, request_ctx.get()))
    except Exception as error:
        return types.ServerResult(types.CallToolResult(content=[text(str(error))], isError=True))
    return types.ServerResult(types.CallToolResult(content=content))


async def list_resources(_: types.ListResourcesRequest) -> types.ServerResult:
    resources = [
        types.Resource(
            uri=AnyUrl(uri), name=uri.removeprefix("test://"), description=described, mimeType=mime
        )
        for uri, (mime, described, _) in RESOURCES.items()
    ]
    return types.ServerResult(types.ListResourcesResult(resources=resources))


async def list_templates(_: types.ListResourceTemplatesRequest) -> types.ServerResult:
    return types.ServerResult(types.ListResourceTemplatesResult(resourceTemplates=[TEMPLATE]))


async def read_resource(request: types.ReadResourceRequest) -> types.ServerResult:
    uri = request.params.uri
    contents: types.TextResourceContents | types.BlobResourceContents
    if matched := re.fullmatch(r"test://template/([^/]+)/data", str(uri)):
        data = {"id": matched[1], "templateTest": True, "data": f"Data for ID: {matched[1]}"}
        contents = types.TextResourceContents(uri=uri, mimeType=TEMPLATE.mimeType, text=json.dumps(data))
    elif str(uri) not in RESOURCES:
        raise refused(-32002, f"there is no resource '{uri}'")
    elif (mime := RESOURCES[str(uri)][0]).startswith("text/"):
        contents = types.TextResourceContents(uri=uri, mimeType=mime, text=RESOURCES[str(uri)][2])
    else:
        contents = types.BlobResourceContents(uri=uri, mimeType=mime, blob=RESOURCES[str(uri)][2])
    return types.ServerResult(types.ReadResourceResult(contents=[contents]))


async def subscribe(request: types.SubscribeRequest) -> types.ServerResult:
    WATCHING.setdefault(request_ctx.get().session, set()).add(str(request.params.uri))
    return types.ServerResult(types.EmptyResult())


async def unsubscribe(request: types.UnsubscribeRequest) -> types.ServerResult:
    WATCHING.setdefault(request_ctx.get().session, set()).discard(str(request.params.uri))
    return types.ServerResult(types.EmptyResult())


async def list_prompts(_: types.ListPromptsRequest) -> types.ServerResult:
    return types.ServerResult(types.ListPromptsResult(prompts=PROMPTS))


async def get_prompt(request: types.GetPromptRequest) -> types.ServerResult:
    arguments = request.params.arguments or {}
    content: Content
    match request.params.name:
        case "test_simple_prompt":
            content = [text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            said = ", ".join(f"{name}='{arguments.get(name, '')}'" for name in ("arg1", "arg2"))
            content = [text(f"Prompt with arguments: {said}")]
        case "test_prompt_with_embedded_resource":
            uri = arguments.get("resourceUri", "test://example-resource")
            embedded = resource(uri, "text/plain", "Embedded resource content for testing.")
            content = [embedded, text("Please process the embedded resource above.")]
        case "test_prompt_with_image":
            content = [image(), text("Please analyze the image above.")]
        case name:
            raise refused(types.INVALID_PARAMS, f"there is no prompt '{name}'")
    messages = [types.PromptMessage(role="user", content=block) for block in content]
    return types.ServerResult(types.GetPromptResult(messages=messages))


async def set_level(request: types.SetLevelRequest) -> types.ServerResult:
    LEVEL[request_ctx.get().session] = request.params.level
    return types.ServerResult(types.EmptyResult())


async def complete(request: types.CompleteRequest) -> types.ServerResult:
    begun = request.params.argument.value
    values = [word for word in ("test", "testValue1", "testValue2") if word.startswith(begun)]
    completion = types.Completion(values=values, total=len(values), hasMore=False)
    return types.ServerResult(types.CompleteResult(completion=completion))


def refused(code: int, message: str) -> McpError:
    return McpError(types.ErrorData(code=code, message=message))


class ConformanceServer(Server[dict[str, Any], Any]):
    def __init__(self) -> None:
        super().__init__("mcpdiag-conformance", version="1.0.0")
        # Not through the SDK's decorators: they are untyped, and the tools' one would rewrite results.
        self.request_handlers |= {
            types.ListToolsRequest: list_tools,
            types.CallToolRequest: call_tool,
            types.ListResourcesRequest: list_resources,
            types.ListResourceTemplatesRequest: list_templates,
            types.ReadResourceRequest: read_resource,
            types.SubscribeRequest: subscribe,
            types.UnsubscribeRequest: unsubscribe,
            types.ListPromptsRequest: list_prompts,
            types.GetPromptRequest: get_prompt,
            types.SetLevelRequest: set_level,
            types.CompleteRequest: complete,
        }

    def get_capabilities(
        self, notification_options: NotificationOptions, experimental_capabilities: dict[str, dict[str, Any]]
    ) -> types.ServerCapabilities:
        capabilities = super().get_capabilities(notification_options, experimental_capabilities)
        # The SDK always says that resources cannot be subscribed to.
        capabilities.resources = types.ResourcesCapability(subscribe=True, listChanged=False)
        return capabilities


class EventLog(EventStore):
    """The events of one session in order; an id is a place in the list."""

    def __init__(self) -> None:
        self.events: list[tuple[str, types.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        self.events.append((stream_id, message))
        return str(len(self.events) - 1)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        if not (last_event_id.isdecimal() and int(last_event_id) < len(self.events)):
            return None
        stream_id, _ = self.events[int(last_event_id)]
        for place in range(int(last_event_id) + 1, len(self.events)):
            of_stream, message = self.events[place]
            if of_stream == stream_id and message is not None:
                await send_callback(EventMessage(message, str(place)))
                if isinstance(message.root, types.JSONRPCResponse | types.JSONRPCError):
                    return None  # nothing can follow the answer, so the stream ends with it
        return stream_id


class SessionManager(StreamableHTTPSessionManager):
    """Gives each session its own event log: the SDK names a stream by its request id alone, so in one shared log
    a client that resumes would read other clients' events."""

    @property
    def event_store(self) -> EventStore | None:
        return EventLog()

    @event_store.setter
    def event_store(self, value: EventStore | None) -> None:
        """The base class sets the shared one here."""


class NegotiatedVersion:
    """Holds each session to the first protocol version its requests name.

    The suite's raw requests claim 2025-03-26 inside a session of 2025-11-25. The SDK goes by that header, and for
    so old a client neither primes a stream nor closes one, so the scenario on resuming would test nothing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.versions: dict[bytes, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        session, version = headers.get(b"mcp-session-id"), headers.get(b"mcp-protocol-version")
        if session and version:
            headers[b"mcp-protocol-version"] = self.versions.setdefault(session, version)
        await self.app({**scope, "headers": list(headers.items())}, receive, send)


async def serve_http(host: str, port: int) -> None:
    listener = socket.create_server((host, port))
    authority = f"{host}:{listener.getsockname()[1]}"
    local = [f"{name}:*" for name in ("127.0.0.1", "localhost", "[::1]", host)]
    origins = [f"http://{name}" for name in local]
    security = TransportSecuritySettings(allowed_hosts=local, allowed_origins=origins)
    manager = SessionManager(ConformanceServer(), security_settings=security, retry_interval=RETRY_MS)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with manager.run():
            print(f"conformance server ready at http://{authority}/mcp", file=sys.stderr, flush=True)
            yield

    routes = [Route("/mcp", endpoint=NegotiatedVersion(manager.handle_request))]
    app = Starlette(routes=routes, lifespan=lifespan)
    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[listener])


async def serve_stdio() -> None:
    server = ConformanceServer()
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.servers.conformance", description=__doc__)
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
