"""The embedded server over Streamable HTTP, for benchmarks: `python -m mcpdiag.embedded_http` prints its URL.

It lives as long as its stdin, listens on a free port of the loopback, and answers with JSON; what the tools say
beside their answers is dropped, and `remember` is of the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import Any, cast

from mcpdiag.embedded import Server

HEAD = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n"
COMMAND = (sys.executable, "-m", "mcpdiag.embedded_http")


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, bodies with a content-length, one request after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._server = _Answers(self)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head, body = self._received[:end].lower(), self._received[end + 4 :]
            length = int(head.partition(b"\ncontent-length:")[2].partition(b"\r")[0] or 0)
            if len(body) < length:
                return
            self._received = body[length:]
            self._request(head.partition(b" ")[0], body[:length])

    def _request(self, verb: bytes, body: bytes) -> None:
        if verb == b"delete":
            self.send(b"200 OK", b"")
        elif verb != b"post":
            self.send(b"405 Method Not Allowed", b"")
        else:
            try:
                message = json.loads(body)
            except ValueError:
                self.send(b"400 Bad Request", b"")
                return
            if "id" in message and "method" in message:
                self._server.handle(message)
            else:
                self.send(b"202 Accepted", b"")

    def send(self, status: bytes, body: bytes, session: str = "") -> None:
        more = b"mcp-session-id: %b\r\n" % session.encode() if session else b""
        self._transport.write(HEAD % (status, len(body), more) + body)

    def answer(self, message: dict[str, Any]) -> None:
        """From any thread."""
        session = os.urandom(12).hex() if "serverInfo" in message.get("result", ()) else ""
        body = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode()
        self._loop.call_soon_threadsafe(self.send, b"200 OK", body, session)


class _Answers(Server):
    """The tools of `mcpdiag.embedded`, answering into a connection."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def write(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._connection.answer(message)


async def serve() -> None:
    """Serve until stdin ends; where it is a file or /dev/null, which never tell, until a signal."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp", flush=True)  # noqa: T201
    ended = asyncio.Event()
    with contextlib.suppress(PermissionError):
        loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    await ended.wait()
    loop.remove_reader(0)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())
