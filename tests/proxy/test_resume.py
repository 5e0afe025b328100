"""What survives: streams that break on either side, servers that restart, sessions that a server has forgotten."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx
import pytest

from mcpdiag.upstream.http_session import HttpSession
from tests.proxy.client import UVLOOP, Client, Json, Recorder, on_both_loops, proxied, text_of, until
from tests.servers import marked
from tests.servers.flaky import Drop, FlakyServer, Refusal

pytestmark = pytest.mark.anyio
QUICK = {"base": 0.1, "cap": 0.1}
DROPS: list[Drop] = ["end", "cut", "half", "reset"]
EVENTS = 100


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


def numbers(messages: list[Json]) -> list[Any]:
    return [
        message["params"]["data"] for message in messages if message.get("method") == "notifications/message"
    ]


def events_in(text: str) -> list[tuple[str, Json | None]]:
    """Id and message of each event; None for an event without a message."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":")
        )
        if "id" in fields:
            found.append((fields["id"], json.loads(fields["data"]) if fields.get("data") else None))
    return found


# -- the server's side breaks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", DROPS)
async def test_a_listening_stream_that_breaks_every_7_events_loses_and_repeats_none(drop: Drop) -> None:
    async with (
        FlakyServer(events=EVENTS, drop_every=7, drop=drop) as server,
        proxied({"url": server.url, "reconnect": QUICK}) as proxy,
        Client.session(proxy.url) as client,
    ):
        async with client.listen() as stream:
            await until(lambda: len(stream.messages) >= EVENTS, "all events are there")
            server.push("last")
            await until(lambda: numbers(stream.messages)[-1] == "last")
        assert numbers(stream.messages) == [*range(1, EVENTS + 1), "last"]


@pytest.mark.parametrize("drop", DROPS)
async def test_an_answer_that_breaks_every_7_events_loses_and_repeats_none(drop: Drop) -> None:
    async with (
        FlakyServer(drop_every=7, drop=drop) as server,
        proxied({"url": server.url, "reconnect": QUICK}) as proxy,
        Client.session(proxy.url, version="2025-06-18") as client,
    ):
        response = await client.whole(
            client.message("tools/call", {"name": "count", "arguments": {"events": EVENTS}})
        )
        messages = [message for _, message in events_in(response.text) if message]
        assert numbers(messages) == [*range(1, EVENTS + 1)]
        assert text_of(messages[-1]) == f"counted to {EVENTS}"
        assert len(server.posted("tools/call")) == 1


async def test_a_client_that_polls_gets_every_event_once() -> None:
    """The server ends its stream every 7 events, in order; a client of 2025-11-25 is sent away each time."""
    async with (
        FlakyServer(drop_every=7, drop="end", retry_ms=1) as server,
        proxied({"url": server.url, "reconnect": QUICK}) as proxy,
        Client.session(proxy.url) as client,
    ):
        call = client.message("tools/call", {"name": "count", "arguments": {"events": EVENTS}})
        seen = events_in((await client.whole(call)).text)
        polls = 0
        while not (seen[-1][1] and "result" in seen[-1][1]):
            polls += 1
            headers = {**client.headers, "last-event-id": seen[-1][0]}
            seen += events_in((await client.http.get(client.url, headers=headers)).text)
        assert numbers([message for _, message in seen if message]) == [*range(1, EVENTS + 1)]
        assert polls >= 1


async def test_a_call_in_flight_at_a_server_that_forgets_the_session_is_not_repeated() -> None:
    """It may have run: its client gets a typed error, and the next call works in the same session."""
    async with (
        FlakyServer(drop_every=[3, 1000], drop="cut") as server,
        proxied({"url": server.url, "reconnect": QUICK}) as proxy,
        Client.session(proxy.url) as client,
    ):
        server.down = Refusal(503)
        async with anyio.create_task_group() as tasks:
            box: list[Json] = []

            async def call() -> None:
                box.append(await client.call("count", events=10))

            tasks.start_soon(call)
            await until(lambda: server.asked("GET"), "it tries to go on")
            server.forget_sessions()
            server.down = None
        assert box[0]["error"]["data"]["type"] == "upstream_closed"
        assert len(server.posted("tools/call")) == 1
        assert await client.say("echo", text="still here") == "still here"


# -- the client's side breaks ------------------------------------------------------------------------------------


