"""`EventStream` over real sockets, against a server whose connections break. Its waiting is virtual.

What is counted: every event once, in order, none lost, whatever becomes of the connections.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, cast

import anyio
import pytest
from anyio import CancelScope
from anyio.lowlevel import checkpoint

import mcpdiag.upstream.stream as streaming
from mcpdiag.config import ReconnectPolicy
from mcpdiag.connection.dial import Origin
from mcpdiag.connection.http1 import Http1Connection
from mcpdiag.connection.http1_response import Response
from mcpdiag.errors import McpDiagError, UpstreamClosed, UpstreamProtocolError
from mcpdiag.hooks import Event as HookEvent
from mcpdiag.hooks import Happened
from mcpdiag.protocol.sse import Event
from mcpdiag.upstream.stream import EventStream, Open
from tests.conftest import own_descriptors
from tests.servers.flaky import EMPTY, HANG_UP, Drop, FlakyServer, Forwarder, Host, Refusal

pytestmark = pytest.mark.anyio
HANG = 30.0  # seconds: nothing here takes that long unless it hangs
TOTAL = 100
EVERY = [*range(1, TOTAL + 1)]
BREAKS: list[Drop] = ["end", "cut", "half", "reset"]
UNAVAILABLE = Refusal(503)


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every property holds on each of the three loops."""
    return cast("tuple[str, dict[str, Any]]", request.param)


class Time:
    """A clock that only sleeping moves. `then` is called after each sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.then: Callable[[], Awaitable[None]] = checkpoint

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await self.then()


class Recorder:
    """A hook that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[HookEvent] = []

    def emit(self, event: HookEvent, /) -> None:
        self.events.append(event)

    def of(self, kind: str) -> list[Happened]:
        return [event for event in self.events if isinstance(event, Happened) and event.kind == kind]

    @property
    def attempts(self) -> list[tuple[int, int]]:
        """Number and delay of each attempt, in whole milliseconds."""
        return [(each.attempt, round(each.delay_ms)) for each in self.of("reconnect_attempt")]


class Session:
    """What the owner of a stream does: it opens connections in a session, and makes a new one if asked to."""

    def __init__(self, host: Host) -> None:
        self.id = b""
        self.renewals = 0
        self._origin = Origin("http", "127.0.0.1", host.port)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Http1Connection]:
        connection = await Http1Connection.open(self._origin)
        try:
            yield connection
        finally:
            with CancelScope(shield=True):
                await connection.aclose(force=True)

    def _head(self, method: bytes, extra: bytes) -> bytes:
        if self.id:
            extra += b"mcp-session-id: %b\r\n" % self.id
        return b"%b /mcp HTTP/1.1\r\nhost: test\r\n%b\r\n" % (method, extra)

    @asynccontextmanager
    async def open(self, last_event_id: bytes) -> AsyncIterator[Response]:
        extra = b"last-event-id: %b\r\n" % last_event_id if last_event_id else b""
        async with self.connected() as connection:
            yield await connection.send(self._head(b"GET", extra), b"")

    @asynccontextmanager
    async def post(self, method: str, params: Any) -> AsyncIterator[Response]:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        async with self.connected() as connection:
            yield await connection.send(self._head(b"POST", b"content-length: %d\r\n" % len(body)), body)

    async def renew(self) -> None:
        self.renewals += 1
        async with self.post("initialize", {"protocolVersion": "2025-11-25"}) as response:
            await response.body()
            if response.status != 200:
                raise McpDiagError(f"initialize was answered with HTTP {response.status}")
            self.id = response.header(b"mcp-session-id") or b""


