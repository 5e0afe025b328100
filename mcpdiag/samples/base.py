"""What a live recorder and a capture of yesterday have in common: the same frames, under the same names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from mcpdiag.errors import AttachError
from mcpdiag.html import line, table
from mcpdiag.samples.heap_windows import HeapWindows
from mcpdiag.samples.schema import SCHEMA, FrameName

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame


class Samples(ABC):
    """Frames of samples. Their columns, units and meanings are in docs/frames.md and `mcpdiag.samples.schema`.

    Every property builds a new DataFrame, but `heap`, whose DataFrame is `heap.frame`. They need pandas.

    Raises:
        ImportError: pandas is missing; the message says what to install.
    """

    @abstractmethod
    def frame(self, name: FrameName) -> DataFrame:
        """The frame of that name. Raises KeyError if there is none."""

    @property
    @abstractmethod
    def written(self) -> Mapping[FrameName, int]:
        """Rows of each frame since the start, those that were dropped included."""

    @property
    @abstractmethod
    def dropped(self) -> Mapping[FrameName, int]:
        """Rows of each frame that are lost: overwritten by newer ones before anybody read them."""

    @abstractmethod
    def stream(self, name: FrameName, *, every: float = 1.0) -> AsyncIterator[DataFrame]:
        """A frame in pieces, each with rows that no piece before it had."""

    @property
    def requests(self) -> DataFrame:
        """One row an exchange."""
        return self.frame("requests")

    @property
    def pool(self) -> DataFrame:
        """One row a pool and tick."""
        return self.frame("pool")

    @property
    def memory(self) -> DataFrame:
        """One row a process and tick."""
        return self.frame("memory")

    @property
    def heap(self) -> HeapWindows:
        """Heap windows: their DataFrame is `heap.frame`, a row a call site; `heap.diff` compares two of them."""
        return HeapWindows(partial(self.frame, "heap"), lambda: self.dropped["heap"])

    @property
    def events(self) -> DataFrame:
        """One row for whatever happened that is no exchange."""
        return self.frame("events")

    def summary(self) -> DataFrame:
        """Counts, errors, throughput and percentiles of the requests. See `mcpdiag.samples.summary.summarize`."""
        from mcpdiag.samples.summary import summarize

        return summarize(self.requests)

    def __repr__(self) -> str:
        rows = ", ".join(f"{self.written[name] - self.dropped[name]} {name}" for name in SCHEMA)
        lost = ", ".join(f"{number} {name}" for name, number in self.dropped.items() if number)
        return f"<{type(self).__name__} {rows}{f'; dropped {lost}' if lost else ''}>"

    def _repr_html_(self) -> str:
        """Counts, and the summary where pandas is there. What cannot be read is said, not raised."""
        try:
            written, dropped = self.written, self.dropped
            counts = [(name, written[name] - dropped[name], dropped[name]) for name in SCHEMA]
            shown = line("", strong=self._title()) + table(("frame", "rows", "dropped"), counts)
            if not written["requests"]:
                return shown + line("no call yet")
            from mcpdiag.samples.summary import as_html, summarize

            return shown + as_html(summarize(self._to_show(written)))
        except (ImportError, OSError, ValueError, AttachError) as error:
            return line("", strong=self._title()) + line(str(error))

    def _title(self) -> str:
        return type(self).__name__.lower()

    def _to_show(self, written: Mapping[FrameName, int]) -> DataFrame:
        """The requests that a notebook's summary is of."""
        return self.requests
