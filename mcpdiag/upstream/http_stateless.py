"""What one request of the stateless era has at an HTTP server: pooled connections, no session, no resumption."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import anyio

from mcpdiag.connection.base import HttpConnection, HttpResponse
from mcpdiag.errors import McpDiagError, UpstreamClosed, UpstreamProtocolError
from mcpdiag.protocol.headers import is_event_stream, is_json
from mcpdiag.protocol.message import Message, MessageError, decode, encode_request
from mcpdiag.protocol.sse import Decoder, Event, SseError
from mcpdiag.upstream.base import Answer
from mcpdiag.upstream.exchange import Exchange
from mcpdiag.upstream.http_session import HttpSession, close, holding, leased
from mcpdiag.upstream.stateless_router import ACKNOWLEDGED
from mcpdiag.upstream.stream import EventStream

log = logging.getLogger("mcpdiag.upstream")


class StatelessHttpSession(HttpSession):
    """What one request of the stateless era has at an HTTP server."""

    async def exchange(self, exchange: Exchange) -> Answer:
        if exchange.message.method == "subscriptions/listen":
            return await self._subscribe(exchange)
        return await super().exchange(exchange)

    async def _relay(self, exchange: Exchange, response: HttpResponse) -> AsyncIterator[Event]:
        """The server's events until the answer has come. A stream that breaks is not resumed in this era."""
        decoder = Decoder(self._upstream.config.max_message_bytes)
        why = "the server ended the stream"
        try:
            async with leased(exchange, response):
                while chunk := await response.chunk():
                    events = decoder.feed(chunk)
                    if decoder.pending or any(event.data for event in events):
                        exchange.heard()
                    for event in (event for event in events if event.data):
                        if not self._is_answer(exchange, event.data, exchange.message.id_key()):
                            exchange.messages += 1
                        yield event
                    if exchange.final is not None:
                        return
        except SseError as error:
            raise UpstreamProtocolError(
                f"the server '{self._upstream.name}' sent {error}", data={"upstream": self._upstream.name}
            ) from None
        except UpstreamClosed as error:
            why = error.message
        raise UpstreamClosed(
            f"the server '{self._upstream.name}' ended its answer to {exchange.message.method} without a response "
            f"({why})",
            data={"upstream": self._upstream.name},
        )

    # -- subscriptions ------------------------------------------------------------------------------------

    async def _subscribe(self, exchange: Exchange) -> Answer:
        """A stream over a connection of its own, opened again when it breaks until the client or the server ends it."""
        message = exchange.message
        body = encode_request(message.id, message.method, bytes(message.params))
        exchange.sending()
        connection, response = await self._open(b"POST", b"", body)
        if response.status == 200 and is_event_stream(response.header(b"content-type")):
            scope = anyio.CancelScope()
            exchange.on_end = lambda reusable: scope.cancel()
            assert self._upstream.tasks is not None
            self._upstream.tasks.start_soon(self._listen_for, exchange, connection, response, body, scope)
            return Answer(content_type=b"text/event-stream", events=_events(exchange))
        async with holding(connection, response):
            data = await response.body()
        if response.status == 200 and is_json(response.header(b"content-type")):
            self._finish(exchange, data)
            return Answer(body=data)
        return self._refused(exchange, response, data)

    async def _listen_for(
        self,
        exchange: Exchange,
        connection: HttpConnection,
        response: HttpResponse,
        body: bytes,
        scope: anyio.CancelScope,
    ) -> None:
        """Take the server's messages to the exchange until it is over."""
        upstream = self._upstream

        @contextlib.asynccontextmanager
        async def again(last_id: bytes) -> AsyncIterator[HttpResponse]:
            stream.resume.restarted()  # ids mean nothing in this era
            async with holding(*await self._open(b"POST", b"", body)) as response:
                yield response

        stream = EventStream(
            upstream.name,
            "listen",
            again,
            upstream.config.reconnect,
            max_event_bytes=upstream.config.max_message_bytes,
            hook=upstream.hook,
            clock=upstream.clock,
        )
        acknowledged = False
        try:
            with scope:
                events = stream.events(holding(connection, response))
                async with aclosing(cast("Any", events)) as events:
                    async for event in events:
                        message = _decoded(event.data)
                        if message is None or (acknowledged and message.method == ACKNOWLEDGED):
                            continue
                        acknowledged = acknowledged or message.method == ACKNOWLEDGED
                        if not message.method:
                            exchange.finish(event.data, is_error=bool(message.error))
                            return
                        if not exchange.deliver(event.data):
                            exchange.fail(UpstreamClosed("the client reads too slowly"))
                            return
        except McpDiagError as error:
            exchange.fail(error)
        except Exception as error:  # a task that fails would end the proxy
            log.exception("a subscription at '%s' failed in an unexpected way", upstream.name)
            exchange.fail(
                UpstreamClosed(f"the proxy failed while it listened to '{upstream.name}': {error!r}")
            )
        finally:
            await close(connection)


async def _events(exchange: Exchange) -> AsyncIterator[Event]:
    while data := await exchange.inbox.get():
        yield Event(data, b"message")
    if exchange.error is not None:
        raise exchange.error
    assert exchange.final is not None
    yield Event(exchange.final, b"message")


def _decoded(data: bytes) -> Message | None:
    try:
        return decode(data) if data else None
    except MessageError:
        return None
