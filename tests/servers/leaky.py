"""The embedded server with one planted habit: a leak of some kind, a cache that fills, or none at all.

    python tests/servers/leaky.py [--http] HABIT

Habits: `clean`; `bytes:N` keeps an object of N bytes for each call; `fd:N` leaves a descriptor open every N calls;
`child:N` leaves a process running every N sessions (it ends with the server); `thread:N` a thread every N calls;
`cache:N` keeps the last N texts; `ttl:S` keeps each text for S seconds; `churn` makes and drops much at every call.
Over HTTP it prints its URL. It ends with its stdin.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, cast

from mcpdiag.embedded import Server, main
from mcpdiag.embedded_http import Connection

FILE = Path(__file__)
EMPTY = sys.getsizeof(b"")


def command(habit: str, *, http: bool = False) -> list[str]:
    """The argv that starts it."""
    return [sys.executable, str(FILE), *(["--http"] if http else []), habit]


class Habit:
    """What the process does beside answering; one for all its sessions."""

    def __init__(self, text: str) -> None:
        self.kind, _, number = text.partition(":")
        self.number = float(number or 0)
        self.calls = self.sessions = 0
        self.kept: list[Any] = []
        self.cache: OrderedDict[int, bytes] = OrderedDict()
        self.timed: deque[tuple[float, bytes]] = deque()
        self.chance = random.Random(1)

    def called(self) -> None:
        self.calls += 1
        due = self.number >= 1 and self.calls % int(self.number) == 0
        if self.kind == "bytes":
            self.kept.append(bytes(int(self.number) - EMPTY))
        elif self.kind == "fd" and due:
            self.kept.append(os.open(os.devnull, os.O_RDONLY))
        elif self.kind == "thread" and due:
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        elif self.kind == "cache":
            self.cache[self.chance.getrandbits(60)] = bytes(167)
            if len(self.cache) > self.number:
                self.cache.popitem(last=False)
        elif self.kind == "ttl":
            now = time.monotonic()
            self.timed.append((now, bytes(167)))
            while self.timed[0][0] < now - self.number:
                self.timed.popleft()
        elif self.kind == "churn":
            cyclic: list[Any] = [bytes(self.chance.randrange(1, 5000)) for _ in range(20)]
            cyclic.append(cyclic)  # only the collector frees it

    def session_began(self) -> None:
        self.sessions += 1
        if self.kind == "child" and self.sessions % int(self.number) == 0:
            # Its stdin is the other end of a pipe that ends with this process.
            child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            self.kept.append(child)


class Planted(Server):
    """Answers as the embedded server does."""

    def __init__(self, habit: Habit) -> None:
        super().__init__()
        self.habit = habit

    def answer(self, request_id: Any, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        if method == "initialize":
            self.habit.session_began()
        return super().answer(request_id, method, params)

    def call(self, request_id: Any, params: dict[str, Any]) -> dict[str, Any] | None:
        self.habit.called()
        return super().call(request_id, params)


class PlantedHttp(Planted):
    """The same, answering into a connection."""

    def __init__(self, habit: Habit, connection: Connection) -> None:
        super().__init__(habit)
        self._connection = connection

    def write(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._connection.answer(message)


async def serve_http(habit: Habit) -> None:
    """Serve over HTTP until stdin ends."""

    class Here(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._server = cast("Any", PlantedHttp(habit, self))

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Here, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp", flush=True)
    ended = asyncio.Event()
    loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    await ended.wait()
    server.close()


def run(arguments: list[str]) -> None:
    habit = Habit(arguments[-1])
    if "--http" in arguments:
        asyncio.run(serve_http(habit))
        return
    import mcpdiag.embedded

    mcpdiag.embedded.Server = lambda: Planted(habit)  # type: ignore[assignment, misc]
    main()


if __name__ == "__main__":
    run(sys.argv[1:])
