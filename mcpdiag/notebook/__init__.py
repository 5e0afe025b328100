"""Magics and live views for notebooks; `%load_ext mcpdiag` brings the magics. See docs/notebook.md.

Needs IPython, which `import mcpdiag` never imports.
"""

from __future__ import annotations

from typing import Any

try:
    import IPython  # noqa: F401
except ImportError:
    raise ImportError("notebooks need IPython; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.notebook.cell import Wrap, mark
from mcpdiag.notebook.live_view import LiveView, live
from mcpdiag.notebook.magics import McpMagics
from mcpdiag.notebook.window import Window

__all__ = ["LiveView", "Window", "live", "load_ipython_extension", "unload_ipython_extension"]


def load_ipython_extension(shell: Any) -> None:
    """Bring the magics into a session. Once is enough; twice does no harm."""
    unload_ipython_extension(shell)
    shell.register_magics(McpMagics(shell))
    shell.input_transformers_cleanup.append(mark)
    shell.ast_transformers.append(Wrap(shell))


def unload_ipython_extension(shell: Any) -> None:
    """Take them out again. Proxies go on."""
    shell.input_transformers_cleanup[:] = [
        each for each in shell.input_transformers_cleanup if each is not mark
    ]
    shell.ast_transformers[:] = [each for each in shell.ast_transformers if not isinstance(each, Wrap)]
    for kind, name in (("line", "mcp_proxy"), ("cell", "mcp_window")):
        shell.magics_manager.magics[kind].pop(name, None)
