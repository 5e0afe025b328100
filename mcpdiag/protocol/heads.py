"""Heads of HTTP/1.1 messages that came before: clients and servers send the same ones again, byte for byte.

One connection keeps its own few, so what one peer sends never decides how another's message is read.
"""

from __future__ import annotations

from typing import Final, TypeVar

KNOWN_HEADS: Final = 4
NO_BODY: Final = frozenset({204, 304})  # statuses; whatever Content-Length says (RFC 9112, section 6.3)
END: Final = b"\r\n\r\n"
T = TypeVar("T")


class Heads(dict[bytes, T]):
    """What the newest heads said, by their bytes with the blank line.

    Args:
        longest: bytes of a head that is kept.
    """

    __slots__ = ("_longest",)

    def __init__(self, longest: int) -> None:
        super().__init__()
        self._longest = longest

    def keep(self, data: bytes, length: int, said: T) -> None:
        """Keep what the head at the beginning of `data` said, whose body of `length` bytes has come at most.

        It is not kept if it is too long, not whole, or has lines that end in another way than CRLF.
        """
        end = data.find(END) + len(END)
        plain = data.count(b"\n", 0, end) == data.count(b"\r\n", 0, end)
        if len(END) <= end <= self._longest and len(data) - end <= length and plain:
            if len(self) >= KNOWN_HEADS:
                self.clear()
            self[data[:end]] = said