async def first_events(client: Client, request: httpx.Request, count: int) -> list[tuple[str, Json | None]]:
    """The first events of a stream, whose connection is then broken off."""
    text = ""
    response = await client.http.send(request, stream=True)
    try:
        async for part in response.aiter_text():
            text += part
            if len(events_in(text.rpartition("\n\n")[0] + "\n\n")) >= count:
                break
    finally:
        await response.aclose()
    return events_in(text.rpartition("\n\n")[0] + "\n\n")[:count]


@on_both_loops
async def test_the_answer_of_a_stdio_server_is_resumed_by_a_client_that_lost_it() -> None:
    """The call goes on without its client, and is not repeated."""
    hook = Recorder()
    async with proxied([*marked.COMMAND], hook=hook) as proxy, Client.session(proxy.url) as client:
        arguments = {"steps": 20, "every_ms": 20}
        params = {"name": "drip", "arguments": arguments, "_meta": {"progressToken": "t"}}
        request = client.http.build_request(
            "POST", client.url, json=client.message("tools/call", params, "mine"), headers=client.headers
        )
        seen = await first_events(client, request, 5)
        assert seen[0][1] is None, "the first event is an id alone"
        while not (seen[-1][1] and "result" in seen[-1][1]):
            headers = {**client.headers, "last-event-id": seen[-1][0]}
            seen += await first_events(
                client, client.http.build_request("GET", client.url, headers=headers), 5
            )
        messages = [message for _, message in seen if message]
        assert [message["params"]["progress"] for message in messages[:-1]] == [*range(1, 21)]
        assert messages[-1]["id"] == "mine"
        assert len([done for done in hook.done if done.method == "tools/call"]) == 1


async def test_a_listening_stream_goes_on_behind_the_last_event_that_the_client_saw() -> None:
    async with (
        FlakyServer(events=70) as server,
        proxied(server.url) as proxy,
        Client.session(proxy.url) as client,
    ):
        headers, seen = dict(client.headers), list[tuple[str, Json | None]]()
        for _ in range(10):
            if seen:
                headers["last-event-id"] = seen[-1][0]
            seen += await first_events(
                client, client.http.build_request("GET", client.url, headers=headers), 7
            )
        assert seen[0][1] is None, "the first event is an id alone"
        assert numbers([message for _, message in seen if message]) == [*range(1, 70)]
        assert len(server.asked("GET")) == 1


async def test_no_more_is_kept_than_the_settings_say_and_what_is_not_is_counted() -> None:
    async with (
        FlakyServer() as server,
        proxied(server.url, max_stored_events=10) as proxy,
        Client.session(proxy.url) as client,
    ):
        call = client.message("tools/call", {"name": "count", "arguments": {"events": 30}})
        seen = events_in((await client.whole(call)).text)
        headers = {**client.headers, "last-event-id": seen[0][0]}
        rest = events_in((await client.http.get(client.url, headers=headers)).text)
        assert rest == seen[-10:]
        assert proxy.stats()["events_dropped"] == len(seen) - 1 - 10, "the first was never kept"
        await client.delete()
        assert proxy.stats()["events_dropped"] == len(seen) - 1 - 10


async def test_a_session_of_a_revision_without_resumption_keeps_nothing() -> None:
    async with (
        FlakyServer() as server,
        proxied(server.url) as proxy,
        Client.session(proxy.url, version="2024-11-05") as client,
    ):
        call = client.message("tools/call", {"name": "count", "arguments": {"events": 3}})
        assert "id:" not in (await client.whole(call)).text


# -- the server restarts -----------------------------------------------------------------------------------------


async def test_a_session_that_the_server_has_forgotten_is_made_again() -> None:
    """The client keeps its id, its log level and its subscriptions, and its listening stream."""
    hook = Recorder()
    async with (
        FlakyServer() as server,
        proxied({"url": server.url, "reconnect": QUICK}, hook=hook) as proxy,
        Client.session(proxy.url) as client,
    ):
        await client.request("logging/setLevel", {"level": "debug"})
        for uri in ("test://a", "test://b", "test://c"):
            await client.request("resources/subscribe", {"uri": uri})
        await client.request("resources/unsubscribe", {"uri": "test://b"})
        async with client.listen() as stream:
            await until(lambda: server.streams)
            server.forget_sessions()
            assert await client.say("echo", text="x") == "x"
            await until(lambda: server.streams, "the stream is there again")
            server.push("after")
            await until(lambda: stream.messages)
        assert len(server.posted("initialize")) == 2
        assert server.posted("initialize")[0]["params"] == server.posted("initialize")[1]["params"]
        assert len(server.posted("notifications/initialized")) == 2
        assert [call["params"] for call in server.posted("logging/setLevel")] == [{"level": "debug"}] * 2
        replayed = [call["params"]["uri"] for call in server.posted("resources/subscribe")][3:]
        assert replayed == ["test://a", "test://c"]
        assert len(hook.happened("recover")) == 1
        assert proxy.stats()["sessions"] == 1


