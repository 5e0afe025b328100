"""Each of the five limits ends what hangs, in its own typed error, in time, and leaves the session usable.

The servers here hang for real: sockets that accept nothing, bodies and events that stop in the middle, processes
that neither read nor write. `elapsed_ms` in the error's data is compared with the limit plus `SLACK_MS`.
"""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpdiag.serve import Proxy
from tests.proxy.client import UVLOOP, Client, Json, Recorder, on_both_loops, pool, proxied, text_of, until
from tests.servers import marked
from tests.servers.http_faults import HttpFaults, blackhole, mute

pytestmark = pytest.mark.anyio
SLACK_MS = 250  # what the issue allows on top of a limit
EARLY_MS = 20  # uvloop counts its timers from the start of the turn
SERVER = [*marked.COMMAND]


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


def stdio(mode: str = "session", *arguments: str) -> Json:
    return {"command": SERVER[0], "args": [*SERVER[1:], *arguments], "pool_mode": mode}


def check(error: Json, kind: str, phase: str, limit: float, *words: str, name: str = "up") -> None:
    """The error is of this type, has the five members, says these words, and came in time."""
    data, limit_ms = error["data"], round(limit * 1000)
    assert {"type", "upstream", "phase", "elapsed_ms", "limit_ms"} <= set(data)
    assert (data["type"], data["upstream"], data["phase"], data["limit_ms"]) == (kind, name, phase, limit_ms)
    for word in (f"'{name}'", f"{limit:g} s", *words):
        assert word in error["message"], error["message"]
    assert limit_ms - EARLY_MS <= data["elapsed_ms"] <= limit_ms + SLACK_MS


@dataclass
class Outcome:
    """How a call went: over a stream or not, the messages before its end, and its error."""

    content_type: str
    messages: list[Json]
    error: Json


async def failing_call(client: Client, tool: str, request_id: str = "my-id", **arguments: Any) -> Outcome:
    """A call that has to end in an error of ours: JSON-RPC, HTTP 200, the id restored."""
    params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": "token"}}
    response = await client.whole(client.message("tools/call", params, request_id))
    assert response.status_code == 200
    kind = response.headers["content-type"]
    if kind == "application/json":
        messages = [response.json()]
    else:
        lines = response.text.splitlines()
        messages = [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line[6:]]
    *before, last = messages
    assert last["id"] == request_id
    assert last["error"]["code"] in range(-32019, -31999)
    return Outcome(kind, before, last["error"])


async def works(client: Client) -> bool:
    return await client.say("echo", text="still here") == "still here"


# -- HTTP servers ---------------------------------------------------------------------------------------------

HTTP: dict[str, tuple[str, dict[str, float], str, str, int]] = {
    "never-answers": ("hang", {"request_timeout": 0.3}, "request_timeout", "request", 0),
    "stops-inside-the-head": ("half_head", {"request_timeout": 0.3}, "request_timeout", "request", 0),
    "stops-inside-a-JSON-body": ("half_body", {"response_timeout": 0.3}, "response_timeout", "response", 0),
    "sends-no-event": ("silent_stream", {"response_timeout": 0.3}, "response_timeout", "response", 0),
    "stops-between-events": ("stalled_stream", {"response_timeout": 0.3}, "response_timeout", "response", 1),
    "stops-inside-an-event": ("half_event", {"response_timeout": 0.3}, "response_timeout", "response", 1),
    "never-answers.deadline": ("hang", {"deadline": 0.3}, "deadline_exceeded", "request", 0),
    "stops-inside-a-JSON-body.deadline": ("half_body", {"deadline": 0.3}, "deadline_exceeded", "response", 0),
    "stops-inside-an-event.deadline": ("half_event", {"deadline": 0.3}, "deadline_exceeded", "response", 1),
}  # fmt: skip


