"""Which exchange or client each message of one stdio connection belongs to. Synchronous: no I/O, no clock.

Ids and progress tokens of clients are replaced by numbers of the connection, so that what comes back says whose it
is. Isolation rule: what one client caused never reaches another; where a message could be of several clients, it is
counted as undelivered instead (docs/transport-compatibility.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from mcpdiag.errors import INTERNAL_ERROR, METHOD_NOT_FOUND, McpDiagError, UpstreamProtocolError
from mcpdiag.protocol.message import (
    Id,
    Message,
    decode,
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
from mcpdiag.upstream.client import INBOX_BYTES, INBOX_MESSAGES, Asked, Client
from mcpdiag.upstream.exchange import Exchange

# What a server may ask of a client, and the capability the client must have declared for it.
NEEDS = {"sampling/createMessage": "sampling", "elicitation/create": "elicitation", "roots/list": "roots"}
# Carries no data of any client and concerns all that share the server's lists.
LIST_CHANGED = frozenset(f"notifications/{what}/list_changed" for what in ("tools", "prompts", "resources"))
# The start of an answer, with its id if that comes before the result.
_ANSWER = re.compile(
    rb'\s*\{(?:\s*"jsonrpc"\s*:\s*"2\.0"\s*,|\s*"id"\s*:\s*(\d{1,15})\s*,)*\s*"(?:result|error)"'
)
MAX_TASK_TOKENS = 100


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
        self.exchanges: dict[Id | None, Exchange] = {}
        self.answered = 0  # answers to exchanges, not to the proxy's own handshake
        self._post = post
        self._undelivered = undelivered
        self._last_id = 0
        self._calls: dict[Id | None, Callable[[Message], None]] = {}
        self._own_handshake = False  # if the proxy made it, the server does not know what a client can do
        # Exchanges of several clients that ended without an answer: the server may still speak of them.
        self._abandoned: dict[Id | None, Client] = {}
        self._askees: set[Client] = set()
        self._task_tokens: dict[Id | None, bytes] = {}

    # -- towards the server -------------------------------------------------------------------------------

    def call(self, method: str, params: bytes, answered: Callable[[Message], None]) -> bytes:
        """The line of a request of the proxy's own; `answered` gets the response."""
        self._last_id += 1
        self._calls[self._last_id] = answered
        self._own_handshake |= method == "initialize"
        return encode_request(b"%d" % self._last_id, method, params)

    def open(self, exchange: Exchange) -> bytes:
        """Register an exchange; returns the line to send."""
        self._last_id += 1
        number = exchange.rewritten_id = self._last_id
        self.exchanges[number] = exchange
        message = exchange.message
        params = one_line(message.params)
        exchange.progress_token = progress_token(params)
        if exchange.progress_token:
            params = with_progress_token(params, b"%d" % number)
        return encode_request(b"%d" % number, message.method, params)

    def close(self, exchange: Exchange) -> bool:
        """Forget an exchange; False if it was not open any more. Later messages for it are dropped."""
        if exchange.rewritten_id not in self.exchanges:
            return False
        if self.owner is None:
            self._abandoned[exchange.rewritten_id] = exchange.client
        self._ended(exchange)
        return True

    def cancel_line(self, exchange: Exchange, reason: str) -> bytes:
        """The notification that tells the server to stop working on an exchange."""
        params = b'{"requestId":%d,"reason":%b}' % (exchange.rewritten_id, quoted(reason))
        return encode_notification("notifications/cancelled", params)

    def fail_all(self, make: Callable[[], McpDiagError]) -> None:
        """The connection is gone: every exchange on it ends, every question from it is void."""
        exchanges, self.exchanges = [*self.exchanges.values()], {}
        askees, self._askees = self._askees, set()
        self._calls.clear()
        for client in askees:
            client.forget(self)
        for exchange in exchanges:
            exchange.fail(make())

    # -- from the server ----------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take one message of the server to where it belongs."""
        if not message.method:
            self._response(message)
        elif message.id:
            self._request(message)
        else:
            self._notification(message)

    def oversized(self, head: bytes) -> None:
        """A line that was too long to be taken, by its first bytes. If it was an answer, its exchange ends now.

        Some servers write the id behind the result; then it is the answer of the only exchange in flight, if any.
        """
        found = _ANSWER.match(head)
        if found is None:
            return
        exchange = self.exchanges.get(int(found[1])) if found[1] else self._only()
        if exchange is not None:
            self._ended(exchange)
            exchange.fail(
                UpstreamProtocolError(
                    f"the answer of '{exchange.upstream}' to {exchange.message.method} is longer than the proxy takes; "
                    f"raise max_message_bytes for '{exchange.upstream}', or ask for less",
                    data={"upstream": exchange.upstream},
                )
            )

    def refuse(self, message: Message, error: McpDiagError) -> bool:
        """A message could not be handed to the server: what it asked for ends. False if that was nothing."""
        key = key_of(message.id) if message.method and message.id else None
        exchange = self.exchanges.get(key)
        if exchange is not None:
            self._ended(exchange)
            exchange.fail(error)
            return True
        answered = self._calls.pop(key, None)
        if answered is not None:
            answered(decode(encode_error(bytes(message.id), error.code, error.message)))
        return answered is not None

    def _response(self, message: Message) -> None:
        key = key_of(message.id)
        exchange = self.exchanges.get(key)
        if exchange is not None:
            self.answered += 1
            self._ended(exchange)
            if exchange.progress_token and self.owner is not None and b'"task"' in bytes(message.result):
                self._remember_token(exchange)
            exchange.finish(encode_response(exchange.message.id, message), is_error=bool(message.error))
        elif (answered := self._calls.pop(key, None)) is not None:
            answered(message)
        elif key is None:  # an error that names no request, perhaps about a notification
            self._undelivered("response")
        else:  # the late answer to an exchange that timed out or was cancelled: nobody wants it
            self._abandoned.pop(key, None)

    def _remember_token(self, exchange: Exchange) -> None:
        """The token of a call that became a task is good for as long as the task (2025-11-25, "Tasks")."""
        self._task_tokens[exchange.rewritten_id] = exchange.progress_token
        if len(self._task_tokens) > MAX_TASK_TOKENS:
            del self._task_tokens[next(iter(self._task_tokens))]

    def _request(self, message: Message) -> None:
        if message.method == "ping":
            self._post(encode_result(message.id, b"{}"))
            return
        exchange, client = self._whose()
        needs = NEEDS.get(message.method)
        if client is None or (self._own_handshake and needs is not None and needs not in client.capabilities):
            self._undelivered(message.method)
            text = f"no client here can answer {message.method}"
            self._post(encode_error(message.id, METHOD_NOT_FOUND, text))
            return
        asked = Asked(self._post, self, bytes(message.id), progress_token(message.params))
        number = client.ask(asked)
        delivered = False
        if number is not None:
            self._askees.add(client)
            line = encode_request(b"%d" % number, message.method, one_line(message.params))
            delivered = self._give(exchange, client, line)
        if not delivered:
            self._undelivered(message.method)
            if number is None or client.asked.pop(number, None) is not None:
                self._post(
                    encode_error(message.id, INTERNAL_ERROR, "the client is too far behind to be asked")
                )

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
                if not listener.push(line):
                    self._undelivered(method)
            return
        exchange, client = self._whose()
        if client is None or not self._give(exchange, client, line):
            self._undelivered(method)

    def _progress(self, message: Message) -> None:
        key = key_of(members(message.params).get("progressToken", b""))
        exchange = self.exchanges.get(key)
        client = self.owner if exchange is None else exchange.client
        token = self._task_tokens.get(key, b"") if exchange is None else exchange.progress_token
        if client is None or not token:
            self._undelivered(message.method)
            return
        params = with_member(one_line(message.params), "progressToken", token)
        if not self._give(exchange, client, encode_notification(message.method, params)):
            self._undelivered(message.method)

    def _cancelled(self, message: Message) -> None:
        """The server takes back a question: it goes where the question went, under the client's number."""
        wanted = key_of(members(message.params).get("requestId", b""))
        for client in self._askees:
            for number, asked in client.asked.items():
                if asked.owner is self and key_of(asked.server_id) == wanted:
                    del client.asked[number]
                    params = with_member(one_line(message.params), "requestId", b"%d" % number)
                    exchange = next(
                        (e for e in reversed(self.exchanges.values()) if e.client is client), None
                    )
                    if not self._give(exchange, client, encode_notification(message.method, params)):
                        self._undelivered(message.method)
                    return
        # Else it was answered already, or has ended with its exchange.

    def _only(self) -> Exchange | None:
        """The exchange in flight, if there is exactly one thing that the server can mean."""
        if len(self.exchanges) != 1 or self._abandoned or self._calls:
            return None
        return next(iter(self.exchanges.values()))

    def _whose(self) -> tuple[Exchange | None, Client | None]:
        """Whom a message without an address is for: an exchange, or a client's own stream, or nobody.

        The exchange in flight if there is exactly one, else the client's open stream, else the youngest exchange.
        On a connection without owner nobody if there is no exchange in flight, or if it could be of several clients:
        also of one who has given up on an exchange that the server may still be working on.
        """
        exchanges, client = self.exchanges, self.owner
        if client is None:
            clients = {exchange.client for exchange in exchanges.values()}
            if not exchanges or len(clients.union(self._abandoned.values())) > 1:
                return None, None
            client = clients.pop()
        if exchanges and (len(exchanges) == 1 or not client.listening):
            return next(reversed(exchanges.values())), client
        return None, client

    def _give(self, exchange: Exchange | None, client: Client, line: bytes) -> bool:
        if exchange is None:
            return client.push(line)
        if exchange.deliver(line):
            return True
        self._overrun(exchange)
        return False

    def _overrun(self, exchange: Exchange) -> None:
        """The client does not read: end its exchange instead of keeping its messages without bound."""
        if self.close(exchange):
            self._post(self.cancel_line(exchange, "the client reads too slowly"))
        exchange.fail(
            UpstreamProtocolError(
                f"the client reads too slowly: {exchange.messages} messages of '{exchange.upstream}' came during one "
                f"exchange and more than {INBOX_MESSAGES} or {INBOX_BYTES >> 20} MiB of them wait; read faster or ask "
                "for less"
            )
        )

    def _ended(self, exchange: Exchange) -> None:
        """Forget an exchange. On a shared connection the questions that came with it end too.

        Else a response could come when the connection serves somebody else, or never, and the server would wait.
        """
        del self.exchanges[exchange.rewritten_id]
        client = exchange.client
        if not client.asked or self.owner is not None or client not in self._askees:
            return
        if any(other.client is client for other in self.exchanges.values()):
            return
        self._askees.discard(client)
        for asked in client.forget(self):
            self._post(
                encode_error(asked.server_id, INTERNAL_ERROR, "the call that this belongs to has ended")
            )


def key_of(raw: bytes | msgspec.Raw) -> Id | None:
    """An id or token as a key, None if it is neither text nor number: `7` and `7.0` are one, `"7"` is another."""
    try:
        return decode_id(raw)
    except msgspec.DecodeError:
        return None
