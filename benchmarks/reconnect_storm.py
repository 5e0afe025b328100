"""500 event streams whose server dies and comes back: is there a storm, what does waiting cost, is anything lost?

    python benchmarks/reconnect_storm.py [--streams 500] [--outage 60] [--seed 1]

The streams are real, over real sockets, in this process on uvloop. The server is a process of its own; it numbers
the events of each stream by the clock, so that it knows after its death what was missed. Printed are the attempts in
each 100 ms after it, beside the number that full jitter lets expect. Where few are expected, chance alone makes large
ratios: the largest ratio is that of cells with at least 20, and for all cells there is the distance in deviations.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import ClassVar, cast

import uvloop
from wrk import wait_for_port

from mcpdiag.config import ReconnectPolicy
from mcpdiag.connection.dial import Origin
from mcpdiag.connection.http1 import Http1Connection, Response
from mcpdiag.hooks import Event, Happened
from mcpdiag.upstream.stream import EventStream

CELL = 0.1  # seconds
PERIOD = 2.0  # seconds between the events of a stream
ENOUGH = 20  # attempts expected in a cell, for its ratio to mean something
SAMPLES = 40  # simulated streams for each real one
LIMIT = 120.0  # seconds for all to be back, and to have caught up
POLICY = ReconnectPolicy()


# -- the server ------------------------------------------------------------------------------------------------


class Server(asyncio.Protocol):
    """GET is the stream of the session that `mcp-session-id` names; any other method tells what is open."""

    sessions: ClassVar[Counter[str]] = Counter()
    epoch = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self.received = b""
        self.session = ""
        self.sent = 0
        self.timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.sessions[self.session] -= 1

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.received.endswith(b"\r\n\r\n"):
            return
        first, *lines = self.received.decode().rstrip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if not first.startswith("GET "):
            body = json.dumps(+self.sessions).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            return
        self.session = headers["mcp-session-id"]
        self.sessions[self.session] += 1
        self.sent = int(headers.get("last-event-id", self.now()))
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        )
        self.go_on()

    def now(self) -> int:
        return int((time.time() - self.epoch) / PERIOD)

    def go_on(self) -> None:
        """Send what is due, and come back for the next."""
        due = range(self.sent + 1, self.now() + 1)
        if due:
            self.transport.write(b"".join(b"id: %d\ndata: %d\n\n" % (number, number) for number in due))
            self.sent = due[-1]
        next_one = self.epoch + (self.sent + 1) * PERIOD - time.time()
        self.timer = asyncio.get_running_loop().call_later(max(next_one, 0.0) + 0.001, self.go_on)


def bound(port: int) -> socket.socket:
    """A socket that shares its port with the server's: while that is dead nobody else gets the port."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


async def serve(port: int, epoch: float) -> None:
    Server.epoch = epoch
    server = await asyncio.get_running_loop().create_server(Server, sock=bound(port), backlog=4096)
    await server.serve_forever()


def start_server(port: int, epoch: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "--serve", str(port), "--epoch", repr(epoch)])


# -- the streams -----------------------------------------------------------------------------------------------


class Stream:
    """One session's stream: when it was opened, when it broke, and the numbers that came."""

    def __init__(self, port: int, name: str, uniform: Callable[[float, float], float]) -> None:
        self.opened: list[float] = []
        self.broke: list[float] = []
        self.gave_up = 0
        self.numbers: list[int] = []
        self.name = name
        self._origin = Origin("http", "127.0.0.1", port)
        self.stream = EventStream(name, "get", self._open, POLICY, hook=self, uniform=uniform)

    def emit(self, event: Event) -> None:
        assert isinstance(event, Happened)
        if event.kind == "reconnect_attempt" and event.attempt == 1:
            self.broke.append(time.monotonic())
        self.gave_up += event.kind == "reconnect_gave_up"

    @asynccontextmanager
    async def _open(self, last_id: bytes) -> AsyncIterator[Response]:
        self.opened.append(time.monotonic())
        head = b"GET /mcp HTTP/1.1\r\nhost: storm\r\nmcp-session-id: %b\r\n" % self.name.encode()
        if last_id:
            head += b"last-event-id: %b\r\n" % last_id
        connection = await Http1Connection.open(self._origin)
        try:
            yield await connection.send(head + b"\r\n", b"")
        finally:
            await connection.aclose(force=True)

    async def run(self, others: int) -> None:
        await asyncio.sleep(self.stream.resume.stagger(others))
        async with aclosing(self.stream.events()) as events:
            async for event in events:
                if event.data:
                    self.numbers.append(int(event.data))

    @property
    def lost(self) -> int:
        expected = range(self.numbers[0], self.numbers[-1] + 1)
        return len({*expected} - {*self.numbers})

    @property
    def doubled(self) -> int:
        return len(self.numbers) - len({*self.numbers})


