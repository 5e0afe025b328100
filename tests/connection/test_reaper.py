"""`Reaper` and its watcher: who is killed once the proxy is gone, and who is not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mcpdiag.connection import reaper as reaper_module
from mcpdiag.connection.reaper import COOKIE, Reaper, kill_group, main, processes_with
from tests.conftest import RawClient
from tests.connection.processes import GUARD, alive, children, open_files
from tests.servers.mini import command

SLEEP = ["sleep", "60"]


def until(condition: Callable[[], bool], seconds: float = GUARD) -> None:
    """Wait for a state that no event tells of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No test may leave a child, or an open file, behind."""
    processes, files = children(), open_files()
    yield
    assert children() <= processes
    assert len(open_files()) <= len(files)


@contextmanager
def child(*argv: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, with its stderr to read."""
    process = subprocess.Popen(
        argv,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def pids_of(process: subprocess.Popen[str]) -> list[int]:
    """What `forks.py` says on its first line of stderr: itself and its children."""
    assert process.stderr is not None
    return [int(pid) for pid in process.stderr.readline().split()[1:]]


def watcher_of(reaper: Reaper) -> int:
    assert reaper._watcher is not None
    return reaper._watcher.pid


def ignores_signals(pid: int) -> bool:
    """Whether the watcher is so far that it ignores SIGTERM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigIgn:"):
            return bool(int(line.split()[1], 16) & 1 << (signal.SIGTERM - 1))
    raise AssertionError


# -- groups and cookies ---------------------------------------------------------------------------------------


def test_every_process_of_the_group_gets_the_signal() -> None:
    with child(*command("forks", "--children", "2")) as process:
        pids = pids_of(process)
        kill_group(process.pid, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in pids))


def test_a_group_outlives_its_leader_and_can_still_be_killed() -> None:
    with child(*command("forks")) as process:
        pids = pids_of(process)
        process.kill()
        process.wait()
        assert alive(pids[1])
        kill_group(process.pid, signal.SIGKILL)
        until(lambda: not alive(pids[1]))


def test_a_group_that_is_gone_is_fine() -> None:
    with child("true") as process:
        process.wait()
        kill_group(process.pid, signal.SIGKILL)


def test_a_stranger_who_got_the_number_of_a_group_is_spared() -> None:
    """A pid is not used again while its group has members, so whoever has it and leads no session is a stranger."""
    stranger = subprocess.Popen(SLEEP, process_group=0)
    try:
        kill_group(stranger.pid, signal.SIGKILL)
        with pytest.raises(subprocess.TimeoutExpired):
            stranger.wait(0.05)
    finally:
        stranger.kill()
        stranger.wait()


def test_where_sessions_cannot_be_asked_for_the_group_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems tell only about one's own session."""

    def refuse(pid: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "getsid", refuse)
    with child(*SLEEP) as process:
        kill_group(process.pid, signal.SIGKILL)
        assert process.wait(GUARD) == -signal.SIGKILL


def test_a_cookie_finds_whoever_carries_exactly_it() -> None:
    with child(*SLEEP, **{COOKIE: "abc"}) as one, child(*SLEEP, **{COOKIE: "abcd"}), child(*SLEEP):
        until(lambda: processes_with("abc") == [one.pid])


def test_without_proc_a_cookie_finds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> list[str]:
        raise FileNotFoundError(path)

    with child(*SLEEP, **{COOKIE: "abc"}):
        monkeypatch.setattr(os, "listdir", missing)
        assert processes_with("abc") == []


# -- the proxy's end ------------------------------------------------------------------------------------------


def test_as_long_as_there_is_no_child_there_is_no_watcher() -> None:
    before = children()
    with Reaper() as reaper:
        reaper.forget(12345)
        assert children() == before


def test_a_closed_reaper_leaves_no_watcher_and_can_be_closed_again() -> None:
    with Reaper() as reaper:
        reaper.environment()
        pid = watcher_of(reaper)
        assert alive(pid)
    assert not alive(pid)
    reaper.close()


def test_closing_kills_what_was_not_forgotten() -> None:
    with child(*SLEEP) as process:
        with Reaper() as reaper:
            reaper.environment()
            reaper.watch(process.pid)
        assert process.wait(GUARD) == -signal.SIGKILL


def test_closing_spares_what_was_forgotten_also_when_it_was_told_twice() -> None:
    with child(*SLEEP) as forgotten, child(*SLEEP) as told_twice:
        with Reaper() as reaper:
            reaper.environment()
            for _ in range(2):
                reaper.watch(forgotten.pid)
                reaper.watch(told_twice.pid)
            reaper.forget(forgotten.pid)
            reaper.forget(forgotten.pid)
        assert told_twice.wait(GUARD) == -signal.SIGKILL
        assert alive(forgotten.pid)


def test_closing_kills_grandchildren_that_have_left_the_group() -> None:
    with Reaper() as reaper, child(*command("forks", "--setsid"), **reaper.environment()) as process:
        pids = pids_of(process)
        reaper.watch(process.pid)
        kill_group(process.pid, signal.SIGKILL)
        process.wait()
        reaper.forget(process.pid)
        assert alive(pids[1])
        reaper.close()
        until(lambda: not alive(pids[1]))


def test_what_forks_while_it_is_being_killed_is_killed_too() -> None:
    with (
        Reaper() as reaper,
        child(
            *command("forks", "--setsid", "--fork-again", "--children", "5"), **reaper.environment()
        ) as process,
    ):
        pids_of(process)
        reaper.watch(process.pid)
        reaper.close()
        until(lambda: processes_with(reaper.cookie) == [])


def test_a_watcher_that_was_killed_is_replaced_and_the_next_knows_all_groups() -> None:
    with child(*SLEEP) as first, child(*SLEEP) as second:
        with Reaper() as reaper:
            reaper.environment()
            reaper.watch(first.pid)
            killed = watcher_of(reaper)
            os.kill(killed, signal.SIGKILL)
            until(lambda: not alive(killed))
            reaper.watch(second.pid)
            reaper.forget(12345)
            assert reaper._watcher is not None
            reaper.environment()
            assert watcher_of(reaper) != killed
        assert first.wait(GUARD) == second.wait(GUARD) == -signal.SIGKILL


def test_a_watcher_that_dies_while_it_is_told_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Reaper() as reaper:
        reaper.environment()
        watcher = reaper._watcher
        assert watcher is not None
        os.kill(watcher.pid, signal.SIGKILL)
        until(lambda: not alive(watcher.pid))
        monkeypatch.setattr(watcher, "poll", lambda: None)
        reaper.watch(2**22 + 1)
        reaper.forget(2**22 + 1)


def test_a_watcher_that_hangs_does_not_hold_up_the_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper_module, "CLOSE_TIMEOUT", 0.1)
    with Reaper() as reaper:
        reaper.environment()
        pid = watcher_of(reaper)
        os.kill(pid, signal.SIGSTOP)
    assert not alive(pid)


