"""How long a heap window holds the GIL, and so stops a proxy's event loop: each step, in processor time.

    python benchmarks/heap_stalls.py [--windows 12] [--pandas]

Processor time and not time of day, so that what else the machine does counts little. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mcpdiag.samples.heap_records import import_memray, read_sites
from mcpdiag.samples.heap_tracker import start_reader, tracker

SITES = 50


def spent(step: Callable[[], object]) -> float:
    """Milliseconds of this thread."""
    began = time.thread_time()
    step()
    return (time.thread_time() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument(
        "--pandas", action="store_true", help="with pandas and pyarrow loaded, as by --capture"
    )
    args = parser.parse_args()
    once = {"import memray": spent(import_memray)}
    if args.pandas:
        once["import pandas and pyarrow"] = spent(lambda: importlib.import_module("mcpdiag.samples.parts"))
    steps: dict[str, list[float]] = {
        name: [] for name in ("open", "close", "read in this process", "start a process that reads")
    }
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.windows):
            path = Path(folder) / str(number)
            window = tracker("bench", path, lambda detail: None, python_allocators=False)
            steps["open"].append(spent(window.__enter__))
            kept += [bytearray(1000 + size) for size in range(2000)]
            steps["close"].append(spent(partial(window.__exit__, None, None, None)))
            steps["read in this process"].append(spent(partial(read_sites, path, SITES)))
            began = time.thread_time()
            child = start_reader("sites", path, SITES)
            steps["start a process that reads"].append((time.thread_time() - began) * 1000)
            child.communicate()
    for name, ms in once.items():
        print(f"{name:28} {ms:6.1f} ms, once")
    for name, each in steps.items():
        print(f"{name:28} {statistics.median(each):6.1f} ms, from {min(each):.1f} to {max(each):.1f}")


if __name__ == "__main__":
    main()
