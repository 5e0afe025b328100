"""One process of a stdio server with its router: what the pool of a stdio upstream holds."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from mcpdiag.connection.base import MessageConnection
from mcpdiag.errors import ConnectError, UpstreamClosed
from mcpdiag.protocol.message import Message, encode_notification, text_member
from mcpdiag.upstream.router import Router

log = logging.getLogger("mcpdiag.upstream")
LAST_WORDS = 1.0  # seconds to wait for what an ending process leaves behind


class Link:
    """A process and its router.

    Args:
        persistent: whether the server has proved to live on after an answer.
    """

    def __init__(self, connection: MessageConnection, router: Router, persistent: Callable[[], bool]) -> None:
        self.connection = connection
        self.router = router
        self.result = b""  # raw InitializeResult of the proxy's own handshake
        self.handshakes = 0
        self.settled_answers = 0
        self.wedged = False  # it takes no new exchange; those on it may still end well
        self._persistent = persistent
        self._closing = False

    @property
    def capacity(self) -> int:
        """One exchange at a time until the server has proved persistent: a second could meet a process on its way out."""
        return self.connection.capacity if self._persistent() else 1

    @property
    def healthy(self) -> bool:
        return self.connection.healthy and not self.wedged

    @property
    def ended_well(self) -> bool:
        """Whether the process ended by itself, with exit code 0 and after an answer."""
        return (
            self.connection.lost.is_set() and self.connection.returncode == 0 and self.connection.answers > 0
        )

    @property
    def ended_late(self) -> bool:
        """Whether it ended by itself after one call, when it had been taken for a process that lives on."""
        answers = self.connection.answers
        late = answers == self.settled_answers == 1 + self.handshakes
        return late and self.ended_well and not self._closing

    @property
    def single_shot(self) -> bool:
        return not self._persistent() and self.ended_well and self.connection.answers <= 1 + self.handshakes

    async def aclose(self, *, force: bool = False) -> None:
        self._closing = True
        await self.connection.aclose(force=force)

    async def gone(self) -> UpstreamClosed:
        """The error of a process that is on its way out, once its exit code and last words are there."""
        with anyio.move_on_after(LAST_WORDS):
            await self.connection.lost.wait()
        return self.connection.gone()

    async def call(self, method: str, params: bytes) -> Message:
        """A request of the proxy's own and its response.

        Raises:
            UpstreamClosed: the process ended first.
        """
        done = anyio.Event()
        box: list[Message] = []

        def answered(message: Message) -> None:
            box.append(message)
            done.set()

        async def until_lost() -> None:
            await self.connection.lost.wait()
            done.set()

        try:
            await self.connection.send(self.router.call(method, params, answered))
        except UpstreamClosed:
            raise await self.gone() from None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_lost)
            await done.wait()
            tasks.cancel_scope.cancel()
        if not box:
            raise self.connection.gone()
        return box[0]

    async def handshake(self, params: bytes) -> None:
        """Initialize with raw `params`; keeps the result.

        Raises:
            ConnectError: the server refused, with its own words.
            UpstreamClosed: it ended first.
        """
        self.handshakes += 1
        response = await self.call("initialize", params)
        if response.error:
            words = text_member(response.error, "message")
            raise ConnectError(
                f"the server '{self.connection.name}' refused to initialize: {words}{self.connection.evidence()}",
                data=self.connection.error_data(),
            )
        self.result = bytes(response.result)
        self.connection.post(encode_notification("notifications/initialized"))
