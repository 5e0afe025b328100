"""Executes one of mcpdiag's notebooks with parameters, in a kernel of this Python, for `mcpdiag report`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from mcpdiag.errors import McpDiagError, StartError

PACKAGE = Path(__file__).parent.parent
CELL_S = 600  # until a cell has failed
START_S = 60
Tell = Callable[[str, int, int], None]


def folder() -> Path:
    """Where the notebooks are: in an installed package, else in the checkout.

    Raises:
        StartError: in neither.
    """
    for each in (PACKAGE / "_notebooks", PACKAGE.parent / "notebooks"):
        if (each / "06-attach.ipynb").exists():
            return each
    raise StartError(f"the notebooks that make reports are not in {PACKAGE}; install mcpdiag from a wheel")


def execute(path: Path, parameters: Mapping[str, str], tell: Tell) -> Any:
    """Run a notebook from top to bottom; the notebook with its outputs.

    Args:
        path: of the notebook, which is not changed.
        parameters: set in a cell behind the one that is tagged `parameters`, as papermill does.
        tell: called with words, cells done and cells in all.

    Raises:
        McpDiagError: a cell failed, or ran for more than `CELL_S`.
        StartError: the kernel did not start.
        KeyboardInterrupt: interrupted or terminated; the kernel has ended.
    """
    notebook = nbformat.read(path, as_version=4)
    place = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    injected = nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(place + 1, injected)
    tell("starting a kernel", 0, len(notebook.cells))
    with tempfile.TemporaryDirectory(prefix="mcpdiag-report-") as scratch:
        client = _Client(
            notebook,
            km=_kernel(Path(scratch)),
            timeout=CELL_S,
            startup_timeout=START_S,
            record_timing=False,
            resources={"metadata": {"path": str(path.parent)}},
        )
        client.on_cell_start = lambda cell, cell_index: tell(
            _heading(notebook, cell_index), cell_index, len(notebook.cells)
        )
        try:
            with (Path(scratch) / "log").open("w+") as log:
                asyncio.run(_run(client, {"env": _environ(Path(scratch)), "stderr": log, "stdout": log}))
        except CellExecutionError as error:
            failed = next(n for n, cell in enumerate(notebook.cells) if _failed(cell))
            raise McpDiagError(
                f"no report: {path.name} failed at {_heading(notebook, failed)!r}: {error.ename}: "
                f"{_one_line(error.evalue)}"
            ) from None
        except CellTimeoutError:
            raise McpDiagError(f"no report: a cell of {path.name} ran for more than {CELL_S} s") from None
        except RuntimeError as error:  # DeadKernelError, or it did not start
            if client.interrupted:
                raise KeyboardInterrupt from None
            raise StartError(f"no report: the kernel of {path.name} ended: {_one_line(str(error))}") from None
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    return notebook


async def _run(client: _Client, options: Mapping[str, Any]) -> None:
    await client.async_execute(cleanup_kc=True, **options)


class _Client(NotebookClient):
    """A signal cancels the run, and the kernel ends before anything else goes on."""

    _cancelled = False

    @asynccontextmanager
    async def async_setup_kernel(self, **kwargs: Any) -> AsyncGenerator[None, None]:
        async with super().async_setup_kernel(**kwargs):
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            assert task is not None

            def cancel() -> None:
                self._cancelled = True
                task.cancel()

            for number in (
                signal.SIGINT,
                signal.SIGTERM,
            ):  # in the place of its own, which end the kernel alone
                loop.add_signal_handler(number, cancel)
            yield

    @property
    def interrupted(self) -> bool:
        """Whether a signal came. What it raises then says that the kernel has died; while that starts, its own handler
        is in place."""
        return self._cancelled or getattr(self, "_async_cleanup_kernel_future", None) is not None


def _kernel(scratch: Path) -> AsyncKernelManager:
    """A kernel of this very Python, whatever kernels the user has; on sockets in a folder of its own, not on ports."""
    manager = AsyncKernelManager(
        transport="ipc", ip=str(scratch / "kernel"), connection_file=str(scratch / "c.json")
    )
    manager._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
    )
    return manager


def _environ(scratch: Path) -> dict[str, str]:
    """Without the user's startup files, which could print, or show pictures elsewhere."""
    environ = {
        **os.environ,
        "IPYTHONDIR": str(scratch / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    if not (PACKAGE / "_notebooks").exists():  # a checkout need not be installed
        paths = [str(PACKAGE.parent), environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environ


def _failed(cell: Any) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", ()))


def _heading(notebook: Any, place: int) -> str:
    """The last heading above a cell, without its marks."""
    text = "\n".join(cell.source for cell in notebook.cells[: place + 1] if cell.cell_type == "markdown")
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return headings[-1] if headings else "the first cell"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
