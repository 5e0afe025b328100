"""A server of the HTTP+SSE transport (2024-11-05) in front of a stdio server: each session is a process of its own.

Runs in the test's event loop: `async with LegacyServer(COMMAND) as server: ... server.url`. What it does wrong or in an
unusual way are its attributes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any, Self

from tests.servers.http_faults import Json, head


class Session:
    """A process, what it has said, and the stream that is open to hear it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.said: list[bytes] = []
        self.news = asyncio.Event()
        self.streams = 0
        self.task: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.ended = False

    async def run(self, command: Sequence[str]) -> None:
        """Never cancelled: a second cancellation would cut the cleaning up short. `end` ends it."""
        pipe = asyncio.subprocess.PIPE
        process = self.process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        if self.ended:
            process.kill()
        async for line in process.stdout:
            self.say(line.strip())
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)  # its pipes close in later turns of the loop

    def end(self) -> None:
        self.ended = True
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    def say(self, data: bytes) -> None:
        self.said.append(data)
        self.news.set()

    def answered(self, request_id: Any) -> bool:
        return any(b'"method"' not in line and json.loads(line).get("id") == request_id for line in self.said)


class LegacyServer:
    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self.ids = False  # events have ids, and Last-Event-ID goes on with a session
        self.drop_every = 0  # so many messages, and the stream ends
        self.endpoint = ""  # instead of the right one
        self.preamble: bytes | None = None  # instead of the endpoint event
        self.get_status = 200
        self.initialize_status = 405  # of a POST to the URL of the stream
        self.post_status = 202
        self.accepts_late = False  # 202 only once the request is answered
        self.gets: list[dict[str, str]] = []
        self.posts: list[Json] = []
        self.post_headers: list[dict[str, str]] = []
        self.connections = 0
        self.sessions: dict[int, Session] = {}
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: set[asyncio.Task[None]] = set()  # of sessions
        self._server: asyncio.Server | None = None
        self._last = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Accept connections, after a stop at the same port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Drop every connection and forget every session."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        while waiting := [*self._tasks, *self._running]:
            for session in self.sessions.values():
                session.end()
            await asyncio.wait(waiting)
        self.sessions.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/sse"

    def posted(self, method: str) -> list[Json]:
        return [message for message in self.posts if message.get("method") == method]

    def drop_streams(self) -> None:
        """End every open stream; the sessions stay."""
        for writer in self._writers:
            writer.close()

    # -- connections --------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._serve(reader, writer):
                pass
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = text.rstrip().split("\r\n")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
        method, path, _ = first.split()
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            self.gets.append(headers)
            await self._stream(headers, reader, writer)
            return False
        if path == "/sse":
            return await _write(writer, head(self.initialize_status, {"content-length": 0}))
        self.post_headers.append(headers)
        return await self._post(int(path.rpartition("=")[2]), json.loads(body), writer)

    async def _post(self, number: int, message: Json, writer: asyncio.StreamWriter) -> bool:
        self.posts.append(message)
        session = self.sessions.get(number)
        if session is None:
            return await _write(writer, head(404, {"content-length": 15}), b"unknown session")
        if self.post_status != 202 and "id" in message and message["method"] == "tools/call":
            return await _write(writer, head(self.post_status, {"content-length": 5}), b"no no")
        assert session.process is not None
        assert session.process.stdin is not None
        session.process.stdin.write(json.dumps(message).encode() + b"\n")
        await session.process.stdin.drain()
        while self.accepts_late and "id" in message and "method" in message:
            if session.answered(message["id"]):
                break
            await asyncio.sleep(0.005)
        return await _write(writer, head(202, {"content-length": 8}), b"Accepted")

    async def _stream(
        self, headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self.get_status != 200:
            await _write(writer, head(self.get_status, {"content-length": 0}))
            return
        session, at = await self._session(headers.get("last-event-id", ""))
        await _write(writer, head(200, {"content-type": "text/event-stream", "connection": "close"}))
        path = self.endpoint or f"/messages?session={session.number}"
        endpoint = f"event: endpoint\ndata: {path}\n\n".encode()
        await _write(writer, endpoint if self.preamble is None else self.preamble)
        self._writers.add(writer)
        gone = asyncio.create_task(reader.read())
        session.streams += 1
        try:
            await self._tell(session, at, writer, gone)
        finally:
            gone.cancel()
            session.streams -= 1
            self._writers.discard(writer)
            if not self.ids and session.task is not None:
                session.end()
                await asyncio.wait([session.task])
                self.sessions.pop(session.number, None)

    async def _session(self, last_id: str) -> tuple[Session, int]:
        """The session that a Last-Event-ID means, and how much of it was heard; else a new one."""
        number, _, heard = last_id.partition("-")
        if self.ids and last_id and int(number) in self.sessions:
            return self.sessions[int(number)], int(heard)
        self._last += 1
        session = self.sessions[self._last] = Session(self._last)
        session.task = asyncio.create_task(session.run(self.command))
        self._running.add(session.task)
        session.task.add_done_callback(self._running.discard)
        while session.process is None:
            await asyncio.sleep(0.002)
        return session, 0

    async def _tell(
        self, session: Session, at: int, writer: asyncio.StreamWriter, gone: asyncio.Task[bytes]
    ) -> None:
        told = 0
        while not gone.done() and not writer.is_closing():
            session.news.clear()
            while at < len(session.said):
                at += 1
                event_id = f"id: {session.number}-{at}\n".encode() if self.ids else b""
                await _write(writer, b"%bevent: message\ndata: %b\n\n" % (event_id, session.said[at - 1]))
                told += 1
                if self.drop_every and told == self.drop_every:
                    return
            news = asyncio.create_task(session.news.wait())
            await asyncio.wait([news, gone], return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
            news.cancel()


async def _write(writer: asyncio.StreamWriter, *parts: bytes) -> bool:
    if writer.is_closing():  # uvloop's answer to a write would be a RuntimeError
        raise ConnectionResetError
    writer.write(b"".join(parts))
    await writer.drain()
    return True
