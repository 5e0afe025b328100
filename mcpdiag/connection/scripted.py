"""A test double for pools: connections that play a script and remember what was done to them.

It is public, for whoever tests a pool of their own or an application on top of one:

    server = ScriptedServer(Script(open_s=0.2), Script(open_error=ConnectError("refused")), Script(capacity=4))
    pool = Pool("demo", server.connect)
    ...
    assert server.opened[0].closes == ["nice"]

No process and no socket is involved. All times are waited for with `anyio.sleep`, so trio's `MockClock` skips them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import anyio
import anyio.lowlevel


@dataclass(frozen=True, kw_only=True)
class Script:
    """How one open goes, and how the connection behaves that comes of it.

    Args:
        open_s: seconds that the open takes; `inf` never ends.
        open_error: what the open raises in the end, instead of returning a connection.
        capacity: exchanges that the connection carries at once.
        exchanges: how many it carries in all; it is unhealthy from then on. None: any number.
        single_shot: it ends in good order after one exchange, and says so.
        close_s: seconds that a nice close takes; `inf` hangs until it is cancelled or a forced one comes.
        close_error: what a nice close raises in the end.
        force_s: seconds that a forced close takes; `inf` hangs until it is cancelled.
        force_error: what a forced close raises in the end.
    """

    open_s: float = 0.0
    open_error: BaseException | None = None
    capacity: int = 1
    exchanges: int | None = None
    single_shot: bool = False
    close_s: float = 0.0
    close_error: BaseException | None = None
    force_s: float = 0.0
    force_error: BaseException | None = None


class ScriptedConnection:
    """One connection that plays a script. `number` counts from 0 in the order of opening."""

    def __init__(self, script: Script = Script(), number: int = 0) -> None:
        self.script = script
        self.number = number
        self.inflight = 0
        self.carried = 0  # exchanges that began
        self.most_inflight = 0
        self.lost = False
        self.closes: list[Literal["nice", "force"]] = []  # every call of aclose, in order
        self.closed = anyio.Event()
        self._forced = anyio.Event()

    # -- what a pool asks ----------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        return self.script.capacity

    @property
    def healthy(self) -> bool:
        return not self.lost and not self.closes

    @property
    def single_shot(self) -> bool:
        return self.script.single_shot and self.carried > 0 and not self.inflight

    async def aclose(self, *, force: bool = False) -> None:
        """Close as the script says. A forced close ends a nice one that is under way."""
        script = self.script
        self.closes.append("force" if force else "nice")
        if force:
            await anyio.sleep(script.force_s)
            self._forced.set()
            error = script.force_error
        else:
            await anyio.lowlevel.checkpoint()
            if script.close_s:
                with anyio.move_on_after(script.close_s):
                    await self._forced.wait()
            error = None if self._forced.is_set() else script.close_error
        if error is not None:
            raise error
        self.closed.set()

    # -- what a test does ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """Carry one exchange for as long as the block runs.

        Raises:
            AssertionError: more than `capacity` at once, or the connection had ended before.
        """
        assert self.healthy, f"an exchange was begun on {self!r}"
        assert self.inflight < self.capacity, f"one exchange too many was begun on {self!r}"
        self.inflight += 1
        self.carried += 1
        self.most_inflight = max(self.most_inflight, self.inflight)
        try:
            yield
        finally:
            self.inflight -= 1
            most = 1 if self.script.single_shot else self.script.exchanges
            if most is not None and self.carried >= most:
                self.lose()

    def lose(self) -> None:
        """The server ends the connection: it is unhealthy from now on."""
        self.lost = True

    @property
    def state(self) -> Literal["open", "lost", "closing", "closed"]:
        """In one word, what became of it."""
        if self.closed.is_set():
            return "closed"
        if self.closes:
            return "closing"
        return "lost" if self.lost else "open"

    def __repr__(self) -> str:
        return (
            f"<ScriptedConnection {self.number} {self.state}, {self.inflight} of {self.capacity} exchanges>"
        )


class ScriptedServer:
    """What a pool connects to: plays one script for each open, in order, and repeats the last one for ever.

    `connect` is the opener to give to a pool. `attempts` counts its calls, `opened` holds every connection that
    it returned, in order.
    """

    def __init__(self, *scripts: Script) -> None:
        self.scripts = [*scripts] or [Script()]
        self.attempts = 0
        self.opened: list[ScriptedConnection] = []

    async def connect(self) -> ScriptedConnection:
        """Open the next connection, as its script says."""
        script = self.scripts[min(self.attempts, len(self.scripts) - 1)]
        self.attempts += 1
        await anyio.sleep(script.open_s)
        if script.open_error is not None:
            raise script.open_error
        connection = ScriptedConnection(script, len(self.opened))
        self.opened.append(connection)
        return connection

    @property
    def open(self) -> list[ScriptedConnection]:
        """The connections that were opened and not yet closed."""
        return [connection for connection in self.opened if not connection.closed.is_set()]

    def __repr__(self) -> str:
        return f"<ScriptedServer {len(self.open)} open, {len(self.opened)} opened, {self.attempts} attempts>"
