"""Client sessions: made by `initialize`, ended by DELETE, by idleness, or to make room; and what each has open."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable

import anyio

from mcpdiag.errors import TooManySessions
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.protocol.message import Id
from mcpdiag.upstream.base import Client, Exchange, Inbox, Upstream, UpstreamSession

log = logging.getLogger("mcpdiag.session")
SWEEPS_PER_TIMEOUT = 10


class Session:
    """One client session and its counterpart at the upstream."""

    __slots__ = ("at", "calls", "client", "created_at", "ended", "protocol", "streams", "upstream", "used_at")

    def __init__(self, upstream: Upstream, now: float) -> None:
        self.client = Client(secrets.token_hex(16), now)  # 128 random bits
        self.upstream = upstream
        self.at: UpstreamSession = upstream.session(self.client)
        self.protocol = ""
        self.created_at = self.used_at = now
        self.calls: dict[Id, Exchange] = {}
        self.streams: set[Inbox] = set()
        self.ended = False

    @property
    def id(self) -> str:
        return self.client.id

    @property
    def busy(self) -> bool:
        """Whether a call is in flight or a stream is open: then it is neither idle nor evicted."""
        return bool(self.calls or self.streams)


class Sessions:
    """All sessions of the proxy.

    Args:
        max_sessions: how many may be open at once.
        idle_timeout: seconds without a request, a call in flight or an open stream, after which one is ended.
        keepalive: seconds of silence after which a stream gets a comment.
    """

    def __init__(
        self,
        *,
        max_sessions: int = 1000,
        idle_timeout: float = 30 * 60.0,
        keepalive: float = 15.0,
        hook: Hook = NO_HOOK,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self.max_sessions = max_sessions
        self.idle_timeout = idle_timeout
        self.keepalive = keepalive
        self.clock = clock
        self._hook = hook
        self._sessions: dict[str, Session] = {}
        self._starting: set[Session] = set()
        self._ending = anyio.create_memory_object_stream[Session](float("inf"))

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session_id: str) -> Session | None:
        """The open session with this id; using it makes it young."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.used_at = self.clock()
        return session

    def begin(self, upstream: Upstream) -> Session:
        """A session whose `initialize` is under way; `admit` or `end` follows.

        Raises:
            TooManySessions: `max_sessions` are open and all of them are in use.
        """
        if len(self._sessions) + len(self._starting) >= self.max_sessions and not self.evict(None):
            raise TooManySessions(
                f"{self.max_sessions} sessions are open and none is idle; raise max_sessions, or lower "
                "session_idle_timeout so that abandoned ones go sooner",
                data={"sessions": len(self._sessions)},
            )
        session = Session(upstream, self.clock())
        self._starting.add(session)
        return session

    def admit(self, session: Session) -> None:
        """Its `initialize` was answered: the session is open, unless the proxy closes and has ended it already."""
        self._starting.discard(session)
        if not session.ended:
            self._sessions[session.id] = session

    def evict(self, upstream: Upstream | None) -> bool:
        """End the session that has been idle longest, to make room: among the sessions, or for a connection to
        `upstream`, if one is given; then only a session that holds one is ended.

        Its client gets 404 and starts again, as the specification says.
        """
        sessions = [*self._sessions.values()] if upstream is None else self._holders(upstream)
        idle = [session for session in sessions if not session.busy]
        if not idle:
            return False
        self.end_soon(min(idle, key=lambda session: session.used_at), "evicted to make room")
        return True

    def _holders(self, upstream: Upstream) -> list[Session]:
        """The sessions that keep a connection to themselves; none while one that is shared comes back by itself."""
        stats = upstream.stats()
        if upstream.mode != "session" and stats.pins < stats.max:
            return []
        at = [session for session in self._sessions.values() if session.upstream is upstream]
        holders = [session for session in at if session.at.holds_connection]
        return holders if upstream.mode == "session" or len(holders) >= stats.max else []

    def end_soon(self, session: Session, why: str) -> None:
        """Close a session without waiting: it is unknown from now on, and `run` closes it at its upstream."""
        if self._forget(session, why):
            with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # after `stop`
                self._ending[0].send_nowait(session)

    async def end(self, session: Session, why: str) -> None:
        """Close a session and wait until its upstream has let go."""
        if self._forget(session, why):
            await session.at.aclose()

    def _forget(self, session: Session, why: str) -> bool:
        self._starting.discard(session)
        self._sessions.pop(session.id, None)
        if session.ended:
            return False
        session.ended = True
        for inbox in session.streams:
            inbox.close()
        for exchange in [*session.calls.values()]:
            exchange.cancel(f"the session was {why}")
        self._hook.emit(Happened("session_end", session.upstream.name, session.id, why))
        return True

    # -- tasks --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """End sessions, sweep idle ones, keep quiet streams alive, until `stop`."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._sweep)
            tasks.start_soon(self._pulse)
            async with self._ending[1] as ending:
                async for session in ending:
                    tasks.start_soon(self._close, session)
            tasks.cancel_scope.cancel()

    def stop(self) -> None:
        """End `run`."""
        self._ending[0].close()

    async def _close(self, session: Session) -> None:
        try:
            await session.at.aclose()
        except Exception:
            log.exception("ending session %s at '%s' failed", session.id, session.upstream.name)

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(min(self.idle_timeout / SWEEPS_PER_TIMEOUT, 30.0))
            limit = self.clock() - self.idle_timeout
            for session in [s for s in self._sessions.values() if not s.busy and s.used_at <= limit]:
                self.end_soon(session, "idle for too long")

    async def _pulse(self) -> None:
        while True:
            await anyio.sleep(min(self.keepalive / 3, 1.0))
            now = self.clock()
            for session in self._sessions.values():
                for inbox in (*session.streams, *(exchange.inbox for exchange in session.calls.values())):
                    if now - inbox.touched_at >= self.keepalive:
                        inbox.touched_at = now
                        inbox.nudge()
            self._make_room()

    def _make_room(self) -> None:
        """A caller that had to queue while every session was in use is helped once one is idle."""
        for upstream in {session.upstream for session in self._sessions.values()}:
            stats = upstream.stats()
            if stats.waiting > stats.opening:  # who waits for an open is helped already
                self.evict(upstream)

    # -- shutdown -----------------------------------------------------------------------------------------

    def close_streams(self) -> None:
        """End every listening stream; calls go on."""
        for session in self._sessions.values():
            for inbox in session.streams:
                inbox.close()

    def calls_in_flight(self) -> int:
        return sum(len(session.calls) for session in (*self._sessions.values(), *self._starting))

    async def close_all(self, why: str) -> None:
        """End every session, together."""
        sessions = [*self._sessions.values(), *self._starting]
        async with anyio.create_task_group() as tasks:
            for session in sessions:
                if self._forget(session, why):
                    tasks.start_soon(self._close, session)
