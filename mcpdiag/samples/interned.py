"""Texts as small numbers, in bounded tables: what a ring keeps of its categories."""

from __future__ import annotations

from typing import NamedTuple

OTHER = "(other)"
LONGEST = 256  # characters of a category; a client may name a tool or resource as it likes


def clean(text: str, longest: int = LONGEST) -> str:
    """The text, cut, and without what UTF-8 cannot carry: JSON can write half of a surrogate pair."""
    return text[:longest].encode(errors="replace").decode()


class Lookup(NamedTuple):
    """A copy of a table. The text of a number is `names[number % len(names)]`; below `oldest`, `(other)`."""

    names: list[str]
    oldest: int = 0


class First:
    """Numbers for texts, of the first `limit - 1` different ones; all others are 0, which is `(other)`.

    `table[text]` adds a new one. Junk that a client sends cannot push out what was there before.

    Attributes:
        known: the numbers so far, a plain dict, whose lookups take half the time of a subclass's.
    """

    def __init__(self, limit: int) -> None:
        self.known: dict[str, int] = {OTHER: 0}
        self._limit = limit
        self._names = [OTHER]

    def __getitem__(self, text: str) -> int:
        text = clean(text)
        number = self.known.get(text)
        if number is None:
            if len(self._names) >= self._limit:
                return 0
            number = len(self._names)
            self._names.append(text)
            self.known[text] = number
        return number

    def lookup(self) -> Lookup:
        return Lookup(self._names.copy())


class Recent:
    """Numbers for texts that come and go, as session ids do: the newest `limit` are known, older ones `(other)`.

    A text that was pushed out and comes again is a new one.

    Attributes:
        known: as of `First`.
    """

    def __init__(self, limit: int) -> None:
        self.known: dict[str, int] = {}
        self._limit = limit
        self._slots = (
            limit + 1
        )  # as in `Ring`: what is being written takes the place of nothing that is known
        self._names: list[str] = []
        self._count = 0

    def __getitem__(self, text: str) -> int:
        text = clean(text)
        number = self.known.get(text)
        if number is None:
            number = self._count
            if number < self._slots:
                self._names.append(text)
            else:
                slot = number % self._slots
                del self.known[self._names[slot]]
                self._names[slot] = text
            self.known[text] = number
            self._count = number + 1
        return number

    def lookup(self) -> Lookup:
        names = self._names.copy()
        return Lookup(names, max(0, self._count - self._limit))
