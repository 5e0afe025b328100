"""What the notebooks need of servers: the command of the faulty one, and an HTTP one that can be killed and come back.

Everything here is a process of its own; what breaks in a notebook breaks for real.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

SERVERS = Path(__file__).parent / "servers"
STARTS_S = 15.0  # a server that accepts no connection for so long has not started


def faulty(*arguments: object) -> list[str]:
    """The command of `servers/faulty.py`; its docstring has the arguments. It starts in about 30 ms."""
    return [sys.executable, "-I", "-S", str(SERVERS / "faulty.py"), *map(str, arguments)]


def faulty_with_packages(*arguments: object) -> list[str]:
    """The same in an interpreter that finds installed packages, as memray wants it. It starts later."""
    return [sys.executable, str(SERVERS / "faulty.py"), *map(str, arguments)]


class Ticker:
    """`servers/ticker.py` in a process: `with Ticker() as server: ... server.kill() ... server.start()`.

    It keeps its port, dead or alive.
    """

    def __init__(self, *, period: float = 0.25, lives: float = 0.0) -> None:
        self._options = ["--period", str(period), "--lives", str(lives)]
        self._epoch, self._period = time.time(), period
        self._process: subprocess.Popen[bytes] | None = None
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/mcp"

    @property
    def due(self) -> int:
        """The number of the newest event that each stream has got by now, or will get."""
        return int((time.time() - self._epoch) / self._period)

    def start(self) -> None:
        """Start the process and wait until it accepts connections."""
        command = [sys.executable, str(SERVERS / "ticker.py"), str(self.port), repr(self._epoch)]
        self._process = subprocess.Popen([*command, *self._options], stdin=subprocess.DEVNULL)
        ends = time.monotonic() + STARTS_S
        while time.monotonic() < ends:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise TimeoutError(f"the server at {self.url} accepted no connection within {STARTS_S:g} s")

    def kill(self) -> None:
        """SIGKILL: every connection breaks, and others are refused."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reserved.close()
