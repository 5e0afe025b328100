"""What a window or a live view looks at, under one face: a proxy or recorder of this process, or an attached one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mcpdiag.samples.recorder import Recorder
from mcpdiag.samples.remote import Remote
from mcpdiag.samples.schema import SCHEMA, FrameName
from mcpdiag.serve import BackgroundProxy, Proxy

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

Places = Mapping[FrameName, int]
Stats = Mapping[str, Any]


class Piece(NamedTuple):
    """Rows of a frame that are new.

    Attributes:
        build: makes the DataFrame. The rows are a copy already: later ones are not in it.
        rows: how many.
        next: the number of the first row that is not in it.
        missed: rows that were overwritten before this look.
        restarted: the proxy was restarted since the last look; the rows are all of the new run.
    """

    build: Callable[[], DataFrame]
    rows: int
    next: int
    missed: int = 0
    restarted: bool = False


class Source:
    """A proxy or recorder of this process.

    Args:
        recorder: whose rows are looked at.
        stats: gives the numbers of this moment; a recorder alone has none.
    """

    def __init__(self, recorder: Recorder, stats: Callable[[], Stats] | None) -> None:
        self._recorder = recorder
        self._stats = stats

    def places(self) -> Places:
        """The number that the next row of each frame gets."""
        return self._recorder.written

    def piece(self, name: FrameName, since: int) -> Piece:
        """The rows from number `since` on."""
        rows = self._recorder.rows(name, since)

        def build() -> DataFrame:
            from mcpdiag.samples.frame import build

            return build(name, rows)

        return Piece(build, len(rows), rows.stop, missed=rows.start - since if rows.start > since else 0)

    def run(self) -> object:
        """Which run of the proxy was seen last; another one after a restart."""
        return self._recorder

    def stats(self) -> Stats | None:
        """Sessions, calls in flight, every pool's numbers; None if nobody knows."""
        return None if self._stats is None else self._stats()

    def gone(self) -> str:
        """Why nothing will come any more; empty while something may."""
        return "the proxy has stopped" if self._recorder.closed else ""

    def is_of(self, other: object) -> bool:
        """Whether both look at the same thing."""
        return isinstance(other, Source) and other._recorder is self._recorder


class Attached(Source):
    """A proxy of another process. Each look may raise AttachError."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote.quiet()

    def places(self) -> Places:
        return self._remote.written

    def run(self) -> object:
        return self._remote.run

    def piece(self, name: FrameName, since: int) -> Piece:
        frame, following, restarted = self._remote.piece(name, since)
        missed = 0 if restarted else following - len(frame) - since
        return Piece(lambda: frame, len(frame), following, max(missed, 0), restarted)

    def stats(self) -> Stats:
        return self._remote.stats()

    def gone(self) -> str:
        return ""

    def is_of(self, other: object) -> bool:
        return isinstance(other, Attached) and other._remote.url == self._remote.url


def source_of(thing: object, wanted_by: str) -> Source:
    """What there is to look at in a thing.

    Raises:
        TypeError: nothing.
        RuntimeError: it is a proxy that records nothing.
    """
    if isinstance(thing, BackgroundProxy | Proxy):
        return Source(thing.recorder, thing.stats)
    if isinstance(thing, Recorder):
        return Source(thing, None)
    if isinstance(thing, Remote):
        return Attached(thing)
    raise TypeError(
        f"{wanted_by} looks at a proxy, a recorder, or what mcpdiag.attach has returned; found {_kind(thing)}"
    )


def _kind(thing: object) -> str:
    name = type(thing).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


NOTHING: Places = dict.fromkeys(SCHEMA, 0)
