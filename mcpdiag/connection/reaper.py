"""No orphan outlives the proxy: a small watcher process that kills the proxy's children once the proxy is gone.

The proxy keeps the write end of a pipe and tells the watcher each child's process group. When the pipe breaks,
whatever ended the proxy, SIGKILL too, the watcher kills every group it was told of. A grandchild that made a
session of its own is found by a cookie in its environment (Linux, where /proc shows it).

This file is also the watcher's program: it is run by path, without importing mcpdiag, and imports little itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time

COOKIE = "_MCPDIAG_REAPER"  # the prefix of settings is MCPDIAG_, and a server may be an mcpdiag itself
GOODBYE = b"."
CLOSE_TIMEOUT = 5.0
ROUNDS = 30
ROUND_SECONDS = 0.05


def kill_group(group: int, number: int) -> None:
    """Signal a process group; one that is gone, or is not ours, is fine.

    A child leads a session of its own, and its pid is not given away while anybody is left in its group. So a
    process that has this pid and leads no session is a stranger: the group is gone and its number in use again.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        with contextlib.suppress(OSError):
            if os.getsid(group) != group:
                return
        os.killpg(group, number)


def processes_with(cookie: str) -> list[int]:
    """Pids whose environment carries the cookie; empty where there is no /proc."""
    needle = f"{COOKIE}={cookie}".encode()
    found: list[int] = []
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):  # noqa: PTH208  # pathlib would cost the watcher a third of its memory
            if entry.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as environ:  # noqa: PTH123
                    if needle in environ.read().split(b"\0"):
                        found.append(int(entry))
    return found


class Reaper:
    """The proxy's end of the pipe. Use it as a context manager; the watcher starts when it is first needed.

    Methods are synchronous and short: one write of a few bytes. Where process groups do not exist (Windows) it
    does nothing.
    """

    def __init__(self) -> None:
        self.cookie = os.urandom(16).hex()
        self._groups: set[int] = set()
        self._watcher: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def environment(self) -> dict[str, str]:
        """What a child's environment must carry to be found.

        Starts the watcher: should the proxy die between the start of the child and `watch`, the cookie is enough.

        Raises:
            OSError: the watcher cannot be started.
        """
        with self._lock:
            if sys.platform != "win32" and not self._alive():
                self._start()
        return {COOKIE: self.cookie}

    def watch(self, group: int) -> None:
        """Kill this group should the proxy die."""
        with self._lock:
            self._groups.add(group)
            self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """The group is gone, by our own hand."""
        with self._lock:
            self._groups.discard(group)
            self._tell(f"-{group}\n")

    def _alive(self) -> bool:
        return self._watcher is not None and self._watcher.poll() is None

    def _tell(self, line: str) -> None:
        """Without a living watcher nothing happens: the next one is told of all groups when it starts."""
        if self._watcher is not None and self._watcher.stdin is not None and self._alive():
            with contextlib.suppress(BrokenPipeError):
                self._watcher.stdin.write(line.encode())

    def _start(self) -> None:
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
        # Without a cookie of its own: a proxy may itself be the child of a proxy, whose watcher would kill this one.
        environment = {name: value for name, value in os.environ.items() if name != COOKIE}
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.cookie, str(os.getpid())],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal is not for the watcher
            close_fds=True,
        )
        for group in self._groups:
            self._tell(f"+{group}\n")

    def close(self) -> None:
        """Let the watcher go. It ends at once; whatever it still knows of is killed."""
        with self._lock:
            watcher, self._watcher = self._watcher, None
            self._groups.clear()
        if watcher is not None and watcher.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                watcher.stdin.write(GOODBYE)
            watcher.stdin.close()
            try:
                watcher.wait(CLOSE_TIMEOUT)
            except subprocess.TimeoutExpired:
                watcher.kill()
                watcher.wait()

    def __enter__(self) -> Reaper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main(cookie: str, proxy: int, pipe: int = 0) -> None:
    """The watcher: learn groups until the proxy, its parent, has gone, then kill what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups, goodbye = listen(pipe, proxy)
    clean = 0
    for _ in range(ROUNDS):  # what forks while it is being killed is met by the next round
        for group in groups:
            kill_group(group, signal.SIGKILL)
        found = processes_with(cookie)
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        clean = 0 if found else clean + 1
        # A proxy killed while it was starting a child leaves one that will have its cookie in a moment.
        if clean == (1 if goodbye else 2):
            return
        time.sleep(ROUND_SECONDS)


def listen(pipe: int, proxy: int) -> tuple[set[int], bool]:
    """The groups known when the pipe ended, or the proxy did, and whether it said goodbye."""
    sources, groups, rest = [pipe], set[int](), b""
    patience: float | None = None
    with contextlib.ExitStack() as stack:
        if sys.platform == "linux":
            # The pipe does not break while a process that the proxy has forked holds it too.
            with contextlib.suppress(OSError):
                sources.append(os.pidfd_open(proxy))
                stack.callback(os.close, sources[-1])
            if os.getppid() != proxy:  # it was killed before this watcher was up: take what it has written
                patience = 0.0
        while pipe in select.select(sources, [], [], patience)[0] and (chunk := os.read(pipe, 65536)):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                group = int(line[1:])
                if line[:1] == b"+":
                    groups.add(group)
                else:
                    groups.discard(group)
    return groups, rest == GOODBYE


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