def test_the_watcher_is_told_each_group_and_goodbye_and_a_replacement_only_what_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[Path] = []

    def start(*_: object, bufsize: int, env: dict[str, str], **__: object) -> subprocess.Popen[bytes]:
        told.append(tmp_path / str(len(told)))
        return real(["cp", "/dev/stdin", told[-1]], bufsize=bufsize, stdin=subprocess.PIPE, env=env)

    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    with Reaper() as reaper:
        reaper.environment()
        for group in (101, 102, 103):
            reaper.watch(group)
        reaper.forget(102)
        until(lambda: told[0].exists() and told[0].read_text() == "+101\n+102\n+103\n-102\n")
        os.kill(watcher_of(reaper), signal.SIGKILL)
        until(lambda: not alive(watcher_of(reaper)))
        reaper.environment()
        reaper.forget(101)
    assert sorted(told[1].read_text()) == sorted("+101\n+103\n-101\n.")
    assert told[1].read_text().endswith("-101\n.")


def test_many_threads_may_tell_it_at_once() -> None:
    with Reaper() as reaper:
        threads = [threading.Thread(target=reaper.environment) for _ in range(8)]
        before = children()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(children() - before) == 1


# -- the watcher ----------------------------------------------------------------------------------------------


def test_the_watcher_ignores_the_signals_of_a_terminal_and_leads_its_own_session() -> None:
    with child(*SLEEP) as process:
        with Reaper() as reaper:
            reaper.environment()
            reaper.watch(process.pid)
            pid = watcher_of(reaper)
            assert os.getsid(pid) == pid
            until(lambda: ignores_signals(pid))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
        assert process.wait(GUARD) == -signal.SIGKILL


