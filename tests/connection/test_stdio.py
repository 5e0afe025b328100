"""`StdioConnection` with real child processes: the small servers of `tests/servers`."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import CancelScope, wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from mcpdiag.connection import child, stdio
from mcpdiag.connection.base import Connection
from mcpdiag.connection.reaper import COOKIE, Reaper
from mcpdiag.connection.stdio import StdioConnection
from mcpdiag.errors import ConnectError, UpstreamClosed
from mcpdiag.protocol.message import Message
from tests.connection.processes import GUARD, alive, children, open_files, until
from tests.servers.mini import command

pytestmark = pytest.mark.anyio

LONG = 100.0  # seconds for a step of the close ladder that must not be waited for
SHORT = 0.1


@pytest.fixture(autouse=True)
async def _nothing_left() -> AsyncIterator[None]:
    """No test may leave a child or an open file behind."""
    processes, files = children(), open_files()
    yield
    await until(lambda: children() <= processes)
    await until(lambda: len(open_files()) <= len(files))


@pytest.fixture
def drained_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which something holds a pipe, so that the whole grace for what is left in it passes."""
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT", SHORT)


class Talk:
    """A connection with somebody who keeps what it hears."""

    def __init__(self, *argv: str, **options: Any) -> None:
        options = {"close_timeout": LONG, **options}
        self.connection = StdioConnection("srv", argv, **options)
        self.heard: list[Message] = []
        self.stray: list[bytes] = []
        self.oversized: list[bytes] = []
        self.losses = 0
        self.last_id = 0
        self._news = anyio.Event()
        self.connection.on_message = self._on_message
        self.connection.on_stray = self.stray.append
        self.connection.on_oversized = self.oversized.append
        self.connection.on_lost = self._on_lost

    def _on_message(self, message: Message) -> None:
        self.heard.append(message)
        self._tell()

    def _on_lost(self) -> None:
        self.losses += 1
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def request(self, method: str, **params: Any) -> bytes:
        self.last_id += 1
        return json.dumps({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}).encode()

    def tool(self, name: str, **arguments: Any) -> bytes:
        return self.request("tools/call", name=name, arguments=arguments)

    async def response(self, number: int | None = None) -> dict[str, Any]:
        """The result for this request, by default the latest. Ends with UpstreamClosed if the child is lost."""
        number = number or self.last_id
        while True:
            for message in self.heard:
                if bytes(message.id) == b"%d" % number and message.result:
                    result: dict[str, Any] = json.loads(bytes(message.result))
                    return result
            if self.losses:
                raise self.connection.gone()
            await self._news.wait()

    async def ask(self, line: bytes) -> dict[str, Any]:
        await self.connection.send(line)
        return await self.response()

    async def call(self, name: str, **arguments: Any) -> str:
        result = await self.ask(self.tool(name, **arguments))
        return str(result["content"][0]["text"])

    async def ready(self) -> None:
        """Until the server has started: its signal handlers are set."""
        await self.ask(self.request("ping"))

    def limit_steps(self, *seconds: float) -> None:
        """Give each step of the close ladder a time of its own."""
        exits_within, limits = self.connection._exits_within, [*seconds]

        async def limited(seconds: float) -> bool:
            return await exits_within(limits.pop(0))

        self.connection._exits_within = limited  # type: ignore[method-assign]

    async def pids(self) -> list[int]:
        return [int(pid) for pid in (await self.call("pids")).split()]


@asynccontextmanager
async def running(*argv: str, **options: Any) -> AsyncIterator[Talk]:
    """A connection that runs; closed by force at the end, if the test has not closed it."""
    talk = Talk(*argv, **options)
    with anyio.fail_after(GUARD):
        async with anyio.create_task_group() as tasks:
            await tasks.start(talk.connection.run)
            try:
                yield talk
            finally:
                with CancelScope(shield=True):
                    await talk.connection.aclose(force=True)


# -- spawn ----------------------------------------------------------------------------------------------------


async def test_a_message_goes_to_the_child_and_its_answer_comes_back() -> None:
    async with running(*command("noisy")) as talk:
        connection: Connection = talk.connection
        assert connection.healthy
        assert connection.capacity == 1
        assert not connection.single_shot
        assert await talk.call("echo", text="hällo") == "hällo"
        assert talk.connection.answers == 1
        assert alive(talk.connection.pid)
        assert repr(talk.connection) == f"<StdioConnection 'srv' pid {talk.connection.pid} open, 1 answers>"
    assert not talk.connection.healthy
    assert repr(talk.connection).endswith("closed, 1 answers>")


