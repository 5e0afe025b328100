"""Real Jupyter kernels for tests: whole notebooks, and one kernel that is driven message by message."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent.parent
LIMIT = 60.0  # seconds for whatever has to happen
SETUP = """
%load_ext mcpdiag
import asyncio, sys, threading, time
from pathlib import Path
import mcpdiag
from mcpdiag.embedded import COMMAND
from mcpdiag.notebook import live
from tests.conftest import RawClient
"""
PROXY = "%mcp_proxy demo -- {COMMAND[0]} {COMMAND[1]}\nclient = RawClient(proxy.url).initialize()"


def run(*cells: str) -> list[list[dict[str, Any]]]:
    """Execute a notebook; the outputs of each cell. An error ends the test."""
    v4: Any = nbformat.v4
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])
    NotebookClient(
        notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    return [cell.outputs for cell in notebook.cells]


def text(outputs: list[dict[str, Any]]) -> str:
    """What a cell printed, and the plain text of what it displayed."""
    return "".join(
        each["text"] if each["output_type"] == "stream" else each["data"].get("text/plain", "") + "\n"
        for each in outputs
        if each["output_type"] != "error"
    )


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for a state."""
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, f"in {LIMIT:g} s not: {what}"
        time.sleep(0.02)


@dataclass
class Cell:
    """A cell under way, and the messages that its kernel sent while it ran."""

    id: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [each for each in self.messages if each["msg_type"] in kinds]

    @property
    def printed(self) -> str:
        return "".join(each["content"]["text"] for each in self.of("stream"))

    @property
    def error(self) -> str:
        return "".join(each["content"]["ename"] for each in self.of("error"))

    @property
    def html(self) -> str:
        shown = self.of("display_data", "execute_result", "update_display_data")
        return "".join(each["content"]["data"].get("text/html", "") for each in shown)


class Kernel:
    """A running kernel."""

    def __init__(self, manager: KernelManager, client: Any) -> None:
        self.manager = manager
        self.client = client
        self.pid: int = manager.provisioner.pid  # type: ignore[union-attr]

    def begin(self, code: str) -> Cell:
        return Cell(self.client.execute(code))

    def pump(self, cell: Cell, until: Callable[[Cell], bool] = lambda cell: cell.done) -> Cell:
        """Take messages, whosever they are, until the cell is in a state."""
        deadline = time.monotonic() + LIMIT
        while not until(cell):
            assert time.monotonic() < deadline, f"the cell is not where it should be: {cell.messages}"
            try:
                message = self.client.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                continue
            cell.messages.append(message)
            ours = message["parent_header"].get("msg_id") == cell.id
            if ours and message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                cell.done = True
        return cell

    def run(self, code: str) -> Cell:
        return self.pump(self.begin(code))

    def value(self, expression: str) -> str:
        """What `print` makes of an expression."""
        cell = self.run(f"print({expression})")
        assert not cell.error, cell.messages
        return cell.printed.strip()

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)


@contextmanager
def kernel(folder: Path) -> Iterator[Kernel]:
    """A kernel in the project's root, with the magics loaded; afterwards it is shut down in order.

    Args:
        folder: for its sockets.
    """
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "k"))
    manager.start_kernel(cwd=str(ROOT))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=LIMIT)
        made = Kernel(manager, client)
        cell = made.run(SETUP)
        assert not cell.error, cell.messages
        yield made
    finally:
        client.stop_channels()
        if manager.is_alive():
            manager.shutdown_kernel()
        manager.cleanup_resources()
