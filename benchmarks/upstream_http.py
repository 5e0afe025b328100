"""The cheapest HTTP server there can be, on uvloop and httptools: `upstream_http.py PORT`; one JSON answer a POST."""

import asyncio
import re
import sys
from typing import cast

import httptools
import uvloop

ID = re.compile(rb'"id": ?(\d+)')
RESULT = b'{"content":[{"type":"text","text":"hello"}]}'
INITIALIZED = b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nmcp-session-id: bench\r\ncontent-length: %d\r\n\r\n"


class Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if found := ID.search(self.body):
            result = INITIALIZED if b'"initialize"' in self.body else RESULT
            answer = b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (found[1], result)
            self.transport.write(HEAD % len(answer) + answer)
        else:
            self.transport.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
        self.body = b""


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


uvloop.run(main())
