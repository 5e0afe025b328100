"""`%mcp_proxy` and `%%mcp_window`, which `%load_ext mcpdiag` brings into a notebook or IPython session."""

from __future__ import annotations

import keyword
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.display import display

from mcpdiag.config import ProxyConfig
from mcpdiag.config.load import load
from mcpdiag.errors import AttachError, ConfigError, StartError
from mcpdiag.notebook.arguments import ProxyArguments, proxy_arguments, window_arguments
from mcpdiag.notebook.cell import MAGIC, MARKER
from mcpdiag.notebook.source import Source, source_of
from mcpdiag.notebook.window import Window
from mcpdiag.serve import BackgroundProxy, serve


@magics_class
class McpMagics(Magics):
    """The magics of one session, and the proxies that they have started."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.session = shell

    @line_magic
    def mcp_proxy(self, line: str) -> None:
        """Start a proxy in the background, for as long as the kernel lives, and put it into a variable.

        %mcp_proxy everything -- npx -y @modelcontextprotocol/server-everything
        %mcp_proxy --url http://127.0.0.1:3001/mcp
        %mcp_proxy --config mcp.json
        %mcp_proxy --stop

        --name VARIABLE         where to put it (default: proxy); a proxy that is there is stopped first
        --pool-mode MODE        session, request or multiplex
        --max-connections N     that a server may have
        --request-timeout TIME  until the first byte of an answer, such as 30s
        --port N                of the MCP endpoint (default: a free one)
        --admin-port N          of /stats, /metrics and /frames, for other processes (default: off)
        --capture DIR           write all samples there, for mcpdiag.load
        --stop                  stop the proxy of that name; its recorder stays
        """
        arguments = proxy_arguments(line)
        name = _variable(arguments.options.name)
        if arguments.options.stop:
            self._stop(name)
            return
        config = _config(arguments)
        there = self.session.user_ns.get(name)
        stopped = ""
        if isinstance(there, BackgroundProxy):
            there.close()
            stopped = f"; the proxy that was in {name!r} is stopped"
        elif there is not None:
            raise UsageError(
                f"%mcp_proxy: the variable {name!r} holds something else ({type(there).__name__}); "
                "give another one with --name"
            )
        try:
            proxy = serve(config)
        except (StartError, ConfigError) as error:
            raise UsageError(f"%mcp_proxy: {error}{stopped}") from None
        self.session.user_ns[name] = proxy
        display(proxy)

    def _stop(self, name: str) -> None:
        proxy = self.session.user_ns.get(name)
        if not isinstance(proxy, BackgroundProxy):
            raise UsageError(f"%mcp_proxy: there is no proxy in the variable {name!r}; give its --name")
        proxy.close()
        display(proxy)

    @contextmanager
    def open(self, line: str) -> Iterator[None]:
        """The window around a cell that began with `%%mcp_window LINE`."""
        options = window_arguments(line)
        label = _variable(options.label)
        window = Window(self._source(options.proxy), label=label, proxy=options.proxy)
        error: BaseException | None = None
        try:
            yield
        except BaseException as failure:
            error = failure
            raise
        finally:
            window.close(error)
            self.session.user_ns[label] = window
            display(window)

    def _source(self, name: str) -> Source:
        thing = self.session.user_ns.get(name)
        if thing is None:
            raise UsageError(
                f"%%mcp_window: there is no variable {name!r}; start a proxy with %mcp_proxy NAME -- COMMAND, "
                "or name what mcpdiag.serve or mcpdiag.attach has returned with --proxy"
            )
        try:
            source = source_of(thing, f"%%mcp_window --proxy {name}")
            source.places()
        except (TypeError, RuntimeError, AttachError) as error:
            raise UsageError(str(error)) from None
        if why := source.gone():
            raise UsageError(f"%%mcp_window: {why}; start it with %mcp_proxy")
        return source

    @cell_magic
    def mcp_window(self, line: str, cell: str) -> None:
        """Run the cell, then show what the proxy saw meanwhile, and keep it in a variable.

        %%mcp_window [LABEL] [--proxy NAME]

        LABEL         the variable that gets the window (default: window): .requests .pool .events .memory .summary()
        --proxy NAME  the variable of the proxy, or of what mcpdiag.attach has returned (default: proxy)

        The cell may `await`. Calls that end in the window count, whoever makes them.
        """
        # Only for run_cell_magic: a cell that begins with the magic never comes here.
        source = self.session.transform_cell(f"%%{MAGIC} {line}\n{cell}")
        if self.session.should_run_async(source, transformed_cell=source):
            raise UsageError("%%mcp_window: in a cell that awaits it must be the first line")
        tree = self.session.transform_ast(self.session.compile.ast_parse(source))
        exec(self.session.compile(tree, f"<{MARKER}>", "exec"), self.session.user_ns)  # noqa: S102


def _variable(name: str) -> str:
    if keyword.iskeyword(name) or name.startswith("__"):
        raise UsageError(f"found {name!r}, which cannot be a variable of yours")
    return name


def _config(arguments: ProxyArguments) -> ProxyConfig:
    given = arguments.options
    upstreams: dict[str, dict[str, Any]] = {}
    if arguments.command:
        upstreams[given.server or "default"] = {"command": arguments.command}
    elif given.url:
        upstreams[given.server or "default"] = {"url": given.url}
    settings: dict[str, object] = {
        "port": given.port if given.port is not None or given.config else 0,
        "admin_port": given.admin_port,
        "pool_mode": given.pool_mode,
        "max_connections": given.max_connections,
        "request_timeout": given.request_timeout,
        "capture": given.capture,
    }
    try:
        return load(*given.config, cli=settings, upstreams=upstreams, caller="%mcp_proxy")
    except ConfigError as error:
        raise UsageError("\n".join(error.problems)) from None
