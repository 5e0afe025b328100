"""Health and numbers for operators, on a port of their own: `/healthz`, `/readyz`, `/stats`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mcpdiag.errors import ClientError
from mcpdiag.proxy.guard import Guard


def admin_app(guard: Guard, ready: Callable[[], bool], stats: Callable[[], dict[str, Any]]) -> Starlette:
    """The admin application.

    Args:
        guard: the same checks as for MCP requests; `/healthz` and `/readyz` need no token.
        ready: whether new sessions are admitted.
        stats: the body of `/stats`.
    """

    def refused(request: Request, *, with_token: bool) -> Response | None:
        headers = request.headers
        authorization = headers.get("authorization", "").encode() if with_token else guard.token
        try:
            guard.check(headers.get("host", "").encode(), headers.get("origin", "").encode(), authorization)
        except ClientError as error:
            return PlainTextResponse(error.message + "\n", error.status, error.headers)
        return None

    async def healthz(request: Request) -> Response:
        return refused(request, with_token=False) or PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        if (response := refused(request, with_token=False)) is not None:
            return response
        return PlainTextResponse("ready\n") if ready() else PlainTextResponse("shutting down\n", 503)

    async def numbers(request: Request) -> Response:
        return refused(request, with_token=True) or JSONResponse(stats())

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/stats", numbers)])
