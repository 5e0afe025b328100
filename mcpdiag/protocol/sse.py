"""Server-sent events: an encoder, and a decoder for chunks that break anywhere.

Called by the endpoint to write streams to clients and by the HTTP upstreams to read those of servers.
The format is the WHATWG HTML standard, "Server-sent events", 9.2.5 and 9.2.6; comments name what MCP adds.
"""

from __future__ import annotations

from typing import Final

import msgspec

COMMENT_KEEPALIVE: Final = b": keep-alive\n\n"
_BOM: Final = b"\xef\xbb\xbf"
# Small numbers, because `10 in data` is several times faster than `b"\n" in data`.
_LF: Final = 10
_CR: Final = 13
_COLON: Final = 58
# `retry` is in milliseconds; 15 digits are 31,000 years, and CPython refuses to read numbers without end.
_RETRY_DIGITS: Final = 15


class SseError(Exception):
    """An event is larger than the decoder's `max_bytes`; `events` are those of the same chunk before it."""

    def __init__(self, message: str, events: list[Event]) -> None:
        super().__init__(message)
        self.events = events


class Event(msgspec.Struct, gc=False):
    """One event, its fields as bytes of UTF-8.

    `event` is empty for the default, which means `message`; `id` is None where the event has no such field
    and empty where it resets the last event id; `retry` is in milliseconds. `empty_data` says that a data
    field was there although `data` is empty. `comment` is for `encode` only: a decoder drops comments.
    """

    data: bytes = b""
    event: bytes = b""
    id: bytes | None = None
    retry: int | None = None
    empty_data: bool = False
    comment: bytes = b""

    @property
    def has_data(self) -> bool:
        """Whether a data field is present, if only an empty one.

        An id with an empty data field is the priming event of MCP 2025-11-25, basic/transports, "Sending
        Messages to the Server" 6: it carries a place to resume from and no message.
        """
        return self.empty_data or bool(self.data)


def encode(event: Event) -> bytes:
    r"""The bytes of an event. A line end in `data` or `comment`, `\r`, `\n` or both, begins another field line,
    so it is read back as `\n`.

    Raises:
        ValueError: `id` holds CR, LF or NUL, `event` CR or LF, or `retry` is negative.
    """
    head = b""
    if event.comment:
        head = b"".join(b": %b\n" % line for line in _lines(event.comment))
    if event.id is not None:
        if 0 in event.id or _LF in event.id or _CR in event.id:
            raise ValueError(f"an event id cannot hold a line end or NUL: {event.id[:80]!r}")
        head += b"id: %b\n" % event.id
    if event.event:
        if _LF in event.event or _CR in event.event:
            raise ValueError(f"an event name cannot hold a line end: {event.event[:80]!r}")
        head += b"event: %b\n" % event.event
    if event.retry is not None:
        if event.retry < 0:
            raise ValueError(f"retry is {event.retry} ms; it cannot be negative")
        head += b"retry: %d\n" % event.retry
    if not event.has_data:
        return head + b"\n"
    return b"%bdata: %b\n\n" % (head, b"\ndata: ".join(_lines(event.data)))


def encode_message(data: bytes) -> bytes:
    """A `message` event that carries one JSON-RPC message; fast for JSON on a single line."""
    if _LF in data or _CR in data:
        return encode(Event(data, b"message"))
    return b"event: message\ndata: %b\n\n" % data


def _lines(text: bytes) -> list[bytes]:
    if _CR in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text.split(b"\n")


class Decoder:
    """Reads one stream. Work and memory are linear in the bytes fed, however they are cut.

    The standard dispatches only events with data. MCP also gives meaning to an id with empty data and to a
    lone `retry` (2025-11-25, basic/transports, "Sending Messages to the Server" 6), so every event with a
    data, id or retry field is given out, and the caller decides. An event that the end of the stream cuts
    off is discarded, as the standard says; `pending` tells of it.

    Args:
        max_bytes: the largest event, in bytes of its lines without line ends and comments. No single line,
            comments too, may be longer either.
    """

    __slots__ = ("_after_cr", "_fields", "_partial", "_size", "_started", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._started = False
        self._after_cr = False
        self._fields: list[bytes] = []  # the whole lines of the event that has begun, without comments
        self._size = 0  # their bytes
        self._partial = bytearray()  # the line that has begun

    @property
    def pending(self) -> bool:
        """Whether an event has begun that no blank line has ended yet."""
        rest = self._partial
        if self._fields or not rest:
            return bool(self._fields)
        return not (rest.startswith(b":") or (not self._started and _BOM.startswith(rest)))

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes, in order.

        Raises:
            SseError: an event is larger than `max_bytes`. The stream cannot be read on; close it.
        """
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk.startswith(b"\n"):  # the second half of a CRLF
                chunk = chunk[1:]
        lines = chunk.splitlines()  # bytes break at CR, LF and CRLF only, as the standard has it
        rest = b""
        if chunk.endswith(b"\r"):
            self._after_cr = True
        elif lines and not chunk.endswith(b"\n"):
            rest = lines.pop()
        events: list[Event] = []
        if lines:
            if self._partial:
                self._partial += lines[0]
                lines[0] = bytes(self._partial)
                self._partial = bytearray()
            if not self._started:
                self._started = True
                if len(lines[0]) > self.max_bytes:  # with the BOM, as it counts while the line is cut
                    raise self._too_large(events)
                lines[0] = lines[0].removeprefix(_BOM)
            self._read(lines, events)
        if rest:
            self._partial += rest
            if self._size + len(self._partial) > self.max_bytes:
                raise self._too_large(events)
        return events

    def _read(self, lines: list[bytes], events: list[Event]) -> None:
        fields, size = self._fields, self._size
        for line in lines:
            if line:
                size += len(line)
                if size > self.max_bytes:
                    raise self._too_large(events)
                if line[0] == _COLON:
                    size -= len(line)
                else:
                    fields.append(line)
            elif fields:
                if (event := _parse(fields)) is not None:
                    events.append(event)
                fields.clear()
                size = 0
        self._size = size

    def _too_large(self, events: list[Event]) -> SseError:
        return SseError(
            f"an event is larger than {self.max_bytes} bytes; raise the limit on messages", events
        )


def _parse(fields: list[bytes]) -> Event | None:
    """The event of these lines; None when none of them is a data, id or retry field."""
    data: list[bytes] = []
    name = b""
    event_id = retry = None
    for line in fields:
        if line[:6] == b"data: ":  # the two usual lines first
            data.append(line[6:])
            continue
        if line == b"event: message":
            name = b"message"
            continue
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"event":
            name = value
        elif field == b"data":
            data.append(value)
        elif field == b"id":
            if b"\0" not in value:
                event_id = value
        elif field == b"retry" and value.isdigit() and len(value) <= _RETRY_DIGITS:
            retry = int(value)
    if data:
        text = data[0] if len(data) == 1 else b"\n".join(data)
        return Event(text, name, event_id, retry, not text)
    if event_id is None and retry is None:
        return None
    return Event(b"", name, event_id, retry)
