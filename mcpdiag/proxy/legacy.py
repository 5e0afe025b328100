"""HTTP+SSE of 2024-11-05: one event stream to the client, and a second path to which it posts its messages."""

from __future__ import annotations

import logging
from urllib.parse import parse_qs

import anyio

from mcpdiag.errors import ClientError
from mcpdiag.hooks import NO_HOOK, Hook
from mcpdiag.protocol.message import MessageError, decode, is_batch
from mcpdiag.protocol.sse import Event
from mcpdiag.proxy import forward
from mcpdiag.proxy.conversation import Conversation, conversation
from mcpdiag.proxy.gate import Gate
from mcpdiag.proxy.request import Request
from mcpdiag.proxy.session import Sessions
from mcpdiag.upstream.base import Upstream

log = logging.getLogger("mcpdiag.proxy")


class Legacy:
    """The two paths of each upstream, `/sse` and `/messages`. A session lives as long as its stream.

    Args:
        gate: shut when the proxy closes.
    """

    def __init__(self, sessions: Sessions, gate: Gate, *, hook: Hook = NO_HOOK) -> None:
        self._sessions = sessions
        self._gate = gate
        self._hook = hook
        self._talks: dict[str, Conversation] = {}

    async def stream(self, upstream: Upstream, request: Request) -> None:
        """GET: the stream, until its client goes or the session ends."""
        request.wants(b"text/event-stream")
        self._gate.check()
        reply, limit = request.reply, upstream.config.timeouts.response_timeout
        ended = False

        async def send(data: bytes) -> None:
            nonlocal ended
            with anyio.move_on_after(limit) as stalled:
                await reply.event(Event(data, b"message"))
            if stalled.cancelled_caught and not ended:
                ended = True
                log.warning(
                    "a client of '%s' has not read for %g s (response_timeout); its session ends",
                    upstream.name, limit,
                )  # fmt: skip
                self._sessions.end_soon(talk.session, "stalled by its client")

        async with conversation(upstream, self._sessions, self._gate, send, hook=self._hook) as talk:
            session = talk.session
            session.client.authorization = request.authorization
            self._talks[session.id] = talk
            session.replies.add(reply)  # for the keep-alives
            try:
                await reply.event(_where_to_post(upstream, session.id))
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._until_gone, request, talk)
                    await talk.over()
                    tasks.cancel_scope.cancel()
            finally:
                session.replies.discard(reply)
                del self._talks[session.id]
        await forward.end(reply)

    async def _until_gone(self, request: Request, talk: Conversation) -> None:
        await request.gone()
        talk.leave()

    async def post(self, upstream: Upstream, request: Request) -> None:
        """POST: one message; whatever answers it comes on the stream."""
        talk = self._talks.get(_session_id(request.query))
        if talk is None or talk.session.upstream is not upstream:
            raise _no_session()
        body = await request.json()
        try:
            if is_batch(body):
                raise ClientError("batches exist only in revision 2025-03-26; send one message")
            message = decode(body)
        except MessageError as error:
            raise ClientError(str(error), code=error.code) from None
        talk.session.client.authorization = request.authorization
        if not await talk.put(message, len(body)):
            raise _no_session()
        await request.reply.whole(202, b"")


def _where_to_post(upstream: Upstream, session_id: str) -> Event:
    return Event(f"/{upstream.name}/messages?session_id={session_id}".encode(), b"endpoint")


def _session_id(query: bytes) -> str:
    return parse_qs(query.decode("latin-1")).get("session_id", [""])[0]


def _no_session() -> ClientError:
    return ClientError(
        "there is no such session (any more): session_id must be that of an open event stream; start again with GET",
        status=404,
    )
