"""One child process in a group of its own, and its three pipes. Only `connection/stdio` starts them.

Event loops start processes too, but leave things behind that a proxy cannot afford: uvloop leaves second handles of
the pipes open in the child, so the end of its stdout is not seen as long as a grandchild lives; asyncio keeps a pipe
open until its buffer is empty; all reap a child at once, and from then on its group's number may be a stranger's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio

from mcpdiag.connection.reaper import kill_group

READ_BYTES = 256 * 1024


class Child:
    """A running process. It is a zombie from its end until `reap`, so that its group can be killed meanwhile.

    Raises:
        OSError, ValueError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], *, cwd: Path | None, env: Mapping[str, str]) -> None:
        self._popen = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        pipes = (self._popen.stdin, self._popen.stdout, self._popen.stderr)
        self.stdin, self.stdout, self.stderr = (Pipe(pipe.fileno()) for pipe in pipes if pipe is not None)
