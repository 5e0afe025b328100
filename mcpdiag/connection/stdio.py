"""One subprocess that speaks MCP over its stdin and stdout: spawn, relay, stderr tail, close ladder.

A few small tasks belong to `run`: a reader, a writer, a stderr reader and a watch on the end. Messages go through a
buffer that the writer empties, so concurrent exchanges never interleave half lines and a cancelled one never leaves
half a line behind. Where only one exchange is carried at a time, a message is written at once if nothing waits.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

from mcpdiag.config.masking import public_args
from mcpdiag.connection.child import Child, inherited
from mcpdiag.connection.reaper import Reaper
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


class StdioConnection:
    """A live child process. `run` owns it from spawn to reap; everything else is called while it runs.

    Args:
        name: the upstream's name, for messages.
        command: program and arguments.
        env: added to (and stronger than) the proxy's own environment, from which `MCPDIAG_*` is taken.
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
        self.shown = shlex.join(public_args(command))
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
        self._child: Child | None = None
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
        if self._child is not None:
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
        data = line + b"\n"
        if self._child is not None and not self._out_bytes and self.capacity == 1:
            try:
                written = self._child.stdin.write(data)
            except OSError:
                self._stdin_broke()
                return
            if written == len(data):
                return
            data = data[written:]
        self._out.append(data)
        self._out_bytes += len(data)
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
        return f"the server '{self.name}' ({self.shown}) {how}{self.evidence()}"

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
        try:
            child = self._child = self._spawn()
        except ConnectError:
            self._dead = True
            self.closed.set()
            raise
        self.pid = child.pid
        try:
            if self._reaper is not None:
                self._reaper.watch(child.pid)
            async with anyio.create_task_group() as tasks:
                for task in (self._read, self._write, self._read_stderr, self._watch_exit, self._watch_end):
                    tasks.start_soon(task, child)
                task_status.started()
                await self._close_asked.wait()
                await self._descend(child)
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(child)

    def _spawn(self) -> Child:
        """Without an await, so that nothing can cancel it half-way and leave a child that nobody knows."""
        if self._close_asked.is_set():
            raise self._cannot_start("it was closed before")
        if not self.command or not self.command[0]:
            raise self._cannot_start("the command is empty")
        environment = {**inherited(), **(self._env or {})}
        if self._reaper is not None:
            try:
                environment |= self._reaper.environment()
            except OSError as error:
                raise self._cannot_start(f"nor can the watcher that would end it: {error}") from None
        try:
            return Child(self.command, cwd=self._cwd, env=environment)
        except (OSError, ValueError) as error:
            raise self._cannot_start(self._reason(error)) from None

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
            f"the server '{self.name}' ({self.shown}) cannot be started: {reason}",
            data={"upstream": self.name},
        )

    async def _read(self, child: Child) -> None:
        with contextlib.suppress(OSError):
            while chunk := await child.stdout.receive(READ_BYTES):
                self._take(self._framer.feed(chunk))
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

    async def _write(self, child: Child) -> None:
        """Until the child closes its stdin, or a close is asked for and the buffer is empty."""
        try:
            while self._out or not self._close_asked.is_set():
                if not self._out:
                    self._out_ready = anyio.Event()
                    await self._out_ready.wait()
                    continue
                data, self._out = b"".join(self._out), []
                await child.stdin.send(data)
                self._out_bytes -= len(data)
                self._out_room.set()
        except OSError:
            self._stdin_broke()
        child.stdin.close()

    def _stdin_broke(self) -> None:
        if not self._close_asked.is_set():
            self._end_begins("closed its stdin")  # it will hear nothing more

    async def _read_stderr(self, child: Child) -> None:
        with contextlib.suppress(OSError):
            while chunk := await child.stderr.receive(READ_BYTES):
                self._stderr += chunk
                del self._stderr[:-STDERR_TAIL_BYTES]
        self._ends["stderr"].set()

    async def _watch_exit(self, child: Child) -> None:
        self.returncode = await child.exited()
        self._ends["exit"].set()
        self._end_begins("")

    def _end_begins(self, why: str) -> None:
        self._dead = True
        self._why = self._why or why
        self._ending.set()

    async def _watch_end(self, child: Child) -> None:
        """After the first sign give the others a moment: the last answer, the exit code, the reason on stderr."""
        await self._ending.wait()
        with anyio.move_on_after(DRAIN_AFTER_EXIT):
            for end in self._ends.values():
                await end.wait()
        if self.returncode is not None:
            self._bury(child)
        self._lose()

    def _lose(self) -> None:
        self._dead = True
        self._out_room.set()
        if not self.lost.is_set():
            self.lost.set()
            self.on_lost()

    # -- the close ladder --------------------------------------------------------------------------------

    async def _descend(self, child: Child) -> None:
        """Close stdin (`_write` does), then SIGTERM, then SIGKILL, each with its time. The readers still run."""
        for number in (None, signal.SIGTERM):
            if self._force.is_set():
                break
            if number is not None:
                child.signal(number)
            if await self._exits_within(self._close_timeout):
                break
        child.signal(signal.SIGKILL)  # also what the child has left in its group
        with anyio.move_on_after(DRAIN_AFTER_EXIT):
            await self.lost.wait()

    async def _exits_within(self, seconds: float) -> bool:
        async def give_up_when_forced() -> None:
            await self._force.wait()
            tasks.cancel_scope.cancel()

        exited = self._ends["exit"]
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(give_up_when_forced)
                await exited.wait()
                tasks.cancel_scope.cancel()
        return exited.is_set()

    async def _end(self, child: Child) -> None:
        """SIGKILL whatever is left of the group, reap the child, free the pipes, tell everyone."""
        self._close_asked.set()
        try:
            child.signal(signal.SIGKILL)
            child.close()
            if self.returncode is None:
                with anyio.move_on_after(REAP_TIMEOUT):
                    self.returncode = await child.exited()
            if self.returncode is not None:
                self._bury(child)
            else:  # it waits for something that a signal does not interrupt, such as a disk; nobody waits for it
                threading.Thread(target=self._bury, args=(child,), daemon=True).start()
            self._lose()
        finally:
            self.closed.set()

    def _bury(self, child: Child) -> None:
        """It has exited: end what it left in its group while the number is its own, then let go of it."""
        child.signal(signal.SIGKILL)
        child.reap()
        if self._reaper is not None:
            self._reaper.forget(child.pid)

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
