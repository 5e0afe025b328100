"""`Child`: a process, its group and its pipes, where they differ from what event loops offer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint

from mcpdiag.connection.child import Child
from tests.connection.processes import GUARD, alive, open_files

MARK = pytest.mark.anyio
BIG = b"x" * 1_000_000


@contextmanager
def started(*argv: str) -> Iterator[Child]:
    """A child that is gone afterwards, with all that it had open here."""
    before = len(open_files())
    child = Child(argv, cwd=None, env=None)
    try:
        yield child
    finally:
        child.signal(signal.SIGKILL)
        child.close()
        child.reap()
    assert not alive(child.pid)
    assert len(open_files()) <= before


@MARK
async def test_a_child_that_has_ended_is_a_zombie_until_it_is_reaped() -> None:
    """So its pid, which is the number of its group, cannot be given to another process meanwhile."""
    with anyio.fail_after(GUARD), started("sh", "-c", "exit 7") as child:
        assert await child.exited() == 7
        assert await child.exited() == 7
        os.kill(child.pid, 0)
        child.reap()
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)
        child.reap()


@MARK
async def test_after_it_was_reaped_its_group_is_not_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("mcpdiag.connection.child.kill_group", lambda group, number: sent.append(number))
    with anyio.fail_after(GUARD), started("true") as child:
        await child.exited()
        child.signal(signal.SIGTERM)
        child.reap()
        child.signal(signal.SIGKILL)
    assert sent == [signal.SIGTERM]


@MARK
async def test_its_end_by_a_signal_is_a_negative_number() -> None:
    with anyio.fail_after(GUARD), started("sleep", "60") as child:
        child.signal(signal.SIGTERM)
        assert await child.exited() == -signal.SIGTERM


@MARK
async def test_without_pidfd_a_thread_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and old kernels."""

    def missing(pid: int) -> int:
        raise OSError("no such system call")

    monkeypatch.setattr(os, "pidfd_open", missing)
    with anyio.fail_after(GUARD), started("sh", "-c", "exit 7") as child:
        assert await child.exited() == 7
    with anyio.fail_after(GUARD), started("sleep", "60") as child:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child.exited)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        child.signal(signal.SIGTERM)
        assert await child.exited() == -signal.SIGTERM


@MARK
async def test_an_end_that_somebody_else_has_reaped_counts_as_zero() -> None:
    """A program that embeds the proxy may ignore SIGCHLD, and then the kernel keeps no exit code."""
    with anyio.fail_after(GUARD), started("sh", "-c", "exit 7") as child:
        os.waitpid(child.pid, 0)
        assert await child.exited() == 0


@MARK
async def test_all_of_a_message_is_written_although_the_pipe_has_no_room_for_it() -> None:
    with anyio.fail_after(GUARD), started("wc", "-c") as child:
        await child.stdin.send(BIG)
        child.stdin.close()
        assert int(await child.stdout.receive(100)) == len(BIG)
        assert await child.stdout.receive(100) == b""


@MARK
async def test_who_waits_for_room_is_told_when_the_other_end_is_closed() -> None:
    closes = "import os, signal as s; s.signal(s.SIGTERM, lambda *_: os.close(0)); print(flush=True)\nwhile 1: s.pause()"
    with anyio.fail_after(GUARD), started(sys.executable, "-I", "-S", "-c", closes) as child:
        await child.stdout.receive(1)
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                with pytest.raises(BrokenPipeError):
                    await child.stdin.send(BIG)

            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            os.kill(child.pid, signal.SIGTERM)
        assert alive(child.pid)


@MARK
async def test_who_is_cancelled_while_waiting_for_room_leaves_nothing_open() -> None:
    with anyio.fail_after(GUARD), started("sleep", "60") as child:
        before = len(open_files())
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child.stdin.send, BIG)
                await anyio.wait_all_tasks_blocked()
                assert child.stdin.write(b"x") == 0
                scope.cancel()
        assert len(open_files()) <= before


@MARK
async def test_the_end_of_stdout_is_seen_although_the_child_lives() -> None:
    """On every loop: the child has no second handle of its pipes."""
    with anyio.fail_after(GUARD), started("sh", "-c", "exec >&-; sleep 60") as child:
        assert await child.stdout.receive(100) == b""
        assert alive(child.pid)


@MARK
async def test_a_child_that_never_stops_writing_leaves_others_their_turn() -> None:
    with anyio.fail_after(GUARD), started("yes") as child:
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                while await child.stdout.receive(65536):
                    pass

            tasks.start_soon(read)
            for _ in range(100):
                await checkpoint()
            tasks.cancel_scope.cancel()


def test_where_there_are_no_process_groups_it_can_be_imported_and_says_so() -> None:
    """As Windows is: no killpg, no SIGKILL, no SIGHUP, no /proc."""
    program = """
import asyncio, os, select, signal, subprocess, sys, threading
import anyio, msgspec, anyio._backends._asyncio, mcpdiag.connection.stdio
for name in [name for name in sys.modules if name.startswith("mcpdiag.connection")]:
    del sys.modules[name]
for module, names in {os: ["killpg", "getsid", "pidfd_open"], signal: ["SIGKILL", "SIGHUP", "SIGALRM"]}.items():
    for name in names:
        delattr(module, name)
sys.platform = "win32"
import mcpdiag.connection.stdio as stdio
from mcpdiag.connection.reaper import COOKIE, Reaper
with Reaper() as reaper:
    assert reaper.environment() == {COOKIE: reaper.cookie}
    reaper.watch(1); reaper.forget(1)
    assert reaper._watcher is None
try:
    anyio.run(stdio.StdioConnection("srv", ["server"], reaper=reaper).run)
except stdio.ConnectError as error:
    assert "on Windows use a server that speaks HTTP" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@MARK
async def test_it_has_nothing_open_but_its_three_pipes() -> None:
    """Looked at once it speaks: while a program is loaded it opens files of its own."""
    mine, theirs = os.pipe()
    try:
        with anyio.fail_after(GUARD), started("sh", "-c", "echo up; read line") as child:
            assert await child.stdout.receive(10) == b"up\n"
            assert len(os.listdir(f"/proc/{child.pid}/fd")) == 3
    finally:
        os.close(mine)
        os.close(theirs)
