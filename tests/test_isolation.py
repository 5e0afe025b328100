"""What one client caused never reaches another, in every pool mode, while both hammer one server at once.

Each client has a mark; the server (tests/servers/marked.py) puts its caller's mark into everything it says: answers,
progress, logs, questions. Both clients use the same request ids and progress tokens. Every byte that reaches a
client is searched for the other's mark, and counted, so that silence does not pass for isolation.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import anyio
import psutil
import pytest

from tests.proxy.client import UVLOOP, Client, Json, Recorder, on_both_loops, pool, proxied, text_of, until
from tests.servers import marked
from tests.servers.http_faults import HttpFaults

pytestmark = pytest.mark.anyio
MARKS = ("alpha-5d1c", "omega-9b7e")
WORKERS, CALLS, STEPS = 4, 6, 3
TOTAL = WORKERS * CALLS


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


def stdio(mode: str, **settings: Any) -> Json:
    return {"command": marked.COMMAND[0], "args": [*marked.COMMAND[1:]], "pool_mode": mode, **settings}


async def hammer(client: Client, ask: list[str]) -> None:
    """Calls from several workers at once, each of which makes the server speak before it answers."""

    async def work(token: int) -> None:
        for _ in range(CALLS):
            answer = await client.call("talk", token=token, mark=client.mark, ask=ask, steps=STEPS)
            said = json.loads(text_of(answer))
            assert said == {"mark": client.mark, "heard": [client.mark] * len(ask)}

    async with anyio.create_task_group() as tasks:
        for token in range(WORKERS):
            tasks.start_soon(work, token)


def nothing_foreign_in(clients: list[Client]) -> None:
    for client in clients:
        (foreign,) = [mark for mark in MARKS if mark != client.mark]
        assert client.received
        assert not [text for text in client.received if foreign in text]
        assert not [text for text in client.received if "progressToken" in text and client.mark not in text]


def count(client: Client, method: str) -> int:
    return sum(message.get("method") == method for message in client.messages)


@on_both_loops
@pytest.mark.parametrize(
    "listening",
    [pytest.param(True, id="with streams"), pytest.param(False, id="without", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("mode", ["session", "request", "multiplex"])
async def test_what_one_client_caused_never_reaches_another(mode: str, listening: bool) -> None:
    """Every answer and every progress message arrives at its caller; logs too, or they are counted as undelivered."""
    ask = [] if mode == "multiplex" else ["sample", "elicit", "roots"]
    connections = {"session": 4, "request": 3, "multiplex": 1}[mode]
    hook = Recorder()
    async with (
        proxied(stdio(mode), max_connections=connections, hook=hook) as proxy,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(Client.session(proxy.url, mark)) for mark in MARKS]
        if listening:
            for client in clients:
                await stack.enter_async_context(client.listen())
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(hammer, client, ask)
        for client in clients:
            assert count(client, "notifications/progress") == TOTAL * STEPS
            assert len(client.asked) == TOTAL * len(ask)
        await until(
            lambda: _logs(clients) + len(hook.happened("undelivered")) == 2 * TOTAL * STEPS,
            "all logs are told of",
        )
        if mode != "multiplex":
            assert _logs(clients) == 2 * TOTAL * STEPS
        nothing_foreign_in(clients)
        assert max(done.inflight for done in hook.done) > 1, "nothing overlapped: the test shows nothing"


def _logs(clients: list[Client]) -> int:
    return sum(count(client, "notifications/message") for client in clients)


async def test_in_session_mode_each_client_has_a_state_of_its_own() -> None:
    """`remember` and `recall`, interleaved with the other's; and one client's death is not the other's."""
    async with proxied(stdio("session")) as proxy, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client.session(proxy.url, mark)) for mark in MARKS]

        async def keep(client: Client) -> None:
            for number in range(10):
                text = f"{client.mark} {number}"
                assert await client.say("remember", text=text) == "kept"
                assert await client.say("recall") == text

        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(keep, client)
        dies, lives = clients
        await dies.call("exit", code=1, words="bye")
        assert await lives.say("recall") == f"{lives.mark} 9"
        assert await dies.say("recall") == ""
        nothing_foreign_in(clients)


async def test_in_session_mode_a_process_is_never_used_by_a_second_client() -> None:
    """Not after DELETE, and not after eviction: each of four clients, one after another, sees a fresh process."""
    async with proxied(stdio("session"), max_connections=1) as proxy:
        pids = set()
        for number in range(4):
            async with Client.session(proxy.url, MARKS[number % 2]) as client:
                assert await client.say("recall") == ""
                await client.say("remember", text=client.mark)
                pids.add(json.loads(await client.say("state"))["pid"])
                if number % 2:
                    await client.delete()
        assert len(pids) == 4


