"""The one memray tracker that a process may have, and the child process that reads a long capture."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from anyio import to_thread

from mcpdiag.errors import HeapBusy, HeapError
from mcpdiag.samples.heap_records import import_memray

# The proxy under load goes first, also before the imports of the child. Those of the package as a whole would take four
# times what memray's take, so it is left out but for the rooms that `heap_records` asks for.
_READER = """
import os, sys, types
os.nice(10)
package = sys.modules["mcpdiag"] = types.ModuleType("mcpdiag")
package.__path__ = [sys.argv[1]]
from mcpdiag.samples.heap_records import main
sys.exit(main(sys.argv[2:]))
"""
_PACKAGE = str(Path(__file__).parents[1])
_one = threading.Lock()  # guards _open: there is one tracker a process, whatever objects ask for it
_open = ""  # the name of the window that is open


@contextlib.contextmanager
def tracker(
    name: str,
    path: Path,
    tell: Callable[[str], None],
    *,
    python_allocators: bool,
    history_ms: int = 0,
) -> Iterator[None]:
    """memray's tracker during the block, whose capture goes to `path`; blocks the thread as it starts and stops.

    Args:
        name: of the window.
        path: a file that does not exist yet.
        tell: is told of the edges, each in one line.
        python_allocators: see the objects of up to 512 bytes too.
        history_ms: keep every allocation, and a memory snapshot so often; 0 for sums only.

    Raises:
        HeapBusy: a tracker is active in this process.
        HeapUnavailable: there is no memray.
        HeapError: the file cannot be written.
    """
    memray = import_memray()
    formats = memray.FileFormat
    _take(name)
    try:
        try:
            tracking = memray.Tracker(
                # Compressing would hold the GIL for 60 ms a second of a busy window.
                destination=memray.FileDestination(path, compress_on_exit=False),
                file_format=formats.ALL_ALLOCATIONS if history_ms else formats.AGGREGATED_ALLOCATIONS,
                trace_python_allocators=python_allocators,
                memory_interval_ms=history_ms or 100,
            )
            tracking.__enter__()
        except RuntimeError as error:
            if "one Tracker" not in str(error):
                raise HeapError(f"the heap window '{name}' cannot be opened: {error}") from None
            raise HeapBusy(
                f"the heap window '{name}' cannot be opened: {error}. It is none of mcpdiag's; a notebook's own "
                "(%%memray_flamegraph, memray.Tracker) may be the one. Wait until it has ended"
            ) from None
        except OSError as error:
            raise HeapError(f"the heap window '{name}' cannot be written to {path}: {error}") from None
        began = time.monotonic()
        try:
            tell(f"open {name}")
            yield
        finally:
            tracking.__exit__(None, None, None)
            tell(f"close {name}: {time.monotonic() - began:.3f} s")
    finally:
        _give_back()


def _take(name: str) -> None:
    global _open
    if not name:
        raise ValueError("a heap window needs a name")
    with _one:
        if _open:
            raise HeapBusy(
                f"the heap window '{name}' cannot be opened: the window '{_open}' is open, and memray allows one "
                "tracker a process, be it mcpdiag's or a notebook's own; wait until it has closed"
            )
        _open = name


def _give_back() -> None:
    global _open
    with _one:
        _open = ""


@contextlib.contextmanager
def folder(parent: Path | None) -> Iterator[Path]:
    """A temporary folder for captures, removed afterwards. Raises HeapError if it cannot be made."""
    try:
        made = tempfile.TemporaryDirectory(prefix="mcpdiag-heap-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise HeapError(f"heap windows need a folder for their captures: {error}") from None
    with made as name:
        yield Path(name)


async def read_in_child(what: str, path: Path, *numbers: float) -> list[list[Any]]:
    """The rows that `mcpdiag.samples.heap_records` prints of a file. Cancelled, it ends the child.

    Raises:
        HeapError: the child could not read it; with its last words.
    """
    child = start_reader(what, path, *numbers)
    try:
        return await to_thread.run_sync(_rows, child, path, abandon_on_cancel=True)
    except BaseException:
        child.kill()  # the thread in `communicate` reaps it
        raise


def wait_for_child(what: str, path: Path, *numbers: float) -> list[list[Any]]:
    """`read_in_child` for a thread that has no event loop to care for."""
    child = start_reader(what, path, *numbers)
    try:
        return _rows(child, path)
    except BaseException:
        child.kill()
        child.wait()
        raise


def start_reader(what: str, path: Path, *numbers: float) -> subprocess.Popen[bytes]:
    """Start the process that prints the rows of a capture as JSON (`heap_records.main`); someone has to wait for it."""
    # Popen and not anyio: it works in every thread and loop, and returns as soon as the child has begun.
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _READER, _PACKAGE, what, str(path), *map(str, numbers)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _rows(child: subprocess.Popen[bytes], path: Path) -> list[list[Any]]:
    out, errors = child.communicate()
    if child.returncode:
        words = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise HeapError(words[0] if words else f"reading {path} ended with exit code {child.returncode}")
    rows: list[list[Any]] = json.loads(out)
    return rows
