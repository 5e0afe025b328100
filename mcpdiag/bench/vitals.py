"""What a group of processes uses, as seen from outside and, where `probe.py` runs in them, from inside."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import psutil

from mcpdiag.bench import probe
from mcpdiag.bench.sites import Site

T = TypeVar("T")
NAN: Final = math.nan
ANSWER_S: Final = 10.0  # of a probe: it needs the interpreter, and a collection of garbage
PROBE: Final = str(Path(probe.__file__))
_PYTHON = re.compile(r"(python|pypy)[0-9.]*t?")
_WITH_VALUE = {"-W", "-X", "--check-hash-based-pycs"}


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """A group of processes at one moment, summed. What cannot be read is nan.

    Attributes:
        processes: in the group, its descendants included.
        pids: of its roots.
        rss_bytes: resident memory; shared pages count in every process.
        private_bytes: of that, what is no part of a file: heap and stacks; on Linux only, elsewhere `rss_bytes`.
        blocks, heap_bytes: what Python and malloc have given out, after a collection of garbage.
        fds, threads: of all processes.
        children: descendants of the roots.
        cpu_s: processor time of those alive.
    """

    processes: int
    pids: tuple[int, ...]
    rss_bytes: float = NAN
    private_bytes: float = NAN
    blocks: float = NAN
    heap_bytes: float = NAN
    fds: float = NAN
    threads: float = NAN
    children: float = NAN
    cpu_s: float = NAN


class _Inside(msgspec.Struct):
    blocks: float | None = None
    heap_bytes: float | None = None


class _Sites(msgspec.Struct):
    sites: tuple[Site, ...] = ()
    error: str = ""


def read(roots: Iterable[int], sockets: Path | None = None, *, descendants: bool = True) -> Vitals:
    """The vitals of some processes, and of whatever descends from them.

    Args:
        roots: pids; one that has ended is left out.
        sockets: the folder of the probes; `blocks` and `heap_bytes` are known where every process has one.
        descendants: whether to count those in; if not, `children` is nan.
    """
    family: list[psutil.Process] = []
    alive: list[int] = []
    for pid in roots:
        with contextlib.suppress(psutil.Error):
            family.append(psutil.Process(pid))
            alive.append(pid)
            if descendants:
                family += _descendants(pid)
    seen = [one for each in {each.pid: each for each in family}.values() if (one := _one(each)) is not None]
    inside = [ask(sockets, each.pids[0]) for each in seen] if sockets is not None else []
    return Vitals(
        processes=len(seen),
        pids=tuple(alive),
        rss_bytes=math.fsum(each.rss_bytes for each in seen),
        private_bytes=math.fsum(each.private_bytes for each in seen),
        blocks=_sum([each.blocks if each else None for each in inside]),
        heap_bytes=_sum([each.heap_bytes if each else None for each in inside]),
        fds=math.fsum(each.fds for each in seen),
        threads=math.fsum(each.threads for each in seen),
        children=float(len(seen) - len(alive)) if descendants else NAN,
        cpu_s=math.fsum(each.cpu_s for each in seen),
    )


def _one(process: psutil.Process) -> Vitals | None:
    try:
        with process.oneshot():
            rss = float(process.memory_info().rss)
            cpu = process.cpu_times()
            return Vitals(
                processes=1,
                pids=(process.pid,),
                rss_bytes=rss,
                private_bytes=_anonymous(process.pid, rss),
                fds=_allowed(process.num_fds, NAN),
                threads=_allowed(process.num_threads, NAN),
                cpu_s=cpu.user + cpu.system,
            )
    except psutil.ZombieProcess:  # a child that nobody has waited for holds its place, and nothing else
        return Vitals(
            processes=1, pids=(process.pid,), rss_bytes=0, private_bytes=0, fds=0, threads=0, cpu_s=0
        )
    except psutil.Error:  # it has just ended
        return None


def _anonymous(pid: int, otherwise: float) -> float:
    """Exact, where the counters of /proc/PID/status lag behind by some pages a thread."""
    if sys.platform != "linux":
        return otherwise
    try:
        found = re.search(
            rb"^Anonymous: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_bytes(), re.MULTILINE
        )
    except OSError:
        return otherwise
    return float(found[1]) * 1024 if found else otherwise


def _allowed(look: Callable[[], T], otherwise: T) -> T:
    try:
        return look()
    except psutil.AccessDenied:
        return otherwise


def _sum(values: Sequence[float | None]) -> float:
    known = [each for each in values if each is not None]
    return math.fsum(known) if known and len(known) == len(values) else NAN


def ask(sockets: Path, pid: int) -> _Inside | None:
    """What the probe of a process says; None if there is none or it does not answer."""
    try:
        return msgspec.json.decode(_asked(sockets, pid, {}, ANSWER_S), type=_Inside)
    except (OSError, msgspec.MsgspecError):
        return None


def growing(sockets: Path, pid: int, *, seconds: float, rate: float) -> tuple[tuple[Site, ...], str]:
    """The call sites of a process with a probe that grow most under load, and if there are none, why.

    Args:
        seconds: how long to look; reading what was recorded takes as long again, or three times that.
        rate: requests a second meanwhile.
    """
    try:
        answer = _asked(sockets, pid, {"seconds": seconds, "rate": rate}, 10 * seconds + 60)
        found = msgspec.json.decode(answer, type=_Sites)
    except (OSError, msgspec.MsgspecError) as error:
        return (), f"the probe did not answer ({error})"
    return found.sites, found.error or ("" if found.sites else "no call site grew by 16 bytes a request")


def _asked(sockets: Path, pid: int, question: Mapping[str, float], limit_s: float) -> bytes:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(limit_s)
        peer.connect(str(sockets / f"{pid}.sock"))
        peer.sendall(msgspec.json.encode(question) + b"\n")
        with peer.makefile("rb") as stream:
            return stream.readline()


def probed(command: Sequence[str], sockets: Path) -> list[str] | None:
    """The command that runs a Python program with a probe in it; None if it is none that can be told by its name."""
    name, *rest = command
    if not _PYTHON.fullmatch(Path(name).name):
        return None
    at = 0
    while at < len(rest) and rest[at].startswith("-") and rest[at][1:2] not in ("m", "c"):
        at += 2 if rest[at] in _WITH_VALUE else 1
    if at >= len(rest):
        return None
    if rest[at][:2] in ("-m", "-c") and len(rest[at]) > 2:  # -mserver
        rest[at : at + 1] = [rest[at][:2], rest[at][2:]]
    return [name, *rest[:at], PROBE, str(sockets), *rest[at:]]


def _descendants(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    pids = children_of(pid)
    while pids:
        each = pids.pop()
        pids += children_of(each)
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(each))
    return found


def children_of(pid: int) -> list[int]:
    """The pids of a process's children. psutil would look at every process of the machine for each."""
    if sys.platform != "linux":
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has just ended
                found += map(int, (task / "children").read_text().split())
    return found


def runs(pid: int, words: str) -> bool:
    """Whether a process's command line has these words in it."""
    try:
        return words in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def listens_on(port: int) -> list[int]:
    """The processes that listen on a TCP port of this machine, as far as they may be seen."""
    try:
        every = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS
        return []
    return sorted(
        {
            each.pid
            for each in every
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid
        }
    )
