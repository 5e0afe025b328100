"""What processes use: the proxy itself, and each stdio server with its whole tree. Called in a worker thread."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import psutil

PROXY, SERVER = "proxy", "server"
NAN = float("nan")
T = TypeVar("T")


class Usage(NamedTuple):
    """What is in the columns of the frame `memory` after `process`, in their order and units."""

    pid: int
    rss_bytes: int
    uss_bytes: float
    heap_bytes: float
    fds: int
    threads: int
    children: int
    cpu_s: float


class ProcessReader:
    """Reads the proxy and its stdio servers again and again.

    Who descends from whom costs a look at every process of the machine, and `uss_bytes` and `heap_bytes` cost
    milliseconds in which the process may have to wait for memory. These are read every `dear_every` times; the
    descendants also when the servers are others than before.
    """

    def __init__(self, *, dear_every: int = 10) -> None:
        self._proxy = psutil.Process()
        self._dear_every = dear_every
        self._times = 0
        self._roots: frozenset[int] = frozenset()
        self._trees: dict[int, list[psutil.Process]] = {}
        self._heap = _Heap()

    def read(self, servers: Mapping[str, Sequence[int]]) -> list[tuple[str, str, Usage]]:
        """One row for the proxy, and one for each process that it started.

        Args:
            servers: the pids of these processes, by upstream. One that has ended meanwhile is left out.

        Returns:
            Upstream (empty for the proxy), kind of process, and what it uses.
        """
        dear = self._times % self._dear_every == 0
        self._times += 1
        roots = frozenset(pid for pids in servers.values() for pid in pids)
        if dear or roots != self._roots:
            self._roots, self._trees = roots, self._find_trees(roots)
        rows = [("", PROXY, self._read_proxy(dear))]
        for upstream, pids in servers.items():
            rows += [(upstream, SERVER, usage) for pid in pids for usage in self._read_tree(pid, dear)]
        return rows

    def _find_trees(self, roots: frozenset[int]) -> dict[int, list[psutil.Process]]:
        trees: dict[int, list[psutil.Process]] = {pid: [] for pid in roots}
        root_of = {pid: pid for pid in roots}
        # psutil gives parents before their children
        for process in self._proxy.children(recursive=True) if roots else ():
            try:
                root = root_of.get(process.pid) or root_of.get(process.ppid())
            except psutil.Error:
                continue
            if root is not None:
                root_of[process.pid] = root
                trees[root].append(process)
        return trees

    def _read_proxy(self, dear: bool) -> Usage:
        usage = _read(self._proxy, dear)
        heap = self._heap.used() if dear else NAN
        return usage._replace(heap_bytes=heap, children=sum(map(len, self._trees.values())))

    def _read_tree(self, root: int, dear: bool) -> Iterator[Usage]:
        alive = []
        for process in self._trees[root]:
            try:
                alive.append(_read(process, dear))
            except psutil.Error:  # it has ended
                continue
        if alive and alive[0].pid == root:
            yield Usage(
                pid=root,
                rss_bytes=sum(each.rss_bytes for each in alive),
                uss_bytes=sum(each.uss_bytes for each in alive),
                heap_bytes=NAN,
                fds=sum(each.fds for each in alive),
                threads=sum(each.threads for each in alive),
                children=len(alive) - 1,
                cpu_s=sum(each.cpu_s for each in alive),
            )


def _read(process: psutil.Process, dear: bool) -> Usage:
    with process.oneshot():
        cpu = process.cpu_times()
        return Usage(
            pid=process.pid,
            rss_bytes=process.memory_info().rss,
            uss_bytes=_allowed(lambda: process.memory_full_info().uss, NAN) if dear else NAN,
            heap_bytes=NAN,
            fds=_allowed(process.num_fds, 0),
            threads=process.num_threads(),
            children=0,
            cpu_s=cpu.user + cpu.system,
        )


def _allowed(read: Callable[[], T], otherwise: T) -> T:
    """What one may read of one's own processes only: a server may have become another user."""
    try:
        return read()
    except psutil.AccessDenied:
        return otherwise


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


class _Heap:
    """What malloc has given out in this process: `mallinfo2`, which glibc has since 2.33."""

    def __init__(self) -> None:
        self._mallinfo2: Any = None
        try:
            self._mallinfo2 = ctypes.CDLL(None).mallinfo2
        except (AttributeError, OSError, TypeError):
            return
        self._mallinfo2.restype = _Mallinfo2

    def used(self) -> float:
        """Bytes in small blocks and in blocks of their own (`uordblks + hblkhd`); NaN without glibc."""
        if self._mallinfo2 is None:
            return NAN
        info = self._mallinfo2()
        return float(info.uordblks + info.hblkhd)
