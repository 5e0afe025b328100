"""A reply whose messages go into a stream that carries everything for a client, not into an HTTP response."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mcpdiag.errors import UpstreamError
from mcpdiag.protocol.message import (
    Message,
    MessageError,
    decode,
    decode_batch,
    encode_error,
    encode_response,
    is_batch,
    one_line,
)
from mcpdiag.protocol.sse import Event
from mcpdiag.proxy.request import Reply

log = logging.getLogger("mcpdiag.proxy")
# Sends the client one JSON-RPC message, which is on one line; waits while it does not read.
Outlet = Callable[[bytes], Awaitable[None]]


class MessageReply(Reply):
    """What comes back for one call.

    It never counts as begun: an error may follow any event, and has as much time as an answer.
    """

    def __init__(self, outlet: Outlet, message: Message) -> None:
        super().__init__(_no_http, [])
        self._outlet = outlet
        self._message = message

    async def whole(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        data = one_line(body) if status == 200 else self._failure(status, body)
        self.bytes += len(data)
        await self._outlet(data)
        self.ended = True

    def _failure(self, status: int, body: bytes) -> bytes:
        """An HTTP status of the server in JSON-RPC, in the server's own words if it had any."""
        try:
            message = decode(body)
            if message.error:
                return encode_response(self._message.id, message)
        except MessageError:
            pass
        text = f"the server answered {self._message.method} with HTTP {status}"
        return encode_error(self._message.id, UpstreamError.code, text, {"type": f"http_{status}"})

    async def event(self, event: Event) -> None:
        if line := relayable(event.data):
            self.bytes += len(line)
            await self._outlet(line)

    async def keep_alive(self) -> None:
        """The stream is kept alive as a whole."""

    async def end(self) -> None:
        self.ended = True


def relayable(data: bytes) -> bytes:
    """An event's data on one line; empty if it is not MCP, which must not reach such a client."""
    if not data:
        return b""
    try:
        if is_batch(data):
            decode_batch(data)
        else:
            decode(data)
    except MessageError as error:
        log.warning("an event of a server is dropped: %s", error)
        return b""
    return one_line(data)


async def _no_http(event: MutableMapping[str, Any]) -> None:
    raise AssertionError("there is no HTTP response here")
