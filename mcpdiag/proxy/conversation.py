"""A client with one stream of messages each way, over stdio or HTTP+SSE: its session and all that passes through it.

`stdio.py` and `legacy.py` bring the streams; everything that such clients have in common is here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import anyio
from anyio.abc import TaskGroup

from mcpdiag.errors import INVALID_REQUEST, METHOD_NOT_FOUND, ClientError, McpDiagError
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.protocol.message import Message, encode_error, encode_result, members, text_member
from mcpdiag.protocol.revisions import KNOWN
from mcpdiag.proxy import forward
from mcpdiag.proxy.gate import Gate
from mcpdiag.proxy.handshake import new_exchange, tell
from mcpdiag.proxy.message_reply import MessageReply, Outlet, relayable
from mcpdiag.proxy.session import Sessions
from mcpdiag.upstream.base import Upstream
from mcpdiag.upstream.client import Inbox
from mcpdiag.upstream.exchange import Exchange

log = logging.getLogger("mcpdiag.proxy")
MAX_CALLS = 1000  # in flight for one client; the next message is taken when one of them has ended
WAITING = 16  # messages that have come and not been taken yet


class Conversation:
    """One client and its session; `conversation` opens and ends it.

    Attributes:
        session: admitted from the start, so it lives as long as this.
        ending: set when the session has been told to end: by the proxy, or by its server.
        heard_out: set when the client will say no more, and what it said has been taken.
    """

    def __init__(
        self, upstream: Upstream, sessions: Sessions, gate: Gate, outlet: Outlet, *, hook: Hook = NO_HOOK
    ) -> None:
        self.session = sessions.begin(upstream)
        self.ending, self.heard_out = anyio.Event(), anyio.Event()
        self._sessions = sessions
        self._gate = gate
        self._outlet = outlet
        self._hook = hook
        self._tasks: TaskGroup | None = None
        self._mail = anyio.create_memory_object_stream[tuple[Message, int, bool]](WAITING)
        self._told = anyio.create_memory_object_stream[Message](WAITING)
        self._running: set[Exchange] = set()
        self._slots = anyio.Semaphore(MAX_CALLS)
        self._quiet = anyio.Event()
        self._initialized = self._listening = False
        # While it is among the streams of the session, that is neither idle nor evicted; `close` ends everything.
        self._life = Inbox()
        self.session.streams.add(self._life)
        sessions.admit(self.session)

    def start(self, tasks: TaskGroup) -> None:
        """Begin to take messages, in tasks of this group."""
        self._tasks = tasks
        tasks.start_soon(self._until_the_end)
        tasks.start_soon(self._take_all)
        tasks.start_soon(self._tell_all)

    def leave(self) -> None:
        """The client is gone: end the session; its calls are cancelled."""
        self._sessions.end_soon(self.session, "left by its client")

    def close(self) -> None:
        """Take no more messages."""
        for stream in (*self._mail, *self._told):
            stream.close()

    async def put(self, message: Message, size: int, *, batched: bool = False) -> bool:
        """A message of the client, `size` bytes long; False if the conversation is over."""
        try:
            await self._mail[0].send((message, size, batched))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return False
        return True

    def hang_up(self) -> None:
        """The client will say no more; what it said is still taken."""
        self._mail[0].close()

    async def over(self) -> None:
        """Return when the session has been told to end and its last call has been answered."""
        await self.ending.wait()
        while self._running:
            self._quiet = anyio.Event()
            await self._quiet.wait()

    async def _until_the_end(self) -> None:
        while await self._life.get():
            pass
        self.ending.set()

    # -- from the client ----------------------------------------------------------------------------------

    async def _take_all(self) -> None:
        async for message, size, batched in self._mail[1]:
            await self._take(message, size, batched=batched)
        self.heard_out.set()

    async def _take(self, message: Message, size: int, *, batched: bool) -> None:
        # A request of revision 2026-07-28 belongs to no session: it is told by the `_meta` of its params and
        # will leave for its own handler here.
        if message.kind == "request":
            await self._request(message, size, batched=batched)
        elif not self._initialized:
            log.debug("%s before initialize is ignored", message.method or "a response")
        elif message.method == "notifications/initialized":  # requests that follow must not overtake it
            await self._tell(message)
        elif message.method == "notifications/cancelled":  # nor may a slow server hold up a cancellation
            self._start(self._tell, message)
        else:
            await self._told[0].send(message)
        if self._initialized and message.method != "initialize" and not self._listening:
            self._listening = True
            self._start(self._listen)

    async def _request(self, message: Message, size: int, *, batched: bool) -> None:
        method, revision = message.method, KNOWN.get(self.session.protocol)
        if batched and (method == "initialize" or revision is None or not revision.batches):
            await self._refuse(message, "a batch is possible only in a session of revision 2025-03-26")
        elif self._gate.closing:
            error = self._gate.error()
            await self._outlet(encode_error(message.id, error.code, error.message, error.to_data()))
        elif method == "initialize":
            await self._initialize(message, size)
        elif self._initialized:
            await self._slots.acquire()
            if (exchange := await self._admit(message, size)) is not None:
                self._start(self._call, exchange)
        elif method == "ping":
            await self._outlet(encode_result(message.id, b"{}"))
        elif method == "server/discover":
            # What a server of the handshake era says; then a client of 2026-07-28 sends `initialize`.
            await self._refuse(message, f"no method {method}", METHOD_NOT_FOUND)
        else:
            await self._refuse(message, f"{method} before initialize; send initialize first")

    async def _refuse(self, message: Message, text: str, code: int = INVALID_REQUEST) -> None:
        await self._outlet(encode_error(message.id, code, text))

    async def _admit(self, message: Message, size: int) -> Exchange | None:
        """The exchange of a request, known from now on, so that a cancellation right behind it finds it."""
        try:
            exchange = new_exchange(self.session, message, size, self._sessions.clock)
        except ClientError as error:  # its id would name the other request
            self._slots.release()
            await self._outlet(encode_error(b"null", error.code, error.message))
            return None
        self.session.calls[message.id_key()] = exchange
        self._running.add(exchange)
        return exchange

    async def _initialize(self, message: Message, size: int) -> None:
        """The client's handshake. What a hasty client sends behind it waits for its end."""
        if self._initialized:
            await self._refuse(message, "the session is initialized already; start another to begin anew")
            return
        session = self.session
        session.client.capabilities = frozenset(members(members(message.params).get("capabilities", b"")))
        session.protocol = text_member(message.params, "protocolVersion")
        await self._slots.acquire()
        exchange = await self._admit(message, size)
        if exchange is None:
            return
        await self._call(exchange)
        if exchange.final is not None and exchange.outcome == "ok":
            self._initialized = True
            self._sessions.agreed(session, exchange.final)
            session.client.protocol = session.protocol.encode()

    async def _call(self, exchange: Exchange) -> None:
        session, retries = self.session, self.session.upstream.config.retries
        reply = MessageReply(self._outlet, exchange.message)
        try:
            await forward.run(session, exchange, reply, self._hook, retries=retries)
            if exchange.outcome == "http_404":  # its server has ended the session, so here it ends too
                self._sessions.end_soon(session, "ended by its server")
        finally:
            self._slots.release()
            self._running.discard(exchange)
            if not self._running:
                self._quiet.set()
            self._gate.left()

    async def _tell_all(self) -> None:
        async for message in self._told[1]:
            await self._tell(message)

    async def _tell(self, message: Message) -> None:
        """Relay what gets no answer; that it failed can be told to nobody but the operator."""
        what = message.method or "a response"
        try:
            answer = await tell(self.session, message)
        except McpDiagError as error:
            log.warning("%s did not reach '%s': %s", what, self.session.upstream.name, error.message)
            return
        if answer.status >= 300:
            log.warning("'%s' refused %s with HTTP %d", self.session.upstream.name, what, answer.status)

    # -- to the client ------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """What the server sends outside of calls."""
        session = self.session
        inbox = Inbox()
        session.streams.add(inbox)
        try:
            answer = await session.at.listen(inbox)
            if answer.events is None:
                log.debug("'%s' has no stream for messages: HTTP %d", session.upstream.name, answer.status)
                return
            async with aclosing(cast("Any", answer.events)) as events:
                async for event in events:
                    if line := relayable(event.data):
                        await self._outlet(line)
        except McpDiagError as error:
            log.warning("the listening stream of '%s' broke off: %s", session.upstream.name, error.message)
        finally:
            session.streams.discard(inbox)

    def _start(self, task: Any, *args: Any) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(task, *args)


@asynccontextmanager
async def conversation(
    upstream: Upstream, sessions: Sessions, gate: Gate, outlet: Outlet, *, hook: Hook = NO_HOOK
) -> AsyncIterator[Conversation]:
    """A conversation with a client; leaving the block ends its session.

    Raises:
        TooManySessions: `max_sessions` are open and all of them are in use.
    """
    talk = Conversation(upstream, sessions, gate, outlet, hook=hook)
    try:
        async with anyio.create_task_group() as tasks:
            talk.start(tasks)
            yield talk
            talk.leave()
            tasks.cancel_scope.cancel()
    finally:
        talk.leave()
        talk.close()
