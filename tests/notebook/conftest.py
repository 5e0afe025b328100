"""An IPython session in this process, without Jupyter: for whatever needs no kernel."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from mcpdiag.embedded import COMMAND


class Session:
    """Runs cells, and keeps what they display."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.names: dict[str, Any] = shell.user_ns

    def run(self, cell: str) -> Any:
        """The value of the cell's last expression. Raises what the cell raises."""
        result = self.shell.run_cell(cell)
        result.raise_error()
        return result.result

    def fails(self, cell: str) -> BaseException:
        """The exception that ends the cell."""
        result = self.shell.run_cell(cell)
        error = result.error_in_exec or result.error_before_exec
        assert isinstance(error, BaseException), f"the cell has not failed: {cell}"
        return error

    def shown(self) -> list[str]:
        """The HTML that was displayed since the last look."""
        outputs = self.shell.display_pub.outputs
        found = [str(each["data"].get("text/html", "")) for each in outputs]
        outputs.clear()
        return found


@pytest.fixture
def session() -> Iterator[Session]:
    """A session with the magics loaded; its variable COMMAND starts the embedded server."""
    before = sys.displayhook
    vars(builtins).pop("_", None)  # Python's own displayhook leaves it, and then IPython lets it be
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    shell: Any = InteractiveShell.instance(config=config)
    shell.display_pub = CapturingDisplayPublisher()
    try:
        shell.run_cell("%load_ext mcpdiag.notebook").raise_error()
        shell.user_ns["COMMAND"] = COMMAND
        made = Session(shell)
        yield made
        for name in [*made.names]:
            if type(made.names[name]).__name__ == "BackgroundProxy":
                made.names[name].close()
    finally:
        shell.reset(new_session=False)
        InteractiveShell.clear_instance()
        sys.displayhook = before


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
