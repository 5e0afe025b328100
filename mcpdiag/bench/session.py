"""One client session of the generator, whatever carries it: one call at a time, judged by its answer.

Callbacks instead of coroutines on the way of a call: a generator that shares two cores with what it measures
has some 20 us for each. `client.py` and `stdio.py` carry the bytes.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns
from typing import Any

import msgspec

from mcpdiag.bench import columns, wire
from mcpdiag.bench.spec import Call
from mcpdiag.protocol.revisions import Era

PENDING = -1


class SessionError(Exception):
    """A session could not be opened, or a request of its own failed; one line with the reason."""


class _Answer(msgspec.Struct, gc=False):
    id: int | str | float | None = None
    method: str | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Answer).decode


def _nothing(session: Session) -> None:
    return None


class Session(ABC):
    """Opened with `open`, used with `start` (the load) or `request` (a coroutine), ended with `close`.

    Attributes:
        call, intended_ns, sent_ns, done_ns, outcome: of the call under way or the last one.
        error: what went wrong with it, in one line.
        result: the raw result of the last answer.
        usable: whether a call can be sent now; if not, `revive` makes it so.
        on_done: called when a call of `start` has ended.
    """

    def __init__(self, calls: Sequence[Call], era: Era, version: str, timeout_s: float) -> None:
        self.calls, self.era, self.version, self.timeout_s = calls, era, version, timeout_s
        self.on_done: Callable[[Session], None] = _nothing
        self.number = wire.FIRST_ID
        self.call = self.served = 0
        self.intended_ns = self.sent_ns = self.done_ns = 0
        self.outcome = columns.OK
        self.error = ""
        self.result = b""
        self.usable = False
        self.write: Callable[[bytes], None]  # sends now; there once the carrier is usable
        self.forgotten = False  # the server does not know the session any more
        self._halves: list[wire.Halves] = []
        self._asked: asyncio.Future[None] | None = None

    # -- what a carrier provides ---------------------------------------------------------------------------

    @abstractmethod
    async def connect(self) -> None:
        """Make the carrier usable. Raises SessionError."""

    @abstractmethod
    def halves(self, method: str, params: Mapping[str, Any], extra: Mapping[str, str]) -> wire.Halves:
        """A request around its id, as the carrier sends it."""

    @abstractmethod
    async def notify_initialized(self) -> None:
        """Send `notifications/initialized`."""

    @abstractmethod
    def abort(self) -> None:
        """Drop the carrier; what comes later is ignored."""

    @abstractmethod
    async def close(self) -> None:
        """End the session and the carrier; never raises."""

    # -- life ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, shake hands where the era has that, prepare the calls.

        Raises:
            SessionError: any of it failed.
        """
        self.forgotten = False
        await self.connect()
        if self.era == "handshake":
            await self.request(*wire.initialize(self.version))
            await self.notify_initialized()
        self._halves = [self.halves(call.method, call.params, call.headers) for call in self.calls]
        self.served = 0

    async def revive(self) -> None:
        """Make it usable again: a new connection, and a new session where the server has forgotten this one."""
        if self.forgotten or not self._halves:
            await self.open()
        else:
            await self.connect()

    # -- calls ---------------------------------------------------------------------------------------------

    def start(self, call: int, intended_ns: int) -> None:
        """Send a call of the load; `on_done` tells of its end."""
        before, after = self._halves[call]
        self.call, self.intended_ns = call, intended_ns
        self.outcome = PENDING
        self.served += 1
        self.number = number = self.number + 1
        self.sent_ns = perf_counter_ns()
        self.write(b"%b%d%b" % (before, number, after))

    async def request(
        self, method: str, params: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> bytes:
        """One request; its raw result.

        Raises:
            SessionError: it failed, or no answer came in time.
        """
        before, after = self.halves(method, params, headers or {})
        self._asked = asyncio.get_running_loop().create_future()
        self.outcome = PENDING
        self.number += 1
        try:
            self.write(b"%b%d%b" % (before, self.number, after))
            async with asyncio.timeout(self.timeout_s):
                await self._asked
        except TimeoutError:
            self.abort()
            raise SessionError(f"no answer to {method} within {self.timeout_s:g} s") from None
        finally:
            self._asked = None
        if self.outcome != columns.OK:
            raise SessionError(self.error)
        return self.result

    # -- what a carrier reports ------------------------------------------------------------------------------

    def message(self, data: bytes) -> None:
        """A message of the server: the answer, or one to be ignored."""
        heard = hear(data, self.number)
        if heard is not None and self.outcome == PENDING:
            self.done_ns = perf_counter_ns()
            self.outcome, self.error, self.result = heard

    def complete(self, status: int) -> None:
        """Nothing more comes for this call."""
        if status == 404 and self.outcome != columns.OK:
            self.forgotten = True
        if self.outcome == PENDING:
            kind = columns.HTTP_ERROR if status >= 300 else columns.PROTOCOL
            self.fail(kind, f"HTTP status {status} and no answer")
        self._end()

    def lost(self, kind: int, reason: str) -> None:
        """The carrier is gone, with the call that was under way."""
        self.usable = False
        if self.outcome == PENDING:
            self.fail(kind, reason)
            self._end()

    def expire(self) -> None:
        """No answer has come in time."""
        self.fail(columns.TIMEOUT, f"no answer within {self.timeout_s:g} s")
        self.abort()
        self._end()

    def fail(self, outcome: int, error: str) -> None:
        """The call under way has failed."""
        if self.outcome == PENDING:
            self.done_ns = perf_counter_ns()
            self.outcome, self.error = outcome, error

    def _end(self) -> None:
        if self._asked is None:
            self.on_done(self)
        elif not self._asked.done():
            self._asked.set_result(None)


def hear(data: bytes, number: int) -> tuple[int, str, bytes] | None:
    """What a message says of the request with this number: outcome, error and raw result; None if nothing."""
    try:
        answer = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return columns.PROTOCOL, f"the server sent something that is no JSON-RPC: {_shown(data)}", b""
    if answer.method is not None:
        return None
    if answer.id != number:
        if answer.id is None and not answer.error:
            return None
        return columns.PROTOCOL, f"an answer to a request that was not sent: {_shown(data)}", b""
    if answer.error:
        return columns.RPC_ERROR, _error_text(bytes(answer.error)), b""
    result = bytes(answer.result)
    if b'"isError"' in result and _is_error(result):
        return columns.TOOL_ERROR, f"the tool failed: {_tool_text(result)}", result
    return columns.OK, "", result


def _shown(data: bytes) -> str:
    return repr(data[:120])


def _error_text(raw: bytes) -> str:
    try:
        error = msgspec.json.decode(raw)
        return " ".join(str(error["message"]).split())[:500]
    except (msgspec.MsgspecError, TypeError, KeyError):
        return _shown(raw)


def _is_error(result: bytes) -> bool:
    try:
        return msgspec.json.decode(result).get("isError") is True
    except (msgspec.MsgspecError, AttributeError):
        return False


def _tool_text(result: bytes) -> str:
    try:
        return " ".join(str(msgspec.json.decode(result)["content"][0]["text"]).split())[:300]
    except (msgspec.MsgspecError, TypeError, KeyError, IndexError):
        return _shown(result)
