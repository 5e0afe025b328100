"""Health and numbers for operators, on a port of their own: `/healthz`, `/readyz`, `/stats`, `/metrics`, `/frames`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mcpdiag.errors import ClientError
from mcpdiag.proxy.guard import Guard

Frames = Callable[[str, int, str], tuple[bytes, str, dict[str, str]]]
NO_METRICS = "there is no /metrics without prometheus_client: pip install 'mcpdiag[prometheus]'\n"


def admin_app(
    guard: Guard,
    ready: Callable[[], bool],
    stats: Callable[[], dict[str, Any]],
    metrics: Callable[[str], tuple[bytes, str]] | None = None,
    frames: Frames | None = None,
) -> Starlette:
    """The admin application.

    Args:
        guard: the same checks as for MCP requests; `/healthz` and `/readyz` need no token.
        ready: whether new sessions are admitted.
        stats: the body of `/stats`.
        metrics: body and content type of `/metrics` for an `Accept` header; called in a worker thread.
        frames: body, content type and headers of `/frames` (an empty name) and `/frames/{name}`, for a name, the number
            of the first row and an `Accept` header; called in a worker thread. KeyError: no frame of that name.
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

    async def scraped(request: Request) -> Response:
        if (response := refused(request, with_token=True)) is not None:
            return response
        if metrics is None:
            return PlainTextResponse(NO_METRICS, 404)
        body, content_type = await run_in_threadpool(metrics, request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    async def framed(request: Request) -> Response:
        if (response := refused(request, with_token=True)) is not None:
            return response
        if frames is None:
            return PlainTextResponse("nothing is recorded\n", 404)
        name, since = request.path_params.get("name", ""), request.query_params.get("since", "0")
        if not since.isdecimal():
            return PlainTextResponse(f"since is the number of a row, found {since[:80]!r}\n", 400)
        try:
            found = await run_in_threadpool(frames, name, int(since), request.headers.get("accept", ""))
        except KeyError:
            return PlainTextResponse(f"there is no frame {name[:80]!r}\n", 404)
        except ImportError as error:
            return PlainTextResponse(f"{error}\n", 501)
        body, content_type, headers = found
        return Response(body, media_type=content_type, headers=headers)

    return Starlette(
        routes=[
            Route("/frames", framed),
            Route("/frames/{name}", framed),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/stats", numbers),
            Route("/metrics", scraped),
        ]
    )
