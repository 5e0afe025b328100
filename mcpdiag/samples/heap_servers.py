"""The Python servers of a proxy that run under memray (`--heap-upstream`): their commands, and their rows.

`serve` asks for the commands before it starts them, and `sampling` runs what reads their files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import anyio
from anyio import to_thread

from mcpdiag.config import UpstreamConfig
from mcpdiag.errors import HeapError
from mcpdiag.samples.heap_rows import HeapRows
from mcpdiag.samples.heap_tracker import folder
from mcpdiag.samples.heap_upstream import captures, read_capture, under_memray

log = logging.getLogger("mcpdiag.samples")
LOOK_EVERY = 1.0  # seconds between two looks for processes that have ended
READ_LIMIT = 30.0  # seconds for the files that are left when the proxy stops


class HeapServers:
    """Runs servers under memray and turns what they write into rows of the frame `heap`.

    The file of a process is read once it has ended, by itself or by a kill, and then removed; `look` reads those of
    running ones too. No process is ever disturbed: memray writes, and another process reads.

    Args:
        rows: where the rows go.
        sites: call sites kept of a process and kind, the largest ones.
    """

    def __init__(self, rows: HeapRows, *, sites: int = 50) -> None:
        self._rows = rows
        self._sites = sites
        self._stack = contextlib.ExitStack()
        self._folders: dict[str, Path] = {}
        self._busy: set[Path] = set()  # files that `run` or `look`, in another thread, is reading

    def prepare(self, upstreams: Mapping[str, UpstreamConfig]) -> dict[str, UpstreamConfig]:
        """The upstreams with the commands that run those under memray which are to. Call it in a thread: it blocks
        for some 0.5 s an upstream.

        Raises:
            HeapError: some cannot run under memray; each has its reason in the message.
        """
        root = self._stack.enter_context(folder(None))
        prepared, wrong = dict(upstreams), []
        for name, config in upstreams.items():
            if not config.heap_upstream:
                continue
            env = {key: value.get_secret_value() for key, value in config.env.items()}
            try:
                program, *args = under_memray(config.command_line, root / name, env=env, cwd=config.cwd)
            except HeapError as error:
                wrong.append(f"the server '{name}': {error}")
            else:
                prepared[name] = config.model_copy(update={"command": program, "args": tuple(args)})
                self._folders[name] = root / name
        if wrong:
            raise HeapError("; ".join(wrong))
        return prepared

    async def run(self) -> None:
        """Read the files of processes that have ended, until cancelled."""
        while True:
            await anyio.sleep(LOOK_EVERY)
            await self._read(ended_only=True)

    async def look(self) -> int:
        """Read all files, of running processes too. Returns the number of the first row. In any event loop."""
        first = self._rows.ring.written
        await self._read(ended_only=False)
        return first

    async def finish(self) -> None:
        """Read what is left, once no process runs any more, for at most 30 s."""
        with anyio.move_on_after(READ_LIMIT):
            await self._read(ended_only=False)
            return
        left = sum(len(captures(each)) for each in self._folders.values())
        log.warning(
            "%d heap captures of servers could not be read within %g s; they are lost", left, READ_LIMIT
        )

    def close(self) -> None:
        """Remove the files. Idempotent."""
        self._stack.close()

    async def _read(self, *, ended_only: bool) -> None:
        for upstream, directory in self._folders.items():
            for path in await to_thread.run_sync(captures, directory):
                ended = not _runs(path)
                if path in self._busy or (ended_only and not ended):
                    continue
                self._busy.add(path)
                try:
                    self._rows.keep(await read_capture(path, upstream, time.time_ns(), sites=self._sites))
                except HeapError as error:
                    log.warning("of the server '%s': %s", upstream, error)
                finally:
                    self._busy.discard(path)
                if ended:
                    path.unlink(missing_ok=True)


def _runs(path: Path) -> bool:
    """Whether the process that writes `PID.bin` is there; one that nobody has waited for yet is."""
    try:
        os.kill(int(path.stem), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
