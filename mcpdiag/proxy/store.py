"""What a session's streams have sent, so that a client can go on after the last event that it saw.

Ids are the proxy's own, `stream-event`, whatever ids a server uses: they hold over a restart of the server, and stdio
servers have none.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

import anyio

from mcpdiag.protocol.sse import Event, encode

_ID = re.compile(rb"(\d{1,15})-(\d{1,15})")


class EventStore:
    """The last events of one session, over all of its streams.

    Args:
        max_events: how many are kept.
        max_bytes: their size together, as sent. One event always has room.

    Attributes:
        dropped: events that had to make room.
        listening: the stream of what belongs to no call.
    """

    def __init__(self, *, max_events: int = 1000, max_bytes: int = 8 * 1024 * 1024) -> None:
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.dropped = 0
        self._bytes = 0
        self._order: deque[StoredStream] = deque()  # the stream of each event kept, the oldest first
        self._streams: dict[int, StoredStream] = {}
        self._last = -1
        self.listening = self.stream()

    def stream(self) -> StoredStream:
        """A new stream."""
        self._last += 1
        stream = self._streams[self._last] = StoredStream(self, self._last)
        return stream

    def find(self, event_id: bytes) -> tuple[StoredStream, int] | None:
        """The stream and the number of the event with this id; None if its stream is not known (any more)."""
        match = _ID.fullmatch(event_id)
        stream = self._streams.get(int(match[1])) if match else None
        if match is None or stream is None or int(match[2]) > stream.last:
            return None
        return stream, int(match[2])

    def _added(self, stream: StoredStream, size: int) -> None:
        self._order.append(stream)
        self._bytes += size
        while len(self._order) > self.max_events or (self._bytes > self.max_bytes and len(self._order) > 1):
            oldest = self._order.popleft()
            self._bytes -= len(oldest._kept.popleft().data)
            self.dropped += 1
            if oldest.done and not oldest._kept:
                self._forget(oldest)

    def _forget(self, stream: StoredStream) -> None:
        self._streams.pop(stream.number, None)


@dataclass(frozen=True, slots=True)
class Kept:
    """One event, encoded with its id."""

    number: int
    data: bytes


class StoredStream:
    """The events of one stream that are still kept.

    Attributes:
        last: the number of the newest event; 0 before the first.
        done: no event will follow.
    """

    __slots__ = ("_changed", "_kept", "_store", "done", "last", "number")

    def __init__(self, store: EventStore, number: int) -> None:
        self.number = number
        self.last = 0
        self.done = False
        self._store = store
        self._kept: deque[Kept] = deque()
        self._changed: anyio.Event | None = None

    def add(self, event: Event) -> bytes:
        """Keep an event as the newest one; returns it encoded, with its id."""
        self.last += 1
        data = encode(
            Event(event.data, event.event, b"%d-%d" % (self.number, self.last), event.retry, event.empty_data)
        )
        self._kept.append(Kept(self.last, data))
        self._store._added(self, len(data))
        self._wake()
        return data

    def here(self) -> bytes:
        """An encoded event without a message: its id is the place to go on from. It is not kept."""
        return encode(Event(id=b"%d-%d" % (self.number, self.last), empty_data=True))

    def after(self, number: int) -> list[Kept]:
        """The events behind `number` that are still kept."""
        return [kept for kept in self._kept if kept.number > number]

    def close(self) -> None:
        """No event will follow."""
        self.done = True
        if not self._kept:
            self._store._forget(self)
        self._wake()

    async def wait(self) -> None:
        """Until an event was added or the stream closed."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()
