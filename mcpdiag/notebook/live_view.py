"""A view of a proxy that keeps itself up to date below its cell, from a thread of its own.

A task in the kernel's loop would stand still while a cell computes or sleeps. The thread prints nothing and updates the
display of its own cell by that display's id, so that nothing of it lands below another one.
"""

from __future__ import annotations

import atexit
import threading
import time
from base64 import b64encode
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from IPython.core.getipython import get_ipython

from mcpdiag.errors import AttachError
from mcpdiag.html import line, number, table
from mcpdiag.notebook.source import Source, source_of

if TYPE_CHECKING:
    from mcpdiag.notebook.history import History, Moment

SHORTEST: Final = 0.2  # seconds between two looks
DRAWING: Final = 0.15  # of a processor, at most
STOP_LIMIT: Final = 5.0  # seconds for the tick that is under way
_views: list[LiveView] = []


class LiveView:
    """A live view; `live` makes them.

    Attributes:
        running: whether it still looks.
        why: why it has stopped; empty while it runs.
        looks, updates: how often it has looked, and how often there was something new to show.
    """

    def __init__(
        self, source: Source, history: History, *, every: float, patience: float, shell: Any, plot: bool
    ) -> None:
        self.every = every
        self.why = ""
        self.looks = self.updates = 0
        self._source = source
        self._history = history
        self._patience = patience
        self._shell = shell
        self._cell = shell.execution_count
        # Kept: `%%capture` puts another one in its place, and would get what belongs below this cell.
        self._publisher = shell.display_pub
        self._display_id = uuid4().hex
        self._plot = plot
        self._moment: Moment | None = None
        self._png = b""
        self._draw_at = 0.0
        self._undrawn = False
        self._trouble = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mcpdiag-live", daemon=True)

    @property
    def running(self) -> bool:
        return not self.why

    def start(self) -> None:
        """Look and show once, here; then go on in the thread. Raises AttachError, ImportError."""
        self._look()
        self._show(update=False)
        _views.append(self)
        atexit.register(self.stop)
        self._thread.start()

    def stop(self, why: str = "by stop()") -> None:
        """Look no more; what was seen last stays. Idempotent."""
        atexit.unregister(self.stop)
        self._finish(why)
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(STOP_LIMIT)

    def _finish(self, why: str) -> None:
        if self._end.is_set():
            return
        self.why = why
        self._end.set()
        if self in _views:
            _views.remove(self)
        self._show(update=True)

    # -- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        due = time.monotonic() + self.every
        lost_at: float | None = None
        while not self._end.wait(max(0.0, due - time.monotonic())):
            due = max(due + self.every, time.monotonic() + self.every / 2)  # a late tick is not made up for
            try:
                gone = self._source.gone()  # before the look, which then misses nothing
                news = self._look()
                if self._trouble:
                    news, self._trouble, lost_at = True, "", None
            except AttachError as error:
                lost_at = lost_at or time.monotonic()
                gone = str(error) if time.monotonic() - lost_at >= self._patience else ""
                news, self._trouble = self._trouble != str(error), str(error)
            except Exception as error:  # words below the view, never a traceback below another cell
                gone, news = f"{type(error).__name__}: {error}", False
            if gone:
                self._trouble = ""
                atexit.unregister(self.stop)
                self._finish(gone)
            elif news and not self._end.is_set():
                self._show(update=True)

    def _look(self) -> bool:
        """Whether there is anything new to show."""
        before, self._moment = self._moment, self._history.look()
        self.looks += 1
        now = self._moment
        if before is not None and not now.calls and not before.calls:
            same = (now.inflight, now.pools, now.restarts) == (before.inflight, before.pools, before.restarts)
            if same:
                self._moment = before
                return self._undrawn and self._draw()
        self._draw()
        return True

    def _draw(self) -> bool:
        """Draw again, if that is due: drawing takes the kernel's processor, so it gets a part of the time only."""
        began = time.monotonic()
        if not self._plot or began < self._draw_at:
            self._undrawn = self._plot
            return False
        from mcpdiag.notebook.picture import picture

        cpu = time.thread_time()
        self._png = picture(self._history.requests, self._history.pool)
        self._undrawn = False
        self._draw_at = began + (time.thread_time() - cpu) / DRAWING
        return True

    # -- what is shown ------------------------------------------------------------------------------------

    def _show(self, *, update: bool) -> None:
        self.updates += 1
        self._publisher.publish(
            data={"text/html": self._html(), "text/plain": self._words()},
            metadata={},
            transient={"display_id": self._display_id},
            update=update,
        )

    def _words(self) -> str:
        now = self._moment
        assert now is not None
        state = f"; {self.why or self._trouble}" if self.why or self._trouble else ""
        return (
            f"{number(now.per_s)} calls a second, p50 {number(now.p50_ms)} ms, p95 {number(now.p95_ms)} ms, "
            f"{now.errors:,} errors{state}"
        )

    def _html(self) -> str:
        now, window = self._moment, self._history.window
        assert now is not None
        shown = f"{datetime.now(UTC):%H:%M:%S} UTC"
        state = f"{self.why}; last change" if self.why else f"looks every {self.every:g} s; last change"
        parts = [line(f"{state} {shown}", strong="stopped:" if self.why else "live:")]
        if self._trouble:
            parts.append(line(self._trouble))
        if now.restarts:
            parts.append(line("the proxy was restarted; everything is counted anew"))
        headings = ("", "calls per s", "p50 ms", "p95 ms", "errors", "calls", "in flight")
        inflight = "-" if now.inflight is None else now.inflight
        parts.append(
            table(
                headings,
                [
                    ("since the last look", now.per_s, now.p50_ms, now.p95_ms, now.errors, now.calls, inflight),
                    (f"last {window:g} s", now.window_per_s, now.window_p50_ms, now.window_p95_ms, now.window_errors, now.window_calls, ""),
                ],
            )
        )  # fmt: skip
        parts.append(table(("pool", "busy", "idle", "opening", "waiting", "max"), now.pools))
        if now.missed:
            parts.append(line(f"{now.missed:,} calls were overwritten before this look; look more often"))
        if self._png:
            if self._history.one_in > 1:
                parts.append(
                    line(
                        f"p50 and p95 of the last {window:g} s, and the picture, are of one call in {self._history.one_in}"
                    )
                )
            parts.append(
                f'<img alt="latency and pool of the last {window:g} s" style="max-width:100%" src="data:image/png;base64,{b64encode(self._png).decode()}">'
            )
        return "".join(parts)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'running' if self.running else self.why}: {self._words()}>"

    def _ipython_display_(self) -> None:
        """As the last line of its own cell it is shown already; in another one it shows what it has seen last."""
        if self._shell.execution_count != self._cell:
            self._publisher.publish(data={"text/html": self._html(), "text/plain": repr(self)}, metadata={})


