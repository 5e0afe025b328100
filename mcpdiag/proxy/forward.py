"""One exchange from the client's request to the last byte of its answer: deadline, retries, errors, the record."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import aclosing
from time import perf_counter
from typing import Any, cast

import anyio

from mcpdiag.errors import (
    ConnectError,
    ConnectTimeout,
    McpDiagError,
    ShuttingDown,
    UpstreamClosed,
    UpstreamError,
)
from mcpdiag.hooks import NO_HOOK, Hook, Tracer, teller
from mcpdiag.protocol.message import encode_error
from mcpdiag.protocol.sse import Event
from mcpdiag.protocol.trace import trace_context, with_trace_context
from mcpdiag.proxy.request import Reply
from mcpdiag.proxy.session import Session
from mcpdiag.upstream.base import Answer
from mcpdiag.upstream.exchange import Exchange

log = logging.getLogger("mcpdiag.proxy")
RETRY_BASE = 0.05
_POLL = Event()
LAST_WORDS = 1.0  # seconds for an error at the end of a stream that the client may have stopped to read
# Methods that only read: they may be sent again although the server may have begun with them.
READ_ONLY = frozenset(
    {
        "ping", "tools/list", "prompts/list", "prompts/get", "resources/list", "resources/read",
        "resources/templates/list", "completion/complete", "server/discover",
    }
)  # fmt: skip


async def run(
    session: Session,
    exchange: Exchange,
    reply: Reply,
    hook: Hook,
    *,
    retries: int = 0,
    before_answer: Callable[[Answer], None] | None = None,
) -> None:
    """Run one exchange and answer it. `exchange.outcome` tells how it went; nothing but cancellation is raised."""
    key = exchange.message.id_key()
    session.calls[key] = exchange
    if (tracer := getattr(hook, "tracer", None)) is not None:
        _begin_trace(exchange, tracer)
    # The head of the answer to `initialize` carries the session id, so it cannot be sent before the answer is there.
    patient = session.upstream.transport != "http" and exchange.message.method != "initialize"
    session.open(reply, patient=patient)
    error: McpDiagError | None = None
    try:
        with exchange.scope:
            try:
                answer = await _attempts(session, exchange, retries)
                if before_answer is not None:
                    before_answer(answer)
                if answer.events is None:
                    await _answer_whole(answer, reply)
                else:
                    await _answer_stream(session, answer, reply)
            except McpDiagError as failure:
                error = failure
        if exchange.scope.cancelled_caught and error is None:
            if not exchange.cancelled:
                error = exchange.timeout_error()
                error.data |= _evidence(session)
            elif session.ended:
                error = ShuttingDown(f"the session ended during the call: {exchange.cancel_reason}")
    except Exception as failure:
        log.exception("an exchange with '%s' failed in an unexpected way", exchange.upstream)
        error = UpstreamError(f"the proxy failed while it talked to '{exchange.upstream}': {failure!r}")
    finally:
        exchange.end(reusable=False)
        if session.calls.get(key) is exchange:
            del session.calls[key]
        session.used_at = exchange.clock()
        if exchange.cancelled and not reply.ended:
            exchange.outcome = "cancelled"
        elif error is not None:
            exchange.outcome = error.type
        if hook is not NO_HOOK:
            # What this takes, every call takes that is recorded (docs/performance.md).
            teller(hook)(
                (
                    exchange.upstream,
                    session.upstream.transport,
                    exchange.message.method,
                    exchange.target,
                    session.client.id,
                    session.protocol,
                    exchange.outcome,
                    exchange.began,
                    exchange.sent_at,
                    exchange.first_at,
                    perf_counter(),
                    exchange.queue_s,
                    exchange.connect_s,
                    exchange.reused,
                    exchange.attempts,
                    exchange.messages,
                    len(session.calls),
                    exchange.bytes_in,
                    reply.bytes,
                    exchange.operation,
                    exchange.trace,
                )
            )
    try:
        if error is not None:
            await _answer_error(exchange, error, reply)
        elif not reply.ended:  # cancelled: the specification wants no response
            await end(reply)
    finally:
        session.close(reply)


def _begin_trace(exchange: Exchange, tracer: Tracer) -> None:
    """Whatever is sent to the server for this exchange names the proxy's own span as its parent."""
    message = exchange.message
    carrier = trace_context(message.params)
    trace = exchange.trace = tracer.begin(message.method, str(message.id_key()), carrier)
    message.params = with_trace_context(message.params, trace.carrier)


async def _attempts(session: Session, exchange: Exchange, retries: int) -> Answer:
    while True:
        try:
            return await session.at.exchange(exchange)
        except UpstreamError as error:
            if exchange.attempts > retries or not _may_repeat(exchange, error):
                raise
        await anyio.sleep(random.uniform(0, RETRY_BASE * 2**exchange.attempts))  # noqa: S311
        exchange.again()


def _may_repeat(exchange: Exchange, error: UpstreamError) -> bool:
    """Only what provably did not start, or only reads."""
    if isinstance(error, ConnectError):
        return True
    return (
        isinstance(error, UpstreamClosed) and exchange.messages == 0 and exchange.message.method in READ_ONLY
    )


async def _answer_whole(answer: Answer, reply: Reply) -> None:
    reply.headers += answer.headers
    await reply.whole(answer.status, answer.body, answer.content_type)


async def _answer_stream(session: Session, answer: Answer, reply: Reply) -> None:
    """Events as they come. A client that is gone, or was sent away to poll, finds them in the session's store."""
    assert answer.events is not None
    async with aclosing(cast("Any", answer.events)) as events:
        async for event in events:
            if event != _POLL:
                await reply.event(event)
            elif session.polls and reply.stored is not None:
                await reply.end()
    await reply.end()


async def _answer_error(exchange: Exchange, error: McpDiagError, reply: Reply) -> None:
    """A typed error as a JSON-RPC error with status 200: that is what official clients show to their caller."""
    message = exchange.message
    fatal = message.method == "initialize" or isinstance(error, ConnectError | ConnectTimeout)
    level = logging.WARNING if fatal else logging.INFO  # an operator wants to know that nobody can connect
    log.log(level, "%s: %s", message.method, error.message)
    known = {
        "upstream": exchange.upstream,
        "phase": exchange.phase.value,
        "elapsed_ms": round((perf_counter() - exchange.began) * 1000),
    }
    error.data = {**known, **error.data}
    body = encode_error(message.id, error.code, error.message, error.to_data())
    if not reply.started:
        await reply.whole(200, body)
    elif reply.streaming:
        with anyio.move_on_after(LAST_WORDS):
            await reply.event(Event(body, b"message"))
        await end(reply)


async def end(reply: Reply) -> None:
    """The end of a stream. A client that does not read is not waited for: then the server drops its connection."""
    with anyio.move_on_after(LAST_WORDS):
        await reply.end()


def _evidence(session: Session) -> dict[str, Any]:
    """What the server of a session is known to have said or done, for a timeout's data."""
    evidence: Callable[[], dict[str, Any]] | None = getattr(session.at, "evidence", None)
    return {} if evidence is None else evidence()
