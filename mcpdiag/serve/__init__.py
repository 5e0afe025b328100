"""Builds upstreams, sessions and endpoint, runs the HTTP server, and owns the order of start and stop.

`async with Proxy(...)` lives in the running event loop; `with serve(...)` brings a thread and a loop of its own,
which is what a notebook wants: a cell that computes would stop a server in the kernel's loop.
"""

from mcpdiag.serve.background import BackgroundProxy, run_loop, serve, spare_collector
from mcpdiag.serve.proxy import Proxy

__all__ = ["BackgroundProxy", "Proxy", "run_loop", "serve", "spare_collector"]
