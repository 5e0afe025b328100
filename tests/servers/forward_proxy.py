"""A forward proxy: `CONNECT` for https, whole URLs for http. With `auth` it wants just that user and password."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import Self
from urllib.parse import urlsplit


class ForwardProxy:
    """`async with ForwardProxy() as proxy: ... proxy.url`. `asked` holds the first line of each request."""

    def __init__(self, auth: str = "") -> None:
        self.auth = auth
        self.asked: list[str] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        user = f"{self.auth}@" if self.auth else ""
        return f"http://{user}127.0.0.1:{self.port}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (method, target, version), lines, headers = await self._read(reader)
        credentials = f"Basic {base64.b64encode(self.auth.encode()).decode()}"
        if self.auth and headers.get("proxy-authorization") != credentials:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        host, _, port = (target if method == "CONNECT" else urlsplit(target).netloc).rpartition(":")
        try:
            source, sink = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
            return
        back = asyncio.create_task(_pump(source, writer))
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await _pump(reader, sink)
            while method != "CONNECT":
                kept = [line for line in lines if not line.lower().startswith("proxy-")]
                head = "\r\n".join([f"{method} {urlsplit(target).path} {version}", *kept, "", ""])
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                sink.write(head.encode("latin-1") + body)
                (method, target, version), lines, headers = await self._read(reader)
        finally:
            sink.close()
            back.cancel()

    async def _read(self, reader: asyncio.StreamReader) -> tuple[list[str], list[str], dict[str, str]]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        self.asked.append(first)
        return (
            first.split(),
            lines,
            {key.lower(): value for key, _, value in (x.partition(": ") for x in lines)},
        )


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()
