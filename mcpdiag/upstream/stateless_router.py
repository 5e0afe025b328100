"""Which exchange or subscription each message of a stdio connection of the stateless era belongs to.

As `router.py`, with what 2026-07-28 changes: a subscription is an exchange whose notifications carry its id; a server
asks nothing; and after a cancellation it says nothing more of the request (basic/patterns/cancellation).
"""

from __future__ import annotations

from collections.abc import Callable

from mcpdiag.errors import McpDiagError
from mcpdiag.protocol.message import (
    Id,
    Message,
    encode_notification,
    encode_response,
    encode_result,
    members,
    one_line,
    with_member,
)
from mcpdiag.protocol.mirror import META_SUBSCRIPTION, listen_ended
from mcpdiag.upstream.exchange import Exchange
from mcpdiag.upstream.router import LIST_CHANGED, Router, key_of

ACKNOWLEDGED = "notifications/subscriptions/acknowledged"


class StatelessRouter(Router):
    """The traffic of one connection, which never belongs to one client.

    Args:
        post: queues one line for the server without waiting.
        undelivered: told of each message that could be given to nobody, with its method.
    """

    def __init__(self, post: Callable[[bytes], None], undelivered: Callable[[str], None]) -> None:
        super().__init__(post, undelivered)
        self.subscriptions: dict[Id | None, Exchange] = {}
        self._asked_before: dict[Id | None, int] = {}  # the newest request when an exchange was abandoned

    def subscribe(self, exchange: Exchange) -> bytes:
        """Register a `subscriptions/listen`; returns the line to send."""
        line = self.open(exchange)
        self.subscriptions[exchange.rewritten_id] = self.exchanges.pop(exchange.rewritten_id)
        return line

    def close(self, exchange: Exchange) -> bool:
        if self.subscriptions.get(exchange.rewritten_id) is exchange:
            del self.subscriptions[exchange.rewritten_id]
            return True
        was_open = super().close(exchange)
        if was_open:
            self._asked_before[exchange.rewritten_id] = self._last_id
        return was_open

    def fail_all(self, make: Callable[[], McpDiagError]) -> None:
        super().fail_all(make)
        subscriptions, self.subscriptions = [*self.subscriptions.values()], {}
        for exchange in subscriptions:
            exchange.fail(make())

    # -- from the server ----------------------------------------------------------------------------------

    def _response(self, message: Message) -> None:
        key = key_of(message.id)
        if self._asked_before and isinstance(key, int):
            # The server has read everything before this request, cancellations too.
            for old in [old for old, newest in self._asked_before.items() if newest < key]:
                del self._asked_before[old]
                self._abandoned.pop(old, None)
        exchange = self.subscriptions.pop(key, None)
        if exchange is None:
            super()._response(message)
        elif message.error:
            exchange.finish(encode_response(exchange.message.id, message), is_error=True)
        else:
            result = self._under_clients_id(one_line(message.result), exchange)
            exchange.finish(encode_result(exchange.message.id, result), is_error=False)

    def _request(self, message: Message) -> None:
        """A server of this era must not ask, and must not be answered (basic/transports/stdio)."""
        self._undelivered(message.method)

    def _notification(self, message: Message) -> None:
        data = bytes(message.params)
        raw = None
        if b"subscriptionId" in data or b"\\u" in data:
            raw = members(members(data).get("_meta", b"")).get(META_SUBSCRIPTION)
        if raw is not None:
            exchange = self.subscriptions.get(key_of(raw))
            if exchange is None:
                self._undelivered(message.method)
                return
            line = encode_notification(message.method, self._under_clients_id(one_line(data), exchange))
            if not self._give(exchange, exchange.client, line):
                self._undelivered(message.method)
        elif message.method in LIST_CHANGED:  # nobody has asked for it
            self._undelivered(message.method)
        else:
            super()._notification(message)

    def _cancelled(self, message: Message) -> None:
        """The server ends a subscription. Over HTTP the same is said by the response to it."""
        exchange = self.subscriptions.pop(key_of(members(message.params).get("requestId", b"")), None)
        if exchange is not None:
            exchange.finish(listen_ended(bytes(exchange.message.id)), is_error=False)

    def _under_clients_id(self, params: bytes, exchange: Exchange) -> bytes:
        meta = with_member(members(params).get("_meta", b"{}"), META_SUBSCRIPTION, bytes(exchange.message.id))
        return with_member(params, "_meta", meta)
