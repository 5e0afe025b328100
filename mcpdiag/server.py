"""The ASGI server: uvicorn on a socket of ours, without its signal handlers, one write for each answer.

`serve.py` starts one for MCP and one for the admin endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import anyio
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mcpdiag.errors import StartError

KEEP_ALIVE = 75  # seconds that an idle client connection is kept
FLUSH = 2  # seconds for the last bytes to clients


class _Corked:
    """A transport that sends the head of a response together with its body.

    uvicorn writes them one after the other, and each write is a system call and a packet: a fifth of the time of a
    small exchange. What is not followed by a second write in the same turn of the loop goes out in the next.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held + data)
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _CorkedProtocol(HttpToolsProtocol):
    # uvicorn types the transport by class; ours stands in for it by its methods.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Corked(transport, self.loop))  # type: ignore[arg-type]


class Server(uvicorn.Server):
    """uvicorn without its signal handlers, which tells when it has started."""

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_CorkedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=FLUSH,
            )
        )
        self.is_up, self.is_down = anyio.Event(), anyio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.is_up.set()
            self.is_down.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to whoever runs us: the CLI, or a notebook kernel

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    def stop_accepting(self) -> None:
        for server in self.servers:
            server.close()


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
