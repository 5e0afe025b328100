"""Heap windows to look at: those of a recorder, of a capture, or of a proxy elsewhere. `Heap` opens new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from mcpdiag.errors import McpDiagError
from mcpdiag.samples.heap_records import KINDS

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame


class HeapWindows:
    """The heap windows of some samples: `samples.heap`.

    heap.frame                          the frame `heap`, a row a call site, kind and window
    heap.windows                        their names, the oldest first
    heap.diff("steady", "later")        what two of them held, by call site and request

    Args:
        frame: gives the frame `heap`.
        dropped: how many of its rows were overwritten.
    """

    def __init__(self, frame: Callable[[], DataFrame], dropped: Callable[[], int]) -> None:
        self._frame = frame
        self._dropped = dropped

    @property
    def frame(self) -> DataFrame:
        """The frame `heap`, the same as `samples.frame("heap")`. Needs pandas."""
        return self._frame()

    @property
    def windows(self) -> list[str]:
        """The names of the windows, the oldest first."""
        rows = self.frame[["ts", "upstream", "window"]].drop_duplicates()
        return [str(name) for name in rows["window"]]

    def diff(
        self, a: str, b: str, *, kind: str = "leaked", per_request: tuple[int, int] | None = None
    ) -> DataFrame:
        """What two windows held, by call site, all allocators of a site together.

        It compares two windows; it does not find leaks: in a short window a cache that turns over looks the same.
        A site that only one of the windows has among its largest counts as 0 in the other.

        Args:
            a, b: names of windows; of several with one name the newest.
            kind: `leaked` or `high_watermark`.
            per_request: requests served in `a` and in `b`, each at least 1; what the windows have counted, if not
                given.

        Returns:
            a row a site: `function file line`, `size_bytes_a n_allocations_a size_bytes_b n_allocations_b`,
            `size_bytes n_allocations` (b less a), `bytes_per_request_a bytes_per_request_b
            growth_bytes_per_request` (NaN where a window had no request), `stack`. What grew most comes first.

        Raises:
            KeyError: no whole window of that name is there.
            ValueError: no such kind, or a number of requests below 1.
        """
        if kind not in KINDS:
            raise ValueError(f"found kind {kind!r}; allowed: {', '.join(KINDS)}")
        if per_request is not None and min(per_request) < 1:
            raise ValueError(f"found per_request {per_request}; both windows need at least 1 request")
        from mcpdiag.samples.heap_frame import difference, named

        cut = self._dropped() > 0  # before the frame: rows that are overwritten in between are not in it
        frame = self.frame
        return difference(named(frame, a, cut=cut), named(frame, b, cut=cut), kind, per_request)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}; the DataFrame is .frame>"

    def _repr_html_(self) -> str | None:
        """As the frame; None, which is the repr, where it cannot be had."""
        try:
            html: str | None = self.frame._repr_html_()  # type: ignore[operator]  # pandas has it, its stubs do not
        except (ImportError, McpDiagError):
            return None
        return html

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(
                f"heap windows have no {name!r}; the DataFrame is .frame", name=name, obj=self
            )
