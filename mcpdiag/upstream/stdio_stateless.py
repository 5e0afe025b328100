"""A stdio server in the stateless era: does it speak it, and exchanges over processes that make no handshake.

What era the server speaks is found out once, by the first request of this era (2026-07-28, basic/transports/stdio,
"Backward Compatibility"). A process carries one exchange at a time, or many if the configuration says `multiplex`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from mcpdiag.config.types import PoolMode
from mcpdiag.connection.base import MessageConnection
from mcpdiag.errors import (
    HEADER_MISMATCH,
    METHOD_NOT_FOUND,
    MISSING_CAPABILITY,
    UNSUPPORTED_VERSION,
    ClientError,
    McpDiagError,
    ShuttingDown,
    UpstreamClosed,
)
from mcpdiag.protocol.message import Message, encode_error, members, text_member
from mcpdiag.protocol.mirror import META_CAPABILITIES, META_VERSION, unsupported
from mcpdiag.protocol.revisions import LATEST_HANDSHAKE, LATEST_STATELESS
from mcpdiag.upstream.base import Answer
from mcpdiag.upstream.exchange import Exchange, Phase
from mcpdiag.upstream.learned import Learned, supported_versions
from mcpdiag.upstream.link import Link
from mcpdiag.upstream.processes import CLIENT_INFO, Processes
from mcpdiag.upstream.stateless_router import StatelessRouter
from mcpdiag.upstream.stdio_session import StdioSession
from mcpdiag.upstream.stdio_subscription import Ear, subscribe

if TYPE_CHECKING:
    from mcpdiag.upstream.stdio import StdioUpstream

PATIENCE = 3.0  # seconds without an answer to the probe, after which a handshake is tried beside it
# The HTTP status of errors that the specification gives one; all others are an answer like any other.
STATUS = {METHOD_NOT_FOUND: 404, HEADER_MISMATCH: 400, MISSING_CAPABILITY: 400, UNSUPPORTED_VERSION: 400}
_META = {
    META_VERSION: LATEST_STATELESS,
    "io.modelcontextprotocol/clientInfo": CLIENT_INFO,
    META_CAPABILITIES: {},
}
_PROBE = msgspec.json.encode({"_meta": _META})
_HANDSHAKE = msgspec.json.encode(
    {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": CLIENT_INFO}
)


class StatelessProcesses(Processes):
    """The processes of a stdio server for requests of the stateless era; nothing is started before the first one."""

    def __init__(self, of: StdioUpstream, learned: Learned) -> None:
        mode: PoolMode = "multiplex" if of.mode == "multiplex" else "request"
        super().__init__(of.name, of.config, mode, reaper=of.reaper, hook=of.hook, clock=of.clock)
        self.tasks = of.tasks
        self.persistent = of.persistent
        self.started = False
        self.ear = Ear(self._spawn, self._later)
        self._learned = learned
        self._finding_out = anyio.Lock()
        self._tries = 0
        self._failure: McpDiagError | None = None  # of the last try
        self._closing = False
        self._first: Link | None = None  # the process that answered the probe, until the pool takes it

    async def ready(self, exchange: Exchange) -> None:
        """Wait until it is known that the server speaks this era.

        Raises:
            ClientError: it does not; the error names what it speaks.
            ConnectError, ConnectTimeout, UpstreamClosed: it cannot be asked.
        """
        if self.started:
            return
        exchange.enter(Phase.CONNECT)
        exchange.scope.deadline = exchange.deadline_at  # what this does keeps `connect_timeout` itself
        began, tries = exchange.clock(), self._tries
        async with self._finding_out:
            if not self.started:
                if self._failure is not None and self._tries > tries:  # while this one waited
                    raise copy(self._failure)
                self._tries += 1
                self._failure = None
                try:
                    await self._find_out()
                except McpDiagError as error:
                    self._failure = error
                    raise
        exchange.note_wait(exchange.clock() - began, reused=False)

    async def _find_out(self) -> None:
        versions = self._learned.versions
        if not versions or LATEST_STATELESS in versions:
            link = await self._spawn()
            try:
                versions = await self._probe(link)
                if LATEST_STATELESS in versions:
                    await self._keep(link)
            except BaseException:
                await self._discard(link)
                raise
            if link is not self._first:
                await self._discard(link)
            self._learned.versions = versions
        if LATEST_STATELESS not in versions:
            raise unsupported(LATEST_STATELESS, versions)
        assert self.tasks is not None
        if self._closing:  # then nobody would close what begins now
            raise ShuttingDown("the proxy is shutting down; try again later")
        await self.pool.start(self.tasks)
        self.started = True

    async def _keep(self, link: Link) -> None:
        """It has answered: whether it lives on says how all of them are to be used."""
        with anyio.move_on_after(0 if self.persistent else self.settle):
            await link.connection.lost.wait()
        if link.healthy:
            self.persistent = True
            self._first = link

    async def _probe(self, link: Link) -> tuple[str, ...]:
        """The revisions that a fresh process says it speaks.

        A server that refuses the probe or stays silent is asked for the handshake of the era before; one that is only
        slow to start may then still answer the probe first.
        """
        found: tuple[str, ...] = ()
        failure: McpDiagError | None = None
        refused = anyio.Event()

        async def discover(scope: anyio.CancelScope) -> None:
            nonlocal found
            with suppress(UpstreamClosed):  # the handshake will say it too
                found = _versions(await link.call("server/discover", _PROBE))
            if found:
                scope.cancel()
            refused.set()

        with anyio.move_on_after(self.config.timeouts.connect_timeout):
            link.handshakes += 1
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(discover, tasks.cancel_scope)
                with anyio.move_on_after(min(PATIENCE, self.config.timeouts.connect_timeout / 2)):
                    await refused.wait()
                try:
                    await link.handshake(_HANDSHAKE)
                    found = found or (text_member(link.result, "protocolVersion"),)
                except McpDiagError as error:
                    failure = error
                tasks.cancel_scope.cancel()
        if found:
            return found
        raise failure or self.not_ready(link.connection)

    async def hear(self) -> tuple[Link, Callable[[], None]]:
        """A process for a subscription, and what gives it back."""
        if self.mode != "multiplex":
            link = await self.ear.take()
            return link, lambda: self.ear.give_back(link)
        lease = await self.pool.acquire()
        return lease.connection, lambda: lease.release(reusable=lease.connection.healthy)

    async def _connect(self) -> Link:
        first, self._first = self._first, None
        if first is None:
            return await self._spawn()
        if first.healthy:
            return first
        await self._discard(first)
        return await self._spawn()

    def _later(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self.tasks is not None
        self.tasks.start_soon(close)

    def _router(self, connection: MessageConnection) -> StatelessRouter:
        return StatelessRouter(connection.post, self._undelivered)

    async def aclose(self, *, drain_timeout: float, force: bool = False) -> None:
        self._closing = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.ear.aclose)
            if self._first is not None:
                tasks.start_soon(self._discard, self._first)
            if self.started:
                await super().aclose(drain_timeout=drain_timeout, force=force)


class StatelessStdioSession(StdioSession):
    """What one request of the stateless era has at a stdio server; it leaves nothing behind."""

    _upstream: StatelessProcesses

    async def exchange(self, exchange: Exchange) -> Answer:
        try:
            await self._upstream.ready(exchange)
            if exchange.message.method == "initialize":
                # It would turn a process that others use to the era before (basic/versioning).
                raise ClientError("revision 2026-07-28 has no initialize", status=404, code=METHOD_NOT_FOUND)
        except ClientError as error:
            return refusal(exchange, error)
        if exchange.message.method == "subscriptions/listen":
            return await subscribe(self._upstream, exchange)
        lease = await self._borrow(exchange)
        link = lease.connection
        exchange.reused = link.router.answered > 0
        line = link.router.open(exchange)
        exchange.on_end = self._finisher(exchange, link, lease)
        exchange.sending()
        try:
            await link.connection.send(line)
        except UpstreamClosed:
            raise await link.gone() from None
        answer = await self._answer(exchange)
        if exchange.outcome == "rpc_error" and answer.events is None:
            answer.status = STATUS.get(error_code(answer.body), 200)
        return answer

    async def tell(self, message: Message) -> Answer:
        """Accepted and dropped: over HTTP this era has no notification of clients that means anything to a server."""
        if message.method != "notifications/cancelled":
            self._undelivered(message.method)
        return Answer(status=202)


def refusal(exchange: Exchange, error: ClientError) -> Answer:
    """The answer that a request gets in place of the server's."""
    data = error.data or None
    exchange.finish(encode_error(exchange.message.id, error.code, error.message, data), is_error=True)
    assert exchange.final is not None
    return Answer(status=error.status, body=exchange.final)


def error_code(response: bytes) -> int:
    """The code of an error response, 0 if it has none."""
    raw = members(members(response).get("error", b"")).get("code", b"")
    try:
        return msgspec.json.decode(raw, type=int) if raw else 0
    except msgspec.DecodeError:
        return 0


def _versions(response: Message) -> tuple[str, ...]:
    """What the answer to the probe says the server speaks; empty if it is none of a server of the stateless era."""
    if not response.error:
        return supported_versions(response.result)
    error = members(response.error)
    code = error_code(b'{"error":%b}' % bytes(response.error))
    if code not in {HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION}:
        return ()
    try:
        named = members(error.get("data", b"")).get("supported", b"")
        return tuple(msgspec.json.decode(named, type=list[str])) if named else (LATEST_STATELESS,)
    except msgspec.DecodeError:
        return (LATEST_STATELESS,)
