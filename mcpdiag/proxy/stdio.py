"""The same proxy for a client that speaks stdio: one JSON-RPC message a line on its stdin and stdout.

`serve.Proxy` runs one `StdioFront` in the place of the HTTP server; the command line claims the descriptors.
"""

from __future__ import annotations

import contextlib
import logging
import select
from contextlib import aclosing

import anyio
from anyio.abc import TaskStatus

from mcpdiag.errors import PARSE_ERROR
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.protocol.framing import LineFramer
from mcpdiag.protocol.message import MessageError, decode, decode_batch, encode_error, is_batch
from mcpdiag.proxy.conversation import Conversation, conversation
from mcpdiag.proxy.descriptors import CHUNK, Readiness, chunks_of, write
from mcpdiag.proxy.gate import Gate
from mcpdiag.proxy.session import Sessions
from mcpdiag.upstream.base import Upstream

log = logging.getLogger("mcpdiag.proxy")
FLUSH = 2.0  # seconds for the last lines to a client
WAITING = 16  # lines that wait to be written


class StdioFront:
    """One client on two file descriptors, from its first line to the end of its stdin.

    Args:
        source: to read from; a pipe, socket, terminal or file.
        sink: to write to.
        max_line_bytes: the longest message of the client.
        drain_timeout: seconds for the messages that have come before the end of `source` to be taken.

    Attributes:
        client_gone: set when the client has closed its end, or its session is over.
        in_a_hurry: after `client_gone`: nobody waits for what is still in flight.
    """

    def __init__(
        self,
        upstream: Upstream,
        sessions: Sessions,
        gate: Gate,
        source: int,
        sink: int,
        *,
        max_line_bytes: int,
        drain_timeout: float,
        hook: Hook = NO_HOOK,
    ) -> None:
        self.client_gone = anyio.Event()
        self.in_a_hurry = False
        self._upstream = upstream
        self._sessions = sessions
        self._gate = gate
        self._hook = hook
        self._source, self._sink = source, sink
        self._framer = LineFramer(max_line_bytes)
        self._drain_timeout = drain_timeout
        self._lines = anyio.create_memory_object_stream[bytes](WAITING)
        self._scope, self._reading = anyio.CancelScope(), anyio.CancelScope()
        self._broken = False
        self._is_down = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve the client until its session is over, then write what is left."""
        try:
            task_status.started()
            with self._scope:
                async with anyio.create_task_group() as tasks, self._lines[0]:
                    tasks.start_soon(self._write_all)
                    async with conversation(
                        self._upstream, self._sessions, self._gate, self._lines[0].send, hook=self._hook
                    ) as talk:
                        tasks.start_soon(self._stop_reading_at_the_end, talk)
                        await self._converse(talk)
        finally:
            self._lines[1].close()
            self.client_gone.set()
            self._is_down.set()

    async def _converse(self, talk: Conversation) -> None:
        with self._reading:
            await self._read_all(talk)
        talk.hang_up()
        with anyio.move_on_after(self._drain_timeout) as late:
            await talk.heard_out.wait()
        self.in_a_hurry = self._broken or late.cancelled_caught
        self.client_gone.set()
        log.info("the client has gone; %d calls in flight", len(talk.session.calls))
        await talk.over()

    async def aclose(self, *, force: bool) -> None:
        """Wait until the last line is written, after the session was ended; `force` does not wait."""
        with anyio.move_on_after(0 if force else FLUSH):
            await self._is_down.wait()
        self._scope.cancel()
        await self._is_down.wait()

    # -- from the client ----------------------------------------------------------------------------------

    async def _stop_reading_at_the_end(self, talk: Conversation) -> None:
        await talk.ending.wait()
        self._reading.cancel()

    async def _read_all(self, talk: Conversation) -> None:
        framer, oversized = self._framer, 0
        async with aclosing(chunks_of(self._source)) as chunks:
            async for chunk in chunks:
                for line in framer.feed(chunk):
                    await self._take(talk, line)
                if framer.oversized > oversized:
                    oversized = framer.oversized
                    text = f"a message is longer than {framer.max_bytes} bytes; send less, or raise max_body_bytes"
                    await self._lines[0].send(encode_error(b"null", PARSE_ERROR, text))
        if line := framer.flush():
            await self._take(talk, line)

    async def _take(self, talk: Conversation, line: bytes) -> None:
        try:
            batched = is_batch(line)
            messages = decode_batch(line) if batched else [decode(line)]
        except MessageError as error:
            await self._lines[0].send(encode_error(b"null", error.code, str(error)))
            return
        for message in messages:
            await talk.put(message, len(message.params) if batched else len(line), batched=batched)

    # -- to the client ------------------------------------------------------------------------------------

    async def _write_all(self) -> None:
        with contextlib.closing(Readiness(self._sink, select.POLLOUT)) as readiness:
            async for line in self._lines[1]:
                if not self._broken:
                    try:
                        await write(self._sink, readiness, self._with_others(line))
                    except OSError as error:
                        log.info("the client cannot be written to any more: %s", error.strerror)
                        self._broken = True
                        self._reading.cancel()

    def _with_others(self, line: bytes) -> bytes:
        """The line and those that wait behind it, each with its line end."""
        lines, size = [line], len(line)
        with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
            while size < CHUNK:
                lines.append(self._lines[1].receive_nowait())
                size += len(lines[-1])
        return b"\n".join([*lines, b""])