class Rig:
    """A stream and all that it is given. Its delays are the longest there may be."""

    def __init__(
        self, host: Host, *, opener: Open | None = None, renews: bool = False, **options: Any
    ) -> None:
        self.time = Time()
        self.hook = Recorder()
        self.session = Session(host)
        self.heard = 0
        self.stream = EventStream(
            "srv",
            options.pop("kind", "get"),
            opener or self.session.open,
            options.pop("policy", ReconnectPolicy()),
            session="s1",
            renew=self.session.renew if renews else None,
            heard=self._heard,
            hook=self.hook,
            clock=self.time,
            sleep=self.time.sleep,
            uniform=options.pop("uniform", lambda low, high: high),
            **options,
        )

    def _heard(self) -> None:
        self.heard += 1

    def events(
        self, first: AbstractAsyncContextManager[Response] | None = None, *, ends: bool = False
    ) -> aclosing[AsyncGenerator[Event, None]]:
        return aclosing(self.stream.events(first, ends=ends))

    async def fails(self) -> UpstreamClosed:
        """How it ends, without any message."""
        async with self.events() as events:
            with pytest.raises(UpstreamClosed) as caught:
                async for event in events:
                    assert not event.data
        return caught.value


@asynccontextmanager
async def flaky(**options: Any) -> AsyncIterator[FlakyServer]:
    with anyio.fail_after(HANG):
        async with FlakyServer(**options) as server:
            yield server


