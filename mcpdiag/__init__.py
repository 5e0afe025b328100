"""mcpdiag: a diagnostics toolkit for people who run MCP servers.

    with mcpdiag.serve({"everything": ["npx", "-y", "@modelcontextprotocol/server-everything"]}) as proxy:
        print(proxy.url)        # point any MCP client here
        print(proxy.stats())    # sessions, calls, and the pool's counters
        proxy.recorder.requests # a DataFrame, one row an exchange

Importing it costs no pandas, matplotlib or memray.
"""

from mcpdiag.config import PoolLimits, PoolMode, ProxyConfig, Timeouts, UpstreamConfig
from mcpdiag.config.load import load as load_config
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
    "serve",
]
