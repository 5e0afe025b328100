"""A Streamable HTTP server that serves one call at a time, each for the same time: its capacity can be computed.

    python tests/servers/one_at_a_time.py [--service-ms 5] [--lines 1] [--queue N]

Prints its URL and lives as long as its stdin. A call takes `--service-ms` of a line that all calls wait in, so it
serves 1000 / service-ms calls a second and no more; with `--lines` so many times of that. With `--queue`, a call that finds so many in the line is answered
with 503. Everything but `tools/call` is answered at once. `GET /count` says how many calls it has served.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from typing import Any


class Line:
    """Who comes first is served first, each for `service_s`, in the line that is free first."""

    def __init__(self, service_s: float, queue: int, lines: int) -> None:
        self.service_s, self.queue = service_s, queue
        self.free_at = [0.0] * lines
        self.served = self.waiting = 0

    async def call(self) -> bool:
        """Wait for one's turn and its service; false if the line is too long."""
        if self.waiting >= self.queue:
            return False
        loop = asyncio.get_running_loop()
        done_at = max(loop.time(), heapq.heappop(self.free_at)) + self.service_s
        heapq.heappush(self.free_at, done_at)
        self.waiting += 1
        await asyncio.sleep(done_at - loop.time())
        self.waiting -= 1
        self.served += 1
        return True


async def answer(line: Line, message: dict[str, Any]) -> dict[str, Any] | None:
    method = message["method"]
    if method == "initialize":
        return {
            "protocolVersion": message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "one-at-a-time", "version": "1"},
        }
    if method == "tools/list":
        schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
        return {"tools": [{"name": "echo", "inputSchema": schema}]}
    if method == "tools/call":
        if not await line.call():
            return None
        return {"content": [{"type": "text", "text": message["params"]["arguments"]["text"]}]}
    return {}


async def connection(line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"\ncontent-length:")[2].partition(b"\r")[0] or 0)
            body = await reader.readexactly(length)
            status, data = b"405 No", b""
            if head.startswith(b"get /count"):
                status, data = b"200 OK", str(line.served).encode()
            elif head.startswith(b"delete"):
                status = b"200 OK"
            elif head.startswith(b"post"):
                message = json.loads(body)
                status = b"202 Accepted"
                if "id" in message:
                    result = await answer(line, message)
                    status = b"503 Full" if result is None else b"200 OK"
                    if result is not None:
                        reply = {"jsonrpc": "2.0", "id": message["id"], "result": result}
                        data = json.dumps(reply).encode()
            session = (
                b"mcp-session-id: %b\r\n" % os.urandom(8).hex().encode() if b"serverInfo" in data else b""
            )
            writer.write(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"
                % (status, len(data), session, data)
            )
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--service-ms", type=float, default=5.0)
    parser.add_argument("--queue", type=int, default=10**9)
    parser.add_argument("--lines", type=int, default=1)
    options = parser.parse_args()
    line = Line(options.service_ms / 1000, options.queue, options.lines)
    server = await asyncio.start_server(lambda r, w: connection(line, r, w), "127.0.0.1", 0, backlog=1000)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp", flush=True)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    await ended.wait()
    loop.remove_reader(0)
    os._exit(0)


@contextmanager
def running(*options: str) -> Iterator[str]:
    """The server in a process of its own; its URL."""
    process = Popen([sys.executable, __file__, *options], stdin=PIPE, stdout=PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(main())
