"""The cancel scope of an exchange: what anyio's does, as far as one exchange needs it, at a tenth of the price.

anyio's scope costs 9 us a use (creation, a timer, four look-ups), a third of the proxy's own time for a small
exchange. Here the scopes of an event loop share one timer that looks at all of them every `TICK`, so a deadline is
met up to that much late. A scope cancels its task once and not again, so that clean-up may wait. On trio, and
wherever there is no asyncio, it is anyio's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self
from weakref import WeakKeyDictionary, ref

import anyio

TICK = 0.05  # seconds


class Scope(Protocol):
    """What an exchange uses of a cancel scope. `deadline` is on the event loop's clock."""

    deadline: float

    @property
    def cancelled_caught(self) -> bool:
        """After the block: whether it ended by this scope's cancellation."""

    def cancel(self) -> None:
        """Cancel what runs inside."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


def open_scope(deadline: float) -> Scope:
    """A scope for the task that enters it, which ends at `deadline` of the event loop's clock."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return anyio.CancelScope(deadline=deadline)
    return _TaskScope(deadline, _latest[1] if _latest[0]() is loop else _watch_of(loop))


class _TaskScope:
    __slots__ = ("_cancelled", "_task", "_uncounted", "_watch", "cancelled_caught", "deadline")

    def __init__(self, deadline: float, watch: _Watch) -> None:
        self.deadline = deadline
        self.cancelled_caught = False
        self._cancelled = False
        self._task: asyncio.Task[object] | None = None
        self._uncounted = 0
        self._watch = watch

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            if self._task is not None:
                self._task.cancel()

    def __enter__(self) -> Self:
        task = self._task = asyncio.current_task()
        assert task is not None
        self._uncounted = task.cancelling()
        self._watch.add(self)
        if self._cancelled:
            task.cancel()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        task, self._task = self._task, None
        self._watch.scopes.discard(self)
        if not self._cancelled:
            return False
        assert task is not None
        # Somebody else may have cancelled the task as well (the server, at shutdown): that goes on outwards.
        if (
            task.uncancel() <= self._uncounted
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            self.cancelled_caught = True
        return self.cancelled_caught


class _Watch:
    """All open scopes of one event loop, and the timer that runs while there are any. It does not hold the loop."""

    def __init__(self) -> None:
        self.scopes: set[_TaskScope] = set()
        self._ticking = False

    def add(self, scope: _TaskScope) -> None:
        self.scopes.add(scope)
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for scope in [scope for scope in self.scopes if scope.deadline <= now]:
            scope.cancel()
        self._ticking = bool(self.scopes)
        if self._ticking:
            loop.call_later(TICK, self._tick)


def _watch_of(loop: asyncio.AbstractEventLoop) -> _Watch:
    global _latest
    watch = _watches.get(loop)
    if watch is None:
        watch = _watches[loop] = _Watch()
    _latest = (ref(loop), watch)
    return watch


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch] = WeakKeyDictionary()
# The same again for the loop that asked last: looking it up there takes as long as the rest of a scope.
_latest: tuple[Callable[[], asyncio.AbstractEventLoop | None], _Watch] = (lambda: None, _Watch())
