"""The event stream that reopens itself. Nothing else in the project reconnects; the policy is `protocol/resume.py`."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from time import time
from typing import Final, Protocol

import anyio

from mcpdiag.config import ReconnectPolicy
from mcpdiag.errors import McpDiagError, UpstreamClosed, UpstreamError, UpstreamProtocolError
from mcpdiag.hooks import NO_HOOK, Happened, Hook
from mcpdiag.protocol.headers import is_event_stream
from mcpdiag.protocol.resume import Again, Renew, Resume, session_is_lost
from mcpdiag.protocol.retry_after import retry_after
from mcpdiag.protocol.sse import Decoder, Event, SseError

BODY_LIMIT: Final = 5.0  # seconds for the words of a refusal


class Response(Protocol):
    """What a stream needs of an HTTP response; `connection/http1.py` and `upstream/httpx_connection.py` have it."""

    status: int

    def header(self, name: bytes) -> bytes | None: ...

    async def chunk(self) -> bytes: ...

    async def body(self) -> bytes: ...


# Opens the stream from behind the event with this id, or from its start; leaving the context closes it.
Open = Callable[[bytes], AbstractAsyncContextManager[Response]]


class EventStream:
    """Events of one server stream, each exactly once if the server gives them ids, over as many connections as it
    takes.

    Args:
        name: the upstream's, for messages.
        kind: what it is for, in events and messages: `get`, `post`, `sse`, `listen`.
        opener: opens a connection; its `UpstreamError`s count as failed attempts.
        policy: delays and window.
        renew: makes a new session, after which the stream is opened from its start; without it a 404 ends the stream.
        heard: called when the stream was opened, and for each part of an event that came; not for comments.
        needs_id: whether a stream that broke before any id ends, because opening it again would be another one.
        max_event_bytes: the largest event.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        opener: Open,
        policy: ReconnectPolicy,
        *,
        session: str = "",
        renew: Callable[[], Awaitable[None]] | None = None,
        heard: Callable[[], None] = lambda: None,
        needs_id: bool = False,
        max_event_bytes: int = 16 * 1024 * 1024,
        hook: Hook = NO_HOOK,
        clock: Callable[[], float] = anyio.current_time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.resume = Resume(policy, uniform)
        self._name = name
        self._kind = kind
        self._open = opener
        self._session = session
        self._renew = renew
        self._heard = heard
        self._needs_id = needs_id
        self._max_event_bytes = max_event_bytes
        self._hook = hook
        self._clock = clock
        self._sleep = sleep

    async def events(
        self, first: AbstractAsyncContextManager[Response] | None = None, *, ends: bool = False
    ) -> AsyncGenerator[Event, None]:
        """The events as they come. The caller closes the iterator (`contextlib.aclosing`).

        Args:
            first: the response that is open already, in the context that closes it.
            ends: yield an event without any field each time that the server ended a stream with ids in good order:
                it may want its client to come back later ("polling").

        Raises:
            UpstreamClosed: it broke and will not be opened again; the message says why.
            UpstreamProtocolError: an event is larger than `max_event_bytes`.
        """
        while True:
            why, status, pause, polled = "the server ended the stream", 0, 0.0, False
            async with AsyncExitStack() as stack:
                try:
                    context, first = first or self._open(self.resume.last_id), None
                    response = await stack.enter_async_context(context)
                    why, status, pause = await self._check(response)
                    if not status:
                        decoder = Decoder(self._max_event_bytes)
                        while chunk := await response.chunk():
                            events, too_large = self._feed(decoder, chunk)
                            for event in events:
                                yield event
                            if too_large is not None:
                                raise too_large
                        polled = bool(self.resume.last_id)
                except SseError as error:
                    raise UpstreamProtocolError(
                        f"the server '{self._name}' sent {error}", data={"upstream": self._name}
                    ) from None
                except UpstreamError as error:
                    why = error.message
            if polled and ends:
                yield Event()
            await self._wait(why, status, pause, polled)

    async def _check(self, response: Response) -> tuple[str, int, float]:
        """Why the stream was not opened, with status and pause; status 0 if it was."""
        status = response.status
        if status == 200 and is_event_stream(response.header(b"content-type")):
            attempts = self.resume.attempts
            self.resume.opened(self._clock())
            if attempts:
                self._tell("reconnect_ok", f"{self._kind} stream open again", attempts)
            self._heard()
            return "the server ended the stream", 0, 0.0
        text = b""
        if status == 400:  # of no other answer the body matters, and it may never end
            with anyio.move_on_after(BODY_LIMIT), suppress(UpstreamError):
                text = await response.body()
        pause = retry_after(response.header(b"retry-after"), time())
        return f"the server answered HTTP {status}", 404 if session_is_lost(status, text) else status, pause

    def _feed(self, decoder: Decoder, chunk: bytes) -> tuple[list[Event], SseError | None]:
        """What the next bytes complete and was not relayed before, and the error that follows it."""
        too_large: SseError | None = None
        try:
            events = decoder.feed(chunk)
        except SseError as error:
            events, too_large = error.events, error
        resume = self.resume
        if events or decoder.pending:
            self._heard()
        for event in events:
            if event.retry is not None:
                resume.retry = event.retry / 1000
        return [event for event in events if resume.admit(event.id, has_message=bool(event.data))], too_large

    async def _wait(self, why: str, status: int, pause: float, polled: bool) -> None:
        """Until the next attempt.

        Raises:
            UpstreamClosed: there is none.
        """
        if self._needs_id and not self.resume.last_id:
            raise UpstreamClosed(why, data={"upstream": self._name})
        verdict = self.resume.failed(self._clock(), status=status, retry_after=pause, polled=polled)
        if isinstance(verdict, Renew) and self._renew is not None:
            try:
                await self._renew()
            except McpDiagError as error:
                why = error.message
                verdict = self.resume.failed(self._clock())
            else:
                self.resume.restarted()
                return
        if isinstance(verdict, Again):
            self._tell("reconnect_attempt", f"{self._kind} stream: {why}", verdict.attempt, verdict.delay)
            await self._sleep(verdict.delay)
            return
        reason = "its session is gone" if isinstance(verdict, Renew) else verdict.reason
        self._tell("reconnect_gave_up", f"{self._kind} stream: {reason} ({why})", self.resume.attempts)
        raise UpstreamClosed(
            f"the {self._kind} stream of '{self._name}' broke ({why}) and was not opened again: {reason}",
            data={"upstream": self._name},
        )

    def _tell(self, kind: str, detail: str, attempt: int, delay: float = 0.0) -> None:
        self._hook.emit(
            Happened(kind, self._name, self._session, detail, attempt=attempt, delay_ms=delay * 1000)
        )
