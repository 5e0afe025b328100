"""What tests about processes ask: who is alive, which files are open, and to wait for a state."""

from __future__ import annotations

import os
from collections.abc import Callable

import anyio
import psutil

GUARD = 10  # seconds after which a wait has hung


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


def children() -> set[int]:
    """Pids of this process's children, zombies too."""
    return {child.pid for child in psutil.Process().children()}


def open_files(pid: int | str = "self") -> list[str]:
    """What the process has open, as /proc shows it, without /dev/null, which uvloop keeps for good."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:  # the one that listed the folder
            continue
    return sorted(link for link in links if link != os.devnull)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a state that no event tells of."""
    with anyio.fail_after(GUARD):
        while not condition():
            await anyio.sleep(0.01)