async def test_the_child_gets_the_environment_of_the_proxy_and_what_is_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_A", "proxy")
    monkeypatch.setenv("TEST_B", "proxy")
    monkeypatch.setenv("MCPDIAG_TOKEN", "secret")
    monkeypatch.setenv("MCPDIAG_PORT", "1")
    show = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        "import os, json; print(json.dumps(dict(os.environ)), flush=True)",
    ]
    async with running(*show, env={"TEST_B": "own", "TEST_C": "=ä", "MCPDIAG_PORT": "2"}) as talk:
        await talk.connection.lost.wait()
        seen = talk.connection.last_stray.decode(errors="replace")
    # Stray output is cut, so look at the child's own words only for what is new: ask it directly.
    assert seen.startswith("{")
    with Reaper() as reaper:
        options = {"env": {"TEST_B": "own", "TEST_C": "=ä", "MCPDIAG_PORT": "2"}, "reaper": reaper}
        async with running(*command("noisy"), **options) as talk:
            environ = Path(f"/proc/{talk.connection.pid}/environ")
            await talk.ready()
            variables = dict(each.split("=", 1) for each in environ.read_bytes().decode().split("\0") if each)
    assert variables["TEST_A"] == "proxy"
    assert variables["TEST_B"] == "own"
    assert variables["TEST_C"] == "=ä"
    assert variables["MCPDIAG_PORT"] == "2"  # asked for
    assert "MCPDIAG_TOKEN" not in variables
    assert variables[COOKIE] == reaper.cookie


async def test_the_program_is_looked_for_on_the_path_that_the_child_gets(tmp_path: Path) -> None:
    program = tmp_path / "my-server"
    program.write_text(f"#!/bin/sh\nexec {subprocess.list2cmdline(command('noisy'))}\n")
    program.chmod(0o755)
    async with running("my-server", env={"PATH": f"{tmp_path}:/usr/bin:/bin"}) as talk:
        assert await talk.call("echo", text="found") == "found"


async def test_the_child_starts_in_its_working_directory(tmp_path: Path) -> None:
    async with running(*command("noisy"), cwd=tmp_path) as talk:
        await talk.ready()
        assert Path(f"/proc/{talk.connection.pid}/cwd").readlink() == tmp_path


async def test_the_child_leads_a_group_of_its_own() -> None:
    async with running(*command("noisy")) as talk:
        assert os.getpgid(talk.connection.pid) == talk.connection.pid


async def test_the_child_inherits_no_file_of_the_proxy() -> None:
    mine, theirs = os.pipe()
    try:
        async with running(*command("noisy")) as talk:
            await talk.ready()
            assert len(open_files(talk.connection.pid)) == 3
    finally:
        os.close(mine)
        os.close(theirs)


