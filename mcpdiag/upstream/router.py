"""Which exchange or client each message of one stdio connection belongs to. Synchronous: no I/O, no clock.

Ids and progress tokens of clients are replaced by numbers of the connection, so that what comes back says whose it
is. Isolation rule: what one client caused never reaches another; where a message could be of several clients, it is
counted as undelivered instead (docs/transport-compatibility.md).
"""

from __future__ import annotations

from collections.abc import Callable

from mcpdiag.errors import METHOD_NOT_FOUND, McpDiagError, UpstreamProtocolError
from mcpdiag.protocol.message import (
    Message,
    decode_id,
    encode_error,
    encode_notification,
    encode_request,
    encode_response,
    encode_result,
    members,
    one_line,
    progress_token,
    quoted,
    with_member,
    with_progress_token,
)
from mcpdiag.upstream.base import Asked, Client, Exchange

# What a server may ask of a client, and the capability the client must have declared for it.
NEEDS = {"sampling/createMessage": "sampling", "elicitation/create": "elicitation", "roots/list": "roots"}
# Carries no data of any client and concerns all that share the server's lists.
LIST_CHANGED = frozenset(f"notifications/{what}/list_changed" for what in ("tools", "prompts", "resources"))


class Router:
    """The traffic of one connection.

    Args:
        post: queues one line for the server without waiting.
        undelivered: told of each message that could be given to nobody, with its method.
        owner: the only client of this connection, once there is one (session mode, or pinned).
    """

    def __init__(
        self,
        post: Callable[[bytes], None],
        undelivered: Callable[[str], None],
        owner: Client | None = None,
    ) -> None:
        self.owner = owner
        self.audience: Callable[[], list[Client]] = list  # who shares the lists of a multiplexed server
        self.exchanges: dict[int, Exchange] = {}
        self.answered = 0  # answers to exchanges, not to the proxy's own handshake
        self._post = post
        self._undelivered = undelivered
        self._last_id = 0
        self._calls: dict[int, Callable[[Message], None]] = {}

    # -- towards the server -------------------------------------------------------------------------------

    def call(self, method: str, params: bytes, answered: Callable[[Message], None]) -> bytes:
        """The line of a request of the proxy's own; `answered` gets the response."""
        self._last_id += 1
        self._calls[self._last_id] = answered
        return encode_request(b"%d" % self._last_id, method, params)

    def open(self, exchange: Exchange) -> bytes:
        """Register an exchange; returns the line to send."""
        self._last_id += 1
        number = exchange.rewritten_id = self._last_id
        self.exchanges[number] = exchange
        message = exchange.message
        params = one_line(message.params)
        if progress_token(params):
            params = with_progress_token(params, b"%d" % number)
        return encode_request(b"%d" % number, message.method, params)

    def close(self, exchange: Exchange) -> bool:
        """Forget an exchange; False if it was not open any more. Later messages for it are dropped."""
        return self.exchanges.pop(exchange.rewritten_id, None) is not None

    def cancel_line(self, exchange: Exchange, reason: str) -> bytes:
        """The notification that tells the server to stop working on an exchange."""
        params = b'{"requestId":%d,"reason":%b}' % (exchange.rewritten_id, quoted(reason))
        return encode_notification("notifications/cancelled", params)

    def fail_all(self, make: Callable[[], McpDiagError]) -> None:
        """The connection is gone: every exchange on it ends, every question from it is void."""
        exchanges, self.exchanges = [*self.exchanges.values()], {}
        for exchange in exchanges:
            exchange.client.forget(self)
            exchange.fail(make())
        if self.owner is not None:
            self.owner.forget(self)

    # -- from the server ----------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take one message of the server to where it belongs."""
        if not message.method:
            self._response(message)
        elif message.id:
            self._request(message)
        else:
            self._notification(message)

    def _response(self, message: Message) -> None:
        raw = bytes(message.id)
        number = int(raw) if raw.isdigit() else -1
        exchange = self.exchanges.pop(number, None)
        if exchange is not None:
            self.answered += 1
            exchange.finish(encode_response(exchange.message.id, message), is_error=bool(message.error))
        elif (answered := self._calls.pop(number, None)) is not None:
            answered(message)
        # Else it is the late answer to an exchange that timed out or was cancelled: nobody wants it.

    def _request(self, message: Message) -> None:
        if message.method == "ping":
            self._post(encode_result(message.id, b"{}"))
            return
        exchange, client = self._whose()
        needs = NEEDS.get(message.method)
        if client is None or (self.owner is None and needs is not None and needs not in client.capabilities):
            self._undelivered(message.method)
            text = f"no client here can answer {message.method}"
            self._post(encode_error(message.id, METHOD_NOT_FOUND, text))
            return
        asked = Asked(self._post, self, bytes(message.id), progress_token(message.params))
        number = client.ask(asked)
        delivered = False
        if number is not None:
            line = encode_request(b"%d" % number, message.method, one_line(message.params))
            delivered = self._give(exchange, client, line)
        if not delivered:
            if number is not None:
                del client.asked[number]
            self._undelivered(message.method)
            self._post(encode_error(message.id, METHOD_NOT_FOUND, "the client is too far behind to be asked"))

    def _notification(self, message: Message) -> None:
        method = message.method
        if method == "notifications/progress":
            self._progress(message)
            return
        if method == "notifications/cancelled":
            self._cancelled(message)
            return
        line = encode_notification(method, one_line(message.params))
        if self.owner is None and method in LIST_CHANGED:
            for listener in self.audience():
                listener.push(line)
            return
        exchange, client = self._whose()
        if client is None or not self._give(exchange, client, line):
            self._undelivered(method)

    def _progress(self, message: Message) -> None:
        parts = members(message.params)
        raw = bytes(parts.get("progressToken", b""))
        exchange = self.exchanges.get(int(raw)) if raw.isdigit() else None
        if exchange is None:
            self._undelivered(message.method)
            return
        token = progress_token(exchange.message.params)
        params = with_member(one_line(message.params), "progressToken", token or raw)
        if not exchange.deliver(encode_notification(message.method, params)):
            self._overrun(exchange)

    def _cancelled(self, message: Message) -> None:
        """The server takes back a question: it goes where the question went, under the client's number."""
        raw = members(message.params).get("requestId")
        wanted = decode_id(raw) if raw else None
        clients = {exchange.client for exchange in self.exchanges.values()}
        if self.owner is not None:
            clients.add(self.owner)
        for client in clients:
            for number, asked in client.asked.items():
                if asked.owner is self and decode_id(asked.server_id) == wanted:
                    del client.asked[number]
                    params = with_member(one_line(message.params), "requestId", b"%d" % number)
                    exchange = next(
                        (e for e in reversed(self.exchanges.values()) if e.client is client), None
                    )
                    self._give(exchange, client, encode_notification(message.method, params))
                    return

    def _whose(self) -> tuple[Exchange | None, Client | None]:
        """Whom a message without an address is for: an exchange, or a client's own stream, or nobody.

        The exchange in flight if there is exactly one, else the owner's open stream, else the youngest exchange;
        and nobody if several clients have exchanges in flight.
        """
        exchanges = self.exchanges
        if len(exchanges) == 1:
            exchange = next(iter(exchanges.values()))
            return exchange, exchange.client
        if self.owner is not None:
            if exchanges and not self.owner.listening:
                return next(reversed(exchanges.values())), self.owner
            return None, self.owner
        clients = {exchange.client for exchange in exchanges.values()}
        if len(clients) == 1:
            youngest = next(reversed(exchanges.values()))
            return youngest, youngest.client
        return None, None

    def _give(self, exchange: Exchange | None, client: Client, line: bytes) -> bool:
        if exchange is None:
            return client.push(line)
        if exchange.deliver(line):
            return True
        self._overrun(exchange)
        return False

    def _overrun(self, exchange: Exchange) -> None:
        """The client does not read: end its exchange instead of keeping its messages without bound."""
        self.exchanges.pop(exchange.rewritten_id, None)
        exchange.fail(
            UpstreamProtocolError(
                f"the client reads too slowly: {exchange.messages} messages of '{exchange.upstream}' came during one "
                "exchange and more than 1000 or 16 MiB of them wait; read faster or ask for less"
            )
        )
