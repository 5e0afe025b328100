"""One subprocess that speaks MCP over its stdin and stdout: spawn, relay, stderr tail, close ladder.

A few small tasks belong to `run`: a reader, a writer, a stderr reader and a watch on the end. Writes go through a
buffer that the writer empties, so concurrent exchanges never interleave half lines and a cancelled one never
leaves half a line behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, Process, TaskStatus

from mcpdiag.connection.reaper import Reaper, kill_group
from mcpdiag.errors import ConnectError, UpstreamClosed
from mcpdiag.protocol.framing import LineFramer
from mcpdiag.protocol.message import Message, MessageError, decode, decode_batch, is_batch

log = logging.getLogger("mcpdiag.connection")
READ_BYTES = 256 * 1024
STDERR_TAIL_BYTES = 64 * 1024
WRITE_HIGH_WATER = 1024 * 1024  # bytes waiting for the child before senders have to wait
WRITE_LIMIT = 64 * 1024 * 1024  # bytes waiting for the child, with what was posted, before it is given up
STRAY_SHOWN_BYTES = 200
DRAIN_AFTER_EXIT = 0.5  # seconds for output that a child left in the pipe, also held open by a grandchild
REAP_TIMEOUT = 3.0  # seconds for the kernel to end a process after SIGKILL
_BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class StdioConnection:
    """A live child process. `run` owns it from spawn to reap; everything else is called while it runs.

    Args:
        name: the upstream's name, for messages.
        command: program and arguments.
        env: added to (and stronger than) the proxy's own environment.
        cwd: working directory.
        capacity: exchanges it may carry at once.
        max_message_bytes: longest line accepted on stdout; longer ones are dropped and counted.
        close_timeout: seconds for each step of the close ladder.
        reaper: kills the process group should the proxy die.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        capacity: int = 1,
        max_message_bytes: int = 16 * 1024 * 1024,
        close_timeout: float = 2.0,
        reaper: Reaper | None = None,
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.capacity = capacity
        self.answers = 0  # responses received, initialize included
        self.stray_lines = 0  # stdout lines that were not JSON-RPC, or too long
        self.last_stray = b""
        self.pid = 0
        self.returncode: int | None = None
        self.lost = anyio.Event()  # set once nothing more will come: stdout ended, or the child has exited
        self.closed = anyio.Event()  # set once the process group was killed and the child reaped
        self.on_message: Callable[[Message], None] = lambda message: None
        self.on_stray: Callable[[bytes], None] = lambda line: None  # once a read, with the latest
        self.on_oversized: Callable[[bytes], None] = lambda head: None  # with the first bytes of the latest
        self.on_lost: Callable[[], None] = lambda: None
        self._env, self._cwd = env, cwd
        self._reaper = reaper
        self._close_timeout = close_timeout
        self._framer = LineFramer(max_message_bytes)
        self._started = False
        self._dead = False
        self._why = ""  # how it was lost, as long as there is no exit code
        self._close_asked = anyio.Event()
        self._force = anyio.Event()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._out_ready = anyio.Event()
        self._out_room = anyio.Event()
        self._stderr = bytearray()
        self._ending = anyio.Event()  # the first sign of the end
        self._ends = {sign: anyio.Event() for sign in ("exit", "stdout", "stderr")}

    # -- what the pool asks ------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        return not self._dead and not self._close_asked.is_set()

    single_shot = False  # the upstream sets it: it knows which answers were the client's

    async def aclose(self, *, force: bool = False) -> None:
        """Walk the close ladder and wait until the process group is gone; `force` goes to SIGKILL at once.

        Before `run` it returns at once, and `run` then refuses to start.
        """
        if force:
            self._force.set()
        self._close_asked.set()
        self._out_ready.set()
        self._out_room.set()
        if self._started:
            await self.closed.wait()

    # -- what the upstream uses --------------------------------------------------------------------------

    async def send(self, line: bytes) -> None:
        """Queue one message (without line break) for the child; waits first while the buffer is above high water.

        Raises:
            UpstreamClosed: the child is gone, or went while this waited. Nothing was queued.
        """
        while self._out_bytes > WRITE_HIGH_WATER and self.healthy:
            if self._out_room.is_set():
                self._out_room = anyio.Event()
            await self._out_room.wait()
        if not self.healthy:
            raise self.gone()
        self._queue(line)

    def post(self, line: bytes) -> None:
        """Queue one message without waiting; dropped if the child is gone.

        A child that lets 64 MiB of them wait is given up: its connection is lost.
        """
        if not self.healthy:
            return
        if self._out_bytes > WRITE_LIMIT:
            self._why = f"does not read its stdin, where {self._out_bytes} bytes wait"
            self._lose()
            return
        self._queue(line)

    def _queue(self, line: bytes) -> None:
        self._out.append(line)
        self._out_bytes += len(line) + 1
        self._out_ready.set()

    @property
    def stderr_tail(self) -> str:
        """The last 64 KiB that the child wrote to stderr, with undecodable bytes replaced."""
        return bytes(self._stderr).decode(errors="replace")

    def last_words(self, lines: int = 3) -> str:
        """The last non-empty stderr lines on one line, for a message."""
        kept = [text for line in self.stderr_tail.splitlines() if (text := line.strip())]
        return " | ".join(kept[-lines:])[-500:]

    def gone(self) -> UpstreamClosed:
        """The error that says how the child ended."""
        return UpstreamClosed(self.describe_end(), data=self.error_data())

    def error_data(self) -> dict[str, object]:
        """Members for an error's `data`: the upstream, the exit code and the stderr tail where they exist."""
        data: dict[str, object] = {"upstream": self.name}
        if self.returncode is not None:
            data["exit_code"] = self.returncode
        if words := self.last_words():
            data["stderr_tail"] = words
        return data

    def describe_end(self) -> str:
        """One line: the command, how it ended, its last stderr lines, stray output."""
        how = self._why or "was closed" if self.returncode is None else _describe_exit(self.returncode)
        return f"the server '{self.name}' ({shlex.join(self.command)}) {how}{self.evidence()}"

    def evidence(self) -> str:
        """What the child left behind, as the end of a sentence; empty if nothing."""
        text = ""
        if self.stray_lines:
            shown = self.last_stray[:STRAY_SHOWN_BYTES].decode(errors="replace")
            text += f"; {self.stray_lines} line(s) on its stdout were not JSON-RPC, the last one: {shown!r}"
        if words := self.last_words():
            text += f"; last stderr: {words}"
        return text

    # -- the process -------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Spawn the child and stay until its process group is gone. `task_status` tells that it was spawned.

        Raises:
            ConnectError: the program cannot be started; the message names it and the reason.
        """
        self._started = True
        try:
            process = await self._spawn()
        except BaseException:
            self._dead = True
            self.closed.set()
            raise
        self.pid = process.pid
        try:
            if self._reaper is not None:
                self._reaper.watch(process.pid)
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, process.stdout)
                tasks.start_soon(self._write, process.stdin)
                tasks.start_soon(self._read_stderr, process.stderr)
                tasks.start_soon(self._watch_exit, process)
                tasks.start_soon(self._watch_end)
                task_status.started()
                await self._close_asked.wait()
                await self._descend(process)
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(process)

    async def _spawn(self) -> Process:
        if self._close_asked.is_set():
            raise self._cannot_start("it was closed before")
        if not self.command:
            raise self._cannot_start("the command is empty")
        environment = None
        if self._env or self._reaper:
            environment = {**os.environ, **(self._env or {})}
        if self._reaper is not None:
            try:
                environment = {**(environment or {}), **self._reaper.environment()}
            except OSError as error:
                raise self._cannot_start(f"nor can the watcher that would end it: {error}") from None
        try:
            with anyio.CancelScope(shield=True):  # left half-way there would be a child that nobody knows
                process = await anyio.open_process(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=self._cwd,
                    env=environment,
                    start_new_session=True,
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._cannot_start(self._reason(error)) from None
        return process

    def _reason(self, error: Exception) -> str:
        program = self.command[0]
        if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
            if self._cwd is not None and not self._cwd.is_dir():
                return f"its working directory {self._cwd} does not exist"
            if isinstance(error, FileNotFoundError):
                return f"there is no program {program!r} on PATH; install it or give its full path"
            return f"{program!r} may not be executed; check its permissions"
        return getattr(error, "strerror", None) or str(error)

    def _cannot_start(self, reason: str) -> ConnectError:
        return ConnectError(
            f"the server '{self.name}' ({shlex.join(self.command)}) cannot be started: {reason}",
            data={"upstream": self.name},
        )

    async def _read(self, stdout: ByteReceiveStream) -> None:
        with contextlib.suppress(*_BROKEN):
            while True:
                self._take(self._framer.feed(await stdout.receive(READ_BYTES)))
        rest = self._framer.flush()  # a last line without a line break is still an answer
        self._take([rest] if rest else [])
        self._ends["stdout"].set()
        self._end_begins("closed its stdout")

    def _take(self, lines: list[bytes]) -> None:
        stray = self.stray_lines
        for line in lines:
            self._received(line)
        framer = self._framer
        if framer.oversized:
            self.stray_lines += framer.oversized
            self.last_stray = framer.oversized_head
            framer.oversized = 0
            self.on_oversized(framer.oversized_head)
        if self.stray_lines != stray:  # once, for a child may write a hundred thousand such lines at once
            self.on_stray(self.last_stray)

    def _received(self, line: bytes) -> None:
        try:
            messages = decode_batch(line) if is_batch(line) else (decode(line),)
        except MessageError:
            self.stray_lines += 1
            self.last_stray = line[:STRAY_SHOWN_BYTES]
            return
        for message in messages:
            if not message.method:
                self.answers += 1
            try:
                self.on_message(message)
            except Exception:  # one message that we cannot handle must not end the proxy
                log.exception("a message of '%s' could not be handled", self.name)

    async def _write(self, stdin: ByteSendStream) -> None:
        """Until the child closes its stdin, or a close is asked for and the buffer is empty."""
        with contextlib.suppress(*_BROKEN):
            while self._out or not self._close_asked.is_set():
                if not self._out:
                    self._out_ready = anyio.Event()
                    await self._out_ready.wait()
                    continue
                lines, self._out = self._out, []
                data = lines[0] + b"\n" if len(lines) == 1 else b"\n".join([*lines, b""])
                await stdin.send(data)
                self._out_bytes -= len(data)
                self._out_room.set()
        if not self._close_asked.is_set():
            self._end_begins("closed its stdin")  # it will hear nothing more
        with contextlib.suppress(*_BROKEN):
            await stdin.aclose()

    async def _read_stderr(self, stderr: ByteReceiveStream) -> None:
        with contextlib.suppress(*_BROKEN):
            while True:
                self._stderr += await stderr.receive(READ_BYTES)
                del self._stderr[:-STDERR_TAIL_BYTES]
        self._ends["stderr"].set()

    async def _watch_exit(self, process: Process) -> None:
        self.returncode = await process.wait()
        self._ends["exit"].set()
        self._end_begins("")

    def _end_begins(self, why: str) -> None:
        self._dead = True
        self._why = self._why or why
        self._ending.set()

    async def _watch_end(self) -> None:
        """After the first sign give the others a moment: the last answer, the exit code, the reason on stderr."""
        await self._ending.wait()
        with anyio.move_on_after(DRAIN_AFTER_EXIT):
            for end in self._ends.values():
                await end.wait()
        self._lose()

    def _lose(self) -> None:
        self._dead = True
        self._out_room.set()
        if not self.lost.is_set():
            self.lost.set()
            self.on_lost()

    # -- the close ladder --------------------------------------------------------------------------------

    async def _descend(self, process: Process) -> None:
        """Close stdin (`_write` does), then SIGTERM, then SIGKILL, each with its time. The readers still run."""
        for number in (0, signal.SIGTERM):
            if self._force.is_set():
                break
            if number:
                self._signal(process, number)
            if await self._exited_within(process, self._close_timeout):
                break
        self._kill(process)  # what the child has left in its group, too
        with anyio.move_on_after(DRAIN_AFTER_EXIT):
            await self.lost.wait()

    async def _exited_within(self, process: Process, seconds: float) -> bool:
        async def give_up_when_forced() -> None:
            await self._force.wait()
            tasks.cancel_scope.cancel()

        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(give_up_when_forced)
                await process.wait()
                tasks.cancel_scope.cancel()
        return process.returncode is not None

    def _signal(self, process: Process, number: int) -> None:
        if sys.platform == "win32":
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        else:
            kill_group(self.pid, number)

    def _kill(self, process: Process) -> None:
        self._signal(process, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)

    async def _end(self, process: Process) -> None:
        """SIGKILL whatever is left of the group, reap the child, free the pipes, tell everyone."""
        self._dead = True
        self._close_asked.set()
        try:
            self._kill(process)
            with anyio.move_on_after(REAP_TIMEOUT):
                self.returncode = await process.wait()
                await process.aclose()
                if self._reaper is not None:
                    self._reaper.forget(self.pid)
            self._lose()
        finally:
            self.closed.set()

    def __repr__(self) -> str:
        state = "open" if self.healthy else "closed" if self.closed.is_set() else "lost"
        return f"<StdioConnection '{self.name}' pid {self.pid} {state}, {self.answers} answers>"


def _describe_exit(returncode: int) -> str:
    if returncode < 0:
        try:
            return f"was ended by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was ended by signal {-returncode}"
    return f"exited with code {returncode}"
