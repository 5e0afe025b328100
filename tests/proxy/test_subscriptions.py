"""`subscriptions/listen` through the proxy: each stream its own, no limit, and it outlives what it came from."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpdiag.connection.stdio import StdioConnection
from mcpdiag.protocol.mirror import META_SUBSCRIPTION
from mcpdiag.serve import Proxy
from mcpdiag.upstream.stdio import StdioUpstream
from tests.proxy.client import Recorder, on_both_loops, proxied, until
from tests.proxy.modern import HttpServer, Journal, Modern, upstream
from tests.servers import mini
from tests.servers.flaky import FlakyServer

pytestmark = [pytest.mark.anyio, on_both_loops]
every_kind = pytest.mark.parametrize("kind", ["stdio", "multiplex", "http"])
CHANGED = "notifications/tools/list_changed"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    yield server
    server.stop()


def ids(stream: Any) -> set[Any]:
    return {message["params"]["_meta"][META_SUBSCRIPTION] for message in stream.messages}


def listening_pid(proxy: Proxy) -> int:
    """The process that the subscriptions share where calls have their own."""
    upstream = proxy._upstreams[0]
    assert isinstance(upstream, StdioUpstream)
    assert upstream.stateless is not None
    link = upstream.stateless.ear._link
    assert link is not None
    connection = link.connection
    assert isinstance(connection, StdioConnection)
    return connection.pid


@pytest.mark.parametrize("kind", ["multiplex", "http"])
async def test_each_stream_gets_what_it_asked_for_under_its_own_id(kind: str) -> None:
    """Two of them have the same id, for they are of two clients."""
    with upstream(kind) as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            async with (
                client.listen("same") as one,
                client.listen("same") as two,
                client.listen(3, {}) as other,
            ):
                assert await client.say("change") == "2"
                await until(lambda: len(one.messages) == len(two.messages) == 2)
                assert one.methods == two.methods == [ACKNOWLEDGED, CHANGED]
                assert ids(one) == ids(two) == {"same"}
                assert await client.say("change") == "2"
                await until(lambda: len(one.messages) == 3)
                assert ids(other) == {3}
                assert other.methods == [ACKNOWLEDGED]


@every_kind
async def test_a_stream_has_no_limit_takes_no_connection_of_calls_and_is_kept_alive(kind: str) -> None:
    """One connection in the pool: calls go on, and comments come for longer than any limit of a call."""
    limits: Any = {"request_timeout": 2, "response_timeout": 2, "deadline": 2.5}
    with upstream(kind) as server:
        async with proxied(server, max_connections=1, **limits, keepalive_interval=0.2) as proxy:
            async with Modern.at(proxy.url) as client, client.listen() as stream:
                opened = anyio.current_time()
                assert await client.say("echo", text="x") == "x"
                assert proxy.stats()["calls"] == 0
                await until(lambda: stream.comments >= 3 and anyio.current_time() - opened > 2.6)
                assert not stream.ended
                assert await client.say("echo", text="x") == "x"


@every_kind
async def test_closing_the_stream_ends_the_subscription_at_the_server(kind: str, journal: Journal) -> None:
    hook = Recorder()
    with upstream(kind, "--journal", str(journal.path)) as server:
        async with proxied(server, hook=hook) as proxy, Modern.at(proxy.url) as client:
            async with client.listen():
                assert journal.says("listening")
            await until(lambda: journal.says("notifications/cancelled" if kind == "stdio" else "left"))
            await until(lambda: hook.done)
            assert (hook.done[0].method, hook.done[0].outcome) == ("subscriptions/listen", "cancelled")
            assert await client.say("echo", text="x") == "x"


@every_kind
async def test_when_the_proxy_closes_the_subscription_ends_in_good_order(kind: str) -> None:
    """With the response that says so; nobody waits for it."""
    hook = Recorder()
    with upstream(kind) as server:
        async with proxied(server, hook=hook, drain_timeout=20) as proxy, Modern.at(proxy.url) as client:
            async with client.listen("mine") as stream:
                await proxy.aclose()
                await until(lambda: stream.ended)
            assert stream.messages[-1] == {
                "jsonrpc": "2.0",
                "id": "mine",
                "result": {"resultType": "complete", "_meta": {META_SUBSCRIPTION: "mine"}},
            }
    assert [done.outcome for done in hook.done] == ["ok"]


@pytest.mark.parametrize("kind", ["stdio", "multiplex"])
async def test_a_subscription_outlives_its_process(kind: str, journal: Journal) -> None:
    """The client sees one stream: no second acknowledgment, its own id, and the changes of the new process."""
    hook = Recorder()
    with upstream(kind, "--journal", str(journal.path)) as server:
        async with proxied(server, hook=hook) as proxy, Modern.at(proxy.url) as client:
            async with client.listen("mine") as stream:
                pid = int(await client.say("pid")) if kind == "multiplex" else listening_pid(proxy)
                os.kill(pid, signal.SIGKILL)
                await until(
                    lambda: len([line for line in journal.lines if line.startswith("listening")]) == 2
                )
                await until(lambda: hook.happened("reconnect_ok"))
                if kind == "multiplex":
                    assert await client.say("change") == "1"
                    await until(lambda: len(stream.messages) == 2)
                    assert stream.methods == [ACKNOWLEDGED, CHANGED]
                    assert ids(stream) == {"mine"}
                assert stream.methods.count(ACKNOWLEDGED) == 1
                assert not stream.ended
            assert hook.happened("reconnect_attempt")


async def test_a_subscription_outlives_the_server_it_is_at(http_server: HttpServer) -> None:
    hook = Recorder()
    async with proxied(http_server.url, hook=hook) as proxy, Modern.at(proxy.url) as client:
        async with client.listen("mine") as stream:
            await anyio.to_thread.run_sync(http_server.restart)
            await until(lambda: hook.happened("reconnect_ok"))
            assert await client.say("change") == "1"
            await until(lambda: len(stream.messages) == 2)
            assert stream.methods == [ACKNOWLEDGED, CHANGED]
            assert ids(stream) == {"mine"}


async def test_a_subscription_whose_stream_breaks_every_7_events_loses_and_repeats_none() -> None:
    """The revision has no ids: what counts is that the client is acknowledged once, and sees each event once."""
    uris = [f"test://{number}" for number in range(100)]
    async with (
        FlakyServer(sessions=False, drop_every=7) as server,
        proxied({"url": server.url, "reconnect": {"base": 0.1, "cap": 0.1}}) as proxy,
        Modern.at(proxy.url) as client,
    ):
        server.news = [*uris]
        listen = client.message(
            "subscriptions/listen", {"notifications": {"resourceSubscriptions": uris}}, "mine"
        )
        async with client.open(listen) as stream:
            await until(lambda: len(stream.messages) >= 101)
        assert stream.methods[0] == ACKNOWLEDGED
        assert [message["params"]["uri"] for message in stream.messages[1:]] == uris
        assert ids(stream) == {"mine"}
        assert len(server.posted("subscriptions/listen")) >= 14


@pytest.mark.parametrize("kind", ["stdio", "http"])
async def test_a_server_that_does_not_come_back_ends_the_stream_with_an_error(kind: str) -> None:
    hook = Recorder()
    policy = {"reconnect": {"window": 0.5, "cap": 0.1}}
    if kind == "http":
        server = HttpServer()
        async with proxied({"url": server.url, **policy}, hook=hook) as proxy, Modern.at(proxy.url) as client:
            async with client.listen("mine") as stream:
                server.stop()
                await until(lambda: stream.ended)
            assert stream.messages[-1]["error"]["data"]["type"] == "upstream_closed"
            assert hook.happened("reconnect_gave_up")
        return
    once = 'test -e "$0" && exit 1; : >"$0"; exec "$@"'
    with upstream(kind) as config:
        marker = f"/tmp/mcpdiag-{os.getpid()}-{id(hook)}"
        # The probe's process and the one that listens; then there are no more.
        script = once.replace(
            'test -e "$0" && exit 1; : >"$0"', 'echo >>"$0"; test $(wc -l <"$0") -le 2 || exit 1'
        )
        command = ["/bin/sh", "-c", script, marker, config["command"], *config["args"]]
        try:
            async with proxied({"command": command[0], "args": command[1:], **policy}, hook=hook) as proxy:
                async with Modern.at(proxy.url) as client, client.listen("mine") as stream:
                    os.kill(listening_pid(proxy), signal.SIGKILL)
                    await until(lambda: stream.ended)
                assert stream.messages[-1]["error"]["data"]["type"] == "upstream_closed"
                assert stream.messages[-1]["id"] == "mine"
        finally:
            Path(marker).unlink(missing_ok=True)


async def test_subscriptions_of_a_stdio_server_share_one_process_beside_the_pool() -> None:
    """Which is gone when the last of them is."""
    hook = Recorder()
    with upstream("stdio") as server:
        async with proxied(server, hook=hook) as proxy, Modern.at(proxy.url) as client:
            async with client.listen() as one, client.listen() as two:
                assert not one.ended
                assert not two.ended
                assert proxy.stats()["upstreams"]["up"]["stateless_pool"]["busy"] == 0
                assert not hook.happened("child_exit")
            await until(lambda: len(hook.happened("child_exit")) == 1)


@pytest.mark.parametrize("kind", ["stdio", "http"])
async def test_a_refusal_is_an_answer_like_any_other(kind: str) -> None:
    if kind == "stdio":
        async with proxied(mini.command("asks")) as proxy, Modern.at(proxy.url) as client:
            response = await client.send(client.message("subscriptions/listen", {"notifications": {}}))
            assert (response.status_code, response.json()["error"]["code"]) == (400, -32022)
        return
    async with proxied("http://127.0.0.1:9/nobody") as proxy, Modern.at(proxy.url) as client:
        message = client.message("subscriptions/listen", {"notifications": {}})
        answer = (await client.send(message)).json()
        assert answer["error"]["data"]["type"] == "connect_error"
        assert answer["id"] == message["id"]