@pytest.mark.parametrize(
    ("argv", "cwd", "reason"),
    [
        (
            ["no-such-program"],
            None,
            "there is no program 'no-such-program' on PATH; install it or give its full path",
        ),
        (["/no/such/program"], None, "there is no program '/no/such/program'"),
        (["{tmp}/data.txt"], None, "may not be executed; check its permissions"),
        (["{tmp}"], None, "may not be executed; check its permissions"),
        (["{tmp}/data.txt/x"], None, "may not be executed; check its permissions"),
        (["{tmp}/no-format"], None, "Exec format error"),
        (["python3"], "{tmp}/missing", "its working directory {tmp}/missing does not exist"),
        (["python3"], "{tmp}/data.txt", "its working directory {tmp}/data.txt does not exist"),
        (["no-such-program"], "{tmp}", "there is no program 'no-such-program'"),
        ([], None, "the command is empty"),
        ([""], None, "the command is empty"),
        (["python3", "a\0b"], None, "null byte"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_program_that_cannot_start_is_named_with_the_reason(
    argv: list[str], cwd: str | None, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "no-format").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "no-format").chmod(0o755)
    tmp = str(tmp_path)
    argv = [part.replace("{tmp}", tmp) for part in argv]
    connection = StdioConnection("srv", argv, cwd=Path(cwd.replace("{tmp}", tmp)) if cwd else None)
    with pytest.raises(ConnectError) as caught:
        await connection.run()
    assert "the server 'srv' (" in str(caught.value)
    assert ") cannot be started: " in str(caught.value)
    assert reason.replace("{tmp}", tmp) in str(caught.value)
    assert caught.value.data == {"upstream": "srv"}
    assert not connection.healthy
    await connection.aclose()


async def test_a_watcher_that_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the server could outlive the proxy, so it is not started."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with Reaper() as reaper:
        connection = StdioConnection("srv", ["sleep", "60"], reaper=reaper)
        with pytest.raises(ConnectError, match="nor can the watcher that would end it: .*/no/such/python"):
            await connection.run()


async def test_a_start_cancelled_half_way_leaves_no_child() -> None:
    """The spawn itself has no await; this is the first one after it."""
    talk = Talk(*command("stubborn"))
    with CancelScope() as scope:
        async with anyio.create_task_group():
            scope.cancel()
            await talk.connection.run()
    assert talk.connection.pid
    assert talk.connection.closed.is_set()
    assert talk.connection.returncode == -signal.SIGKILL
    assert not alive(talk.connection.pid)


async def test_cancellation_of_whoever_starts_it_leaves_no_child() -> None:
    before = children()
    talk = Talk(*command("stubborn"))
    with CancelScope() as scope:
        async with anyio.create_task_group() as processes:
            scope.cancel()
            await processes.start(talk.connection.run)
    assert children() <= before
    await talk.connection.aclose()


async def test_closed_before_it_ran_it_refuses_to_run() -> None:
    talk = Talk(*command("noisy"))
    await talk.connection.aclose()
    assert not talk.connection.healthy
    with pytest.raises(ConnectError, match="cannot be started: it was closed before"):
        await talk.connection.run()
    await talk.connection.aclose()


async def test_closed_as_soon_as_it_has_started_it_ends_by_the_ladder() -> None:
    async with running(*command("noisy")) as talk:
        await talk.connection.aclose()
        assert talk.connection.returncode == 0


async def test_a_reaper_that_fails_after_the_spawn_leaves_no_child() -> None:
    class Failing(Reaper):
        def watch(self, group: int) -> None:
            raise OSError("no more pipes")

    with Failing() as reaper:
        talk = Talk(*command("stubborn"), reaper=reaper)
        with pytest.raises(OSError, match="no more pipes"):
            await talk.connection.run()
    assert talk.connection.pid
    assert not alive(talk.connection.pid)


# -- what comes on stdout -------------------------------------------------------------------------------------


async def test_what_the_child_left_in_the_pipe_is_read_after_its_exit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stdio, "READ_BYTES", 100)  # the exit is known long before the last byte is read
    async with running(*command("single_shot", "--big", "60000", "--code", "3", "--stderr", "bye")) as talk:
        result = await talk.ask(talk.request("ping"))
        assert len(result["content"][0]["text"]) == 60000
        await talk.connection.lost.wait()
        assert talk.connection.returncode == 3
        assert talk.losses == 1
        with pytest.raises(UpstreamClosed, match="exited with code 3; last stderr: bye"):
            await talk.connection.send(b"{}")


async def test_a_last_line_without_line_break_is_an_answer() -> None:
    async with running(*command("single_shot", "--no-newline")) as talk:
        assert await talk.ask(talk.request("ping")) == {}
        await talk.connection.lost.wait()
        assert talk.connection.answers == 1
        assert talk.connection.stray_lines == 0


async def test_a_last_line_that_is_too_long_is_counted() -> None:
    async with running(*command("single_shot", "--then", "78" * 1001), max_message_bytes=1000) as talk:
        await talk.ask(talk.request("ping"))
        await talk.connection.lost.wait()
        assert talk.connection.stray_lines == 1
        assert talk.oversized == [b"x" * 200]


async def test_a_line_that_is_not_json_rpc_is_counted_and_the_connection_lives() -> None:
    lines = [
        b"starting up",
        b'"\xff\xfe"',
        b'{"jsonrpc":"2.0"',
        b"[INFO] hi",
        b"\x00\x01",
        b'{"a":1}',
        b"[]",
        b"null",
    ]
    async with running(*command("noisy")) as talk:
        for number, raw in enumerate(lines, 1):
            assert await talk.call("raw", hex=(raw + b"\n").hex()) == "written"
            assert talk.connection.stray_lines == number
            assert talk.connection.last_stray == raw
        assert talk.stray == lines
        assert talk.connection.healthy
        assert "8 line(s) on its stdout were not JSON-RPC, the last one: 'null'" in talk.connection.evidence()


async def test_megabytes_of_stray_lines_are_counted_in_constant_memory() -> None:
    """Lines of 200 bytes; `on_stray` is not called for each of them, which would flood whoever listens."""
    total, line = 4_000_000, 200
    tracemalloc.start()
    try:
        async with running(*command("noisy", "--stray", str(total), "--stray-line", str(line))) as talk:
            assert await talk.call("echo", text="still here") == "still here"
            _, peak = tracemalloc.get_traced_memory()
            assert talk.connection.stray_lines == total // line
            assert talk.connection.last_stray.endswith(b"%d" % (total // line - 1))
            assert talk.connection.healthy
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000
    assert 1 <= len(talk.stray) < total // line / 10


async def test_a_line_without_end_is_counted_once_in_constant_memory() -> None:
    total, limit = 8_000_000, 100_000
    tracemalloc.start()
    try:
        argv = command("noisy", "--stray", str(total), "--stray-line", "0")
        async with running(*argv, max_message_bytes=limit) as talk:
            assert await talk.call("echo", text="still here") == "still here"
            _, peak = tracemalloc.get_traced_memory()
            assert talk.connection.stray_lines == 1
            assert talk.oversized == [b"x" * 200]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


async def test_an_answer_that_is_too_long_is_told_with_its_first_bytes() -> None:
    async with running(*command("noisy"), max_message_bytes=10_000) as talk:
        await talk.connection.send(talk.tool("big", bytes=20_000))
        await until(lambda: bool(talk.oversized))
        assert talk.oversized[0].startswith(b'{"jsonrpc": "2.0", "id": 1, "result"')
        assert talk.stray == talk.oversized
        assert talk.connection.stray_lines == 1
        assert len(await talk.call("big", bytes=9_000)) == 9_000


async def test_each_message_of_a_batch_is_heard() -> None:
    async with running(*command("noisy")) as talk:
        assert await talk.call("pair") == "paired"
        assert [message.kind for message in talk.heard] == ["notification", "response"]


async def test_a_message_that_cannot_be_handled_does_not_end_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(*command("noisy")) as talk:
        heard = talk.connection.on_message

        def broken(message: Message) -> None:
            raise RuntimeError("a bug of ours")

        talk.connection.on_message = broken
        await talk.connection.send(talk.request("ping"))
        await until(lambda: bool(caplog.records))
        talk.connection.on_message = heard
        assert await talk.call("echo", text="still here") == "still here"
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].getMessage() == "a message of 'srv' could not be handled"


# -- what comes on stderr -------------------------------------------------------------------------------------


async def test_the_last_64_kib_of_stderr_are_kept_in_constant_memory() -> None:
    total = 4 * 1024 * 1024
    tracemalloc.start()
    try:
        async with running(*command("noisy", "--stderr", str(total))) as talk:
            await talk.ready()
            last = f"{total // 64 - 1}\n"
            await until(lambda: talk.connection.stderr_tail.endswith(last))
            _, peak = tracemalloc.get_traced_memory()
            assert len(talk.connection.stderr_tail) == 64 * 1024
            assert talk.connection.healthy
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


async def test_bytes_on_stderr_that_are_not_utf_8_are_replaced_and_few_lines_are_shown() -> None:
    write = r"import os; os.write(2, b'one\n\ntwo \xff\n  three\nfour\n')"
    async with running(sys.executable, "-I", "-S", "-c", write) as talk:
        await talk.connection.lost.wait()
        assert talk.connection.last_words() == "two \ufffd | three | four"
        assert talk.connection.error_data() == {
            "upstream": "srv",
            "exit_code": 0,
            "stderr_tail": "two \ufffd | three | four",
        }


# -- how a child is lost --------------------------------------------------------------------------------------


async def test_an_exit_tells_the_code_and_the_last_words() -> None:
    async with running(*command("single_shot", "--code", "7", "--stderr", "no database")) as talk:
        await talk.ask(talk.request("ping"))
        await talk.connection.lost.wait()
        assert not talk.connection.healthy
        assert repr(talk.connection).endswith("lost, 1 answers>")
        error = talk.connection.gone()
    assert str(error).startswith("the server 'srv' (")
    assert str(error).endswith(") exited with code 7; last stderr: no database")
    assert error.data == {"upstream": "srv", "exit_code": 7, "stderr_tail": "no database"}


@pytest.mark.parametrize(("number", "how"), [(signal.SIGSEGV, "SIGSEGV"), (40, "signal 40")])
async def test_an_end_by_a_signal_names_the_signal(number: int, how: str) -> None:
    async with running(*command("noisy")) as talk:
        await talk.ready()
        os.kill(talk.connection.pid, number)
        await talk.connection.lost.wait()
        assert f"was ended by {how}" in str(talk.connection.gone())


@pytest.mark.usefixtures("drained_soon")
async def test_a_child_that_closes_only_its_stdout_is_lost() -> None:
    async with running(*command("hangs", "--close", "stdout")) as talk:
        await talk.ready()
        with pytest.raises(UpstreamClosed, match="closed its stdout"):
            await talk.call("any")
        assert alive(talk.connection.pid)
        assert talk.connection.returncode is None
    assert not alive(talk.connection.pid)


@pytest.mark.usefixtures("drained_soon")
@pytest.mark.parametrize("capacity", [1, 8])
async def test_a_child_that_closes_only_its_stdin_is_lost_with_the_next_message(capacity: int) -> None:
    async with running(*command("hangs", "--close", "stdin"), capacity=capacity) as talk:
        await talk.ready()
        files = f"/proc/{talk.connection.pid}/fd"
        await talk.connection.send(talk.tool("any"))
        await until(lambda: "0" not in os.listdir(files))
        with pytest.raises(UpstreamClosed, match="closed its stdin"):
            await talk.ask(talk.request("ping"))
        assert alive(talk.connection.pid)
    assert not alive(talk.connection.pid)


async def test_a_child_that_closes_only_its_stderr_goes_on() -> None:
    async with running(*command("hangs", "--close", "stderr")) as talk:
        await talk.connection.send(talk.tool("any"))
        assert await talk.ask(talk.request("ping")) == {}
        assert talk.connection.healthy


@pytest.mark.usefixtures("drained_soon")
async def test_a_child_that_closes_all_three_and_lives_on_is_lost_and_killed() -> None:
    async with running(
        *command("hangs", "--close", "stdin", "stdout", "stderr"), close_timeout=SHORT
    ) as talk:
        with pytest.raises(UpstreamClosed):
            await talk.call("any")
        await talk.connection.aclose()
        assert not alive(talk.connection.pid)


@pytest.mark.usefixtures("drained_soon")
@pytest.mark.parametrize("setsid", [[], ["--setsid"]])
@pytest.mark.parametrize("held", ["stdout", "stderr", "stdin"])
async def test_a_grandchild_that_holds_a_stream_does_not_hide_the_exit(setsid: list[str], held: str) -> None:
    async with running(*command("forks", "--hold", held, "--requests", "2", *setsid)) as talk:
        _, grandchild = await talk.pids()
        await talk.ask(talk.request("ping"))
        await talk.connection.lost.wait()
        assert talk.connection.returncode == 0
        assert talk.losses == 1
        if setsid:  # only the watcher finds it: test_reaper
            assert alive(grandchild)
            os.kill(grandchild, signal.SIGKILL)
        await until(lambda: not alive(grandchild))


@pytest.mark.usefixtures("drained_soon")
async def test_files_are_freed_although_an_escaped_grandchild_holds_all_streams() -> None:
    before = len(open_files())
    grandchild = 0
    try:
        async with running(*command("forks", "--setsid", "--hold", "stdin", "stdout", "stderr")) as talk:
            _, grandchild = await talk.pids()
            await talk.connection.aclose()
        await until(lambda: len(open_files()) <= before)
        assert alive(grandchild)
    finally:
        os.kill(grandchild, signal.SIGKILL)


# -- towards the child ----------------------------------------------------------------------------------------


async def stopped(talk: Talk) -> None:
    """The child is stopped, and as much as may wait for it waits; whoever sends now has to wait."""
    await talk.ready()
    os.kill(talk.connection.pid, signal.SIGSTOP)
    while talk.connection._out_bytes <= stdio.WRITE_HIGH_WATER:
        await talk.connection.send(talk.request("ping", pad="x" * 300_000))
        await checkpoint()


async def test_who_sends_to_a_child_that_does_not_read_waits_until_it_does() -> None:
    async with running(*command("noisy")) as talk, anyio.create_task_group() as tasks:
        await stopped(talk)
        sent: list[int] = []

        async def send() -> None:
            line = talk.request("ping")
            number = talk.last_id
            await talk.connection.send(line)
            sent.append(number)

        for _ in range(3):
            tasks.start_soon(send)
        await wait_all_tasks_blocked()
        assert sent == []
        os.kill(talk.connection.pid, signal.SIGCONT)
        for number in range(1, talk.last_id + 1):
            assert await talk.response(number) == {}
        assert len(sent) == 3
        assert talk.connection.stderr_tail == ""
        await until(lambda: talk.connection._out_bytes == 0)
        await stopped(talk)
        tasks.start_soon(send)
        await wait_all_tasks_blocked()  # it waits, and does not look again and again
        os.kill(talk.connection.pid, signal.SIGCONT)


async def test_a_child_that_does_not_read_holds_up_nobody_else() -> None:
    async with running(*command("hangs", "--at", "reading")) as stuck, running(*command("noisy")) as other:
        async with anyio.create_task_group() as tasks:
            await stuck.ready()
            for _ in range(20):
                tasks.start_soon(stuck.connection.send, stuck.request("ping", pad="x" * 300_000))
            await wait_all_tasks_blocked()
            for _ in range(10):
                assert await other.call("echo", text="free") == "free"
            assert stuck.connection._out_bytes < stdio.WRITE_HIGH_WATER + 400_000
            tasks.cancel_scope.cancel()


async def test_who_is_cancelled_while_waiting_has_sent_nothing() -> None:
    async with running(*command("noisy")) as talk:
        await stopped(talk)
        waiting = talk.connection._out_bytes
        for _ in range(5):
            with CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(talk.connection.send, talk.tool("echo", text="cancelled"))
                    await wait_all_tasks_blocked()
                    scope.cancel()
        assert talk.connection._out_bytes == waiting
        os.kill(talk.connection.pid, signal.SIGCONT)
        last = talk.last_id
        await talk.ready()
        assert talk.connection.stderr_tail == ""
        heard = {bytes(message.id) for message in talk.heard}
        assert not heard & {b"%d" % (last - number) for number in range(5)}


async def test_lines_of_many_senders_stay_whole_also_when_some_are_cancelled() -> None:
    async with running(*command("noisy")) as talk:
        await stopped(talk)
        before = talk.last_id
        async with anyio.create_task_group() as tasks:
            scopes: list[CancelScope] = []

            async def send(line: bytes, *, leaves: bool) -> None:
                with CancelScope() as scope:
                    if leaves:
                        scopes.append(scope)
                    await talk.connection.send(line)

            for number in range(40):
                line = talk.tool("echo", text=f"{number}" * 10_000)
                tasks.start_soon(lambda line, leaves: send(line, leaves=leaves), line, number % 2 == 0)
            await wait_all_tasks_blocked()
            for scope in scopes:
                scope.cancel()
            await wait_all_tasks_blocked()
            os.kill(talk.connection.pid, signal.SIGCONT)
        for number in range(1, 40, 2):
            result = await talk.response(before + 1 + number)
            assert result["content"][0]["text"] == f"{number}" * 10_000
        assert talk.connection.stderr_tail == ""
        heard = {int(bytes(message.id)) for message in talk.heard}
        assert not heard & {before + 1 + number for number in range(0, 40, 2)}


async def test_who_waits_to_send_is_told_as_soon_as_a_close_is_asked_for() -> None:
    """Not only when the child is gone, which takes as long as the ladder."""
    async with running(*command("hangs", "--at", "reading")) as talk, anyio.create_task_group() as tasks:
        await stopped(talk)
        told = anyio.Event()

        async def send() -> None:
            with pytest.raises(UpstreamClosed, match="was closed"):
                await talk.connection.send(b"{}")
            told.set()

        tasks.start_soon(send)
        await wait_all_tasks_blocked()
        tasks.start_soon(talk.connection.aclose)
        await told.wait()
        assert alive(talk.connection.pid)
        await talk.connection.aclose(force=True)


@pytest.mark.parametrize("force", [False, True])
async def test_who_waits_to_send_is_told_when_the_connection_closes(force: bool) -> None:
    async with running(*command("hangs", "--at", "reading"), close_timeout=SHORT) as talk:
        await talk.ready()
        errors: list[UpstreamClosed] = []

        async def send() -> None:
            while True:
                try:
                    await talk.connection.send(talk.request("ping", pad="x" * 300_000))
                except UpstreamClosed as error:
                    errors.append(error)
                    return

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(send)
            await wait_all_tasks_blocked()
            await talk.connection.aclose(force=force)
        assert len(errors) == 3
        assert not alive(talk.connection.pid)


async def test_who_waits_to_send_is_told_when_the_child_dies() -> None:
    async with running(*command("noisy")) as talk:
        await stopped(talk)
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                with pytest.raises(UpstreamClosed, match="was ended by SIGKILL"):
                    await talk.connection.send(talk.request("ping"))

            tasks.start_soon(send)
            await wait_all_tasks_blocked()
            os.kill(talk.connection.pid, signal.SIGKILL)


async def test_a_child_that_lets_posted_messages_pile_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "WRITE_LIMIT", 3_000_000)
    async with running(*command("hangs", "--at", "reading")) as talk:
        await talk.ready()
        line = talk.request("ping", pad="x" * 300_000)
        for _ in range(100):
            talk.connection.post(line)
        assert talk.connection._out_bytes < 3_000_000 + 400_000
        assert talk.losses == 1
        assert talk.connection.lost.is_set()
        assert not talk.connection.healthy
        assert "does not read its stdin, where 3" in str(talk.connection.gone())


@pytest.mark.parametrize("capacity", [1, 8])
async def test_what_was_queued_before_the_close_still_reaches_the_child(capacity: int) -> None:
    """Whether it is written at once or by the writer."""
    async with running(*command("noisy"), capacity=capacity) as talk:
        await talk.ready()
        talk.connection.post(talk.tool("stderr", text="last wish"))
        await talk.connection.aclose()
        assert talk.connection.returncode == 0
        assert talk.connection.stderr_tail == "last wish\n"


async def test_after_the_close_nothing_is_queued() -> None:
    async with running(*command("noisy")) as talk:
        await talk.connection.aclose()
        talk.connection.post(b"{}")
        with pytest.raises(UpstreamClosed):
            await talk.connection.send(b"{}")
        assert talk.connection._out_bytes == 0


# -- the close ladder -----------------------------------------------------------------------------------------


async def test_a_child_that_ends_with_its_stdin_is_not_signalled() -> None:
    async with running(*command("stubborn", "--ignore")) as talk:
        await talk.ready()
        await talk.connection.aclose()
        assert talk.connection.returncode == 0
        assert talk.losses == 1


async def test_a_child_that_takes_its_time_after_its_stdin_ended_gets_it() -> None:
    async with running(*command("stubborn", "--ignore", "--linger", "0.3")) as talk:
        await talk.ready()
        await talk.connection.aclose()
        assert talk.connection.returncode == 0


async def test_a_child_that_ignores_the_end_of_its_stdin_gets_sigterm() -> None:
    async with running(*command("stubborn", "--ignore", "eof"), close_timeout=SHORT) as talk:
        await talk.ready()
        await talk.connection.aclose()
        assert talk.connection.returncode == 143


async def test_a_child_that_takes_its_time_after_sigterm_gets_it() -> None:
    async with running(*command("stubborn", "--ignore", "eof", "--linger", "0.2")) as talk:
        await talk.ready()
        talk.limit_steps(SHORT, LONG)
        await talk.connection.aclose()
        assert talk.connection.returncode == 143


async def test_a_child_that_ignores_both_gets_sigkill() -> None:
    async with running(*command("stubborn"), close_timeout=SHORT) as talk:
        await talk.ready()
        await talk.connection.aclose()
        assert talk.connection.returncode == -signal.SIGKILL


async def test_sigterm_and_sigkill_go_to_the_whole_group() -> None:
    """The grandchildren ignore SIGTERM as their parent does."""
    async with running(
        *command("forks", "--children", "3", "--ignore", "eof", "term"), close_timeout=SHORT
    ) as talk:
        pids = await talk.pids()
        await talk.connection.aclose()
        assert talk.connection.returncode == -signal.SIGKILL
        await until(lambda: not any(alive(pid) for pid in pids))


async def test_what_the_child_leaves_in_its_group_is_killed_after_its_exit() -> None:
    async with running(*command("forks", "--children", "3", "--ignore", "term")) as talk:
        pids = await talk.pids()
        await talk.connection.aclose()
        assert talk.connection.returncode == 0
        await until(lambda: not any(alive(pid) for pid in pids))


async def test_what_the_child_leaves_in_its_group_does_not_hold_up_the_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is killed before its streams are read to their end, which it holds open."""
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT", LONG)
    async with running(*command("forks", "--hold", "stdout", "stderr", "--ignore", "term")) as talk:
        await talk.ready()
        await talk.connection.aclose()
        assert talk.connection.returncode == 0


async def test_the_last_words_of_a_child_that_ends_with_its_stdin_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stdio, "READ_BYTES", 50)  # the exit is known long before the last byte is read
    words = "w" * 60_000
    async with running(*command("stubborn", "--ignore", "--last-words", words)) as talk:
        await talk.ready()
        await talk.connection.aclose()
        assert talk.connection.stderr_tail == words


async def test_force_goes_to_sigkill_at_once() -> None:
    async with running(*command("stubborn")) as talk:
        await talk.ready()
        await talk.connection.aclose(force=True)
        assert talk.connection.returncode == -signal.SIGKILL


async def test_force_cuts_the_wait_for_the_end_of_stdin_short() -> None:
    async with running(*command("stubborn")) as talk, anyio.create_task_group() as tasks:
        await talk.ready()
        tasks.start_soon(talk.connection.aclose)
        await wait_all_tasks_blocked()
        assert alive(talk.connection.pid)
        await talk.connection.aclose(force=True)
        assert talk.connection.returncode == -signal.SIGKILL


async def test_force_cuts_the_wait_after_sigterm_short(tmp_path: Path) -> None:
    termed = tmp_path / "term"
    async with (
        running(*command("stubborn", "--term-file", str(termed))) as talk,
        anyio.create_task_group() as tasks,
    ):
        await talk.ready()
        talk.limit_steps(SHORT, LONG)
        tasks.start_soon(talk.connection.aclose)
        await until(termed.exists)
        await wait_all_tasks_blocked()
        assert alive(talk.connection.pid)
        await talk.connection.aclose(force=True)
        assert talk.connection.returncode == -signal.SIGKILL


async def test_every_closer_waits_until_the_child_is_gone() -> None:
    async with running(*command("stubborn", "--ignore", "--linger", "0.2")) as talk:
        await talk.ready()
        seen: list[bool] = []

        async def close() -> None:
            await talk.connection.aclose()
            seen.append(alive(talk.connection.pid))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(close)
        assert seen == [False] * 5
        await talk.connection.aclose()
        assert talk.losses == 1


async def test_a_closer_that_is_cancelled_does_not_stop_the_close() -> None:
    async with running(*command("stubborn", "--ignore", "--linger", "0.2")) as talk:
        await talk.ready()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk.connection.aclose)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await talk.connection.closed.wait()
        assert talk.connection.returncode == 0


@pytest.mark.parametrize("server", ["noisy", "stubborn"])
async def test_when_its_task_is_cancelled_the_child_is_killed(server: str) -> None:
    talk = Talk(*command(server))
    with anyio.fail_after(GUARD):
        async with anyio.create_task_group() as tasks:
            await tasks.start(talk.connection.run)
            await talk.ready()
            tasks.cancel_scope.cancel()
    assert talk.connection.returncode == -signal.SIGKILL
    assert talk.losses == 1
    assert not alive(talk.connection.pid)
    await talk.connection.aclose()


async def test_cancellation_in_the_middle_of_the_ladder_kills_at_once() -> None:
    talk = Talk(*command("forks", "--ignore", "eof", "term"))
    with anyio.fail_after(GUARD):
        async with anyio.create_task_group() as tasks:
            await tasks.start(talk.connection.run)
            pids = await talk.pids()
            tasks.start_soon(talk.connection.aclose)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert talk.connection.returncode == -signal.SIGKILL
    await until(lambda: not any(alive(pid) for pid in pids))


async def test_the_reaper_knows_the_child_exactly_as_long_as_it_lives() -> None:
    with Reaper() as reaper:
        async with running(*command("noisy"), reaper=reaper) as talk:
            assert reaper._groups == {talk.connection.pid}
            await talk.connection.aclose()
            assert reaper._groups == set()


@pytest.mark.usefixtures("drained_soon")
async def test_a_child_that_even_sigkill_does_not_end_does_not_hold_up_the_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that waits for a broken disk. The reaper keeps its group, for it may end later."""
    monkeypatch.setattr(stdio, "REAP_TIMEOUT", SHORT)
    sent: list[int] = []
    with Reaper() as reaper:
        async with running(*command("noisy"), reaper=reaper, close_timeout=SHORT) as talk:
            await talk.ready()
            monkeypatch.setattr(child, "kill_group", lambda group, number: sent.append(number))
            os.kill(talk.connection.pid, signal.SIGSTOP)  # it does not even see the end of its stdin
            await talk.connection.aclose()
            assert talk.connection.returncode is None
            assert talk.losses == 1
            assert set(sent) == {signal.SIGTERM, signal.SIGKILL}
            assert reaper._groups == {talk.connection.pid}
            os.kill(talk.connection.pid, signal.SIGKILL)
            await until(lambda: reaper._groups == set())
            assert not alive(talk.connection.pid)
