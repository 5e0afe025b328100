"""A proxy in a process of its own that gives out what its recorder has: `python -m mcpdiag.cli.bench_recorded`.

The first line of stdin is a `Setup`; the URL goes to stdout. Each further line is an `Ask`, answered with a file and
the line `done`. It needs no pandas, and no admin port, whose `/metrics` would be one more listener than users have.
It ends with its stdin.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from struct import iter_unpack
from typing import Any

import anyio
import msgspec

from mcpdiag.bench.split import Phases
from mcpdiag.errors import ConfigError, McpDiagError
from mcpdiag.samples.buffer import Rows, layout
from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.schema import SCHEMA
from mcpdiag.serve import Proxy, run_loop


class Setup(msgspec.Struct):
    """What `Proxy` is given; it may hold secrets, so it comes over a pipe."""

    upstream: dict[str, Any]
    settings: dict[str, Any]
    record: bool


class Ask(msgspec.Struct):
    """Write the exchanges of these methods since the last time into this file."""

    methods: list[str]
    output: str


class _Lines:
    """The lines of stdin, for an event loop."""

    def __init__(self) -> None:
        self._rest = b""

    async def next(self) -> bytes:
        """The next line; empty at the end."""
        while b"\n" not in self._rest:
            await anyio.wait_readable(0)
            data = os.read(0, 65536)
            if not data:
                return b""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def phases_of(rows: Rows, methods: Collection[str]) -> Phases:
    """The exchanges of some methods, in the order in which they arrived."""
    kinds = layout(SCHEMA["requests"])
    columns = [*kinds]
    method, ts = columns.index("method"), columns.index("ts")
    lookup = rows.lookups["method"].names
    wanted = {number for number, name in enumerate(lookup) if name in methods}
    ms = [columns.index(f"{name}_ms") for name in ("queue", "connect", "first", "total")]
    found = [
        (row[ts] - row[ms[3]] * 1e6, *(row[at] for at in ms))
        for row in iter_unpack("<" + "".join(kinds.values()), rows.records)
        if row[method] in wanted
    ]
    found.sort()
    _, queue, connect, first, total = (
        ([*column] for column in zip(*found, strict=True)) if found else [[]] * 5
    )
    return Phases(queue, connect, first, total)


async def serve() -> None:
    """Serve until stdin ends."""
    lines = _Lines()
    setup = msgspec.json.decode(await lines.next(), type=Setup)
    async with Proxy({"bench": setup.upstream}, record=setup.record, port=0, **setup.settings) as proxy:
        print(proxy.url, flush=True)
        recorder: Recorder | None = proxy.recorder if setup.record else None
        since = 0
        while line := await lines.next():
            ask = msgspec.json.decode(line, type=Ask)
            phases = Phases([], [], [], [])
            if recorder is not None:
                rows = recorder.rows("requests", since)
                since = rows.stop
                phases = phases_of(rows, ask.methods)
            await anyio.Path(ask.output).write_bytes(msgspec.json.encode(phases))
            print("done", flush=True)


def main() -> None:
    try:
        run_loop(serve)
    except ConfigError as error:
        sys.exit("; ".join(error.problems))
    except McpDiagError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