@on_both_loops
@pytest.mark.parametrize("mode", ["request", "multiplex"])
@pytest.mark.parametrize(
    "call",
    [("resources/subscribe", {"uri": "file:///alpha-5d1c"}), ("logging/setLevel", {"level": "error"})],
    ids=["subscribe", "setLevel"],
)
async def test_a_session_that_changes_its_process_keeps_it_alone(mode: str, call: tuple[str, Json]) -> None:
    """From then on the other client never runs there, and nobody does once the session has ended."""
    async with proxied(stdio(mode), max_connections=2) as proxy, AsyncExitStack() as stack:
        pinned, other = [await stack.enter_async_context(Client.session(proxy.url, mark)) for mark in MARKS]
        await other.say("echo", text="one process is proved and shared")
        await pinned.request(*call)
        state = json.loads(await pinned.say("state"))
        assert state["watched"] or state["level"]
        assert pool(proxy)["pins"] == 1

        async def look(client: Client, seen: Counter[int]) -> None:
            for _ in range(15):
                found = json.loads(await client.say("state"))
                seen[found["pid"]] += 1
                assert (found == state) == (client is pinned)

        seen: dict[str, Counter[int]] = {mark: Counter() for mark in MARKS}
        async with anyio.create_task_group() as tasks:
            for client in (pinned, other, other):
                tasks.start_soon(look, client, seen[client.mark])
        assert set(seen[pinned.mark]) == {state["pid"]}
        assert state["pid"] not in seen[other.mark]
        process = psutil.Process(state["pid"])
        await pinned.delete()
        await until(lambda: not process.is_running(), "its process has ended")
        assert json.loads(await other.say("state"))["pid"] != state["pid"]


async def test_updates_go_only_to_the_client_that_subscribed() -> None:
    async with proxied(stdio("request"), max_connections=3) as proxy, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client.session(proxy.url, mark)) for mark in MARKS]
        for client in clients:
            await stack.enter_async_context(client.listen())
            await client.request("resources/subscribe", {"uri": f"file:///{client.mark}"})

        async def touch(client: Client) -> None:
            for mark in MARKS * 5:  # its own, and the other's, which its own process does not watch
                await client.say("touch", uri=f"file:///{mark}")

        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(touch, client)
        for client in clients:
            updates = [
                each for each in client.messages if each.get("method") == "notifications/resources/updated"
            ]
            assert [each["params"]["uri"] for each in updates] == [f"file:///{client.mark}"] * 5
        nothing_foreign_in(clients)


@pytest.mark.parametrize("mode", ["request", "multiplex"])
async def test_what_a_shared_process_says_after_its_answer_is_for_nobody(mode: str) -> None:
    """Nobody can tell whose it is, so it is counted as undelivered; both clients listen and hear nothing."""
    hook = Recorder()
    async with proxied(stdio(mode), max_connections=1, hook=hook) as proxy, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client.session(proxy.url, mark)) for mark in MARKS]
        for client in clients:
            await stack.enter_async_context(client.listen())
        await clients[0].say("later", text=clients[0].mark, times=3)
        await until(lambda: len(hook.happened("undelivered")) == 3)
        assert [event.detail for event in hook.happened("undelivered")] == ["notifications/message"] * 3
        await clients[1].say("echo", text="a turn later")
        assert not _logs(clients)
        nothing_foreign_in(clients)


async def test_in_multiplex_mode_a_server_may_ask_nobody() -> None:
    """With calls of two clients in flight it gets an error at once, and neither client sees the question."""
    async with proxied(stdio("multiplex")) as proxy, AsyncExitStack() as stack:
        asks, other = [await stack.enter_async_context(Client.session(proxy.url, mark)) for mark in MARKS]
        for _ in range(2):  # the server proves persistent: before that, calls do not share a process
            await other.say("talk", mark=other.mark, steps=0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other.whole, other.message("tools/call", {"name": "hang"}, "waits"))
            await until(lambda: proxy.stats()["calls"] == 1)
            said = json.loads(await asks.say("talk", mark=asks.mark, ask=["sample"], steps=0))
            assert said["heard"][0]["code"] == -32601
            await other.cancel("waits")
        assert not asks.asked
        assert not other.asked


async def test_behind_an_http_server_each_client_is_a_session_of_its_own() -> None:
    """Though connections are shared: session ids, credentials and answers are never mixed up."""
    async with (
        HttpFaults() as server,
        proxied(server.url, max_connections=2) as proxy,
        AsyncExitStack() as stack,
    ):
        clients = []
        for mark in MARKS:
            client = await stack.enter_async_context(Client.bare(proxy.url, mark))
            client.headers["authorization"] = f"Bearer {mark}"
            await client.initialize()
            clients.append(client)

        async def work(client: Client) -> None:
            for number in range(CALLS):
                text = f"{client.mark} {number}"
                assert await client.say("echo", text=text) == text
                assert (await client.call("ask"))["result"]["content"][0]["text"] == client.mark

        async with anyio.create_task_group() as tasks:
            for client in clients:
                for _ in range(WORKERS):
                    tasks.start_soon(work, client)
        sent = {
            (each.headers.get("mcp-session-id"), each.headers["authorization"]) for each in server.requests
        }
        assert len(server.sessions) == 2
        own = {(session, credentials) for session, credentials in sent if session is not None}
        assert len(own) == 2
        assert {credentials for _, credentials in own} == {f"Bearer {mark}" for mark in MARKS}
        assert pool(proxy)["reuses"] > 0, "no connection was shared: the test shows nothing"
        nothing_foreign_in(clients)
