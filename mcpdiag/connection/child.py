"""One child process, its group, and its three pipes. Only `connection/stdio` starts one.

Event loops start processes too, but in ways that a proxy cannot afford: uvloop leaves second handles of the pipes
open in the child, so while a grandchild lives the end of its stdout is never seen; asyncio keeps a pipe until its
buffer is empty; and all of them reap a child at once, from when on the number of its group may be a stranger's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import anyio

from mcpdiag.connection.reaper import kill_group


def inherited() -> dict[str, str]:
    """The environment that a process of ours gets: our own without our settings, of which one is a token.

    They would not be meant for it either: a server may be an mcpdiag with settings of its own. The reaper's cookie of
    whoever started us is no setting and stays, so that it finds what we leave.
    """
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("MCPDIAG_")}


class Pipe:
    """Our end of a pipe; one task reads or writes it. It is closed when that task has ended, or by it."""

    def __init__(self, file: IO[bytes] | None) -> None:
        assert file is not None
        self._file = file
        self._fd = file.fileno()
        os.set_blocking(self._fd, False)

    async def receive(self, max_bytes: int) -> bytes:
        """What has come, at least one byte; `b""` once the other end is closed."""
        while True:
            # Waiting comes first, so that a child that never stops leaves others their turn.
            await anyio.wait_readable(self._fd)
            with contextlib.suppress(BlockingIOError):
                return os.read(self._fd, max_bytes)

    def write(self, data: bytes | memoryview) -> int:
        """Write what there is room for, without waiting; returns how many bytes that was.

        Raises:
            BrokenPipeError: the other end is closed.
        """
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0

    async def send(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: the other end is closed.
        """
        view = memoryview(data)
        while view := view[self.write(view) :]:
            await anyio.wait_writable(self._fd)

    def close(self) -> None:
        self._file.close()


class Child:
    """A running process. It is a zombie from its end until `reap`, so that its group can be killed in between.

    Raises:
        OSError, ValueError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], *, cwd: Path | None, env: Mapping[str, str] | None) -> None:
        if sys.platform == "win32":
            raise OSError(
                "it speaks stdio, which needs process groups; on Windows use a server that speaks HTTP"
            )
        self._popen = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self.stdin = Pipe(self._popen.stdin)
        self.stdout = Pipe(self._popen.stdout)
        self.stderr = Pipe(self._popen.stderr)
        self._reaped = False
        self._pidfd = -1
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self.pid)

    async def exited(self) -> int:
        """Wait for its end. Returns the exit code, or the negative number of a signal, as `subprocess` does."""
        if self._pidfd < 0:  # macOS, old kernels: a thread each
            limiter = anyio.CapacityLimiter(1)
            return await anyio.to_thread.run_sync(self._popen.wait, abandon_on_cancel=True, limiter=limiter)
        await anyio.wait_readable(self._pidfd)
        try:
            end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  (it has ended)
        except ChildProcessError:  # the program that embeds us ignores SIGCHLD, or has reaped it
            return self._popen.wait()
        assert end is not None
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def signal(self, number: int) -> None:
        """Send a signal to the whole group; nothing if it was reaped."""
        if not self._reaped:
            kill_group(self.pid, number)

    def reap(self) -> None:
        """Let the process table forget it. Called after `exited`; again does nothing."""
        if not self._reaped:
            self._reaped = True
            self._popen.wait()
            if self._pidfd >= 0:
                os.close(self._pidfd)

    def close(self) -> None:
        """Close our ends of the pipes. Again does nothing."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()