async def until(condition: Callable[[], bool], what: str) -> float:
    """Wait for it; the seconds that took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > LIMIT:
            sys.exit(f"it did not happen within {LIMIT:g} s: {what}")
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def open_at_server(port: int) -> dict[str, int]:
    """The streams that the server has open, by session."""
    connection = await Http1Connection.open(Origin("http", "127.0.0.1", port))
    try:
        response = await connection.send(b"POST /stats HTTP/1.1\r\nhost: storm\r\n\r\n", b"")
        found: dict[str, int] = json.loads(await response.body())
    finally:
        await connection.aclose(force=True)
    return found


# -- the expectation -------------------------------------------------------------------------------------------


def expected(broke: list[float], outage: float) -> list[float]:
    """Attempts in each cell if every delay is uniform on 0 to `min(cap, base * 2**n)`: the mean of simulations."""
    chance = random.Random(0)
    cells = [0.0] * math.ceil(outage / CELL)
    for began in broke:
        for _ in range(SAMPLES):
            at, attempt = began, 0
            while True:
                at += chance.uniform(0.0, min(POLICY.cap, POLICY.base * 2.0**attempt))
                if (cell := int(at / CELL)) >= len(cells):
                    break
                cells[cell] += 1 / SAMPLES
                attempt += 1
    return cells


def show(seen: list[int], expect: list[float]) -> None:
    """A line for each second: its ten cells, their sum, what was expected."""
    per_line = round(1 / CELL)
    print(
        f"{'second':>6}  {'attempts in each 100 ms':<{5 * per_line}}  {'all':>6} {'expected':>9} {'ratio':>6}"
    )
    for first in range(0, len(seen), per_line):
        cells, mean = seen[first : first + per_line], sum(expect[first : first + per_line])
        text = "".join(f"{cell:5}" for cell in cells)
        print(
            f"{first // per_line:>6}  {text:<{5 * per_line}}  {sum(cells):>6} {mean:>9.1f} {sum(cells) / mean:>6.2f}"
        )
    ratios = [
        (count / mean, number)
        for number, (count, mean) in enumerate(zip(seen, expect, strict=True))
        if mean >= ENOUGH
    ]
    if ratios:
        ratio, number = max(ratios)
        print(
            f"largest ratio of {len(ratios)} cells with at least {ENOUGH} expected: {ratio:.2f}, "
            f"at {number * CELL:.1f} s ({seen[number]} attempts, {expect[number]:.1f} expected)"
        )
    scores = [
        ((count - mean) / math.sqrt(mean), number)
        for number, (count, mean) in enumerate(zip(seen, expect, strict=True))
        if mean > 0
    ]
    score, number = max(scores)
    print(
        f"farthest above of all {len(scores)} cells: {score:.1f} deviations, at {number * CELL:.1f} s "
        f"({seen[number]} attempts, {expect[number]:.1f} expected); "
        f"most in one cell: {max(seen)}"
    )


async def storm(count: int, outage: float, seed: int) -> bool:
    """Run it, print it; whether every stream is back once, with every event once."""
    uniform = random.Random(seed).uniform
    with bound(0) as reserved:
        port, epoch = reserved.getsockname()[1], time.time()
        server = start_server(port, epoch)
        wait_for_port(port)
        streams = [Stream(port, f"stream-{number}", uniform) for number in range(count)]
        tasks = [asyncio.create_task(stream.run(count)) for stream in streams]
        try:
            await until(lambda: all(stream.numbers for stream in streams), "every stream has an event")
            print(f"{count} streams open; the server dies for {outage:g} s", flush=True)
            cpu, died = time.process_time(), time.monotonic()
            server.kill()
            await asyncio.sleep(outage)
            lasted, cpu = time.monotonic() - died, time.process_time() - cpu
            server.wait()
            server = start_server(port, epoch)
            last = int((time.time() - epoch) / PERIOD) + 1
            back = await until(
                lambda: all(stream.numbers[-1] >= last for stream in streams), "every stream has caught up"
            )
            at_server = await open_at_server(port)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.kill()
            server.wait()
    seen = [0] * math.ceil(outage / CELL)
    for stream in streams:
        for at in stream.opened:
            if 0 <= (cell := int((at - died) // CELL)) < len(seen):
                seen[cell] += 1
    broke = [at - died for stream in streams for at in stream.broke if 0 <= at - died < outage]
    show(seen, expected(broke, outage))
    print(f"the last stream saw the end {max(broke) * 1000:.0f} ms after the death")
    print(f"attempts in the outage: {sum(seen)}, {sum(seen) / count:.1f} for each stream")
    print(f"CPU in the outage: {cpu:.2f} s in {lasted:.1f} s, {cpu / lasted:.2%} of one core")
    print(f"all back and caught up {back:.1f} s after the server was started")
    lost, doubled = sum(stream.lost for stream in streams), sum(stream.doubled for stream in streams)
    received, most = sum(len(stream.numbers) for stream in streams), max(at_server.values(), default=0)
    print(f"open at the server: {sum(at_server.values())} of {count} streams, at most {most} of a session")
    print(
        f"events: {received} received, {lost} lost, {doubled} doubled; streams that gave up: {sum(s.gave_up for s in streams)}"
    )
    return lost == doubled == 0 and len(at_server) == count and most == 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--outage", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--epoch", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    # A stream has two descriptors: its socket, and what the event loop waits for it with.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if args.serve is not None:
        uvloop.run(serve(args.serve, args.epoch))
    elif not uvloop.run(storm(args.streams, args.outage, args.seed)):
        sys.exit(1)


if __name__ == "__main__":
    main()
