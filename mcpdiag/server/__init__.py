"""The ASGI server, on httptools and the event loop's own sockets. `serve.py` starts one for MCP and one for admin.

Its own, because this is the hot path: a third of the time of a small exchange went into a general server's.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import anyio

from mcpdiag.connection.together import Together
from mcpdiag.errors import StartError
from mcpdiag.server.connection import ServerConnection
from mcpdiag.server.cycle import Cycle

FLUSH = 2.0  # seconds for the last bytes to clients
BACKLOG = 2048
App = Callable[[Any, Any, Any], Awaitable[None]]


class Server:
    """Serves an ASGI application on one listening socket until `stop`. It takes no signals and writes no logs of access.

    Attributes:
        is_up, is_down: set when it has started, and when it has ended.
        connections: of clients, open now.
        cycles: requests that the application works on now.
        lines: what header lines were made of, because most responses have the same.
        together: responses that go out at the end of a turn.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.is_up, self.is_down = anyio.Event(), anyio.Event()
        self.connections: set[ServerConnection] = set()
        self.cycles: set[Cycle] = set()
        self.together = Together()
        self.lines: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}
        self._listening: asyncio.Server | None = None
        self._stopping, self._force = anyio.Event(), anyio.Event()
        self._empty = anyio.Event()
        self._date, self._date_until = b"", 0.0

    async def serve(self, listener: socket.socket) -> None:
        """Serve until `stop`, then let answers under way end within `FLUSH` seconds. The socket is closed."""
        loop = asyncio.get_running_loop()
        try:
            self._listening = await loop.create_server(
                lambda: ServerConnection(self, loop), sock=listener, backlog=BACKLOG
            )
            self.is_up.set()
            await self._stopping.wait()
            self.stop_accepting()
            for connection in [*self.connections]:
                connection.shut()
            with anyio.move_on_after(FLUSH):
                await self._wait_empty()
        finally:
            with anyio.CancelScope(shield=True):
                await self._end()
            self.is_up.set()
            self.is_down.set()

    async def _wait_empty(self) -> None:
        async def cut_short(scope: anyio.CancelScope) -> None:
            await self._force.wait()
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cut_short, tasks.cancel_scope)
            while self.connections:
                self._empty = anyio.Event()
                await self._empty.wait()
            tasks.cancel_scope.cancel()

    async def _end(self) -> None:
        """Whatever is left goes now."""
        self.stop_accepting()
        self.together.flush()
        for connection in [*self.connections]:
            connection.transport.abort()
        tasks = [cycle.task for cycle in self.cycles if cycle.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=FLUSH)

    def stop_accepting(self) -> None:
        """Take no new connection. Those that are open go on."""
        if self._listening is not None:
            self._listening.close()

    def stop(self, *, force: bool = False) -> None:
        """End `serve`; with `force` at once."""
        self._stopping.set()
        if force:
            self._force.set()

    # -- called by connections ----------------------------------------------------------------------------

    def left(self) -> None:
        """A connection has ended."""
        self._empty.set()

    def date(self) -> bytes:
        """The `Date` line of a response, which changes once a second."""
        now = time.monotonic()
        if now >= self._date_until:
            self._date = f"date: {formatdate(usegmt=True)}\r\n".encode()
            self._date_until = now + 1.0
        return self._date


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket with TCP_NODELAY; asyncio sets it on accepted ones only if `proto` says TCP.

    Raises:
        StartError: the address cannot be had; the message says why.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise StartError(f"the host {host!r} cannot be found ({error.strerror}); use 127.0.0.1") from None
    family, kind, proto, _, address = found[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is in use; choose another with --port, or --port 0 for a free one"
            ) from None
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener
