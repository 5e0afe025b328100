"""`mcpdiag proxy`: serve MCP servers over HTTP until a signal comes, or one over stdio while its client is there."""

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
from mcpdiag.proxy.descriptors import claim
from mcpdiag.proxy.stdio import StdioFront
from mcpdiag.serve import Proxy, run_loop, spare_collector

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
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the server given here, or with --stdio of the one to serve. [default: default]"
        ),
    ] = None,
    stdio: Annotated[
        bool, typer.Option("--stdio", help="Serve one client on stdin and stdout instead of a port.")
    ] = False,
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
    otlp: Annotated[
        bool, typer.Option(help="Send metrics and traces where OTEL_EXPORTER_OTLP_ENDPOINT says.")
    ] = False,
    capture: Annotated[
        Path | None,
        typer.Option(help="A folder to write all samples to, as Parquet; `mcpdiag.load` reads it."),
    ] = None,
    heap_every: Annotated[
        str | None,
        typer.Option(help="How often to open a heap window of the proxy, e.g. 60s. [default: never]"),
    ] = None,
    heap_for: Annotated[
        str | None, typer.Option(help="How long each of them is. [default: 2s]", show_default=False)
    ] = None,
    heap_upstream: Annotated[
        bool, typer.Option("--heap-upstream", help="Run the Python server under memray, for its heap.")
    ] = False,
    insecure: Annotated[bool, typer.Option(help="Bind elsewhere than loopback without a token.")] = False,
    log_level: Annotated[str, typer.Option(help=f"One of {', '.join(LEVELS)}.")] = "warning",
) -> None:
    """Put the proxy in front of an MCP server; clients connect to the URL it prints or, with --stdio, start it themselves.

    Examples:

    `mcpdiag proxy -- npx -y @modelcontextprotocol/server-everything`

    `mcpdiag proxy --url http://127.0.0.1:3001/mcp`

    `mcpdiag proxy --config mcp.json --pool-mode multiplex --max-connections 1`

    In the `mcpServers` of a desktop client:

    `{"command": "mcpdiag", "args": ["proxy", "--stdio", "--", "npx", "-y", "@modelcontextprotocol/server-everything"]}`
    """
    if log_level not in LEVELS:
        raise typer.BadParameter(f"{log_level!r} is none of {', '.join(LEVELS)}", param_hint="--log-level")
    if command and url:
        raise typer.BadParameter("give either a command after -- or --url, not both", param_hint="--url")
    if stdio and port is not None:
        raise typer.BadParameter("with --stdio no port is opened; leave one of them out", param_hint="--port")
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    upstreams: dict[str, dict[str, Any]] = {}
    if command:
        upstreams[name or "default"] = {"command": command}
    elif url:
        upstreams[name or "default"] = {"url": url}
    options: dict[str, Any] = {
        "host": host, "port": port, "admin_port": admin_port, "pool_mode": pool_mode,
        "max_connections": max_connections, "request_timeout": request_timeout, "insecure": insecure or None,
        "otlp": otlp or None,
        "capture": None if capture is None else str(capture),
        "heap_every": heap_every, "heap_for": heap_for, "heap_upstream": heap_upstream or None,
    }  # fmt: skip
    descriptors = claim() if stdio else None
    settings = load(*(config or []), cli=options, upstreams=upstreams)
    if stdio and name is not None:
        settings = only(settings, name)
    run_loop(lambda: run(settings, descriptors))


def only(config: ProxyConfig, name: str) -> ProxyConfig:
    """The same settings with one of their upstreams."""
    if name not in config.upstreams:
        known = ", ".join(config.upstreams)
        raise typer.BadParameter(f"there is no server {name!r}; there is {known}", param_hint="--name")
    return config.model_copy(update={"upstreams": {name: config.upstreams[name]}})


async def run(config: ProxyConfig, stdio: tuple[int, int] | None = None) -> None:
    """Serve until SIGINT or SIGTERM, or until the client over stdio has gone; a second signal forces."""
    async with Proxy(config, stdio=stdio) as proxy:
        spare_collector()
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            _announce(config, proxy)  # not before: who waits for it may send a signal at once
            async with anyio.create_task_group() as tasks:
                if proxy.front is not None:
                    tasks.start_soon(_until_gone, proxy, proxy.front, tasks.cancel_scope)
                asked = False
                async for number in signals:
                    # The end of stdin was a first request to stop.
                    force = asked or (proxy.front is not None and proxy.front.client_gone.is_set())
                    log.info("%s: %s", signal.Signals(number).name, "forced" if force else "shutting down")
                    tasks.start_soon(_close, proxy, force, tasks.cancel_scope)
                    asked = True


def _announce(config: ProxyConfig, proxy: Proxy) -> None:
    for name, upstream in config.upstreams.items():
        what = upstream.public_url if upstream.url else upstream.command
        where = proxy.url if len(proxy.urls) == 1 else proxy.urls.get(name)
        told = f"mcpdiag: {name} ({what}) {f'at {where}' if where else 'over stdio'}"
        print(told, file=sys.stderr, flush=True)
    if proxy.admin_url:
        print(f"mcpdiag: admin at {proxy.admin_url}/stats", file=sys.stderr, flush=True)


async def _until_gone(proxy: Proxy, front: StdioFront, signals: anyio.CancelScope) -> None:
    await front.client_gone.wait()
    await _close(proxy, front.in_a_hurry, signals)


async def _close(proxy: Proxy, force: bool, signals: anyio.CancelScope) -> None:
    await proxy.aclose(force=force)
    signals.cancel()