async def test_a_stream_that_is_refused_late_leaves_the_session_that_a_call_has_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It had asked under the old id before the call, and is refused after it: one new session is enough."""
    asking, called = anyio.Event(), anyio.Event()
    async with (
        FlakyServer() as server,
        proxied({"url": server.url, "reconnect": QUICK}) as proxy,
        Client.session(proxy.url) as client,
        client.listen() as stream,
    ):
        await until(lambda: server.streams)
        real = HttpSession._open

        async def late(session: HttpSession, method: bytes, *args: Any, **options: Any) -> Any:
            if method == b"GET":
                asking.set()
                await called.wait()
            return await real(session, method, *args, **options)

        monkeypatch.setattr(HttpSession, "_open", late)
        server.forget_sessions()
        await asking.wait()
        assert await client.say("echo", text="x") == "x"
        called.set()
        await until(lambda: server.streams, "the stream is there again")
        server.push("after")
        await until(lambda: stream.messages)
        assert len(server.posted("initialize")) == 2


async def test_many_calls_at_once_make_one_new_session() -> None:
    async with FlakyServer() as server, proxied(server.url) as proxy, Client.session(proxy.url) as client:
        for _ in range(3):
            server.forget_sessions()
            said: list[str] = []

            async def call(number: int, said: list[str] = said) -> None:
                said.append(await client.say("echo", text=str(number)))

            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(call, number)
            assert sorted(said, key=int) == [str(number) for number in range(20)]
        assert len(server.posted("initialize")) == 4


@on_both_loops
async def test_a_server_that_is_restarted_is_waited_for() -> None:
    """A call that could not be sent is sent when the server is back: nothing of it can have run."""
    async with FlakyServer() as server, proxied(server.url) as proxy, Client.session(proxy.url) as client:
        await server.stop()
        server.forget_sessions()
        async with anyio.create_task_group() as tasks:
            said: list[str] = []

            async def call() -> None:
                said.append(await client.say("echo", text="late"))

            tasks.start_soon(call)
            await until(lambda: proxy.stats()["calls"])
            await server.start()
        assert said == ["late"]
        assert len(server.posted("tools/call")) == 2, "the old session's was refused, and did not run"


async def test_a_server_that_stays_away_is_not_waited_for_longer_than_connect_timeout() -> None:
    timeouts = {"connect_timeout": 0.3}
    async with (
        FlakyServer() as server,
        proxied({"url": server.url, "timeouts": timeouts}) as proxy,
        Client.session(proxy.url) as client,
    ):
        await server.stop()
        answer = await client.call("echo", text="x")
        assert answer["error"]["data"]["type"] == "connect_error"
        await server.start()
        assert await client.say("echo", text="back") == "back"


async def test_a_server_that_speaks_another_revision_after_its_restart_ends_the_session() -> None:
    async with FlakyServer() as server, proxied(server.url) as proxy, Client.session(proxy.url) as client:
        server.forget_sessions()
        server.speaks = "2025-03-26"
        response = await client.whole(
            client.message("tools/call", {"name": "echo", "arguments": {"text": "x"}})
        )
        assert response.status_code == 404
        await until(lambda: proxy.stats()["sessions"] == 0)


async def test_a_server_that_says_when_to_come_back_is_waited_for() -> None:
    async with FlakyServer() as server, proxied(server.url) as proxy, Client.session(proxy.url) as client:
        for status in (429, 503):
            server.refused_posts = [Refusal(status, {"retry-after": "1"})]
            assert await client.say("echo", text="later") == "later"
        server.refused_posts = [Refusal(503, {"retry-after": "1000"})]
        response = await client.whole(
            client.message("tools/call", {"name": "echo", "arguments": {"text": "x"}})
        )
        assert response.status_code == 503