def test_the_watcher_keeps_nothing_of_the_proxy_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Reaper() as reaper:
        listener.set_inheritable(True)
        reaper.environment()
        pid = watcher_of(reaper)
        until(lambda: ignores_signals(pid))
        files = set(open_files(pid))
        assert {link.partition(":")[0] for link in files} <= {"pipe", "anon_inode"}
        assert sum(link.startswith("pipe") for link in files) == 1


def test_the_watcher_carries_no_cookie_so_that_the_watcher_of_an_outer_proxy_spares_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(COOKIE, "outer")
    with Reaper() as reaper:
        reaper.environment()
        until(lambda: ignores_signals(watcher_of(reaper)))
        assert COOKIE.encode() not in Path(f"/proc/{watcher_of(reaper)}/environ").read_bytes()


@pytest.fixture
def _signals() -> Iterator[None]:
    """`main` changes them."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@contextmanager
def told(*pieces: bytes) -> Iterator[int]:
    """A pipe that holds these and then ends."""
    end, start = os.pipe()
    try:
        for piece in pieces:
            os.write(start, piece)
        os.close(start)
        yield end
    finally:
        os.close(end)


def looked_for(monkeypatch: pytest.MonkeyPatch, found: list[int]) -> list[str]:
    """Let every search for a cookie find these; returns what is searched for."""
    cookies: list[str] = []

    def search(cookie: str) -> list[int]:
        cookies.append(cookie)
        return found

    monkeypatch.setattr(reaper_module, "processes_with", search)
    return cookies


@pytest.mark.usefixtures("_signals")
class TestMain:
    """The watcher's program, run in this process."""

    def test_kills_the_groups_that_are_left_and_whoever_carries_the_cookie(self) -> None:
        with child(*SLEEP) as left, child(*SLEEP) as gone, child(*SLEEP, **{COOKIE: "abc"}) as escaped:
            until(lambda: processes_with("abc") == [escaped.pid])
            with told(b"+%d\n+%d\n-%d\n" % (left.pid, gone.pid, gone.pid)) as pipe:
                main("abc", os.getppid(), pipe)
            assert left.wait(GUARD) == escaped.wait(GUARD) == -signal.SIGKILL
            assert alive(gone.pid)

    def test_a_line_cut_off_by_the_death_of_the_proxy_is_ignored(self) -> None:
        with child(*SLEEP) as left, child(*SLEEP) as cut:
            with told(b"+%d\n+%d" % (left.pid, cut.pid)) as pipe:
                main("none", os.getppid(), pipe)
            assert left.wait(GUARD) == -signal.SIGKILL
            assert alive(cut.pid)

    def test_does_not_wait_for_a_proxy_that_died_before_the_watcher_was_up(self) -> None:
        """The pipe may not break: a process that the proxy has forked can hold it."""
        end, start = os.pipe()
        with child(*SLEEP) as left, child(*SLEEP) as dead:
            dead.kill()
            dead.wait(GUARD)
            os.write(start, b"+%d\n" % left.pid)
            main("none", dead.pid, end)
            assert left.wait(GUARD) == -signal.SIGKILL
        os.close(start)
        os.close(end)

    def test_lines_may_come_in_pieces(self) -> None:
        with child(*SLEEP) as left:
            digits = b"+%d\n" % left.pid
            end, start = os.pipe()
            thread = threading.Thread(
                target=lambda: [os.write(start, digits[n : n + 1]) for n in range(len(digits))]
            )
            thread.start()
            thread.join()
            os.close(start)
            main("none", os.getppid(), end)
            os.close(end)
            assert left.wait(GUARD) == -signal.SIGKILL

    def test_gives_up_on_what_cannot_be_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reaper_module, "ROUND_SECONDS", 0.0)
        rounds = looked_for(monkeypatch, [2**22 + 1])
        with told() as pipe:
            main("abc", os.getppid(), pipe)
        assert len(rounds) == reaper_module.ROUNDS

    def test_looks_twice_unless_the_proxy_said_goodbye(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy killed while it was starting a child leaves one that has no cookie yet."""
        rounds = looked_for(monkeypatch, [])
        with told(b"+4194305\n-4194305\n") as pipe:
            main("abc", os.getppid(), pipe)
        assert len(rounds) == 2
        with told(b"+4194305\n-4194305\n", b".") as pipe:
            main("abc", os.getppid(), pipe)
        assert len(rounds) == 3


# -- the proxy is killed --------------------------------------------------------------------------------------

DYING = """
import os, subprocess, sys
sys.path.insert(0, {root!r})
from mcpdiag.connection.reaper import Reaper
from tests.servers.mini import command
reaper = Reaper()
argv = command("forks", "--setsid", "1", "--children", "2", "--ignore", "eof", "term")
env = {{**os.environ, **reaper.environment()}}
server = subprocess.Popen(argv, env=env, stdin=-1, stdout=-1, stderr=-1, start_new_session=True)
{then}
print(reaper._watcher.pid, server.stderr.readline().decode().split(":")[1], flush=True)
os.read(0, 1)
"""
ROOT = str(Path(__file__).parents[2])


@pytest.mark.parametrize(
    "then",
    [
        "reaper.watch(server.pid)",
        "",
        "reaper.watch(server.pid)\nif os.fork() == 0: os.close(1); os.read(0, 1)",
    ],
    ids=["watched", "killed-before-it-was-watched", "a-forked-process-holds-the-pipe"],
)
def test_after_sigkill_of_the_proxy_nobody_is_left(then: str) -> None:
    with child(sys.executable, "-c", DYING.format(root=ROOT, then=then)) as proxy:
        assert proxy.stdout is not None
        pids = [int(pid) for pid in proxy.stdout.readline().split()]
        assert len(pids) == 4
        assert all(alive(pid) for pid in pids)
        proxy.kill()
        until(lambda: not any(alive(pid) for pid in pids), 5)


def test_after_sigkill_of_a_whole_proxy_with_eight_stubborn_children_nobody_is_left() -> None:
    """Each ignores the end of its stdin and SIGTERM and has two children, one in a session of its own."""
    argv = command("forks", "--setsid", "1", "--children", "2", "--ignore", "eof", "term")
    with child(
        sys.executable, "-m", "mcpdiag", "proxy", "--port", "0", "--", *argv, PYTHONPATH=ROOT
    ) as proxy:
        assert proxy.stderr is not None
        url = proxy.stderr.readline().split()[-1]
        for _ in range(8):
            RawClient(url).initialize().call("pids")
        pids = [each.pid for each in psutil.Process(proxy.pid).children(recursive=True)]
        assert len(pids) == 8 * 3 + 1, "the watcher too"
        assert all(alive(pid) for pid in pids)
        proxy.kill()
        until(lambda: not any(alive(pid) for pid in pids), 5)
