"""A proxy as HTML: where it listens, what it fronts, what its pools do. `serve.Proxy` and `BackgroundProxy` show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mcpdiag.config import ProxyConfig, UpstreamConfig
from mcpdiag.config.masking import public_args
from mcpdiag.html import cut, line, table

LONGEST: Final = 160  # characters of a command
_POOL: Final = (
    "busy",
    "idle",
    "opening",
    "waiting",
    "max",
    "opens",
    "reuses",
    "acquire_timeouts",
    "closed_lost",
)
_HEADINGS: Final = ("server", "mode", "busy", "idle", "opening", "waiting", "max", "opens", "reuses", "timeouts", "lost")  # fmt: skip


def proxy_html(
    state: str, config: ProxyConfig, urls: Mapping[str, str], admin_url: str, stats: Mapping[str, Any]
) -> str:
    """The proxy in two or three lines and a table. Tokens, headers and variables are not in it.

    Args:
        state: a word: `running`, `stopped`, `not started`.
        config: its settings; commands and URLs are shown masked.
        urls: of its MCP endpoints by the server's name; empty before the start and without a port.
        admin_url: empty without an admin port.
        stats: what `Proxy.stats` says.
    """
    said = f"{state}, up {stats['uptime_s']:,.0f} s" if state == "running" else state
    counts = f"{stats['sessions']:,} sessions, {stats['calls']:,} calls in flight"
    parts = [line(f"{said}; {counts}" if state == "running" else said, strong="mcpdiag proxy")]
    for name, upstream in config.upstreams.items():
        where = f" at {urls[name]}" if name in urls else ""
        parts.append(line(f"{name}{where}: {cut(what(upstream), LONGEST)}"))
    if admin_url:
        parts.append(line(f"admin: {admin_url}"))
    rows = []
    for name, now in stats["upstreams"].items():
        rows.append((name, now["mode"], *(now["pool"][each] for each in _POOL)))
        if "stateless_pool" in now:
            rows.append((f"{name}, 2026-07-28", "request", *(now["stateless_pool"][each] for each in _POOL)))
    return "".join(parts) + table(_HEADINGS, rows, words=2)


def what(upstream: UpstreamConfig) -> str:
    """The server's URL or command line, without what looks like a secret."""
    if upstream.url is not None:
        return str(upstream.public_url)
    return " ".join([str(upstream.command), *public_args(upstream.args)])
