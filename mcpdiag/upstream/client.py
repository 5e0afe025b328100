"""A client session as an upstream sees it, and where messages for it wait."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import anyio

from mcpdiag.protocol.sse import Event

INBOX_MESSAGES = 1000
INBOX_BYTES = 16 * 1024 * 1024
MAX_ASKED = 1000


class Inbox:
    """Messages for one stream of one client, bounded. Filled without waiting, read by one task.

    `get` returns a message, and `b""` for ever after `close`.
    """

    __slots__ = ("_bytes", "_event", "_items", "closed")

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._bytes = 0
        self._event: anyio.Event | None = None
        self.closed = False

    def put(self, data: bytes) -> bool:
        """Add a message. False if it is closed, or if the client is too far behind; a single one always has room."""
        if self.closed:
            return False
        if self._items and (len(self._items) >= INBOX_MESSAGES or self._bytes + len(data) > INBOX_BYTES):
            return False
        self._items.append(data)
        self._bytes += len(data)
        self._wake()
        return True

    def drain(self) -> list[bytes]:
        """Everything in it, taken out at once."""
        items = [*self._items]
        self._items.clear()
        self._bytes = 0
        return items

    def close(self) -> None:
        """What is in it can still be read; then reading ends."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()

    async def get(self) -> bytes:
        """The next message, b"" at the end."""
        while True:
            if self._items:
                data = self._items.popleft()
                self._bytes -= len(data)
                return data
            if self.closed:
                return b""
            self._event = anyio.Event()
            await self._event.wait()
            self._event = None


@dataclass(slots=True, eq=False)
class Asked:
    """A request of the server that waits for the client's response."""

    reply: Callable[[bytes], None]  # hands a line to the connection that asked
    owner: object  # the router that asked
    server_id: bytes  # raw, as the server wrote it
    progress_token: bytes = b""


class Client:
    """A client session as its upstream sees it: where to send what belongs to no exchange, and what it was asked."""

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self.authorization = b""  # the client's own, for an HTTP upstream; never recorded
        self.protocol = b""  # its MCP-Protocol-Version header
        self.extra_headers = b""  # lines for the head of each request to an HTTP upstream
        self.capabilities: frozenset[str] = frozenset()
        self.streams: list[Inbox] = []
        self.asked: dict[int, Asked] = {}
        self.pending = Inbox()  # until the client opens a stream
        self._last_id = 0

    @property
    def listening(self) -> bool:
        return bool(self.streams)

    def push(self, data: bytes) -> bool:
        """A message for the newest open stream, else kept until one opens. False if there is no room."""
        return self.streams[-1].put(data) if self.streams else self.pending.put(data)

    def attach(self, inbox: Inbox) -> None:
        """A stream has opened; it gets what has been waiting."""
        for data in self.pending.drain():
            inbox.put(data)
        self.streams.append(inbox)

    def detach(self, inbox: Inbox) -> int:
        """A stream has closed; what it did not send waits for the next one. Returns how many had no room there."""
        if inbox in self.streams:
            self.streams.remove(inbox)
        return sum(not self.push(data) for data in inbox.drain())

    async def listen(self, inbox: Inbox, lost: Callable[[], None]) -> AsyncIterator[Event]:
        """What is pushed from now on, until `inbox` is closed. `lost` is told of each message that was left over."""
        self.attach(inbox)
        try:
            while data := await inbox.get():
                yield Event(data, b"message")
        finally:
            for _ in range(self.detach(inbox)):
                lost()

    def ask(self, asked: Asked) -> int | None:
        """Remember a server request; returns the id under which the client sees it, None if too many are open."""
        if len(self.asked) >= MAX_ASKED:
            return None
        self._last_id += 1
        self.asked[self._last_id] = asked
        return self._last_id

    def forget(self, owner: object) -> list[Asked]:
        """The asker is gone, or no longer wants to know: a response will not reach it. Returns what it had asked."""
        void = {number: asked for number, asked in self.asked.items() if asked.owner is owner}
        for number in void:
            del self.asked[number]
        return [*void.values()]
