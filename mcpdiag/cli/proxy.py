"""`mcpdiag proxy`: serve one or more MCP servers over Streamable HTTP until a signal comes."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from mcpdiag.config import ProxyConfig
from mcpdiag.config.load import load
from mcpdiag.serve import Proxy, run_loop

log = logging.getLogger("mcpdiag")
LEVELS = ("debug", "info", "warning", "error")


def proxy(
    command: Annotated[
        list[str] | None, typer.Argument(help="After `--`: the stdio server's command.", show_default=False)
    ] = None,
    url: Annotated[str | None, typer.Option(help="A Streamable HTTP server instead of a command.")] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", help="A .toml file, or the mcpServers .json of an MCP client."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the upstream given here.")] = "default",
    host: Annotated[str | None, typer.Option(help="Address to bind. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [default: 8808]")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of /healthz, /readyz, /stats. [default: off]")
    ] = None,
    pool_mode: Annotated[
        str | None, typer.Option(help="session, request or multiplex. [default: session]")
    ] = None,
    max_connections: Annotated[
        int | None, typer.Option(help="Connections an upstream may have. [default: 10]")
    ] = None,
    request_timeout: Annotated[
        str | None, typer.Option(help="Until the first byte of an answer, e.g. 30s. [default: 60s]")
    ] = None,
    insecure: Annotated[bool, typer.Option(help="Bind elsewhere than loopback without a token.")] = False,
    log_level: Annotated[str, typer.Option(help=f"One of {', '.join(LEVELS)}.")] = "warning",
) -> None:
    """Put the proxy in front of an MCP server; clients connect to the URL it prints.

    Examples:

    `mcpdiag proxy -- npx -y @modelcontextprotocol/server-everything`

    `mcpdiag proxy --url http://127.0.0.1:3001/mcp`

    `mcpdiag proxy --config mcp.json --pool-mode multiplex --max-connections 1`
    """
    if log_level not in LEVELS:
        raise typer.BadParameter(f"{log_level!r} is none of {', '.join(LEVELS)}", param_hint="--log-level")
    if command and url:
        raise typer.BadParameter("give either a command after -- or --url, not both", param_hint="--url")
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    upstreams: dict[str, dict[str, Any]] = {}
    if command:
        upstreams[name] = {"command": command}
    elif url:
        upstreams[name] = {"url": url}
    options: dict[str, Any] = {
        "host": host, "port": port, "admin_port": admin_port, "pool_mode": pool_mode,
        "max_connections": max_connections, "request_timeout": request_timeout, "insecure": insecure or None,
    }  # fmt: skip
    run_loop(lambda: run(load(*(config or []), cli=options, upstreams=upstreams)))


async def run(config: ProxyConfig) -> None:
    """Serve until SIGINT or SIGTERM; a second signal forces."""
    async with Proxy(config) as proxy:
        for name, url in proxy.urls.items():
            upstream = config.upstreams[name]
            what = upstream.public_url if upstream.url else upstream.command
            shown = proxy.url if len(proxy.urls) == 1 else url
            print(f"mcpdiag: {name} ({what}) at {shown}", file=sys.stderr, flush=True)
        if proxy.admin_url:
            print(f"mcpdiag: admin at {proxy.admin_url}/stats", file=sys.stderr, flush=True)
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as tasks:
                asked = False
                async for number in signals:
                    log.info("%s: %s", signal.Signals(number).name, "forced" if asked else "shutting down")
                    tasks.start_soon(_close, proxy, asked, tasks.cancel_scope)
                    asked = True


async def _close(proxy: Proxy, force: bool, signals: anyio.CancelScope) -> None:
    await proxy.aclose(force=force)
    signals.cancel()
