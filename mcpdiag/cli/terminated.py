"""SIGTERM ends a command as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminated_is_interrupted() -> Iterator[None]:
    """What was measured is kept, no proxy is left behind, and the terminal is given back.

    SIGTERM becomes SIGINT instead of a KeyboardInterrupt where it happens to come: asyncio's runner cancels its task
    on SIGINT, while uvloop logs an exception that comes up in a protocol's callback, and goes on.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
