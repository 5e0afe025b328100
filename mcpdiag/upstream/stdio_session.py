"""One client's session at a stdio server: exchanges over a process of its own, or over shared ones."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import TYPE_CHECKING

import anyio
import msgspec

from mcpdiag.errors import UpstreamClosed
from mcpdiag.hooks import Happened
from mcpdiag.pool.pool import Lease
from mcpdiag.protocol.message import (
    Message,
    encode_notification,
    encode_response,
    encode_result,
    members,
    one_line,
    text_member,
    with_member,
)
from mcpdiag.protocol.revisions import KNOWN
from mcpdiag.protocol.sse import Event
from mcpdiag.upstream.base import Answer
from mcpdiag.upstream.client import Client, Inbox
from mcpdiag.upstream.exchange import Exchange, Phase
from mcpdiag.upstream.journal import STATEFUL, Journal
from mcpdiag.upstream.link import Link

if TYPE_CHECKING:
    from mcpdiag.upstream.processes import Processes


class StdioSession:
    """One client's session at a stdio server."""

    def __init__(self, upstream: Processes, client: Client) -> None:
        self._upstream = upstream
        self._client = client
        self._lease: Lease[Link] | None = None  # its own process: session mode, or pinned
        self._opening = anyio.Lock()
        self._journal = Journal()

    # -- requests -----------------------------------------------------------------------------------------

    async def exchange(self, exchange: Exchange) -> Answer:
        upstream, method = self._upstream, exchange.message.method
        if method == "initialize":
            self._journal.remember(exchange.message)
            if upstream.mode != "session":
                return await self._initialize_shared(exchange)
        owned = upstream.mode == "session" or self._lease is not None or _is_stateful(exchange.message)
        lease = await (self._own(exchange) if owned else self._borrow(exchange))
        link = lease.connection
        exchange.reused = link.router.answered > 0
        line = link.router.open(exchange)
        exchange.on_end = self._finisher(exchange, link, None if owned else lease)
        exchange.sending()
        if method == "initialize":
            return await self._initialize_own(exchange, link, line)
        try:
            await link.connection.send(line)
        except UpstreamClosed:
            raise await link.gone() from None
        return await self._answer(exchange)

    async def _initialize_own(self, exchange: Exchange, link: Link, line: bytes) -> Answer:
        """The client's own handshake is the end of connecting, so `connect_timeout` covers it."""
        link.handshakes += 1
        with self._connecting(exchange):
            try:
                await link.connection.send(line)
            except UpstreamClosed:
                raise await link.gone() from None
            return await self._answer(exchange)
        raise self._upstream.not_ready(link.connection)

    def _connecting(self, exchange: Exchange) -> anyio.CancelScope:
        """A scope that ends after `connect_timeout`, instead of the exchange's own: here one knows the process."""
        exchange.enter(Phase.CONNECT)
        exchange.scope.deadline = exchange.deadline_at
        return anyio.move_on_after(self._upstream.config.timeouts.connect_timeout)

    def _finisher(self, exchange: Exchange, link: Link, lease: Lease[Link] | None) -> Callable[[bool], None]:
        answers = link.connection.answers

        def finish(reusable: bool) -> None:
            if link.router.close(exchange):  # no answer yet: the server need not go on
                # `initialize` must not be cancelled (2025-11-25, cancellation).
                if exchange.message.method != "initialize":
                    link.connection.post(link.router.cancel_line(exchange, exchange.cancel_reason))
                reusable = False
            if lease is None:
                return
            if link.capacity > 1:  # others share it: it goes only if it answered nobody all that time
                link.wedged = not (reusable or exchange.cancelled) and link.connection.answers == answers
                reusable = link.healthy
            if self._upstream.persistent or not reusable:
                lease.release(reusable=reusable)
            else:
                self._upstream.release_settled(lease)

        return finish

    async def _answer(self, exchange: Exchange) -> Answer:
        first = await exchange.inbox.get()
        if not first:
            if exchange.error is not None:
                raise exchange.error
            assert exchange.final is not None
            self._note(exchange)
            exchange.end(reusable=True)
            return Answer(body=exchange.final)
        return Answer(content_type=b"text/event-stream", events=self._stream(exchange, first))

    async def _stream(self, exchange: Exchange, data: bytes) -> AsyncIterator[Event]:
        while data:
            yield Event(data, b"message")
            data = await exchange.inbox.get()
        if exchange.error is not None:
            raise exchange.error
        assert exchange.final is not None
        self._note(exchange)
        exchange.end(reusable=True)
        yield Event(exchange.final, b"message")

    async def _initialize_shared(self, exchange: Exchange) -> Answer:
        """Answer a client's `initialize` from the handshake that the proxy made itself."""
        lease = await self._borrow(exchange)
        try:
            result = lease.connection.result or self._upstream.bare_result
        finally:
            lease.release()
        asked, spoken = (
            text_member(exchange.message.params, "protocolVersion"),
            text_member(result, "protocolVersion"),
        )
        if asked in KNOWN and KNOWN[asked].era == "handshake" and asked < spoken:
            result = with_member(result, "protocolVersion", msgspec.json.encode(asked))
        exchange.finish(encode_result(exchange.message.id, one_line(result)), is_error=False)
        assert exchange.final is not None
        return Answer(body=exchange.final)

    # -- processes ----------------------------------------------------------------------------------------

    async def _borrow(self, exchange: Exchange) -> Lease[Link]:
        """A shared process for one exchange."""
        return self._upstream.pool.try_acquire() or await self._wait(exchange)

    async def _wait(self, exchange: Exchange, *, exclusive: bool = False) -> Lease[Link]:
        exchange.enter(Phase.QUEUE)
        lease = await self._upstream.pool.acquire(exclusive=exclusive)
        exchange.note_wait(lease.waited_s, reused=lease.reused)
        return lease

    async def _own(self, exchange: Exchange) -> Lease[Link]:
        """The session's own process; started again, and told what the session had set, if it has ended."""
        upstream = self._upstream
        lease = self._lease
        if lease is not None and upstream.persistent and lease.connection.healthy:
            return lease
        async with self._opening:
            if (lease := self._lease) is not None:
                began = perf_counter()
                await upstream.settled(lease.connection)
                exchange.note_wait(perf_counter() - began, reused=True)
                if lease.connection.healthy:
                    return lease
                self._drop()
            lease = await self._wait(exchange, exclusive=True)
            link = lease.connection
            link.router.owner = self._client
            try:
                if upstream.mode != "session":
                    lease.pin()
                began = perf_counter()
                await self._catch_up(exchange, link)
                exchange.note_wait(perf_counter() - began, reused=False)
            except BaseException:
                lease.release(reusable=False)
                raise
            self._lease = lease
            return lease

    async def _catch_up(self, exchange: Exchange, link: Link) -> None:
        """Bring a process that replaces one to where that was: the client's handshake, and what it had set."""
        shakes_hands = self._upstream.mode == "session" and exchange.message.method != "initialize"
        if self._upstream.bare or not (shakes_hands or self._journal):
            return
        with self._connecting(exchange):
            if shakes_hands:
                await link.handshake(self._journal.params)
            await self._replay(link)
            return
        raise self._upstream.not_ready(link.connection)

    async def _replay(self, link: Link) -> None:
        for method, params in self._journal.calls():
            await link.call(method, params)
        self._upstream.hook.emit(
            Happened("recover", self._upstream.name, self._client.id, self._upstream.RESTARTED)
        )

    def _note(self, exchange: Exchange) -> None:
        if exchange.outcome == "ok" and exchange.message.method in STATEFUL:
            self._journal.remember(exchange.message)

    def _drop(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.connection.router.owner = None
            lease.release(reusable=False)

    @property
    def holds_connection(self) -> bool:
        """Whether ending this session frees a place in the pool."""
        return self._lease is not None

    def evidence(self) -> dict[str, object]:
        """What its own process left behind, for the data of an error."""
        return {} if self._lease is None else self._lease.connection.connection.error_data()

    # -- everything else ----------------------------------------------------------------------------------

    async def tell(self, message: Message) -> Answer:
        accepted = Answer(status=202)
        if not message.method:
            self._respond(message)
            return accepted
        line = encode_notification(message.method, one_line(message.params))
        if message.method == "notifications/progress":
            token = bytes(members(message.params).get("progressToken", b""))
            for asked in [*self._client.asked.values()]:
                if asked.progress_token == token:
                    asked.reply(line)
                    return accepted
        lease, initialized = self._lease, message.method == "notifications/initialized"
        if lease is not None and lease.connection.healthy:
            if not initialized or self._upstream.mode == "session":
                with contextlib.suppress(UpstreamClosed):
                    await lease.connection.connection.send(line)
        elif not initialized:
            self._undelivered(message.method)
        return accepted

    def _respond(self, message: Message) -> None:
        """Only what this client was asked, and only once, reaches the server that asked."""
        raw = bytes(message.id)
        asked = self._client.asked.pop(int(raw), None) if raw.isdigit() else None
        if asked is None:
            self._undelivered("response")
        else:
            asked.reply(encode_response(asked.server_id, message))

    def _undelivered(self, what: str) -> None:
        self._upstream.hook.emit(Happened("undelivered", self._upstream.name, self._client.id, what))

    async def cancel(self, exchange: Exchange, message: Message) -> None:
        exchange.cancel(text_member(message.params, "reason") or "cancelled by the client")

    async def listen(self, inbox: Inbox) -> Answer:
        events = self._client.listen(inbox, lambda: self._undelivered("left over by a stream"))
        return Answer(content_type=b"text/event-stream", events=events)

    async def aclose(self) -> None:
        self._upstream.clients.discard(self._client)
        self._drop()


def _is_stateful(message: Message) -> bool:
    method = message.method
    if method in STATEFUL or method.startswith("tasks/"):
        return True
    return method == "tools/call" and b'"task"' in bytes(message.params) and "task" in members(message.params)
