"""Numbers that only a process itself can tell, for `mcpdiag bench soak`: a program run with a thread that answers.

    python .../probe.py FOLDER [-m MODULE | -c CODE | FILE] ARGUMENTS

The thread listens on the Unix socket FOLDER/PID.sock, and answers each line of JSON with another. To `{}` it collects
garbage and tells the `blocks` that Python has given out and the `heap_bytes` that malloc has (null where they cannot
be known); to `{"seconds": S, "rate": R}` the `sites` that grew in S seconds under load, where mcpdiag and memray can be
imported. This file is run by path, in whatever Python (3.8 or later) a server has.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # the folder of this file: it holds a `statistics.py`

import ctypes
import gc
import json
import os
import runpy
import socket
import threading
import time
from typing import Any

SMALLEST_HEAP = 65536  # bytes; less is malloc of a process whose memory comes from another allocator


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def mallinfo2() -> Any:
    """The function of glibc 2.33 or later, or None."""
    try:
        found = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    found.restype = _Mallinfo2
    return found


def read(info: Any) -> dict[str, Any]:
    """The numbers of this moment, after a collection."""
    gc.collect()
    blocks = getattr(sys, "getallocatedblocks", lambda: 0)()
    heap = 0
    if info is not None:
        used = info()
        heap = used.uordblks + used.hblkhd
    return {"blocks": blocks or None, "heap_bytes": heap if heap >= SMALLEST_HEAP else None}


def sites(seconds: float, rate: float) -> dict[str, Any]:
    """The call sites that grow most under this many requests a second: candidates."""
    try:
        import asyncio

        from mcpdiag.samples.heap import Heap

        began = time.monotonic()
        grown = asyncio.run(Heap().growth(seconds, lambda: int(rate * (time.monotonic() - began))))
        names = ["function", "file", "line", "growth_bytes_per_request"]
        rows = [dict(zip(names, row)) for row in grown[names].head(5).itertuples(index=False)]  # noqa: B905  (3.8)
        return {"sites": rows}
    except Exception as error:
        return {"error": f"{error}" or type(error).__name__}


def answered(line: bytes, info: Any) -> bytes:
    """The answer to a line."""
    asked = json.loads(line or b"{}")
    found = sites(asked["seconds"], asked["rate"]) if "seconds" in asked else read(info)
    return json.dumps(found).encode() + b"\n"


def listen(folder: str) -> None:
    """Answer from a thread, for as long as the process lives."""
    path = os.path.join(folder, f"{os.getpid()}.sock")  # noqa: PTH118  (starts faster)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4)
    info = mallinfo2()
    frozen = False

    def answer() -> None:
        nonlocal frozen
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            if not frozen:
                # What is there stays out of later collections, which so take a millisecond instead of a hundred.
                # Cycles among it are never freed, so who asks does it before the load.
                gc.collect()
                gc.freeze()
                frozen = True
            try:
                with peer.makefile("rb") as lines:
                    peer.sendall(answered(lines.readline(), info))
            except (OSError, ValueError):
                pass
            finally:
                peer.close()

    threading.Thread(target=answer, name="mcpdiag-probe", daemon=True).start()


def run(arguments: list[str]) -> None:
    """The program, as Python itself would run it."""
    kind, rest = arguments[0], arguments[1:]
    if kind == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(rest[0], {"__name__": "__main__"})  # noqa: S102  (what `python -c` does)
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))  # noqa: PTH100, PTH120
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    listen(sys.argv[1])
    run(sys.argv[2:])
