"""The ASGI application: who may ask, and which handler a path and a method belong to."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

from mcpdiag.errors import ClientError, McpDiagError
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.protocol.message import MessageError, decode, is_batch
from mcpdiag.protocol.mirror import MCP_PARAM
from mcpdiag.proxy.gate import Gate
from mcpdiag.proxy.guard import Guard
from mcpdiag.proxy.handshake import Handshake, check_revision
from mcpdiag.proxy.legacy import Legacy
from mcpdiag.proxy.request import Headers, Receive, Reply, Request, Send, refuse
from mcpdiag.proxy.session import Sessions
from mcpdiag.proxy.stateless import Stateless, is_stateless, only_post
from mcpdiag.upstream.base import Upstream

Scope = MutableMapping[str, Any]
METHODS = "GET, POST, DELETE"
_WANTED = frozenset(
    {
        b"host", b"origin", b"authorization", b"content-type", b"content-length", b"accept", b"last-event-id",
        b"mcp-session-id", b"mcp-protocol-version", b"access-control-request-headers",
    }
)  # fmt: skip
_CORS_HEADERS = (
    b"authorization, content-type, last-event-id, mcp-method, mcp-name, mcp-protocol-version, mcp-session-id"
)


class Endpoint:
    """Routes requests to sessions and upstreams, and refuses what is not MCP.

    Args:
        upstreams: by name; the only one is also served at `/mcp`.
        gate: shut when the proxy closes.
    """

    def __init__(
        self,
        upstreams: Iterable[Upstream],
        sessions: Sessions,
        guard: Guard,
        gate: Gate,
        *,
        hook: Hook = NO_HOOK,
    ) -> None:
        named = {upstream.name: upstream for upstream in upstreams}
        self._by_path = _by_path(named, "mcp")
        self._sse, self._messages = _by_path(named, "sse"), _by_path(named, "messages")  # of 2024-11-05
        self._guard = guard
        self._clock = sessions.clock
        self._handshake = Handshake(sessions, gate, hook=hook)
        self._stateless = Stateless(sessions, gate, hook=hook)
        self._legacy = Legacy(sessions, gate, hook=hook)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003, "reason": "MCP is spoken over HTTP"})
            return
        direct = scope.get("extensions", {}).get("mcpdiag.direct")
        reply = Reply(send, [], direct)
        try:
            if direct is not None and (passed := direct.notes.get("passed")) is not None:
                # A POST whose head is that of one that passed every check which looks at nothing else.
                again = self._request(passed[1], scope, receive, reply)
                await self._message(passed[0], again, await again.body())
                return
            headers: Headers = {key: value for key, value in scope["headers"] if key in _WANTED}
            method, path, origin = scope["method"], scope["path"], headers.get(b"origin", b"")
            # A browser's preflight carries no credentials; it reveals nothing.
            token = self._guard.token if method == "OPTIONS" else headers.get(b"authorization", b"")
            self._guard.check(headers.get(b"host", b""), origin, token)
            if origin:
                reply.headers += [
                    (b"access-control-allow-origin", origin),
                    (b"access-control-expose-headers", b"mcp-session-id"),
                    (b"vary", b"origin"),
                ]
            request = self._request(headers, scope, receive, reply)
            upstream = self._by_path.get(path)
            if upstream is None:
                await self._at_an_old_path(method, request)
            elif method == "POST":
                await self._post(upstream, request)
            elif method == "GET":
                only_post(upstream, headers)
                await self._handshake.get(upstream, request)
            elif method == "DELETE":
                only_post(upstream, headers)
                await self._handshake.delete(upstream, request)
            else:
                await _no_handler(method, METHODS, request)
        except McpDiagError as error:
            await refuse(error, reply)

    def _request(self, headers: Headers, scope: Scope, receive: Receive, reply: Reply) -> Request:
        return Request(
            headers,
            scope["path"],
            scope["query_string"],
            receive,
            reply,
            self._guard,
            self._clock,
            scope["headers"],
        )

    async def _post(self, upstream: Upstream, request: Request) -> None:
        body = await request.json()
        request.wants(b"application/json", b"text/event-stream")
        if request.reply.direct is not None and b"origin" not in request.headers:
            request.reply.direct.notes["passed"] = upstream, request.headers
        await self._message(upstream, request, body)

    async def _message(self, upstream: Upstream, request: Request, body: bytes) -> None:
        try:
            if is_batch(body):
                check_revision(request.headers)
                await self._handshake.batch(upstream, request, body)
                return
            message = decode(body)
        except MessageError as error:
            raise ClientError(str(error), code=error.code) from None
        if is_stateless(request.headers, message):
            await self._stateless.post(upstream, request, message, len(body))
            return
        check_revision(request.headers)
        await self._handshake.post(upstream, request, message, len(body))

    async def _at_an_old_path(self, method: str, request: Request) -> None:
        path = request.path
        if method == "GET" and path in self._sse:
            await self._legacy.stream(self._sse[path], request)
        elif method == "POST" and path in self._messages:
            await self._legacy.post(self._messages[path], request)
        elif path in self._sse or path in self._messages:
            await _no_handler(method, "GET" if path in self._sse else "POST", request)
        else:
            raise ClientError(f"there is no {path} here; {self._paths()}", status=404)

    def _paths(self) -> str:
        return f"the MCP endpoints are {', '.join(sorted(self._by_path))}"


def _by_path(named: dict[str, Upstream], last: str) -> dict[str, Upstream]:
    """`/{name}/{last}` for each upstream, and `/{last}` for the only one."""
    by_path = {f"/{name}/{last}": upstream for name, upstream in named.items()}
    if len(by_path) == 1:
        by_path[f"/{last}"] = next(iter(by_path.values()))
    return by_path


async def _no_handler(method: str, methods: str, request: Request) -> None:
    """A browser's question before its request, or a method that means nothing here."""
    if method != "OPTIONS" or not request.headers.get(b"origin"):
        raise ClientError(
            f"{method} is not an MCP method here; use {methods}", status=405, headers={"allow": methods}
        )
    asked = request.headers.get(b"access-control-request-headers", b"").lower().split(b",")
    parameters = [name for name in map(bytes.strip, asked) if name.startswith(MCP_PARAM)]
    request.reply.headers += [
        (b"access-control-allow-methods", methods.encode()),
        (b"access-control-allow-headers", b", ".join([_CORS_HEADERS, *parameters])),
    ]
    await request.reply.whole(204, b"")
