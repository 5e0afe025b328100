"""What a server would have to be told again if it forgot a session: DESIGN's handshake journal."""

from __future__ import annotations

from collections.abc import Iterator

from mcpdiag.protocol.message import Message, one_line, text_member

# Requests that change what a server keeps for a session.
STATEFUL = frozenset({"resources/subscribe", "resources/unsubscribe", "logging/setLevel"})


class Journal:
    """The client's `initialize` and what it has set since: the log level, and each resource subscription.

    Attributes:
        params: of the client's `initialize`, raw; empty before it.
    """

    def __init__(self) -> None:
        self.params = b""
        self._calls: dict[tuple[str, str], bytes] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def remember(self, message: Message) -> None:
        """Note a request of the client that the server has granted."""
        if message.method == "initialize":
            self.params = one_line(message.params)
        elif message.method == "logging/setLevel":
            self._calls[message.method, ""] = one_line(message.params)
        elif message.method in STATEFUL:
            key = "resources/subscribe", text_member(message.params, "uri")
            self._calls.pop(key, None)
            if message.method == "resources/subscribe":
                self._calls[key] = one_line(message.params)

    def calls(self) -> Iterator[tuple[str, bytes]]:
        """Method and raw params of what to send after a new handshake, in the order of the first time."""
        for (method, _), params in [*self._calls.items()]:
            yield method, params