@on_both_loops
async def test_an_http_server_that_hangs_is_cut() -> None:
    """In time and in words; as the last event if the stream had begun; the server sees its connection closed."""
    checked = []

    async def fail(proxy: Proxy, server: HttpFaults, name: str) -> None:
        tool, limits, kind, phase, before = HTTP[name]
        ((setting, limit),) = limits.items()
        async with Client.session(proxy.urls[name], name) as client:
            outcome = await failing_call(client, tool, name)
            check(outcome.error, kind, phase, limit, setting, f"'{tool}'", name=name)
            assert len(outcome.messages) == before, name
            assert outcome.content_type == ("text/event-stream" if before else "application/json"), name
            posts = [each for each in server.requests if each.body]
            (request,) = [each for each in posts if each.message.get("id") == name]
            await until(request.gone.is_set, "the server sees the end")
            assert await works(client)
            assert pool(proxy, name)["busy"] == 0, name
        checked.append(name)

    async with HttpFaults() as server:
        upstreams = {name: {"url": server.url, "timeouts": row[1]} for name, row in HTTP.items()}
        async with proxied(named=upstreams) as proxy, anyio.create_task_group() as tasks:
            for name in HTTP:
                tasks.start_soon(fail, proxy, server, name)
    assert sorted(checked) == sorted(HTTP)


async def test_a_stream_without_an_event_still_ends_in_an_event_once_keep_alives_flow() -> None:
    """After `keepalive_interval` of a stdio server's silence the answer is a stream, and so is the error."""
    async with (
        proxied(stdio(), timeouts={"request_timeout": 0.6}, keepalive_interval=0.1) as proxy,
        Client.session(proxy.url) as client,
    ):
        await works(client)
        outcome = await failing_call(client, "hang")
        check(outcome.error, "request_timeout", "request", 0.6, "request_timeout")
        assert (outcome.content_type, outcome.messages) == ("text/event-stream", [])


@on_both_loops
async def test_an_http_server_that_accepts_nothing_meets_connect_timeout() -> None:
    with blackhole() as url:
        async with (
            proxied(url, timeouts={"connect_timeout": 0.3}) as proxy,
            Client.bare(proxy.url) as client,
        ):
            answer = await client.initialize()
            check(answer["error"], "connect_timeout", "connect", 0.3, "connect_timeout", url)
            assert proxy.stats()["sessions"] == 0
            assert pool(proxy)["size"] == 0


async def test_an_http_server_that_only_accepts_meets_request_timeout() -> None:
    async with (
        mute() as url,
        proxied(url, timeouts={"request_timeout": 0.3}) as proxy,
        Client.bare(proxy.url) as client,
    ):
        answer = await client.initialize()
        check(answer["error"], "request_timeout", "request", 0.3, "request_timeout", "initialize")
        assert proxy.stats()["sessions"] == 0