def live(
    source: object, *, every: float = 1.0, window: float = 60.0, plot: bool = True, patience: float = 10.0
) -> LiveView:
    """Show what a proxy does now, below this cell, while other cells run. `stop()` ends it, a stopped proxy too.

    Args:
        source: a proxy, its recorder, or what `mcpdiag.attach` has returned. Another view of the same one is stopped.
        every: seconds between two looks, at least 0.2. A look that finds nothing new updates nothing.
        window: seconds that the picture and the second line of the table are of.
        plot: draw latency and pool; needs matplotlib.
        patience: seconds that an attached proxy may be out of reach before the view stops.

    Raises:
        TypeError: there is nothing to look at in `source`.
        ValueError: `every` or `window` is too short.
        AttachError: the attached proxy cannot be reached.
        RuntimeError: this is no Jupyter kernel, or the proxy records nothing.
        ImportError: pandas or matplotlib is missing; the message says what to install.
    """
    if every < SHORTEST or window < 2 * every:
        raise ValueError(
            f"found every={every:g}, window={window:g}; a look takes at least {SHORTEST:g} s, a window two of them"
        )
    looked_at = source_of(source, "live")
    shell: Any = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        raise RuntimeError("a live view needs a Jupyter notebook; in a terminal use `mcpdiag top URL`")
    from mcpdiag.notebook.history import History

    for other in [each for each in _views if each._source.is_of(looked_at)]:
        other.stop("another view looks at the same proxy now")
    history = History(looked_at, window=window)
    view = LiveView(looked_at, history, every=every, patience=patience, shell=shell, plot=plot)
    view.start()
    return view
