"""Client sessions: made by `initialize`, ended by DELETE, by idleness, or to make room; and what each has open."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator

import anyio
from anyio.abc import TaskGroup

from mcpdiag.errors import TooManySessions
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.protocol.message import Id, members, text_member
from mcpdiag.protocol.mirror import listen_ended
from mcpdiag.protocol.revisions import KNOWN
from mcpdiag.proxy.request import Reply
from mcpdiag.proxy.store import EventStore
from mcpdiag.upstream.base import Upstream, UpstreamSession
from mcpdiag.upstream.client import Client, Inbox
from mcpdiag.upstream.exchange import Exchange

log = logging.getLogger("mcpdiag.session")
SWEEPS_PER_TIMEOUT = 10


class Session:
    """One client session and its counterpart at the upstream."""

    __slots__ = (
        "at",
        "calls",
        "client",
        "created_at",
        "ended",
        "listens",
        "polls",
        "protocol",
        "replies",
        "store",
        "streams",
        "upstream",
        "used_at",
    )

    def __init__(self, upstream: Upstream, now: float, *, lone: bool = False) -> None:
        self.client = Client("" if lone else secrets.token_hex(16))  # 128 random bits
        self.upstream = upstream
        open_at = upstream.stateless_session if lone else upstream.session
        self.at: UpstreamSession = open_at(self.client)
        self.protocol = ""
        self.created_at = self.used_at = now
        self.calls: dict[Id, Exchange] = {}
        self.streams: set[Inbox] = set()
        self.replies: set[Reply] = set()  # what is being answered: kept alive while it is quiet
        self.store: EventStore | None = None  # from the end of the handshake, if its revision has resumption
        self.polls = False  # whether its revision lets a server send the client away and be polled
        self.listens = False  # whether its one request is a subscription
        self.ended = False

    @property
    def id(self) -> str:
        return self.client.id

    def open(self, reply: Reply, *, patient: bool = False) -> None:
        """A reply is about to be made; `close` follows.

        Args:
            patient: whether it may become a stream because nothing comes for a while.
        """
        self.replies.add(reply)
        reply.patient = patient
        if self.store is not None:
            reply.storage, reply.primed = self.store, self.polls

    def close(self, reply: Reply) -> None:
        """A reply has ended, and with it its stream, if it was one."""
        self.replies.discard(reply)
        if reply.stored is not None:
            reply.stored.close()

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
        max_events: how many events each session keeps for clients that resume a stream (`proxy/store.py`).
        max_event_bytes: their size together.
    """

    def __init__(
        self,
        *,
        max_sessions: int = 1000,
        idle_timeout: float = 30 * 60.0,
        keepalive: float = 15.0,
        max_events: int = 1000,
        max_event_bytes: int = 8 * 1024 * 1024,
        hook: Hook = NO_HOOK,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self.max_sessions = max_sessions
        self.idle_timeout = idle_timeout
        self.keepalive = keepalive
        self.max_events = max_events
        self.max_event_bytes = max_event_bytes
        self.clock = clock
        self._hook = hook
        self._sessions: dict[str, Session] = {}
        self._starting: set[Session] = set()
        self._dropped = 0  # in sessions that have ended
        self._lone: set[Session] = set()
        self._leaving: set[Session] = set()  # to be closed by `run`
        self._left = anyio.Event()
        self._ending = anyio.create_memory_object_stream[Session](float("inf"))

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def events_dropped(self) -> int:
        """Events of streams that sessions could not keep for clients that come back, since the start."""
        stores = [session.store for session in self._sessions.values()]
        return self._dropped + sum(store.dropped for store in stores if store is not None)

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

    def agreed(self, session: Session, answer: bytes) -> None:
        """The handshake of a session is over: from now on it speaks the revision that the answer names."""
        session.protocol = (
            text_member(members(answer).get("result", b""), "protocolVersion") or session.protocol
        )
        revision = KNOWN.get(session.protocol)
        if revision is not None and revision.resumption:
            session.store = EventStore(max_events=self.max_events, max_bytes=self.max_event_bytes)
            session.polls = revision.priming

    @contextlib.contextmanager
    def lone(self, upstream: Upstream, *, listens: bool = False) -> Iterator[Session]:
        """What stands for a session around one message of the stateless era: nobody can name it, nothing limits it.

        Args:
            listens: whether the message is a subscription, which nobody waits for when the proxy closes.
        """
        session = Session(upstream, self.clock(), lone=True)
        session.listens = listens
        self._lone.add(session)
        try:
            yield session
        finally:
            self._lone.discard(session)

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
                self._leaving.add(session)

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
        if session.store is not None:
            self._dropped += session.store.dropped
        for inbox in session.streams:
            inbox.close()
        for exchange in [*session.calls.values()]:
            exchange.cancel(f"the session was {why}")
        self._hook.emit(Happened("session_end", session.upstream.name, session.id, why))
        return True

    # -- tasks --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """End sessions, sweep idle ones, keep quiet streams alive, until `stop`."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._sweep)
                tasks.start_soon(self._pulse, tasks)
                async with self._ending[1] as ending:
                    async for session in ending:
                        tasks.start_soon(self._close, session)
                tasks.cancel_scope.cancel()
        finally:
            self._leaving.clear()
            self._left.set()

    def stop(self) -> None:
        """End `run`."""
        self._ending[0].close()

    async def _close(self, session: Session) -> None:
        try:
            await session.at.aclose()
        except Exception:
            log.exception("ending session %s at '%s' failed", session.id, session.upstream.name)
        finally:
            self._leaving.discard(session)
            self._left.set()

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(min(self.idle_timeout / SWEEPS_PER_TIMEOUT, 30.0))
            limit = self.clock() - self.idle_timeout
            for session in [s for s in self._sessions.values() if not s.busy and s.used_at <= limit]:
                self.end_soon(session, "idle for too long")

    async def _pulse(self, tasks: TaskGroup) -> None:
        while True:
            await anyio.sleep(min(self.keepalive / 3, 1.0))
            now = self.clock()
            for session in (*self._sessions.values(), *self._starting, *self._lone):
                for reply in session.replies:
                    if reply.quiet_since is None:
                        reply.quiet_since = now
                    elif now - reply.quiet_since >= self.keepalive:
                        reply.quiet_since = now
                        tasks.start_soon(reply.keep_alive)  # a client that does not read holds up nobody else
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
        for session in self._lone:
            if session.listens:
                for exchange in session.calls.values():
                    exchange.finish(listen_ended(bytes(exchange.message.id)), is_error=False)

    def calls_in_flight(self) -> int:
        lone = sum(len(session.calls) for session in self._lone if not session.listens)
        return lone + sum(len(session.calls) for session in (*self._sessions.values(), *self._starting))

    async def close_all(self, why: str) -> None:
        """End every session and every request that has none, together, and wait for those that are ending already."""
        for lone in self._lone:
            lone.ended = True
            for exchange in [*lone.calls.values()]:
                exchange.cancel(f"the proxy was {why}")
        sessions = [*self._sessions.values(), *self._starting]
        async with anyio.create_task_group() as tasks:
            for session in sessions:
                if self._forget(session, why):
                    tasks.start_soon(self._close, session)
        while self._leaving:
            self._left = anyio.Event()
            await self._left.wait()
