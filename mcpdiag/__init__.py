"""mcpdiag: a diagnostics toolkit for people who run MCP servers.

    with mcpdiag.serve({"everything": ["npx", "-y", "@modelcontextprotocol/server-everything"]}) as proxy:
        print(proxy.url)        # point any MCP client here
        print(proxy.stats())    # sessions, calls, and the pool's counters
        proxy.recorder.requests # a DataFrame, one row an exchange

Importing it costs next to nothing: each name is imported when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcpdiag.config import PoolLimits, ProxyConfig, Timeouts, UpstreamConfig
    from mcpdiag.config.load import load as load_config
    from mcpdiag.config.types import PoolMode
    from mcpdiag.errors import (
        AttachError,
        CapacityError,
        ClientError,
        ConfigError,
        ConnectError,
        ConnectTimeout,
        DeadlineExceeded,
        HeapBusy,
        HeapError,
        HeapUnavailable,
        McpDiagError,
        PoolQueueFull,
        PoolTimeout,
        RequestTimeout,
        ResponseTimeout,
        ShuttingDown,
        StartError,
        TooManySessions,
        UpstreamClosed,
        UpstreamError,
        UpstreamProtocolError,
    )
    from mcpdiag.hooks import Event, ExchangeDone, Happened, Hook
    from mcpdiag.pool.stats import PoolStats
    from mcpdiag.samples.capture import Capture, load
    from mcpdiag.samples.recorder import Recorder
    from mcpdiag.samples.remote import Remote, attach
    from mcpdiag.serve import BackgroundProxy, Proxy, serve

__version__ = "0.1.0"

__all__ = [
    "AttachError",
    "BackgroundProxy",
    "CapacityError",
    "Capture",
    "ClientError",
    "ConfigError",
    "ConnectError",
    "ConnectTimeout",
    "DeadlineExceeded",
    "Event",
    "ExchangeDone",
    "Happened",
    "HeapBusy",
    "HeapError",
    "HeapUnavailable",
    "Hook",
    "McpDiagError",
    "PoolLimits",
    "PoolMode",
    "PoolQueueFull",
    "PoolStats",
    "PoolTimeout",
    "Proxy",
    "ProxyConfig",
    "Recorder",
    "Remote",
    "RequestTimeout",
    "ResponseTimeout",
    "ShuttingDown",
    "StartError",
    "Timeouts",
    "TooManySessions",
    "UpstreamClosed",
    "UpstreamConfig",
    "UpstreamError",
    "UpstreamProtocolError",
    "__version__",
    "attach",
    "load",
    "load_config",
    "load_ipython_extension",
    "serve",
]

_ORIGINAL = {"load_config": "load"}  # names that are others' at home


def _home() -> dict[str, str]:
    names = {
        "mcpdiag.config": "PoolLimits ProxyConfig Timeouts UpstreamConfig",
        "mcpdiag.config.load": "load_config",
        "mcpdiag.config.types": "PoolMode",
        "mcpdiag.errors": "AttachError CapacityError ClientError ConfigError ConnectError ConnectTimeout DeadlineExceeded HeapBusy HeapError HeapUnavailable McpDiagError PoolQueueFull PoolTimeout RequestTimeout ResponseTimeout ShuttingDown StartError TooManySessions UpstreamClosed UpstreamError UpstreamProtocolError",
        "mcpdiag.hooks": "Event ExchangeDone Happened Hook",
        "mcpdiag.pool.stats": "PoolStats",
        "mcpdiag.samples.capture": "Capture load",
        "mcpdiag.samples.recorder": "Recorder",
        "mcpdiag.samples.remote": "Remote attach",
        "mcpdiag.serve": "BackgroundProxy Proxy serve",
    }
    return {name: module for module, each in names.items() for name in each.split()}


_HOME = _home()  # the module of each public name


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mcpdiag' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), _ORIGINAL.get(name, name))
    return value


def __dir__() -> list[str]:
    return [*__all__]


class _Package(ModuleType):
    """The package as a module whose `serve` is the function, also after `mcpdiag.serve` was imported, which would
    put the module of that name in its place."""

    @property
    def serve(self) -> Any:
        return import_module("mcpdiag.serve").serve

    @serve.setter
    def serve(self, module: ModuleType) -> None: ...


sys.modules[__name__].__class__ = _Package


def load_ipython_extension(ipython: object) -> None:
    """What `%load_ext mcpdiag` calls: it brings `%mcp_proxy` and `%%mcp_window` (docs/notebook.md)."""
    from mcpdiag.notebook import load_ipython_extension as load_into

    load_into(ipython)