async def test_a_notification_that_an_http_server_does_not_take_is_refused_in_time() -> None:
    """And a response, and a cancellation. No JSON-RPC answer can carry the error, so it is HTTP 504."""
    messages: list[Json] = [
        {"method": "notifications/roots/list_changed"},
        {"method": "notifications/cancelled", "params": {"requestId": "of a stream that was resumed"}},
        {"id": 5, "result": {}},
    ]
    async with (
        HttpFaults() as server,
        proxied(server.url, timeouts={"request_timeout": 0.3}) as proxy,
        Client.session(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):
        server.hang_on = {message.get("method", "") for message in messages}

        async def fail(message: Json) -> None:
            response = await client.whole({"jsonrpc": "2.0", **message})
            assert response.status_code == 504, message
            error = response.json()["error"]
            check(error, "request_timeout", "request", 0.3, "request_timeout")

        for message in messages:
            tasks.start_soon(fail, message)
    assert not pool(proxy)["busy"]


async def test_a_listening_stream_that_an_http_server_does_not_open_is_refused_in_time() -> None:
    async with HttpFaults() as server, proxied(server.url) as proxy, Client.session(proxy.url) as client:
        upstream = proxy._upstreams[0]
        timeouts = upstream.config.timeouts.model_copy(
            update={"request_timeout": 0.2, "connect_timeout": 0.2}
        )
        dialer = upstream.dialer  # type: ignore[union-attr]
        upstream.config = dialer._config = upstream.config.model_copy(update={"timeouts": timeouts})
        with blackhole() as url:
            port = int(url.split(":")[2].split("/")[0])
            dialer.origin = type(dialer.origin)("http", "127.0.0.1", port)
            response = await client.http.get(client.url, headers=client.headers)
        assert response.status_code == 504
        data = response.json()["error"]["data"]
        assert (data["type"], data["limit_ms"]) == ("connect_timeout", 200)


# -- stdio servers --------------------------------------------------------------------------------------------

STDIO: dict[str, tuple[str, Json, dict[str, float], str, str, int]] = {
    "never-answers": ("hang", {}, {"request_timeout": 0.3}, "request_timeout", "request", 0),
    "writes-garbage-only": ("babble", {"every_ms": 20}, {"request_timeout": 0.3}, "request_timeout", "request", 0),
    "falls-silent": ("start", {}, {"response_timeout": 0.3}, "response_timeout", "response", 1),
    "never-answers.deadline": ("hang", {}, {"deadline": 1.5}, "deadline_exceeded", "request", 0),
    "falls-silent.deadline": ("start", {}, {"deadline": 1.5}, "deadline_exceeded", "response", 1),
}  # fmt: skip


@on_both_loops
async def test_a_stdio_server_that_hangs_is_told_to_stop(tmp_path: Path) -> None:
    """In time and in words; the server gets `notifications/cancelled` with the id under which it knows the call."""
    checked = []

    async def fail(proxy: Proxy, name: str) -> None:
        tool, arguments, limits, kind, phase, before = STDIO[name]
        ((setting, limit),) = limits.items()
        async with Client.session(proxy.urls[name]) as client:
            await works(client)
            await works(client)
            outcome = await failing_call(client, tool, **arguments)
            check(outcome.error, kind, phase, limit, setting, f"'{tool}'", name=name)
            assert len(outcome.messages) == before, name
            assert outcome.content_type == ("text/event-stream" if before else "application/json"), name
            assert await works(client)
        heard = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        (call,) = [each for each in heard if each.get("params", {}).get("name") == tool]
        (cancelled,) = [each for each in heard if each["method"] == "notifications/cancelled"]
        assert cancelled["params"]["requestId"] == call["id"] != "my-id", name
        checked.append(name)

    upstreams = {
        name: {**stdio("session", str(tmp_path / name)), "timeouts": row[2]} for name, row in STDIO.items()
    }
    async with proxied(named=upstreams) as proxy, anyio.create_task_group() as tasks:
        for name in STDIO:
            tasks.start_soon(fail, proxy, name)
    assert sorted(checked) == sorted(STDIO)


@pytest.mark.parametrize("mode", ["request", "multiplex"])
async def test_a_shared_process_that_hangs_is_told_to_stop(mode: str, tmp_path: Path) -> None:
    """In request mode it is not used again, for its state is unknown; in multiplex mode the calls beside go on."""
    journal = tmp_path / "journal"
    async with (
        proxied(stdio(mode, str(journal)), timeouts={"request_timeout": 0.5}) as proxy,
        Client.session(proxy.url) as client,
    ):
        await works(client)
        before = json.loads(await client.say("state"))["pid"]
        async with anyio.create_task_group() as tasks:
            if mode == "multiplex":

                async def drip() -> None:
                    assert text_of(await client.call("drip", token=1, steps=8, every_ms=100)) == "dripped"

                tasks.start_soon(drip)
                await until(lambda: pool(proxy)["busy"])
            outcome = await failing_call(client, "hang")
            check(outcome.error, "request_timeout", "request", 0.5)
            await until(lambda: "notifications/cancelled" in journal.read_text(), "the server was told")
            heard = [json.loads(line) for line in journal.read_text().splitlines()]
            (call,) = [each for each in heard if each.get("params", {}).get("name") == "hang"]
            (cancelled,) = [each for each in heard if each["method"] == "notifications/cancelled"]
            assert cancelled["params"]["requestId"] == call["id"]
        after = json.loads(await client.say("state"))["pid"]
        assert (after == before) == (mode == "multiplex")


@on_both_loops
async def test_a_stdio_server_that_does_not_read_is_cut() -> None:
    """Its pipe and the proxy's buffer are full, so the request itself cannot be handed over."""
    program = (
        "import json, sys, time\n"
        "for _ in range(2):\n"
        "    m = json.loads(sys.stdin.readline())\n"
        "    if 'id' in m:\n"
        "        r = {'protocolVersion': '2025-11-25', 'capabilities': {}, 'serverInfo': {}}\n"
        "        print(json.dumps({'jsonrpc': '2.0', 'id': m['id'], 'result': r}), flush=True)\n"
        "time.sleep(600)\n"
    )
    upstream = {"command": sys.executable, "args": ["-S", "-c", program], "close_timeout": 0.1}
    async with (
        proxied(upstream, timeouts={"request_timeout": 0.4}) as proxy,
        Client.session(proxy.url) as client,
    ):
        for _ in range(2):  # the first fills the buffer, the second waits for room
            outcome = await failing_call(client, "echo", text="x" * 3_000_000)
            data = outcome.error["data"]
            assert (data["type"], data["phase"], data["limit_ms"]) == ("request_timeout", "request", 400)
            assert data["elapsed_ms"] <= 400 + SLACK_MS


@pytest.mark.parametrize("mode", ["request", "multiplex"])
async def test_waiting_for_a_process_meets_acquire_timeout(mode: str) -> None:
    async with (
        proxied(stdio(mode), max_connections=1, max_inflight=1, timeouts={"acquire_timeout": 0.3}) as proxy,
        Client.session(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):
        await works(client)
        tasks.start_soon(client.whole, client.message("tools/call", {"name": "hang"}, 7))
        await until(lambda: proxy.stats()["calls"] == 1)
        outcome = await failing_call(client, "echo", text="x")
        check(
            outcome.error, "pool_timeout", "queue", 0.3, "acquire_timeout", "max_connections", "1 of 1 busy"
        )
        await client.cancel(7)
        await until(lambda: pool(proxy)["busy"] == 0)
        assert await works(client)


async def test_waiting_for_an_http_connection_meets_acquire_timeout() -> None:
    async with (
        HttpFaults() as server,
        proxied(server.url, max_connections=1, timeouts={"acquire_timeout": 0.3}) as proxy,
        Client.session(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.whole, client.message("tools/call", {"name": "hang"}, 7))
        await until(lambda: pool(proxy)["busy"] == 1)
        outcome = await failing_call(client, "echo", text="x")
        check(
            outcome.error, "pool_timeout", "queue", 0.3, "acquire_timeout", "max_connections", "1 of 1 busy"
        )
        await client.cancel(7)
        await until(lambda: pool(proxy)["busy"] == 0)
        assert await works(client)


async def test_the_deadline_also_covers_the_queue() -> None:
    async with (
        proxied(stdio("request"), max_connections=1, timeouts={"deadline": 1.5}) as proxy,
        Client.session(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):
        await works(client)
        tasks.start_soon(
            client.whole, client.message("tools/call", {"name": "sleep", "arguments": {"seconds": 9}})
        )
        await until(lambda: pool(proxy)["busy"] == 1)
        outcomes = []
        for _ in range(2):  # the first call's own deadline frees the process for the one in the queue
            async with anyio.create_task_group() as both:

                async def fail() -> None:
                    outcomes.append(await failing_call(client, "hang"))

                both.start_soon(fail)
        for outcome in outcomes:
            data = outcome.error["data"]
            assert (data["type"], data["limit_ms"]) == ("deadline_exceeded", 1500)
            assert data["elapsed_ms"] <= 1500 + SLACK_MS


async def test_a_process_that_does_not_come_back_meets_connect_timeout(tmp_path: Path) -> None:
    """The session's process has died and the new one hangs: the call fails in time, and the next one tries again."""
    trap = tmp_path / "hang"
    source = f"import os, runpy, sys, time\nif os.path.exists({str(trap)!r}):\n    print('stuck', file=sys.stderr, flush=True)\n    time.sleep(600)\nrunpy.run_path({SERVER[-1]!r}, run_name='__main__')\n"
    upstream = {"command": sys.executable, "args": ["-S", "-c", source], "close_timeout": 0.1}
    async with (
        proxied(upstream, timeouts={"connect_timeout": 0.7}) as proxy,
        Client.session(proxy.url) as client,
    ):
        await works(client)
        trap.touch()
        assert "exited with code 3" in (await client.call("exit", code=3, words="bye"))["error"]["message"]
        outcome = await failing_call(client, "echo", text="x")
        check(outcome.error, "connect_timeout", "connect", 0.7, "connect_timeout", "stuck")
        trap.unlink()
        assert await works(client)


async def test_an_initialize_that_hangs_is_not_cancelled(tmp_path: Path) -> None:
    """2025-11-25, cancellation: the `initialize` request must not be cancelled. Its process ends instead."""
    journal = tmp_path / "journal"
    source = f"import sys\nfor line in sys.stdin:\n    open({str(journal)!r}, 'a').write(line)"
    upstream = {"command": sys.executable, "args": ["-S", "-c", source]}
    async with (
        proxied(upstream, timeouts={"connect_timeout": 0.5}) as proxy,
        Client.bare(proxy.url) as client,
    ):
        answer = await client.initialize()
        check(answer["error"], "connect_timeout", "connect", 0.5, "connect_timeout")
        await until(lambda: pool(proxy)["size"] + pool(proxy)["closing"] == 0, "the process has ended")
    assert [json.loads(line)["method"] for line in journal.read_text().splitlines()] == ["initialize"]


# -- what resets a limit, and what does not --------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_progress_resets_response_timeout(transport: str) -> None:
    """Eight messages, 0.1 s apart, last more than twice the limit of 0.35 s; the call succeeds."""
    async with AsyncExitStack() as stack:
        upstream: Any = stdio()
        if transport == "http":
            upstream = (await stack.enter_async_context(HttpFaults())).url
        timeouts = {"response_timeout": 0.35, "request_timeout": 0.35}
        proxy = await stack.enter_async_context(proxied(upstream, timeouts=timeouts))
        client = await stack.enter_async_context(Client.session(proxy.url))
        answer = await client.call("drip", token=1, steps=8, every_ms=100)
        assert text_of(answer) == "dripped"
        assert sum(message.get("method") == "notifications/progress" for message in client.messages) == 8


@on_both_loops
@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_progress_does_not_reset_the_deadline(transport: str) -> None:
    async with AsyncExitStack() as stack:
        upstream: Any = stdio()
        if transport == "http":
            upstream = (await stack.enter_async_context(HttpFaults())).url
        proxy = await stack.enter_async_context(proxied(upstream, timeouts={"deadline": 0.5}))
        client = await stack.enter_async_context(Client.session(proxy.url))
        await works(client)
        outcome = await failing_call(client, "drip", steps=1000, every_ms=20)
        check(outcome.error, "deadline_exceeded", "response", 0.5, "deadline", "'drip'")
        assert outcome.messages
        assert await works(client)


@pytest.mark.slow
async def test_each_upstream_has_its_own_limits() -> None:
    quick, slow = stdio(), stdio()
    quick["timeouts"] = {"request_timeout": 0.2}
    slow["timeouts"] = {"request_timeout": 5}
    async with (
        proxied(quick, slow) as proxy,
        Client.session(proxy.urls["up"]) as first,
        Client.session(proxy.urls["up2"]) as second,
    ):
        await works(first)
        outcome = await failing_call(first, "sleep", seconds=0.6)
        check(outcome.error, "request_timeout", "request", 0.2)
        assert await second.say("sleep", seconds=0.6) == "awake"


async def test_a_timeout_takes_only_its_own_call() -> None:
    """Of two calls in flight over one process the other is answered."""
    async with (
        proxied(stdio(), timeouts={"request_timeout": 0.5}) as proxy,
        Client.session(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):
        await works(client)
        said: list[str] = []

        async def sleep() -> None:
            said.append(await client.say("sleep", seconds=0.3))

        tasks.start_soon(failing_call, client, "hang")
        await until(lambda: proxy.stats()["calls"] == 1)
        tasks.start_soon(sleep)
    assert said == ["awake"]


@pytest.mark.slow
async def test_a_late_answer_reaches_nobody() -> None:
    """The answer to a call that has timed out is not taken for the answer to the next one, with the same id."""
    async with (
        proxied(stdio(), timeouts={"request_timeout": 0.3}) as proxy,
        Client.session(proxy.url) as client,
    ):
        await works(client)
        await failing_call(client, "sleep", seconds=0.5)
        arguments = {"name": "sleep", "arguments": {"seconds": 0.28}}
        answer = await client.request("tools/call", arguments, request_id="my-id")
        while "error" in answer:  # a slow machine
            answer = await client.request("tools/call", {**arguments, "arguments": {"seconds": 0}}, "my-id")
        assert text_of(answer) == "awake"
        assert await client.request("ping", request_id="my-id") == {
            "jsonrpc": "2.0",
            "id": "my-id",
            "result": {},
        }


# -- retries --------------------------------------------------------------------------------------------------


REPEATS = [  # method, retries, how often the connection drops; how often it was sent, the outcome
    ("tools/list", None, 1, 1, "upstream_closed"),  # off by default
    ("tools/list", 2, 2, 3, "ok"),
    ("tools/list", 2, 3, 3, "upstream_closed"),
    ("tools/call", 5, 1, 1, "upstream_closed"),  # it may have run
    ("resources/subscribe", 5, 1, 1, "upstream_closed"),
]


async def test_only_reads_are_repeated_after_the_server_may_have_begun() -> None:
    hook = Recorder()
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(HttpFaults()) for _ in REPEATS]
        upstreams = [
            {"url": server.url} | ({} if row[1] is None else {"retries": row[1]})
            for server, row in zip(servers, REPEATS, strict=True)
        ]
        proxy = await stack.enter_async_context(proxied(*upstreams, hook=hook))
        for server, url, row in zip(servers, proxy.urls.values(), REPEATS, strict=True):
            method, _, drops, sent, outcome = row
            server.drops = {method: drops}
            async with Client.session(url) as client:
                answer = await client.request(method, {"name": "echo", "arguments": {"text": "x"}})
            assert ("ok" if "result" in answer else answer["error"]["data"]["type"]) == outcome, row
            assert len(server.posted(method)) == sent, row
            assert (hook.done[-1].outcome, hook.done[-1].attempts) == (outcome, sent), row


async def test_a_stdio_call_that_killed_its_server_is_not_repeated(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    upstream = {**stdio("session", str(journal)), "retries": 5}
    async with proxied(upstream) as proxy, Client.session(proxy.url) as client:
        await client.call("exit", code=1, words="bye")
        assert await works(client)
    assert journal.read_text().count('"exit"') == 1


async def test_what_did_not_start_is_repeated_until_it_can() -> None:
    """Nothing listens at first, so even a tool call may be sent again; it runs once."""
    hook = Recorder()
    server = HttpFaults()
    async with server:
        url = server.url
        upstream = {"url": url, "retries": 10}
        async with proxied(upstream, hook=hook) as proxy, Client.session(proxy.url) as client:
            await server.stop()
            async with anyio.create_task_group() as tasks:
                box: list[Json] = []

                async def call() -> None:
                    box.append(await client.call("echo", text="x"))

                tasks.start_soon(call)
                await until(lambda: pool(proxy)["open_errors"] >= 2, "it was tried")
                await server.start(int(url.split(":")[2].split("/")[0]))
            assert text_of(box[0]) == "x"
            assert hook.done[-1].attempts > 2
            assert len(server.posted("tools/call")) == 1


async def test_retries_do_not_outlive_the_deadline() -> None:
    server = HttpFaults()
    async with server:
        upstream = {"url": server.url, "retries": 10, "timeouts": {"deadline": 0.4}}
        async with proxied(upstream) as proxy, Client.session(proxy.url) as client:
            await server.stop()
            outcome = await failing_call(client, "echo", text="x")
            data = outcome.error["data"]
            assert (data["type"], data["limit_ms"]) == ("deadline_exceeded", 400)
            assert data["elapsed_ms"] <= 400 + SLACK_MS


@pytest.mark.slow
async def test_an_attempt_that_is_repeated_has_the_whole_request_timeout_again() -> None:
    """The first attempt falls at the end of its limit, the second takes longer than what was left of it."""
    hook = Recorder()
    async with HttpFaults() as server:
        upstream = {"url": server.url, "retries": 1, "timeouts": {"request_timeout": 0.5}}
        async with proxied(upstream, hook=hook) as proxy, Client.session(proxy.url) as client:
            server.delays = {"ping": [0.1, 0.1], "tools/list": [0.35, 0.35]}
            async with anyio.create_task_group() as tasks:
                for number in ("a", "b"):
                    tasks.start_soon(client.request, "ping", None, number)
            assert pool(proxy)["idle"] + pool(proxy)["returning"] == 2, (
                "the second attempt does not have to wait"
            )
            server.drops = {"tools/list": 1}
            answer = await client.request("tools/list")
            assert answer["result"] == {}
            assert hook.done[-1].attempts == 2
