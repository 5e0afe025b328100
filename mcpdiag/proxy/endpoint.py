"""The ASGI application: who may ask, and which handler a path and a method belong to."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

from mcpdiag.errors import ClientError, McpDiagError
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.protocol.message import MessageError, decode, is_batch
from mcpdiag.proxy.gate import Gate
from mcpdiag.proxy.guard import Guard
from mcpdiag.proxy.handshake import Handshake, check_revision
from mcpdiag.proxy.request import Headers, Receive, Reply, Request, Send, refuse
from mcpdiag.proxy.session import Sessions
from mcpdiag.upstream.base import Upstream

Scope = MutableMapping[str, Any]
METHODS = "GET, POST, DELETE"
_WANTED = frozenset(
    {
        b"host", b"origin", b"authorization", b"content-type", b"content-length", b"accept", b"last-event-id",
        b"mcp-session-id", b"mcp-protocol-version",
    }
)  # fmt: skip
_CORS_HEADERS = b"authorization, content-type, last-event-id, mcp-protocol-version, mcp-session-id"


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
        by_path = {f"/{upstream.name}/mcp": upstream for upstream in upstreams}
        if len(by_path) == 1:
            by_path["/mcp"] = next(iter(by_path.values()))
        self._by_path = by_path
        self._guard = guard
        self._clock = sessions.clock
        self._handshake = Handshake(sessions, gate, hook=hook)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003, "reason": "MCP is spoken over HTTP"})
            return
        headers: Headers = {key: value for key, value in scope["headers"] if key in _WANTED}
        method, path, origin = scope["method"], scope["path"], headers.get(b"origin", b"")
        reply = Reply(send, [])
        try:
            # A browser's preflight carries no credentials; it reveals nothing.
            token = self._guard.token if method == "OPTIONS" else headers.get(b"authorization", b"")
            self._guard.check(headers.get(b"host", b""), origin, token)
            if origin:
                reply.headers += [
                    (b"access-control-allow-origin", origin),
                    (b"access-control-expose-headers", b"mcp-session-id"),
                    (b"vary", b"origin"),
                ]
            upstream = self._by_path.get(path)
            if upstream is None:
                raise ClientError(f"there is no {path} here; {self._paths()}", status=404)
            request = Request(headers, path, scope["query_string"], receive, reply, self._guard, self._clock)
            if method == "POST":
                await self._post(upstream, request)
            elif method == "GET":
                await self._handshake.get(upstream, request)
            elif method == "DELETE":
                await self._handshake.delete(upstream, request)
            elif method == "OPTIONS" and origin:
                reply.headers += [
                    (b"access-control-allow-methods", METHODS.encode()),
                    (b"access-control-allow-headers", _CORS_HEADERS),
                ]
                await reply.whole(204, b"")
            else:
                raise ClientError(
                    f"{method} is not an MCP method; use {METHODS}", status=405, headers={"allow": METHODS}
                )
        except McpDiagError as error:
            await refuse(error, reply)

    async def _post(self, upstream: Upstream, request: Request) -> None:
        body = await request.json()
        request.wants(b"application/json", b"text/event-stream")
        check_revision(request.headers)
        try:
            if is_batch(body):
                await self._handshake.batch(upstream, request, body)
                return
            message = decode(body)
        except MessageError as error:
            raise ClientError(str(error), code=error.code) from None
        await self._handshake.post(upstream, request, message, len(body))

    def _paths(self) -> str:
        return f"the MCP endpoints are {', '.join(sorted(self._by_path))}"
