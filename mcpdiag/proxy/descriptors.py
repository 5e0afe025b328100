"""Reading and writing what a process is given as stdin and stdout: pipes, sockets, terminals or files.

The descriptors stay blocking, because O_NONBLOCK would hold for whoever else has them, a shell's terminal for one. So
each is asked whether it is ready, and no more is written than then cannot block.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import AsyncGenerator

import anyio
import anyio.lowlevel

from mcpdiag.errors import StartError

CHUNK = 64 * 1024


class Readiness:
    """Waits until a descriptor can be read from, or written to, without blocking.

    A loop watches the epoll object in the place of the descriptor, which uvloop would make non-blocking.
    """

    def __init__(self, descriptor: int, event: int) -> None:
        self._descriptor = descriptor
        self._event = event
        self._watch: select.epoll | None = None
        if sys.platform == "linux":
            watch = select.epoll()
            try:
                watch.register(descriptor, event)
                self._watch = watch
            except PermissionError:  # a file, which is ready always
                watch.close()

    async def wait(self) -> None:
        """Return when it is ready; the end and a failure count as that."""
        if self._watch is not None:
            while not self._watch.poll(0):
                await anyio.wait_readable(self._watch)
        elif sys.platform != "linux":
            poll = select.poll()
            poll.register(self._descriptor, self._event)
            if not poll.poll(0):
                wait = anyio.wait_readable if self._event == select.POLLIN else anyio.wait_writable
                await wait(self._descriptor)

    def close(self) -> None:
        """Stop watching; the descriptor stays open."""
        if self._watch is not None:
            self._watch.close()


async def chunks_of(source: int) -> AsyncGenerator[bytes, None]:
    """What comes, as it comes, until the end."""
    with contextlib.closing(Readiness(source, select.POLLIN)) as readiness:
        while True:
            await readiness.wait()
            try:
                chunk = os.read(source, CHUNK)
            except BlockingIOError:  # somebody else has made it non-blocking, and was faster
                continue
            except OSError:  # the other end was reset, or the terminal is gone
                return
            if not chunk:
                return
            yield chunk


async def write(sink: int, readiness: Readiness, data: bytes) -> None:
    """All of it, in pieces that a pipe which is ready for writing takes without blocking."""
    rest = memoryview(data)
    while rest:
        await readiness.wait()
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(sink, rest[: select.PIPE_BUF]) :]
        await anyio.lowlevel.checkpoint()


def claim() -> tuple[int, int]:
    """Take stdin and stdout of this process for MCP alone, for good.

    What prints in spite of that goes to stderr, what reads finds the end, and no child inherits either.

    Returns:
        The descriptors to read from and to write to.

    Raises:
        StartError: there is none.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        source, sink = os.dup(0), os.dup(1)
    except OSError:
        raise StartError(
            "stdin or stdout is closed; an MCP client that starts this program opens both"
        ) from None
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # no stderr either
        os.dup2(nothing, 1)
    os.close(nothing)
    return source, sink
