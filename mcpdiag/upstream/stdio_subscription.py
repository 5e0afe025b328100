"""`subscriptions/listen` at a stdio server: a stream that outlives the process it came from.

Where processes are shared by many exchanges at once a subscription takes its place among them. Else all subscriptions
share one process beside the pool, so that streams cannot starve calls.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import anyio

from mcpdiag.errors import McpDiagError, UpstreamClosed
from mcpdiag.hooks import Happened
from mcpdiag.protocol.message import decode
from mcpdiag.protocol.resume import Again, Resume
from mcpdiag.protocol.sse import Event
from mcpdiag.upstream.base import Answer
from mcpdiag.upstream.exchange import Exchange, Phase
from mcpdiag.upstream.link import Link
from mcpdiag.upstream.stateless_router import ACKNOWLEDGED, StatelessRouter

if TYPE_CHECKING:
    from mcpdiag.upstream.stdio_stateless import StatelessProcesses


class Ear:
    """The process that all subscriptions of an upstream share; there is none while there are no subscriptions.

    Args:
        spawn: starts a process.
        later: runs a function in a task that outlives the caller.
    """

    def __init__(
        self,
        spawn: Callable[[], Awaitable[Link]],
        later: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
    ) -> None:
        self._spawn = spawn
        self._later = later
        self._link: Link | None = None
        self._users = 0
        self._opening = anyio.Lock()

    async def take(self) -> Link:
        """The process, started if need be; `give_back` follows."""
        async with self._opening:
            if self._link is None or not self._link.healthy:
                self._drop()
                self._link = await self._spawn()
                self._users = 0
            self._users += 1
            return self._link

    def give_back(self, link: Link) -> None:
        if link is self._link:
            self._users -= 1
            if self._users == 0:
                self._drop()

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._later(link.aclose)

    async def aclose(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.aclose(force=True)


async def subscribe(processes: StatelessProcesses, exchange: Exchange) -> Answer:
    """Listen, and return when the server has said the first word: the acknowledgment, or a refusal.

    The caller calls `exchange.end` when the stream is over. Until the process has answered, the exchange has the
    limits of any other; then none.
    """
    await _open(processes, exchange)
    first = await exchange.inbox.get()
    if first:
        return Answer(content_type=b"text/event-stream", events=_events(processes, exchange, first))
    if exchange.error is not None:
        raise exchange.error
    assert exchange.final is not None
    return Answer(body=exchange.final)


async def _open(processes: StatelessProcesses, exchange: Exchange) -> None:
    exchange.enter(Phase.QUEUE)
    link, give_back = await processes.hear()
    router = link.router
    assert isinstance(router, StatelessRouter)
    line = router.subscribe(exchange)

    def finish(reusable: bool) -> None:
        if router.close(exchange):
            link.connection.post(router.cancel_line(exchange, "the client has closed its stream"))
        give_back()

    exchange.on_end = finish
    exchange.sending()
    try:
        await link.connection.send(line)
    except UpstreamClosed:
        raise await link.gone() from None


async def _events(processes: StatelessProcesses, exchange: Exchange, data: bytes) -> AsyncIterator[Event]:
    """Notifications as they come. When the process has ended the client's stream goes on with those of a new one."""
    resume = Resume(processes.config.reconnect, random.uniform)
    resume.opened(processes.clock())
    while True:
        while data:
            resume.admit(None, has_message=True)
            yield Event(data, b"message")
            data = await exchange.inbox.get()
        if exchange.final is not None:
            yield Event(exchange.final, b"message")
            return
        if not isinstance(exchange.error, UpstreamClosed):
            assert exchange.error is not None
            raise exchange.error
        data = await _again(processes, exchange, resume, exchange.error)


async def _again(
    processes: StatelessProcesses, exchange: Exchange, resume: Resume, why: McpDiagError
) -> bytes:
    """Listen on another process; the first message that the client has not had, b"" if the exchange is over.

    Raises:
        UpstreamClosed: nothing came of it for as long as the policy says.
    """

    def tell(kind: str, detail: str, attempt: int, delay: float = 0.0) -> None:
        detail = f"listen stream: {detail}"
        processes.hook.emit(
            Happened(kind, processes.name, detail=detail, attempt=attempt, delay_ms=delay * 1000)
        )

    while True:
        verdict = resume.failed(processes.clock())
        if not isinstance(verdict, Again):
            tell("reconnect_gave_up", why.message, resume.attempts)
            raise UpstreamClosed(
                f"the listen stream of '{processes.name}' broke and could not be opened again: {why.message}",
                data={"upstream": processes.name},
            )
        tell("reconnect_attempt", why.message, verdict.attempt, verdict.delay)
        await anyio.sleep(verdict.delay)
        if exchange.final is not None:  # the proxy has ended it
            return b""
        exchange.again()
        try:
            with anyio.fail_after(processes.config.timeouts.request_timeout):
                await _open(processes, exchange)
                first = await exchange.inbox.get()
            if exchange.error is None:
                resume.opened(processes.clock())
                tell("reconnect_ok", "open again", verdict.attempt)
                # The acknowledgment is not for the client, who has had one.
                return await exchange.inbox.get() if _acknowledges(first) else first
            why = exchange.error
        except McpDiagError as error:
            why = error
        except TimeoutError:
            why = UpstreamClosed(f"the server '{processes.name}' did not answer subscriptions/listen")


def _acknowledges(data: bytes) -> bool:
    return bool(data) and decode(data).method == ACKNOWLEDGED
