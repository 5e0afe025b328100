"""A stdio server: exchanges over pooled subprocesses, in each pool mode.

`session`: the client's own handshake goes to a process of its own, which it keeps until it ends.
`request` and `multiplex`: the proxy makes the handshake; processes are shared, one exchange at a time or many.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import AsyncIterator, Callable
from typing import Literal

import anyio
import msgspec
from anyio.abc import TaskGroup

from mcpdiag.config import PoolMode, UpstreamConfig
from mcpdiag.connection.reaper import Reaper
from mcpdiag.connection.stdio import StdioConnection
from mcpdiag.errors import ConnectError, ConnectTimeout, UpstreamClosed
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.pool.pool import Clock, Lease, Pool
from mcpdiag.pool.stats import PoolStats
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
from mcpdiag.protocol.revisions import KNOWN, LATEST_HANDSHAKE
from mcpdiag.protocol.sse import COMMENT_KEEPALIVE, encode_message
from mcpdiag.upstream.base import Answer, Client, Exchange, Inbox, Phase
from mcpdiag.upstream.router import Router

LAST_WORDS = 1.0  # seconds to wait for what an ending process leaves behind
SETTLE = 0.1  # seconds in which a single-shot program has ended after its answer
CLIENT_INFO = {"name": "mcpdiag", "version": "0.1.0"}
# Calls after which a connection is not like any other: its session keeps it (DESIGN: pinning).
STATEFUL = frozenset({"resources/subscribe", "resources/unsubscribe", "logging/setLevel"})


class Link:
    """A process and its router: what the pool holds."""

    def __init__(self, connection: StdioConnection, router: Router, upstream: StdioUpstream) -> None:
        self.connection = connection
        self.router = router
        self.result = b""  # raw InitializeResult of the proxy's own handshake
        self.handshakes = 0
        self.settled_answers = 0
        self.wedged = False  # it takes no new exchange; those on it may still end well
        self._upstream = upstream

    @property
    def capacity(self) -> int:
        """One exchange at a time until the server has proved persistent: a second could meet a process on its way out."""
        return self.connection.capacity if self._upstream.persistent else 1

    @property
    def healthy(self) -> bool:
        return self.connection.healthy and not self.wedged

    @property
    def ended_well(self) -> bool:
        """Whether the process ended by itself, with exit code 0 and after an answer."""
        return (
            self.connection.lost.is_set() and self.connection.returncode == 0 and self.connection.answers > 0
        )

    @property
    def single_shot(self) -> bool:
        return (
            not self._upstream.persistent
            and self.ended_well
            and self.connection.answers <= 1 + self.handshakes
        )

    async def aclose(self, *, force: bool = False) -> None:
        await self.connection.aclose(force=force)

    async def gone(self) -> UpstreamClosed:
        """The error of a process that is on its way out, once its exit code and last words are there."""
        with anyio.move_on_after(LAST_WORDS):
            await self.connection.lost.wait()
        return self.connection.gone()

    async def call(self, method: str, params: bytes) -> Message:
        """A request of the proxy's own and its response.

        Raises:
            UpstreamClosed: the process ended first.
        """
        done = anyio.Event()
        box: list[Message] = []

        def answered(message: Message) -> None:
            box.append(message)
            done.set()

        async def until_lost() -> None:
            await self.connection.lost.wait()
            done.set()

        try:
            await self.connection.send(self.router.call(method, params, answered))
        except UpstreamClosed:
            raise await self.gone() from None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_lost)
            await done.wait()
            tasks.cancel_scope.cancel()
        if not box:
            raise self.connection.gone()
        return box[0]

    async def handshake(self, params: bytes) -> None:
        """Initialize with raw `params`; keeps the result.

        Raises:
            ConnectError: the server refused, with its own words.
            UpstreamClosed: it ended first.
        """
        self.handshakes += 1
        response = await self.call("initialize", params)
        if response.error:
            words = text_member(response.error, "message")
            raise ConnectError(
                f"the server '{self.connection.name}' refused to initialize: {words}{self.connection.evidence()}",
                data=self.connection.error_data(),
            )
        self.result = bytes(response.result)
        self.connection.post(encode_notification("notifications/initialized"))


class StdioUpstream:
    """A named stdio server and its pool. `start` needs a task group that outlives it: the processes are its tasks."""

    transport: Literal["stdio", "http"] = "stdio"

    def __init__(
        self,
        name: str,
        config: UpstreamConfig,
        *,
        reaper: Reaper | None = None,
        hook: Hook = NO_HOOK,
        on_starved: Callable[[], None] | None = None,
        clock: Clock = anyio.current_time,
    ) -> None:
        self.name = name
        self.mode: PoolMode = config.pool_mode
        self.config = config
        self.hook = hook
        self.clients: set[Client] = set()
        self.persistent = False  # a process of it was seen to live on after an answer
        self.bare = False  # a single-shot program that takes no handshake before its one request
        self.bare_result = b""
        self._env = {key: value.get_secret_value() for key, value in config.env.items()}
        self._reaper = reaper
        self._tasks: TaskGroup | None = None
        self.pool: Pool[Link] = Pool(
            name,
            self._connect,
            config.pool,
            acquire_timeout=config.timeouts.acquire_timeout,
            connect_timeout=config.timeouts.connect_timeout,
            hook=hook,
            clock=clock,
            on_starved=on_starved,
        )

    async def start(self, task_group: TaskGroup) -> None:
        """Start the pool; warm connections begin to open."""
        self._tasks = task_group
        await self.pool.start(task_group)

    def session(self, client: Client) -> StdioSession:
        self.clients.add(client)
        return StdioSession(self, client)

    def stats(self) -> PoolStats:
        return self.pool.stats()

    async def aclose(self, *, drain_timeout: float, force: bool = False) -> None:
        await self.pool.aclose(drain_timeout=drain_timeout, force=force)

    async def settled(self, link: Link) -> bool:
        """Until the server has proved persistent: give a process that has answered the time to end.

        Without this, the next request would go to a single-shot program on its way out, and be lost.
        True if it turned out to be a program that takes no handshake before its one request.
        """
        answers = link.connection.answers
        if self.persistent or answers == link.settled_answers:
            return self.bare
        if answers <= 1 + link.handshakes:
            with anyio.move_on_after(SETTLE):
                await link.connection.lost.wait()
        link.settled_answers = answers
        if link.healthy:
            self.persistent = answers > link.handshakes
        elif link.ended_well and answers == link.handshakes == 1:
            self.bare = True
        return self.bare

    def release_settled(self, lease: Lease[Link]) -> None:
        """Give back a lease as soon as it is known whether its process lives on."""

        async def settle() -> None:
            try:
                await self.settled(lease.connection)
            finally:
                lease.release(reusable=lease.connection.healthy)

        assert self._tasks is not None
        self._tasks.start_soon(settle)

    # -- opening ------------------------------------------------------------------------------------------

    async def _connect(self) -> Link:
        if self.mode == "session" or self.bare:
            return await self._spawn()
        link = await self._spawn(self._own_params())
        try:
            if not await self.settled(link):
                if link.healthy:
                    return link
                raise await link.gone()
        except BaseException:
            await self._discard(link)
            raise
        # It answered the handshake and ended: next time it gets the request itself.
        self.bare_result = link.result
        await self._discard(link)
        return await self._spawn()

    async def _spawn(self, handshake: bytes = b"") -> Link:
        config, timeout = self.config, self.config.timeouts.connect_timeout
        connection = StdioConnection(
            self.name,
            config.command_line,
            env=self._env,
            cwd=config.cwd,
            capacity=config.pool.max_inflight if self.mode == "multiplex" else 1,
            max_message_bytes=config.max_message_bytes,
            close_timeout=config.close_timeout,
            reaper=self._reaper,
        )
        router = Router(connection.post, self._undelivered)
        router.audience = lambda: [*self.clients]
        link = Link(connection, router, self)
        connection.on_message = router.receive
        connection.on_stray = self._stray
        connection.on_lost = lambda: self._lost(link)
        assert self._tasks is not None
        try:
            with anyio.move_on_after(timeout):
                await self._tasks.start(connection.run)
                if handshake:
                    await link.handshake(handshake)
                return link
        except BaseException:
            await self._discard(link)
            raise
        await self._discard(link)
        raise self.not_ready(connection)

    def not_ready(self, connection: StdioConnection) -> ConnectTimeout:
        """The error of a process that did not answer the handshake in time, with what it said instead."""
        timeout = self.config.timeouts.connect_timeout
        return ConnectTimeout(
            f"the server '{self.name}' ({shlex.join(connection.command)}) was not ready within {timeout:g} s "
            f"(connect_timeout){connection.evidence()}; raise connect_timeout for '{self.name}', or see why it hangs",
            data={**connection.error_data(), "phase": "connect", "limit_ms": round(timeout * 1000)},
        )

    async def _discard(self, link: Link) -> None:
        if link.connection.pid:
            with anyio.CancelScope(shield=True):
                await link.aclose(force=True)

    def _own_params(self) -> bytes:
        capabilities: dict[str, object] = {}
        if self.mode == "request":
            capabilities = {"sampling": {}, "elicitation": {}, "roots": {}}
        return msgspec.json.encode(
            {"protocolVersion": LATEST_HANDSHAKE, "capabilities": capabilities, "clientInfo": CLIENT_INFO}
        )

    # -- what connections tell ----------------------------------------------------------------------------

    def _lost(self, link: Link) -> None:
        connection = link.connection
        connection.single_shot = link.single_shot
        link.router.fail_all(connection.gone)
        self.hook.emit(Happened("child_exit", self.name, detail=connection.describe_end()))
        self.pool.lost(link)

    def _stray(self, line: bytes) -> None:
        self.hook.emit(Happened("stray_output", self.name, detail=line.decode(errors="replace")))

    def _undelivered(self, method: str) -> None:
        self.hook.emit(Happened("undelivered", self.name, detail=method))


class StdioSession:
    """One client's session at a stdio server."""

    def __init__(self, upstream: StdioUpstream, client: Client) -> None:
        self._upstream = upstream
        self._client = client
        self._lease: Lease[Link] | None = None  # its own process: session mode, or pinned
        self._opening = anyio.Lock()
        self._params = b""  # of the client's initialize, for a process that has to be started again
        self._journal: dict[tuple[str, str], bytes] = {}  # what to replay then

    # -- requests -----------------------------------------------------------------------------------------

    async def exchange(self, exchange: Exchange) -> Answer:
        upstream, method = self._upstream, exchange.message.method
        if method == "initialize":
            self._params = one_line(exchange.message.params)
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
        if first == b"":
            if exchange.error is not None:
                raise exchange.error
            assert exchange.final is not None
            self._remember(exchange)
            exchange.end(reusable=True)
            return Answer(body=exchange.final)
        return Answer(content_type=b"text/event-stream", events=self._stream(exchange, first))

    async def _stream(self, exchange: Exchange, first: bytes | None) -> AsyncIterator[bytes]:
        data = first
        while data != b"":
            yield COMMENT_KEEPALIVE if data is None else encode_message(data)
            data = await exchange.inbox.get()
        if exchange.error is not None:
            raise exchange.error
        assert exchange.final is not None
        self._remember(exchange)
        exchange.end(reusable=True)
        yield encode_message(exchange.final)

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
                await upstream.settled(lease.connection)
                if lease.connection.healthy:
                    return lease
                self._drop()
            lease = await self._wait(exchange, exclusive=True)
            link = lease.connection
            link.router.owner = self._client
            try:
                if upstream.mode != "session":
                    lease.pin()
                await self._catch_up(exchange, link)
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
                await link.handshake(self._params)
            await self._replay(link)
            return
        raise self._upstream.not_ready(link.connection)

    async def _replay(self, link: Link) -> None:
        for (method, _), params in [*self._journal.items()]:
            await link.call(method, params)
        self._upstream.hook.emit(
            Happened("recover", self._upstream.name, self._client.id, "process restarted")
        )

    def _remember(self, exchange: Exchange) -> None:
        """Keep what a new process would have to be told."""
        message = exchange.message
        if message.method not in STATEFUL or exchange.outcome != "ok":
            return
        if message.method == "logging/setLevel":
            self._journal[message.method, ""] = one_line(message.params)
        else:
            key = "resources/subscribe", text_member(message.params, "uri")
            self._journal.pop(key, None)
            if message.method == "resources/subscribe":
                self._journal[key] = one_line(message.params)

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

    async def listen(self, inbox: Inbox, last_event_id: bytes | None) -> Answer:
        return Answer(content_type=b"text/event-stream", events=self._listen(inbox))

    async def _listen(self, inbox: Inbox) -> AsyncIterator[bytes]:
        self._client.attach(inbox)
        try:
            while (data := await inbox.get()) != b"":
                yield COMMENT_KEEPALIVE if data is None else encode_message(data)
        finally:
            for _ in range(self._client.detach(inbox)):
                self._undelivered("left over by a stream")

    async def aclose(self) -> None:
        self._upstream.clients.discard(self._client)
        self._drop()


def _is_stateful(message: Message) -> bool:
    method = message.method
    if method in STATEFUL or method.startswith("tasks/"):
        return True
    return method == "tools/call" and b'"task"' in bytes(message.params) and "task" in members(message.params)
