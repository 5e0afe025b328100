"""Sessions with a stdio server: each has a process of its own, in a process group of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mcpdiag.bench import columns, wire
from mcpdiag.bench.session import Session, SessionError
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.protocol.revisions import Era

CLOSE_S = 2.0  # between the end of stdin, SIGTERM and SIGKILL
STDERR_BYTES = 2000


class _Pipes(asyncio.SubprocessProtocol):
    """Cuts stdout into lines for the session."""

    def __init__(self, session: StdioSession) -> None:
        self._session: StdioSession | None = session
        self._rest = b""
        self.stderr = b""
        self.exited = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.SubprocessTransport", transport)
        self.stdin = cast("asyncio.WriteTransport", self.transport.get_pipe_transport(0))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.stderr = (self.stderr + data)[-STDERR_BYTES:]
            return
        if self._rest:
            data = self._rest + data
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            if self._session is not None and line.startswith(b"{"):
                self._session.line(line)

    def connection_lost(self, exc: Exception | None) -> None:
        session, self._session = self._session, None
        if not self.exited.done():
            self.exited.set_result(None)
        if session is not None:
            words = self.stderr.decode(errors="replace").strip().splitlines()
            said = f"; it said: {words[-1][:300]}" if words else ""
            session.lost(
                columns.CLOSED, f"the server exited with code {self.transport.get_returncode()}{said}"
            )

    def drop(self) -> None:
        self._session = None


class StdioSession(Session):
    """A session with a program of its own."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        calls: Sequence[Call] = (),
        era: Era = "handshake",
        version: str,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(calls, era, version, timeout_s)
        self._command = command
        self._pipes: _Pipes | None = None

    @classmethod
    def of(cls, spec: LoadSpec) -> StdioSession:
        """One of the sessions that a load needs."""
        return cls(
            spec.command, calls=spec.calls, era=spec.era, version=spec.protocol, timeout_s=spec.timeout_s
        )

    async def connect(self) -> None:
        await self._end_process()
        loop = asyncio.get_running_loop()
        try:
            _, self._pipes = await loop.subprocess_exec(
                lambda: _Pipes(self), *self._command, start_new_session=True
            )
        except OSError as error:
            raise SessionError(f"{self._command[0]} cannot be started: {error.strerror or error}") from None
        self.usable = True

    async def revive(self) -> None:
        await self.open()

    def halves(self, method: str, params: Mapping[str, Any], extra: Mapping[str, str]) -> wire.Halves:
        before, after = wire.body(method, params, self.era, self.version)
        return before, after + b"\n"

    def write(self, data: bytes) -> None:
        assert self._pipes is not None
        try:
            self._pipes.stdin.write(data)
        except RuntimeError:  # uvloop: the pipe is closed; the end of the process tells the rest
            self.usable = False

    async def notify_initialized(self) -> None:
        self.write(wire.INITIALIZED + b"\n")

    def line(self, data: bytes) -> None:
        """A line of stdout that may be a message."""
        pending = self.outcome
        self.message(data)
        if self.outcome != pending:
            self._end()

    def abort(self) -> None:
        self.usable = False
        if self._pipes is not None:
            self._pipes.drop()
            self._kill(signal.SIGKILL)

    async def close(self) -> None:
        self.usable = False
        await self._end_process()

    async def _end_process(self) -> None:
        pipes, self._pipes = self._pipes, None
        if pipes is None:
            return
        pipes.drop()
        pipes.stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await asyncio.shield(pipes.exited)
                break
            _kill(pipes.transport.get_pid(), number)
        pipes.transport.close()

    def _kill(self, number: int) -> None:
        if self._pipes is not None:
            _kill(self._pipes.transport.get_pid(), number)


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
