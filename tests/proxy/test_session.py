"""Sessions: how they begin and end, who has to make room for whom, and what a client that vanishes leaves behind."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import psutil
import pytest
from anyio.abc import SocketStream

from mcpdiag.pool.stats import PoolStats
from mcpdiag.proxy.session import Sessions
from mcpdiag.serve import Proxy
from mcpdiag.upstream.base import Upstream
from tests.proxy.client import UVLOOP, Client, Json, Recorder, on_both_loops, pool, proxied, text_of, until
from tests.servers import marked

pytestmark = pytest.mark.anyio
SERVER = [*marked.COMMAND]
URI = "file:///watched"


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


async def state_of(client: Client) -> Json:
    """The pid of the client's process, and what has been set in it."""
    state: Json = json.loads(await client.say("state"))
    return state


async def status_of(client: Client) -> int:
    """The HTTP status of a ping."""
    return (await client.whole(client.message("ping"))).status_code


@asynccontextmanager
async def calling(
    client: Client, proxy: Proxy, tool: str = "hang", **arguments: Any
) -> AsyncIterator[list[Json]]:
    """A call that is in flight in the block and cancelled after it, unless it has ended; gives its answer."""
    answers: list[Json] = []
    message = client.message("tools/call", {"name": tool, "arguments": arguments})

    async def run() -> None:
        response = await client.whole(message)
        if response.headers.get("content-type") == "application/json":
            answers.append(response.json())

    calls: int = proxy.stats()["calls"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await until(lambda: proxy.stats()["calls"] > calls, "the call is in flight")
        yield answers
        if not answers:
            await client.cancel(message["id"])


@asynccontextmanager
async def sessions(proxy: Proxy, number: int) -> AsyncIterator[list[Client]]:
    """Clients with a session each, the oldest first."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Client.session(proxy.url, f"client{each}"))
            for each in range(number)
        ]


async def raw_request(client: Client, method: str, message: Json | None = None) -> SocketStream:
    """A request on a socket of its own, whose answer is not read."""
    parts = urlsplit(client.url)
    body = b"" if message is None else json.dumps(message).encode()
    lines = [f"{method} {parts.path} HTTP/1.1", f"host: {parts.netloc}", f"content-length: {len(body)}"]
    lines += [f"{key}: {value}" for key, value in client.headers.items()]
    stream = await anyio.connect_tcp(parts.hostname or "", parts.port or 80)
    await stream.send("\r\n".join([*lines, "", ""]).encode() + body)
    return stream


def open_streams(proxy: Proxy) -> int:
    assert proxy._sessions is not None
    return sum(len(session.streams) for session in proxy._sessions._sessions.values())


# -- begin and end --------------------------------------------------------------------------------------------


async def test_ids_are_128_random_bits() -> None:
    async with proxied({"command": SERVER[0], "args": SERVER[1:], "pool_mode": "request"}) as proxy:
        async with sessions(proxy, 10) as clients:
            ids = {client.session_id for client in clients}
            assert len(ids) == 10
            assert all(re.fullmatch("[0-9a-f]{32}", session_id) for session_id in ids)
            # Any two differ in about 64 bits; 30 is nine standard deviations away.
            numbers = [int(session_id, 16) for session_id in ids]
            assert min((a ^ b).bit_count() for a in numbers for b in numbers if a is not b) > 30


@on_both_loops
async def test_delete_ends_the_session_and_its_child_and_no_other() -> None:
    async with proxied(SERVER) as proxy, sessions(proxy, 2) as (first, second):
        child = psutil.Process((await state_of(first))["pid"])
        assert (await first.delete()).status_code == 200
        await until(lambda: not child.is_running(), "the child is gone")
        for _ in range(2):
            assert await status_of(first) == 404
        assert (await first.delete()).status_code == 404
        assert (await first.http.get(first.url, headers=first.headers)).status_code == 404
        assert await status_of(second) == 200
        assert proxy.stats()["sessions"] == 1


async def test_delete_during_a_call_answers_the_call_in_words() -> None:
    async with proxied(SERVER) as proxy, sessions(proxy, 1) as (client,), calling(client, proxy) as answers:
        await client.delete()
        await until(lambda: answers)
        assert answers[0]["error"]["data"]["type"] == "shutting_down"
        assert "ended by its client" in answers[0]["error"]["message"]


async def test_delete_ends_the_listening_streams() -> None:
    async with proxied(SERVER) as proxy, sessions(proxy, 1) as (client,):
        async with client.listen() as one, client.listen() as two:
            await client.delete()
            await until(lambda: one.ended and two.ended)
        assert open_streams(proxy) == 0


async def test_an_idle_session_is_ended_with_its_child() -> None:
    hook = Recorder()
    async with proxied(SERVER, session_idle_timeout=0.5, hook=hook) as proxy, sessions(proxy, 1) as (client,):
        child = psutil.Process((await state_of(client))["pid"])
        await until(lambda: proxy.stats()["sessions"] == 0, "the session is gone")
        await until(lambda: not child.is_running(), "the child is gone")
        assert await status_of(client) == 404
        assert [event.detail for event in hook.happened("session_end")] == ["idle for too long"]


@pytest.mark.slow
async def test_a_session_in_use_is_not_idle() -> None:
    """A call in flight and an open stream keep a session beyond the idle timeout; one that has neither goes."""
    async with (
        proxied(SERVER, session_idle_timeout=1) as proxy,
        sessions(proxy, 3) as (calls, listens, sleeps),
        calling(calls, proxy),
        listens.listen(),
    ):
        await until(lambda: proxy.stats()["sessions"] == 2, "the sleeper is gone")
        ended = anyio.current_time()
        await until(lambda: anyio.current_time() > ended + 1.5, "twice the idle timeout and a sweep")
        assert await status_of(calls) == 200
        assert await status_of(listens) == 200
        assert await status_of(sleeps) == 404


async def test_a_session_is_valid_only_at_its_own_upstream() -> None:
    async with (
        proxied(SERVER, SERVER) as proxy,
        Client.session(proxy.urls["up"]) as here,
        Client.bare(proxy.urls["up2"]) as there,
    ):
        there.headers["mcp-session-id"] = here.session_id
        assert await status_of(there) == 404
        assert (await there.http.get(there.url, headers=there.headers)).status_code == 404
        assert (await there.delete()).status_code == 404
        assert await status_of(here) == 200


# -- making room ----------------------------------------------------------------------------------------------


async def test_a_session_too_many_ends_the_one_that_was_idle_longest() -> None:
    async with proxied(SERVER, max_sessions=2) as proxy, sessions(proxy, 2) as (first, second):
        await first.say("echo", text="now the second is the one that was idle longest")
        async with Client.session(proxy.url) as third:
            assert await status_of(second) == 404
            assert await status_of(first) == 200
            assert await status_of(third) == 200
        assert proxy.stats()["sessions"] == 2


async def test_if_all_sessions_are_busy_a_new_one_is_refused_in_words() -> None:
    async with (
        proxied(SERVER, max_sessions=2) as proxy,
        sessions(proxy, 2) as (calls, listens),
        calling(calls, proxy),
        listens.listen(),
        Client.bare(proxy.url) as late,
    ):
        error = (await late.initialize())["error"]
        assert error["data"]["type"] == "too_many_sessions"
        for word in ("2 sessions", "max_sessions", "session_idle_timeout"):
            assert word in error["message"]
        assert await status_of(calls) == 200
        assert await status_of(listens) == 200


@on_both_loops
@pytest.mark.parametrize("busy_by", ["call", "stream"])
async def test_a_full_pool_ends_the_idle_session_and_never_a_busy_one(busy_by: str) -> None:
    """Though the busy one was used least recently."""
    async with proxied(SERVER, max_connections=2) as proxy, sessions(proxy, 2) as (busy, idle):
        async with calling(busy, proxy) if busy_by == "call" else busy.listen():
            await idle.say("echo", text="younger")
            async with Client.session(proxy.url) as third:
                assert await status_of(idle) == 404
                assert await status_of(busy) == 200
                assert await status_of(third) == 200
        assert pool(proxy)["size"] <= 2


async def test_if_every_process_is_busy_a_new_session_waits_and_then_fails_in_words() -> None:
    timeouts = {"acquire_timeout": 0.3}
    async with (
        proxied(SERVER, max_connections=1, timeouts=timeouts) as proxy,
        sessions(proxy, 1) as (busy,),
        calling(busy, proxy),
        Client.bare(proxy.url) as late,
    ):
        error = (await late.initialize())["error"]
        assert error["data"]["type"] == "pool_timeout"
        for word in ("'up'", "0.3 s", "1 of 1 busy", "max_connections", "acquire_timeout"):
            assert word in error["message"]
        assert await status_of(busy) == 200
        assert proxy.stats()["sessions"] == 1


async def test_a_session_that_falls_idle_makes_room_for_one_that_waits() -> None:
    """Every process was busy when it came; its wait ends when a call does, not at `acquire_timeout`."""
    async with (
        proxied(SERVER, max_connections=1, keepalive_interval=0.15) as proxy,
        sessions(proxy, 1) as (busy,),
        Client.bare(proxy.url) as late,
        anyio.create_task_group() as tasks,
    ):
        async with calling(busy, proxy):
            tasks.start_soon(late.initialize)
            await until(lambda: pool(proxy)["waiting"] == 1, "the second waits")
        await until(lambda: "mcp-session-id" in late.headers, "the second has a session")
        assert await status_of(busy) == 404


class FakeUpstream:
    """A full pool whose numbers the test sets."""

    name = "up"
    mode = "session"
    holds_connection = True

    def __init__(self, **numbers: int) -> None:
        self.numbers = PoolStats(**numbers)
        self.closed = 0

    def session(self, client: object) -> Any:
        return self

    async def aclose(self) -> None:
        self.closed += 1

    def stats(self) -> PoolStats:
        return self.numbers


@pytest.mark.parametrize(
    ("waiting", "opening", "left"),
    [(0, 0, 2), (1, 1, 2), (3, 3, 2), (1, 0, 1), (2, 1, 1)],
)
async def test_a_caller_for_whom_a_process_is_being_opened_costs_nobody_a_session(
    waiting: int, opening: int, left: int
) -> None:
    """Two idle sessions; one goes only if somebody waits and nothing is on its way to him."""
    upstream = FakeUpstream(waiting=waiting, opening=opening, max=10)
    sessions = Sessions()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sessions.run)
        for _ in range(2):
            sessions.admit(sessions.begin(cast("Upstream", upstream)))
        sessions._make_room()
        assert len(sessions) == left
        sessions.stop()
    assert upstream.closed == 2 - left


async def test_a_session_that_ends_makes_room_for_one_that_waits() -> None:
    async with (
        proxied(SERVER, max_connections=1) as proxy,
        sessions(proxy, 1) as (busy,),
        calling(busy, proxy),
        Client.bare(proxy.url) as late,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(late.initialize)
        await until(lambda: pool(proxy)["waiting"] == 1, "the second waits")
        await busy.delete()
        await until(lambda: "mcp-session-id" in late.headers, "the second has a session")


@pytest.mark.parametrize("mode", ["request", "multiplex"])
async def test_where_sessions_hold_no_process_a_full_pool_ends_none(mode: str) -> None:
    """Calls that have to wait for a process must not cost another client its session."""
    upstream = {"command": SERVER[0], "args": SERVER[1:], "pool_mode": mode}
    async with proxied(upstream, max_connections=1, max_inflight=1) as proxy, sessions(proxy, 3) as clients:
        _idle, *talkers = clients
        async with anyio.create_task_group() as tasks:
            for client in talkers:
                for number in range(10):
                    tasks.start_soon(client.request, "tools/call", _sleep(0.01), f"{client.mark}-{number}")
        assert pool(proxy)["acquires_waited"] > 1, "nobody had to wait: the test shows nothing"
        assert [await status_of(client) for client in clients] == [200, 200, 200]


def _sleep(seconds: float) -> Json:
    return {"name": "sleep", "arguments": {"seconds": seconds}}


async def test_in_request_mode_an_idle_pinned_session_makes_room() -> None:
    """It holds a process for good, so it is the one to go; a session without one stays."""
    upstream = {"command": SERVER[0], "args": SERVER[1:], "pool_mode": "request"}
    async with proxied(upstream, max_connections=1) as proxy, sessions(proxy, 2) as (free, pinned):
        await pinned.request("resources/subscribe", {"uri": URI})
        assert pool(proxy)["busy"] == 1
        assert await free.say("echo", text="needs the process") == "needs the process"
        assert await status_of(pinned) == 404
        assert await status_of(free) == 200


async def test_in_request_mode_a_pinned_session_stays_while_another_process_comes_back_by_itself() -> None:
    """Calls that wait a moment for the shared process do not cost the idle one its session."""
    upstream = {"command": SERVER[0], "args": SERVER[1:], "pool_mode": "request"}
    async with proxied(upstream, max_connections=2) as proxy, sessions(proxy, 3) as (free, gone, pinned):
        await gone.request("resources/subscribe", {"uri": URI})
        await gone.delete()
        await pinned.request("resources/subscribe", {"uri": URI})
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(free.request, "tools/call", _sleep(0.01), f"call-{number}")
        assert pool(proxy)["acquires_waited"] > 2, "nobody had to wait: the test shows nothing"
        assert await status_of(pinned) == 200


@pytest.mark.parametrize("mode", ["session", "request"])
async def test_a_session_whose_process_has_died_finds_in_the_new_one_what_it_had_set(mode: str) -> None:
    """Log level and subscriptions are set again before its next call runs there."""
    upstream = {"command": SERVER[0], "args": SERVER[1:], "pool_mode": mode}
    async with proxied(upstream) as proxy, sessions(proxy, 1) as (client,):
        for uri in (URI, f"{URI}2"):
            await client.request("resources/subscribe", {"uri": uri})
        await client.request("resources/unsubscribe", {"uri": f"{URI}2"})
        await client.request("logging/setLevel", {"level": "error"})
        before = await state_of(client)
        assert "error" in await client.call("exit", code=1, words="bye")
        after = await state_of(client)
        assert after["pid"] != before["pid"]
        assert (after["level"], after["watched"]) == ("error", [URI])


# -- the listening stream -------------------------------------------------------------------------------------


@on_both_loops
async def test_messages_between_two_streams_are_delivered_in_order_by_the_second() -> None:
    """GET opened, closed, reopened: nothing that came in between is lost or doubled."""
    async with proxied(SERVER) as proxy, sessions(proxy, 1) as (client,):
        async with client.listen() as stream:
            await client.say("later", text="first", times=2)
            await until(lambda: len(stream.messages) == 2)
        await until(lambda: open_streams(proxy) == 0, "the proxy has seen the end")
        await client.say("later", text="between", times=3)
        assert proxy._sessions is not None
        (session,) = proxy._sessions._sessions.values()
        await until(lambda: len(session.client.pending._items) == 3, "they wait")
        async with client.listen() as stream:
            await until(lambda: len(stream.messages) == 3)
            await client.say("later", text="after", times=1)
            await until(lambda: len(stream.messages) == 4)
    said = [message["params"]["data"] for message in client.messages if message.get("method")]
    assert said == ["first0", "first1", "between0", "between1", "between2", "after0"]


async def test_with_two_streams_each_message_comes_once() -> None:
    """2025-11-25, transports, Multiple Connections 2: no broadcast."""
    async with proxied(SERVER) as proxy, sessions(proxy, 1) as (client,):
        async with client.listen() as one, client.listen() as two:
            await until(lambda: open_streams(proxy) == 2)
            await client.say("later", text="x", times=20)
            await until(lambda: len(one.messages) + len(two.messages) >= 20)
            await client.say("echo", text="a turn later")
            said = [message["params"]["data"] for message in (*one.messages, *two.messages)]
            assert sorted(said) == sorted(f"x{number}" for number in range(20))


async def test_a_question_that_belongs_to_no_call_comes_over_the_stream_and_its_answer_goes_back() -> None:
    """With two calls in flight the stream is the place; the server gets the client's own answer."""
    async with proxied(SERVER) as proxy, sessions(proxy, 1) as (client,), client.listen() as stream:
        async with calling(client, proxy):
            heard = json.loads(await client.say("talk", mark="client0", ask=["sample", "roots"], steps=0))
        assert heard["heard"] == ["client0", "client0"]
        assert [message["method"] for message in stream.messages] == ["sampling/createMessage", "roots/list"]


async def test_a_response_is_taken_only_from_the_session_that_was_asked() -> None:
    """Also with the right id; and only once."""
    hook = Recorder()
    async with proxied(SERVER, hook=hook) as proxy, sessions(proxy, 2) as (asked, other):
        asked.answers = False
        async with anyio.create_task_group() as tasks:
            box: list[Json] = []

            async def talk() -> None:
                box.append(
                    json.loads(text_of(await asked.call("talk", mark="client0", ask=["elicit"], steps=0)))
                )

            tasks.start_soon(talk)
            await until(lambda: asked.asked)
            number = asked.asked[0]["id"]
            for mark, client in (("forged", other), ("client0", asked), ("too late", asked)):
                content = {"action": "accept", "content": {"mark": mark}}
                assert (await client.respond(number, content)).status_code == 202
        assert box[0]["heard"] == ["client0"]
        assert [event.detail for event in hook.happened("undelivered")] == ["response", "response"]


# -- clients that vanish ----------------------------------------------------------------------------------------


@on_both_loops
async def test_a_listener_that_vanishes_frees_its_stream() -> None:
    """The socket closes without a word; then the session is idle, and messages wait for the next stream."""
    async with proxied(SERVER) as proxy, sessions(proxy, 1) as (client,):
        for _ in range(2):
            stream = await raw_request(client, "GET")
            assert b"text/event-stream" in await stream.receive()
            await until(lambda: open_streams(proxy) == 1)
            await stream.aclose()
            await until(lambda: open_streams(proxy) == 0)
        await client.say("later", text="x", times=1)
        async with client.listen() as reopened:
            await until(lambda: reopened.messages)


@on_both_loops
@pytest.mark.parametrize("mode", ["session", "request"])
async def test_a_caller_that_vanishes_in_the_middle_of_its_answer_frees_everything(mode: str) -> None:
    """The call runs on (2025-11-25: a disconnection is no cancellation), ends, and leaves nothing behind."""
    hook = Recorder()
    upstream = {"command": SERVER[0], "args": SERVER[1:], "pool_mode": mode}
    async with proxied(upstream, hook=hook) as proxy, sessions(proxy, 1) as (client,):
        params = {"name": "drip", "arguments": {"steps": 8, "every_ms": 20}, "_meta": {"progressToken": 1}}
        stream = await raw_request(client, "POST", client.message("tools/call", params))
        assert b"text/event-stream" in await stream.receive()
        await stream.aclose()
        await until(lambda: proxy.stats()["calls"] == 0)
        assert hook.done[-1].outcome == "ok"
        assert hook.done[-1].messages == 8
        await until(lambda: pool(proxy)["busy"] == (1 if mode == "session" else 0))
        assert await client.say("echo", text="still here") == "still here"


async def test_a_caller_that_vanishes_before_a_call_that_hangs_frees_it_in_time() -> None:
    hook = Recorder()
    upstream = {"command": SERVER[0], "args": SERVER[1:], "pool_mode": "request"}
    async with (
        proxied(upstream, hook=hook, timeouts={"request_timeout": 0.3}) as proxy,
        sessions(proxy, 1) as (client,),
    ):
        stream = await raw_request(client, "POST", client.message("tools/call", {"name": "hang"}))
        await until(lambda: proxy.stats()["calls"] == 1)
        await stream.aclose()
        await until(lambda: proxy.stats()["calls"] == 0)
        assert hook.done[-1].outcome == "request_timeout"
        await until(lambda: pool(proxy)["busy"] == 0)


async def test_a_client_that_vanishes_during_initialize_leaves_a_session_that_idleness_ends() -> None:
    async with proxied(SERVER, session_idle_timeout=0.3) as proxy, Client.bare(proxy.url) as client:
        params = {"protocolVersion": "2025-11-25", "capabilities": {}}
        stream = await raw_request(client, "POST", client.message("initialize", params))
        await until(lambda: proxy.stats()["calls"] == 1)
        await stream.aclose()
        await until(lambda: proxy.stats()["calls"] == 0)
        await until(lambda: proxy.stats()["sessions"] == 0)
        await until(lambda: pool(proxy)["size"] + pool(proxy)["closing"] == 0, "the child is gone")


# -- at the end -----------------------------------------------------------------------------------------------


async def test_what_the_proxy_refuses_while_it_closes_is_said_as_an_answer() -> None:
    """Official clients show the error of a JSON-RPC answer; of an HTTP status they show a number."""
    async with proxied(SERVER, drain_timeout=5) as proxy, sessions(proxy, 1) as (client,):
        async with calling(client, proxy, "sleep", seconds=0.3) as answers:
            assert proxy._gate is not None
            proxy._gate.close()
            for message in (
                client.message("ping"),
                client.message("initialize", {"protocolVersion": "2025-11-25"}),
            ):
                response = await client.whole(message)
                assert response.status_code == 200
                assert response.json()["id"] == message["id"]
                assert response.json()["error"]["data"]["type"] == "shutting_down"
            await until(lambda: answers)
        assert text_of(answers[0]) == "awake"
        assert proxy.stats()["sessions"] == 1


async def test_a_session_that_was_ended_during_its_initialize_is_not_admitted_afterwards() -> None:
    """The answer and the end meet in one turn of the loop; else the session would stay for ever."""
    async with proxied(SERVER) as proxy:
        sessions = proxy._sessions
        assert sessions is not None
        session = sessions.begin(proxy._upstreams[0])
        await sessions.close_all("shut down")
        sessions.admit(session)
        assert len(sessions) == 0
        assert sessions.get(session.id) is None