async def take(events: AsyncIterator[Event], count: int = 1) -> list[Any]:
    """What the next messages carry."""
    taken: list[Any] = []
    while len(taken) < count:
        event = await anext(events)
        if event.data:
            taken.append(json.loads(event.data)["params"]["data"])
    return taken


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until the condition holds."""
    while not condition():
        await anyio.sleep(0.002)


async def until_closed(host: Host, descriptors: int) -> None:
    """Until no connection is open on either side."""
    await until(lambda: host.open == 0 and own_descriptors() <= descriptors)


# -- every event once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", BREAKS)
@pytest.mark.parametrize("chunked", [True, False])
async def test_of_a_hundred_events_over_connections_of_seven_none_is_lost_or_doubled(
    drop: Drop, chunked: bool
) -> None:
    async with flaky(sessions=False, events=TOTAL, drop_every=7, drop=drop, chunked=chunked) as server:
        rig = Rig(server)
        async with rig.events() as events:
            assert await take(events, TOTAL) == EVERY
            server.push("last")
            assert await take(events) == ["last"]
        assert server.last_event_ids == [*range(0, TOTAL, 7)]
        assert server.connections == 15
        assert rig.hook.attempts == [(1, 200)] * 14  # back to base each time
        assert len(rig.hook.of("reconnect_ok")) == 14


@pytest.mark.parametrize("drop", BREAKS)
async def test_none_is_lost_or_doubled_when_each_connection_carries_one(drop: Drop) -> None:
    async with flaky(sessions=False, events=TOTAL, drop_every=1, drop=drop) as server:
        rig = Rig(server, uniform=random.Random(1).uniform)
        async with rig.events() as events:
            assert await take(events, TOTAL) == EVERY
        assert server.connections == TOTAL
        assert max(rig.time.slept) <= 0.2


async def test_none_is_doubled_by_a_server_that_replays_from_the_start() -> None:
    async with flaky(sessions=False, events=TOTAL, drop_every=range(10, TOTAL, 7), forgetful=True) as server:
        rig = Rig(server)
        async with rig.events() as events:
            assert await take(events, TOTAL) == EVERY
            server.push("last")
            assert await take(events) == ["last"]
        assert server.connections == 14


async def test_a_server_that_only_ever_replays_the_same_is_given_up() -> None:
    async with flaky(sessions=False, events=TOTAL, drop_every=7, forgetful=True) as server:
        rig = Rig(server)
        async with rig.events() as events:
            assert await take(events, 7) == EVERY[:7]
            with pytest.raises(UpstreamClosed, match="was not opened again"):
                await take(events)
        assert rig.time.now == pytest.approx(1300)
        assert server.connections < 30


async def test_events_without_ids_come_as_often_as_the_server_sends_them() -> None:
    """There is nothing to tell repeats by, and a message is better twice than never."""
    async with flaky(sessions=False, events=5, drop_every=[3], ids=False) as server:
        rig = Rig(server)
        async with rig.events() as events:
            assert await take(events, 8) == [1, 2, 3, 1, 2, 3, 4, 5]
        assert server.last_event_ids == [0, 0]


async def test_what_is_pushed_between_two_connections_arrives() -> None:
    async with flaky(sessions=False, events=3, drop_every=[3]) as server:
        rig = Rig(server)

        async def push() -> None:
            server.push("between")

        rig.time.then = push
        async with rig.events() as events:
            assert await take(events, 4) == [1, 2, 3, "between"]


async def test_a_streamed_answer_goes_on_with_a_get() -> None:
    async with flaky(drop_every=7) as server:
        rig = Rig(server, kind="post", needs_id=True)
        await rig.session.renew()
        call = rig.session.post("tools/call", {"name": "count", "arguments": {"events": TOTAL}})
        async with rig.events(call) as events:
            assert await take(events, TOTAL) == EVERY
            answer = json.loads((await anext(events)).data)
        assert answer["id"] == 1
        assert answer["result"]["content"][0]["text"] == f"counted to {TOTAL}"
        assert len(server.posted("tools/call")) == 1
        assert server.last_event_ids == [*range(7, TOTAL + 1, 7)]


async def test_two_streams_of_one_session_do_not_mix() -> None:
    async with flaky(events=TOTAL, drop_every=3) as server:
        listening, calling = Rig(server), Rig(server, kind="post", needs_id=True)
        await listening.session.renew()
        calling.session.id = listening.session.id
        call = calling.session.post("tools/call", {"name": "count", "arguments": {"events": TOTAL}})
        async with calling.events(call) as answers, listening.events() as events:
            for number in EVERY:
                assert await take(events) == await take(answers) == [number]


# -- a server that is away -----------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [UNAVAILABLE, Refusal(500), Refusal(429), Refusal(409), HANG_UP, EMPTY])
async def test_attempts_go_on_with_longer_delays_until_the_server_is_back(away: Refusal) -> None:
    async with flaky(sessions=False, events=3) as server:
        server.refusals = [away] * 5
        rig = Rig(server)
        async with rig.events() as events:
            assert await take(events, 3) == [1, 2, 3]
        assert rig.time.slept == [0.2, 0.4, 0.8, 1.6, 3.2]
        assert rig.hook.attempts == [(1, 200), (2, 400), (3, 800), (4, 1600), (5, 3200)]
        for told in rig.hook.of("reconnect_attempt"):
            assert (told.upstream, told.session) == ("srv", "s1")
            assert told.detail.startswith("get stream: ")
        assert rig.hook.of("reconnect_ok")[-1].attempt == 5
        assert not rig.hook.of("reconnect_gave_up")


async def test_what_a_refusal_was_is_told() -> None:
    async with flaky(sessions=False, events=1) as server:
        server.refusals = [UNAVAILABLE, HANG_UP, EMPTY]
        rig = Rig(server)
        async with rig.events() as events:
            await take(events)
        refused, hung_up, empty = (each.detail for each in rig.hook.of("reconnect_attempt"))
        assert refused == "get stream: the server answered HTTP 503"
        assert "closed it without an answer" in hung_up
        assert empty == "get stream: the server ended the stream"
        (opened, reopened) = rig.hook.of("reconnect_ok")  # the empty stream was one too
        assert (opened.attempt, reopened.attempt) == (2, 3)


async def test_the_first_connect_is_no_reconnect() -> None:
    async with flaky(sessions=False, events=1) as server:
        rig = Rig(server)
        async with rig.events() as events:
            await take(events)
        assert rig.hook.events == []


async def test_a_server_that_stays_away_is_given_up_at_the_end_of_the_window() -> None:
    async with flaky(sessions=False) as server:
        server.down = UNAVAILABLE
        rig = Rig(server)
        error = await rig.fails()
        (told,) = rig.hook.of("reconnect_gave_up")
        assert rig.time.now == pytest.approx(1300)
        assert server.connections == len(rig.time.slept) + 1
        assert told.attempt == len(rig.time.slept)
        assert f"{told.attempt} attempts in 300 s" in told.detail
        assert f"{told.attempt} attempts in 300 s" in error.message
        assert "'srv'" in error.message
        assert "HTTP 503" in error.message
        assert error.data == {"upstream": "srv"}


async def test_a_port_where_nobody_listens_is_given_up_too() -> None:
    async with flaky(sessions=False) as server:
        await server.stop()
        rig = Rig(server, policy=ReconnectPolicy(window=10))
        error = await rig.fails()
        assert rig.time.now == pytest.approx(1010)
        assert "cannot connect" in error.message
        assert server.connections == 0


async def test_a_stream_outlives_an_outage_of_its_server() -> None:
    """Stopped with a reset for a minute, the stream is asked for while it is away, and loses nothing."""
    async with flaky(sessions=False, events=50) as server, Forwarder(server.url) as forwarder:
        rig = Rig(forwarder, uniform=random.Random(5).uniform)

        async def come_back() -> None:
            if rig.time.now >= 1060 and not forwarder.connections > 1:
                await forwarder.start()

        async with rig.events() as events:
            assert await take(events, 50) == EVERY[:50]
            await forwarder.stop(reset=True)
            server.events = 0
            for number in EVERY[50:]:
                server.push(number)
            rig.time.then = come_back
            assert await take(events, 50) == EVERY[50:]
        assert forwarder.connections == 2
        assert rig.hook.of("reconnect_ok")[-1].attempt == len(rig.time.slept) > 5
        assert server.last_event_ids == [0, 50]


async def test_a_stream_whose_every_connection_is_killed_loses_nothing() -> None:
    async with flaky(sessions=False) as server, Forwarder(server.url) as forwarder:
        rig = Rig(forwarder)
        rig.time.then = forwarder.start
        received = []
        async with rig.events() as events:
            for number in range(1, 21):
                server.push(number)
                received += await take(events)
                await forwarder.stop(reset=number % 2 == 0)
        assert received == EVERY[:20]


# -- what a server asks for ----------------------------------------------------------------------------------


async def test_retry_is_the_least_delay() -> None:
    async with flaky(sessions=False, events=9, drop_every=3, retry_ms=5000) as server:
        rig = Rig(server)
        async with rig.events() as events:
            assert await take(events, 9) == EVERY[:9]
        assert rig.time.slept == [5.2, 5.2]


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_the_least_delay_of_one_attempt(status: int) -> None:
    async with flaky(sessions=False, events=1) as server:
        server.refusals = [Refusal(status, {"retry-after": "7"}), Refusal(status)]
        rig = Rig(server)
        async with rig.events() as events:
            await take(events)
        assert rig.time.slept == [7.2, 0.4]


async def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=10), usegmt=True)
    async with flaky(sessions=False, events=1) as server:
        server.refusals = [Refusal(503, {"retry-after": date})]
        rig = Rig(server, policy=ReconnectPolicy(window=100_000))
        async with rig.events() as events:
            await take(events)
        assert rig.time.slept == [pytest.approx(36_000, abs=600)]


async def test_retry_after_beyond_the_window_ends_it_at_once() -> None:
    async with flaky(sessions=False) as server:
        server.down = Refusal(503, {"retry-after": "301"})
        rig = Rig(server)
        error = await rig.fails()
        assert "the server asks for 301 s more" in error.message
        assert rig.time.slept == []
        assert server.connections == 1


# -- answers that settle it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 405, 200, 202, 302])
async def test_an_answer_that_settles_it_ends_it_at_once(status: int) -> None:
    async with flaky(sessions=False) as server:
        server.down = Refusal(status, {"content-type": "application/json"}, b"{}")
        rig = Rig(server, renews=True)
        error = await rig.fails()
        assert f"HTTP {status}" in error.message
        assert (rig.time.slept, server.connections, rig.session.renewals) == ([], 1, 0)
        assert len(rig.hook.of("reconnect_gave_up")) == 1


@pytest.mark.parametrize("status", [401, 503])
async def test_the_body_of_a_refusal_is_not_waited_for(status: int) -> None:
    async with flaky(sessions=False) as server:
        server.down = Refusal(status, length=1000)
        rig = Rig(server, policy=ReconnectPolicy(window=1))
        assert f"HTTP {status}" in (await rig.fails()).message


async def test_the_words_of_a_400_are_waited_for_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BODY_LIMIT", 0.05)
    async with flaky(sessions=False) as server:
        server.down = Refusal(400, body=b"{", length=1000)
        assert "HTTP 400" in (await Rig(server).fails()).message


async def test_a_400_with_too_many_words_is_a_400() -> None:
    async with flaky(sessions=False) as server:
        server.down = Refusal(400, body=b"{", length=1 << 40)
        assert "HTTP 400" in (await Rig(server).fails()).message


# -- sessions ------------------------------------------------------------------------------------------------


async def test_a_session_that_is_gone_is_renewed_once_and_its_ids_are_forgotten() -> None:
    async with flaky(events=5) as server:
        rig = Rig(server, renews=True)
        await rig.session.renew()
        async with rig.events() as events:
            assert await take(events, 5) == EVERY[:5]
            server.forget_sessions()
            assert await take(events, 5) == EVERY[:5]  # of another session: not the same events
        assert rig.session.renewals == 2
        assert rig.session.id == b"flaky-session-2"
        assert rig.time.slept == [
            0.2
        ]  # between the end of the stream and the 404; renewing itself has no delay
        assert server.last_event_ids == [0, 5, 0]
        assert len(rig.hook.of("reconnect_ok")) == 1


@pytest.mark.parametrize(
    "words", [b'{"error":{"message":"No valid session ID provided"}}', b"Session not found"]
)
async def test_a_400_that_speaks_of_the_session_is_a_404(words: bytes) -> None:
    async with flaky(events=1) as server:
        server.refusals = [Refusal(400, body=words)]
        rig = Rig(server, renews=True)
        async with rig.events() as events:
            assert await take(events) == [1]
        assert rig.session.renewals == 1


async def test_while_renewing_fails_the_delays_grow() -> None:
    async with flaky(events=1) as server:
        server.refused_initializes = [503, 500, 503, 401]
        rig = Rig(server, renews=True)
        rig.session.id = b"unknown"
        async with rig.events() as events:
            assert await take(events) == [1]
        assert rig.session.renewals == 5
        assert rig.time.slept == [0.2, 0.4, 0.8, 1.6]
        assert "initialize was answered with HTTP 401" in rig.hook.of("reconnect_attempt")[-1].detail


async def test_renewing_that_never_succeeds_ends_with_the_window() -> None:
    async with flaky() as server:
        server.refused_initializes = [503] * 100
        rig = Rig(server, renews=True)
        rig.session.id = b"unknown"
        error = await rig.fails()
        assert rig.time.now == pytest.approx(1300)
        assert "initialize was answered with HTTP 503" in error.message


async def test_a_fresh_session_that_is_not_known_either_ends_it() -> None:
    async with flaky() as server:
        server.down = Refusal(404)
        rig = Rig(server, renews=True)
        error = await rig.fails()
        assert "HTTP 404" in error.message
        assert (rig.session.renewals, rig.time.slept) == (1, [])


async def test_without_a_way_to_renew_a_404_ends_it() -> None:
    async with flaky() as server:
        rig = Rig(server)
        rig.session.id = b"unknown"
        error = await rig.fails()
        assert "its session is gone" in error.message
        assert (rig.time.slept, server.connections) == ([], 1)
        assert len(rig.hook.of("reconnect_gave_up")) == 1


async def test_an_error_of_the_owner_is_not_taken_for_the_servers() -> None:
    def opener(last_event_id: bytes) -> AbstractAsyncContextManager[Response]:
        raise LookupError("a bug")

    async with flaky() as server:
        rig = Rig(server, opener=opener)
        async with rig.events() as events:
            with pytest.raises(LookupError):
                await anext(events)
        assert rig.hook.events == []


# -- how it is asked -----------------------------------------------------------------------------------------


async def test_a_stream_that_needs_an_id_ends_if_it_breaks_before_one() -> None:
    async with flaky(sessions=False, events=5, drop_every=2, ids=False) as server:
        rig = Rig(server, needs_id=True)
        async with rig.events() as events:
            assert await take(events, 2) == [1, 2]
            with pytest.raises(UpstreamClosed, match="unfinished body"):
                await anext(events)
        assert (server.connections, rig.time.slept, rig.hook.events) == (1, [], [])


async def test_a_stream_that_needs_an_id_goes_on_behind_one() -> None:
    async with flaky(sessions=False, events=5, drop_every=2) as server:
        rig = Rig(server, needs_id=True)
        async with rig.events() as events:
            assert await take(events, 5) == EVERY[:5]


async def test_the_end_of_a_stream_in_good_order_is_told_if_asked_for() -> None:
    async with flaky(sessions=False, events=4, drop_every=[2, 2], drop="end") as server:
        rig = Rig(server)
        async with rig.events(ends=True) as events:
            seen = [(await anext(events)) for _ in range(6)]
        assert [json.loads(each.data)["params"]["data"] if each.data else each for each in seen] == [
            *[1, 2, Event(), 3, 4, Event()],
        ]
        assert rig.time.slept == [0.2]  # the consumer is told before the delay


async def test_the_end_of_a_stream_without_ids_is_not_told() -> None:
    async with flaky(sessions=False, events=2, drop_every=2, drop="end", ids=False) as server:
        rig = Rig(server)
        async with rig.events(ends=True) as events:
            assert all([(await anext(events)).data for _ in range(6)])


@pytest.mark.parametrize("drop", ["cut", "half", "reset"])
async def test_a_break_is_no_end(drop: Drop) -> None:
    async with flaky(sessions=False, events=6, drop_every=2, drop=drop) as server:
        rig = Rig(server)
        async with rig.events(ends=True) as events:
            seen = [await anext(events) for _ in range(6)]
        assert all(each.data for each in seen)


async def test_a_response_that_is_open_already_is_read_first_and_closed_when_it_ends() -> None:
    async with flaky(sessions=False, events=4, drop_every=[2], drop="end") as server:
        rig = Rig(server)
        async with rig.events(rig.session.open(b"")) as events:
            assert await take(events, 2) == [1, 2]
            assert server.open == 1
            assert await take(events, 2) == [3, 4]
            await until(lambda: server.open == 1)
        assert server.connections == 2
        assert server.last_event_ids == [0, 2]


async def test_a_server_is_heard_when_it_accepts_and_by_each_part_of_an_event_but_not_by_comments() -> None:
    heard = []
    async with flaky(sessions=False, events=1) as server:
        for body in (b"", b": nothing\n\n", b"data: a bit", b"data: 1\n\n"):
            server.refusals = [Refusal(200, dict(EMPTY.headers), body), UNAVAILABLE]
            rig = Rig(server, policy=ReconnectPolicy(window=0.2))
            with suppress(UpstreamClosed):
                async with rig.events() as events:
                    async for _ in events:
                        pass
            heard.append(rig.heard)
    assert heard == [1, 1, 2, 2]


async def test_polling_at_the_pace_of_the_server_is_no_failure() -> None:
    """Each connection brings a place to resume from and when to come back, and no message for a long time."""
    body = b"id: p-0\nretry: 1000\ndata:\n\n"
    async with flaky(sessions=False, events=1) as server:
        server.refusals = [Refusal(200, dict(EMPTY.headers), body)] * 20
        rig = Rig(server, policy=ReconnectPolicy(window=5))
        async with rig.events() as events:
            assert await take(events) == [1]
        assert rig.time.slept == [1.2] * 20


async def test_a_connection_that_held_for_cap_sets_the_delay_back() -> None:
    async with flaky(sessions=False) as server:
        server.refusals = [UNAVAILABLE] * 4
        rig = Rig(server)
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                async with rig.events() as events:
                    assert await take(events) == ["late"]

            tasks.start_soon(read)
            await until(lambda: rig.hook.of("reconnect_ok"))
            rig.time.now += 30
            await server.stop()
            await server.start()
            server.push("late")
        assert rig.time.slept[:5] == [0.2, 0.4, 0.8, 1.6, 0.2]


# -- limits and endings --------------------------------------------------------------------------------------


async def test_an_event_above_the_limit_ends_it_behind_those_before_it() -> None:
    async with flaky(sessions=False, events=3) as server:
        server.push("x" * 2000)
        rig = Rig(server, max_event_bytes=1000)
        descriptors = own_descriptors()
        async with rig.events() as events:
            assert await take(events, 3) == [1, 2, 3]
            with pytest.raises(UpstreamProtocolError, match="'srv' sent an event is larger than 1000 bytes"):
                await anext(events)
            await until_closed(server, descriptors)
        assert (server.connections, rig.time.slept) == (1, [])


async def test_those_before_it_come_out_though_the_same_bytes_bring_them() -> None:
    body = b"data: 1\n\ndata: 2\n\ndata: %b\n\n" % (b"x" * 2000)
    async with flaky(sessions=False) as server:
        server.refusals = [Refusal(200, {"content-type": "text/event-stream"}, body)]
        rig = Rig(server, max_event_bytes=1000)
        async with rig.events() as events:
            assert [(await anext(events)).data, (await anext(events)).data] == [b"1", b"2"]
            with pytest.raises(UpstreamProtocolError):
                await anext(events)


async def test_an_event_at_the_limit_passes() -> None:
    body = b"data: %b\n\n" % (b"x" * 994)
    async with flaky(sessions=False) as server:
        server.refusals = [Refusal(200, {"content-type": "text/event-stream"}, body)]
        rig = Rig(server, max_event_bytes=1000)
        async with rig.events() as events:
            assert len((await anext(events)).data) == 994


async def test_cancelled_in_a_delay_it_ends_and_nothing_is_open() -> None:
    async with flaky(sessions=False, events=3, drop_every=3) as server:
        rig = Rig(server)
        asleep = anyio.Event()

        async def sleep_on() -> None:
            asleep.set()
            await anyio.sleep_forever()

        rig.time.then = sleep_on
        descriptors = own_descriptors()
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                async with rig.events() as events:
                    await take(events, 4)

            tasks.start_soon(read)
            await asleep.wait()
            await until_closed(server, descriptors)  # in a delay nothing is open anyway
            tasks.cancel_scope.cancel()
        assert (server.connections, rig.time.slept) == (1, [0.2])
        assert not rig.hook.of("reconnect_gave_up")
        assert own_descriptors() <= descriptors


async def test_cancelled_while_the_server_is_silent_it_closes_the_connection() -> None:
    async with flaky(sessions=False, events=3) as server:
        rig = Rig(server)
        descriptors = own_descriptors()
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                async with rig.events() as events:
                    await take(events, 4)

            tasks.start_soon(read)
            await until(lambda: server.streams)
            tasks.cancel_scope.cancel()
        await until_closed(server, descriptors)
        assert server.streams == []
        assert rig.hook.events == []


async def test_closed_between_two_events_it_closes_the_connection() -> None:
    async with flaky(sessions=False, events=3) as server:
        rig = Rig(server)
        descriptors = own_descriptors()
        async with rig.events() as events:
            assert await take(events) == [1]
        await until_closed(server, descriptors)


async def test_with_the_clock_and_the_delays_of_the_loop() -> None:
    """Nothing is injected: real delays, of base at most."""
    async with flaky(sessions=False, events=9, drop_every=3) as server:
        stream = EventStream("srv", "get", Session(server).open, ReconnectPolicy(base=0.1))
        async with aclosing(stream.events()) as events:
            assert await take(events, 9) == EVERY[:9]
