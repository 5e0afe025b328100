"""A Streamable HTTP MCP server whose sessions have a listening stream of numbered events, a number every PERIOD.

    python ticker.py PORT EPOCH [--period SECONDS] [--lives SECONDS]

The numbers follow the clock: n is due at EPOCH + n * PERIOD. So a server that was killed and started again knows what
each stream has missed, as one with a data base would. `--lives` cuts every stream after so long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import time
import uuid
from typing import Any


class Ticker:
    def __init__(self, epoch: float, period: float, lives: float) -> None:
        self.epoch, self.period, self.lives = epoch, period, lives

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if lines[0].startswith("GET"):
                    await self.stream(writer, headers.get("last-event-id"))
                    break
                self.answer(writer, json.loads(body) if body else {})
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def answer(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        more, result = "", {}
        if message.get("method") == "initialize":
            more = f"mcp-session-id: {uuid.uuid4()}\r\n"
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}, "logging": {}},
                "serverInfo": {"name": "ticker", "version": "1"},
            }
        elif message.get("method") == "tools/call":
            result = {"content": [{"type": "text", "text": "tick"}]}
        status, body = "202 Accepted", b""
        if "id" in message:
            status, body = (
                "200 OK",
                json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode(),
            )
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}content-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    async def stream(self, writer: asyncio.StreamWriter, last_id: str | None) -> None:
        began = time.time()
        sent = int(last_id) if last_id else self.now()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        while not self.lives or time.time() < began + self.lives:
            for number in range(sent + 1, self.now() + 1):
                note = {
                    "jsonrpc": "2.0",
                    "method": "notifications/message",
                    "params": {"level": "info", "data": number},
                }
                writer.write(f"id: {number}\ndata: {json.dumps(note)}\n\n".encode())
                sent = number
            await writer.drain()
            await asyncio.sleep(max(self.epoch + (sent + 1) * self.period - time.time(), 0) + 0.001)

    def now(self) -> int:
        return int((time.time() - self.epoch) / self.period)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("epoch", type=float)
    parser.add_argument("--period", type=float, default=0.25)
    parser.add_argument("--lives", type=float, default=0.0)
    options = parser.parse_args()
    ticker = Ticker(options.epoch, options.period, options.lives)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", options.port))
    server = await asyncio.start_server(ticker.connected, sock=sock, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
