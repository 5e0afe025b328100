"""Writes a run into a folder: Parquet parts of each frame, and `meta.json`.

A part gets its name when it is whole, so whoever reads the folder, at any time and after any crash, sees only whole
parts.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from mcpdiag.samples.buffer import Rows
from mcpdiag.samples.meta import describe
from mcpdiag.samples.schema import SCHEMA, FrameName

if TYPE_CHECKING:
    from mcpdiag.samples.recorder import Recorder

log = logging.getLogger("mcpdiag.samples")
META: Final = "meta.json"
PART: Final = "part-{:06}.parquet"
PART_EVERY: Final = 5.0  # seconds: what a crash loses at most


class Writer:
    """Writes what a recorder holds, and what it gets later, into a new capture.

    Args:
        recorder: whose rows they are.
        folder: is made, or is there without a capture in it.
        every: seconds after which `run` writes a part.

    Raises:
        ValueError: there is a capture in the folder already.
        ImportError: pyarrow is missing; the message says what to install.
        OSError: the folder cannot be written.
    """

    def __init__(self, recorder: Recorder, folder: Path, *, every: float = PART_EVERY) -> None:
        from mcpdiag.samples import parts  # pyarrow: not before it is used

        self.folder = folder
        self._write_part = parts.write
        self._recorder = recorder
        self._every = every
        self._next: dict[FrameName, int] = dict.fromkeys(SCHEMA, 0)
        self._parts: dict[FrameName, int] = dict.fromkeys(SCHEMA, 0)
        self._lost: dict[FrameName, int] = dict.fromkeys(SCHEMA, 0)
        self._failed = False
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / META).exists():
            raise ValueError(f"there is a capture in {folder} already; give another folder, or remove it")
        for name in SCHEMA:
            (folder / name).mkdir(exist_ok=True)
        self._write_meta()

    async def run(self) -> None:
        """Write a part of each frame that has new rows, until cancelled. A disk that is full does not end the proxy:
        what could not be written is tried again with the next part, as long as the recorder still has it."""
        while True:
            await anyio.sleep(self._every)
            await self.flush_aside()

    async def flush_aside(self) -> None:
        """`flush` in a worker thread."""
        await self._aside(self.flush)

    async def finish(self) -> None:
        """`flush` and `close`, in a worker thread."""
        await self.flush_aside()
        await self._aside(self.close)

    async def _aside(self, write: Callable[[], None]) -> None:
        """A failure is logged, once until it works again."""
        try:
            await anyio.to_thread.run_sync(write)
        except Exception as error:
            log.log(
                logging.DEBUG if self._failed else logging.WARNING,
                "cannot write to %s: %s",
                self.folder,
                error,
            )
            self._failed = True
        else:
            self._failed = False

    def flush(self) -> None:
        """Write the rows that are not written yet, as one part a frame."""
        for name in SCHEMA:
            rows = self._recorder.rows(name, self._next[name])
            if len(rows):
                self._write(name, rows)
        self._write_meta()

    def close(self) -> None:
        """Note that the run has ended in order. A frame without rows gets a part without rows, so that what reads
        Parquet finds its columns."""
        for name in SCHEMA:
            if not self._parts[name]:
                self._write(name, self._recorder.rows(name, self._next[name]))
        self._write_meta(ended_ns=time.time_ns())

    def _write(self, name: FrameName, rows: Rows) -> None:
        part = self.folder / name / PART.format(self._parts[name] + 1)
        self._write_part(name, rows, part)
        self._parts[name] += 1
        self._lost[name] += rows.start - self._next[name]
        self._next[name] = rows.stop

    def _write_meta(self, ended_ns: int | None = None) -> None:
        recorder = self._recorder
        meta: Mapping[str, object] = {
            **describe(recorder.started_ns, recorder.started_monotonic, recorder.about),
            "ended_ns": ended_ns,
            "frames": {
                name: {
                    "rows": self._next[name] - self._lost[name],
                    "dropped": self._lost[name],
                    "parts": self._parts[name],
                }
                for name in SCHEMA
            },
        }
        unfinished = self.folder / f".{META}.tmp"
        unfinished.write_text(json.dumps(meta, indent=2) + os.linesep, encoding="utf-8")
        unfinished.replace(self.folder / META)
