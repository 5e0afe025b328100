"""What answers a GET: the messages that belong to no call, or the rest of a stream that broke."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import anyio

from mcpdiag.errors import McpDiagError
from mcpdiag.protocol.sse import Event
from mcpdiag.proxy import forward
from mcpdiag.proxy.request import Reply, Request
from mcpdiag.proxy.session import Session
from mcpdiag.proxy.store import StoredStream
from mcpdiag.upstream.client import Inbox

log = logging.getLogger("mcpdiag.proxy")
Source = AsyncIterator[Event | bytes]  # events to send, or sent before and encoded


async def listen(session: Session, request: Request, last_id: bytes | None) -> None:
    """Answer a GET until its client goes, or the session ends.

    Args:
        last_id: `Last-Event-ID`: the stream that it is of goes on behind it. One that is not known (any more) begins
            a new stream, as if there were none.
    """
    reply, store = request.reply, session.store
    found = store.find(last_id) if store is not None and last_id else None
    inbox = Inbox()
    session.streams.add(inbox)
    session.replies.add(reply)
    try:
        if store is not None and found is not None and found[0] is not store.listening:
            await _serve(session, request, inbox, _rest(*found))
            return
        answer = await session.at.listen(inbox)
        if answer.events is None:
            reply.headers += answer.headers
            await reply.whole(answer.status, answer.body, answer.content_type)
            return
        if store is not None:
            reply.stored, reply.primed = store.listening, session.polls and found is None
        live = cast("Source", answer.events)
        await _serve(session, request, None, live if found is None else _resumed(*found, live))
    finally:
        session.replies.discard(reply)
        session.streams.discard(inbox)


async def _serve(session: Session, request: Request, inbox: Inbox | None, source: Source) -> None:
    """Begin the stream, and end it when the source does, the client goes, or `inbox` is closed."""
    await request.reply.begin()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_until_gone, request, tasks.cancel_scope)
        if inbox is not None:
            tasks.start_soon(_until_closed, inbox, tasks.cancel_scope)
        limit = session.upstream.config.timeouts.response_timeout
        why = await _pour(source, request.reply, limit)
        if why:
            log.warning("a listening stream of '%s' broke off: %s", session.upstream.name, why)
        tasks.cancel_scope.cancel()
    await forward.end(request.reply)


async def _pour(source: Source, reply: Reply, limit: float) -> str:
    """Send what comes; why it ended too early, if it did. What was not sent waits for the client's next stream."""
    try:
        async with aclosing(cast("Any", source)) as events:
            async for event in events:
                with anyio.move_on_after(limit) as stalled:
                    await (reply.write(event) if isinstance(event, bytes) else reply.event(event))
                if stalled.cancelled_caught:
                    return f"its client has not read for {limit:g} s (response_timeout)"
    except McpDiagError as error:
        return error.message
    return ""


async def _rest(stream: StoredStream, number: int) -> Source:
    """The stream of a call behind event `number`, until its answer."""
    while True:
        for kept in stream.after(number):
            number = kept.number
            yield kept.data
        if stream.done and number >= stream.last:
            return
        if not stream.after(number):
            await stream.wait()


async def _resumed(stream: StoredStream, number: int, live: Source) -> Source:
    """The listening stream behind event `number`: first what was sent already, then what comes."""
    while kept := stream.after(number):
        for each in kept:
            number = each.number
            yield each.data
    async with aclosing(cast("Any", live)) as events:
        async for event in events:
            yield event


async def _until_gone(request: Request, stream: anyio.CancelScope) -> None:
    await request.gone()
    stream.cancel()


async def _until_closed(inbox: Inbox, stream: anyio.CancelScope) -> None:
    while await inbox.get():
        pass
    stream.cancel()
