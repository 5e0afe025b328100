"""Newline-delimited messages out of chunks that break anywhere.

Called by the stdio connection for a server's stdout and by the stdio proxy for its client's stdin.
The rules are those of the specification's basic/transports, "stdio": one message a line, none across two.
"""

from __future__ import annotations

from typing import Final

HEAD_BYTES: Final = 200
_SPACE: Final = 32  # a JSON text that starts no higher has white space in front, or is a blank line
_CR: Final = 13


class LineFramer:
    """Collects chunks and gives out whole lines. One object reads one stream.

    A line that is too long is dropped as a whole and counted, for one huge line must not end a connection
    that other exchanges share. Work and memory are linear in the bytes fed, however they are cut.

    Args:
        max_bytes: the longest line given out, in bytes, without its line end; at least 1.

    Attributes:
        oversized: how many lines were dropped since the start; counted as soon as a line is known to be
            too long, which is before its end has come.
        oversized_head: the first bytes, at most 200, of the latest of them, for a message.
    """

    __slots__ = ("_dropping", "_rest", "max_bytes", "oversized", "oversized_head")

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; a line needs at least 1")
        self.max_bytes = max_bytes
        self.oversized = 0
        self.oversized_head = b""
        self._rest = bytearray()  # the line that has begun; never empty while one is dropped
        self._dropping = False

    def feed(self, chunk: bytes) -> list[bytes]:
        r"""The lines that `chunk` completes, in order, without `\n` or `\r\n`; blank lines are skipped."""
        end = chunk.find(b"\n")
        if end < 0:
            self._grow(chunk)
            return []
        if (
            end == len(chunk) - 1
            and not self._rest
            and end <= self.max_bytes
            and chunk[0] > _SPACE
            and chunk[end - 1] != _CR
        ):
            return [chunk[:end]]  # the usual case: one write of the server is one line
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if not self._rest and len(chunk) <= self.max_bytes and _CR not in chunk:
            whole = [line for line in lines if line and not line.isspace()]
        else:
            if self._rest:
                lines[0] = self._join(lines[0])
            whole = [kept for line in lines if (kept := self._checked(line))]
        self._grow(rest)
        return whole

    def flush(self) -> bytes:
        """The line that the end of the stream cut off, or `b""`; the framer is empty afterwards."""
        return self._checked(self._join(b""))

    def _grow(self, chunk: bytes) -> None:
        if self._dropping:
            return
        # One byte more than the limit may still be the \r of a line end.
        if len(self._rest) + len(chunk) <= self.max_bytes + 1:
            self._rest += chunk
            return
        self._count(bytes(self._rest[:HEAD_BYTES]) + chunk[:HEAD_BYTES])
        self._dropping = True
        self._rest = bytearray(b"-")  # not empty, so that the usual case need not ask for `_dropping`

    def _join(self, end: bytes) -> bytes:
        """The line begun in earlier chunks, now that its end has come; empty when it was dropped."""
        if self._dropping:
            self._dropping = False
            self._rest.clear()
            return b""
        self._rest += end
        line = bytes(self._rest)
        self._rest = bytearray()
        return line

    def _checked(self, line: bytes) -> bytes:
        """The line without its `\\r`; empty when it is blank or too long."""
        if line.endswith(b"\r"):
            line = line[:-1]
        if len(line) > self.max_bytes:
            self._count(line)
            return b""
        return b"" if line.isspace() else line

    def _count(self, start: bytes) -> None:
        self.oversized += 1
        self.oversized_head = start[: min(HEAD_BYTES, self.max_bytes)]
