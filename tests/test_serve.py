"""Start and stop: what runs in between, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import psutil
import pytest

import mcpdiag
from mcpdiag.config import ProxyConfig, UpstreamConfig
from mcpdiag.embedded import COMMAND
from mcpdiag.errors import ConfigError, StartError
from mcpdiag.hooks import Event, ExchangeDone, Happened
from mcpdiag.serve import Proxy
from mcpdiag.server import listen
from tests.conftest import RawClient, own_processes

pytestmark = pytest.mark.usefixtures("nothing_left")


class Recorder:
    """A hook that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event, /) -> None:
        self.events.append(event)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., object]:
    """Runs an async function on asyncio's own loop and on uvloop (its server is asyncio's)."""

    def runner(main: Callable[[], object]) -> object:
        options = {"use_uvloop": request.param == "uvloop"}
        return anyio.run(main, backend_options=options)  # type: ignore[arg-type]

    return runner


def in_thread(function: Callable[[], object]) -> object:
    return anyio.to_thread.run_sync(function)


def test_serves_from_a_thread_and_stops(capfd: pytest.CaptureFixture[str]) -> None:
    with mcpdiag.serve({"demo": COMMAND}, port=0) as proxy:
        client = RawClient(proxy.url).initialize()
        assert client.call("echo", text="hi") == "hi"
        assert proxy.stats()["sessions"] == 1
        assert proxy.stats()["upstreams"]["demo"]["pool"]["busy"] == 1
    assert proxy.stats()["sessions"] == 0
    pool = proxy.stats()["upstreams"]["demo"]["pool"]
    assert pool["size"] == pool["closing"] == pool["waiting"] == pool["returning"] == 0
    assert capfd.readouterr() == ("", "")  # quiet by default


def test_serves_inside_a_running_loop(run: Callable[..., object]) -> None:
    async def main() -> None:
        async with Proxy({"demo": COMMAND}, port=0) as proxy:
            client = await in_thread(lambda: RawClient(proxy.url).initialize())  # type: ignore[misc]
            assert await in_thread(lambda: client.call("add", a=2, b=3)) == "5"  # type: ignore[misc]

    run(main)


def test_several_upstreams_at_once() -> None:
    with mcpdiag.serve({"one": COMMAND, "two": COMMAND}, port=0) as proxy:
        assert set(proxy.urls) == {"one", "two"}
        pids = {RawClient(url).initialize().call("whoami") for url in proxy.urls.values()}
        assert len(pids) == 2
        assert RawClient(proxy.url.replace("/one/mcp", "/mcp")).post({})[0] == 404  # which of the two?


def test_an_upstream_behind_an_upstream() -> None:
    """A proxy in front of a proxy: HTTP over stdio."""
    with (
        mcpdiag.serve({"inner": COMMAND}, port=0) as inner,
        mcpdiag.serve({"outer": inner.url}, port=0) as outer,
    ):
        client = RawClient(outer.url).initialize()
        assert client.call("echo", text="through two") == "through two"
        assert client.call("progress", steps=2) == "done"
        assert client.http("DELETE")[0] == 200
        assert inner.stats()["sessions"] == 0


def test_after_aclose_no_task_socket_or_process_is_left(run: Callable[..., object]) -> None:
    async def main() -> None:
        before = len(asyncio.all_tasks())
        proxy = Proxy({"demo": COMMAND}, port=0, pool_mode="request", min_connections=2)
        async with proxy:
            client = await in_thread(lambda: RawClient(proxy.url).initialize())  # type: ignore[misc]
            await in_thread(lambda: client.call("echo", text="hi"))  # type: ignore[misc]
            port = int(proxy.url.split(":")[2].split("/")[0])
            await proxy.aclose()
            await proxy.aclose()  # idempotent
            pool = proxy.stats()["upstreams"]["demo"]["pool"]
            assert pool["size"] == pool["idle"] == pool["closing"] == pool["returning"] == 0
            assert all(upstream.pool._upkeep.stopped.is_set() for upstream in proxy._upstreams)
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0
        assert len(asyncio.all_tasks()) == before

    run(main)


def test_a_call_in_flight_finishes_during_shutdown() -> None:
    with ThreadPoolExecutor() as pool:
        with mcpdiag.serve({"demo": COMMAND}, port=0) as proxy:
            client = RawClient(proxy.url).initialize()
            call = pool.submit(client.call, "sleep", seconds=0.5)
            while not proxy.stats()["calls"]:
                pass
        assert call.result(10) == "awake"


def test_a_call_longer_than_drain_timeout_ends_in_a_typed_error() -> None:
    with ThreadPoolExecutor() as pool:
        with mcpdiag.serve({"demo": COMMAND}, port=0, drain_timeout=0.2) as proxy:
            client = RawClient(proxy.url).initialize()
            call = pool.submit(client.request, "tools/call", {"name": "sleep", "arguments": {"seconds": 30}})
            while not proxy.stats()["calls"]:
                pass
        error = call.result(10)["error"]
        assert error["data"]["type"] == "shutting_down"


def test_a_second_close_forces(run: Callable[..., object]) -> None:
    """`aclose(force=True)` beside a draining `aclose()` ends it: a call of 30 s does not hold it up."""

    async def main() -> None:
        async with Proxy({"demo": COMMAND}, port=0, drain_timeout=30) as proxy:
            client = await in_thread(lambda: RawClient(proxy.url).initialize())  # type: ignore[misc]
            async with anyio.create_task_group() as tasks:
                answers: list[dict[str, object]] = []

                async def call() -> None:
                    params = {"name": "sleep", "arguments": {"seconds": 29}}
                    answers.append(await in_thread(lambda: client.request("tools/call", params)))  # type: ignore[misc]

                tasks.start_soon(call)
                while not proxy.stats()["calls"]:
                    await anyio.sleep(0.01)
                tasks.start_soon(proxy.aclose)
                await anyio.lowlevel.checkpoint()
                with anyio.fail_after(10):
                    await proxy.aclose(force=True)
        assert "error" in answers[0]

    run(main)


def test_a_cancelled_proxy_still_cleans_up(run: Callable[..., object]) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with Proxy({"demo": COMMAND}, port=0) as proxy:
                await in_thread(lambda: RawClient(proxy.url).initialize())  # type: ignore[misc]
                scope.cancel()
                await anyio.sleep_forever()

    run(main)


def test_a_listening_stream_ends_at_shutdown() -> None:
    with ThreadPoolExecutor() as pool:
        with mcpdiag.serve({"demo": COMMAND}, port=0) as proxy:
            client = RawClient(proxy.url).initialize()
            stream = pool.submit(client.http, "GET")
            while not any(session.streams for session in proxy._proxy._sessions._sessions.values()):  # type: ignore[union-attr]
                pass
        status, headers, _ = stream.result(10)
        assert (status, headers["content-type"]) == (200, "text/event-stream")


def test_keyboard_interrupt_in_the_caller_leaves_the_proxy_working() -> None:
    """What interrupting a notebook cell does: the signal reaches the main thread only."""
    with mcpdiag.serve({"demo": COMMAND}, port=0) as proxy:
        client = RawClient(proxy.url).initialize()
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            threading.Event().wait(10)
        assert client.call("echo", text="still here") == "still here"


def test_a_taken_port_is_said_with_the_remedy() -> None:
    with mcpdiag.serve({"demo": COMMAND}, port=0) as proxy:
        port = int(proxy.url.split(":")[2].split("/")[0])
        with pytest.raises(StartError, match=rf"port {port} on 127.0.0.1 is in use.*--port 0"):
            mcpdiag.serve({"demo": COMMAND}, port=port)


def test_a_program_that_does_not_exist_is_said_at_the_start() -> None:
    with pytest.raises(StartError, match=r"'x'.*no program 'no-such-program' on PATH"):
        mcpdiag.serve({"x": ["no-such-program"]}, port=0)


def test_wrong_settings_are_all_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Proxy({"x": COMMAND}, port=70000, request_timeout="soon")
    assert len(caught.value.problems) == 2


def test_a_ready_made_config_is_taken() -> None:
    config = ProxyConfig(
        upstreams={"demo": UpstreamConfig(command=sys.executable, args=(COMMAND[1],))}, port=0
    )
    with mcpdiag.serve(config) as proxy:
        assert RawClient(proxy.url).initialize().call("echo", text="x") == "x"


def test_our_sockets_have_nodelay(run: Callable[..., object]) -> None:
    """The listener, and with it every accepted connection (FACTS: a factor of 50 without)."""
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        listener.settimeout(5)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_hook_hears_of_each_exchange() -> None:
    hook = Recorder()
    with mcpdiag.serve({"demo": COMMAND}, port=0, hook=hook, request_timeout=1.0) as proxy:
        client = RawClient(proxy.url).initialize()
        client.call("echo", text="hi")
        client.call("nothing")
        client.call("sleep", seconds=20)
    done = [event for event in hook.events if isinstance(event, ExchangeDone)]
    assert [(event.method, event.target, event.outcome) for event in done] == [
        ("initialize", "", "ok"),
        ("tools/call", "echo", "ok"),
        ("tools/call", "nothing", "rpc_error"),
        ("tools/call", "sleep", "request_timeout"),
    ]
    assert [event.reused for event in done] == [False, True, True, True]
    echo = done[1]
    assert 0 < echo.first_ms <= echo.total_ms < 5000
    assert echo.bytes_in > 0
    assert echo.bytes_out > 0
    assert echo.protocol == "2025-11-25"
    kinds = {event.kind for event in hook.events if isinstance(event, Happened)}
    assert "session_end" in kinds


def test_logs_name_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    upstream = {"command": [*COMMAND], "env": {"KEY": "hunter2-env"}}
    with mcpdiag.serve({"demo": upstream}, port=0, token="hunter2-token") as proxy:
        client = RawClient(proxy.url)
        client.headers["authorization"] = "Bearer hunter2-token"
        client.initialize().call("exit", code=3)
        RawClient(proxy.url).post({}, authorization="Bearer wrong-hunter2")
        assert "hunter2" not in str(proxy.stats())
    assert "hunter2" not in caplog.text


def test_the_reaper_is_gone_after_the_proxy() -> None:
    before = own_processes()
    with mcpdiag.serve({"demo": COMMAND}, port=0) as proxy:
        RawClient(proxy.url).initialize()
        during = own_processes() - before
        assert any("reaper" in " ".join(psutil.Process(pid).cmdline()) for pid in during)
    assert own_processes() == before


def test_a_body_that_does_not_arrive_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcpdiag.proxy.request.BODY_TIMEOUT", 0.2)
    with mcpdiag.serve({"demo": COMMAND}, port=0) as proxy:
        client = RawClient(proxy.url).initialize()
        host, port = proxy.url.split("/")[2].split(":")
        with socket.create_connection((host, int(port)), timeout=10) as stuck:
            head = "".join(f"{key}: {value}\r\n" for key, value in client.headers.items())
            stuck.sendall(
                f"POST /mcp HTTP/1.1\r\nhost: localhost\r\n{head}content-length: 99\r\n\r\n{{".encode()
            )
            assert stuck.recv(1000).startswith(b"HTTP/1.1 408")
        assert client.call("echo", text="others are served") == "others are served"


def test_a_session_that_its_http_server_has_forgotten_is_made_again() -> None:
    with (
        mcpdiag.serve({"inner": COMMAND}, port=0) as inner,
        mcpdiag.serve({"outer": inner.url}, port=0) as outer,
    ):
        client = RawClient(outer.url).initialize()
        for session in [*inner._proxy._sessions._sessions.values()]:  # type: ignore[union-attr]
            inner._proxy._sessions._sessions.pop(session.id)  # type: ignore[union-attr]
        assert client.call("echo", text="as if nothing was") == "as if nothing was"
        assert (inner.stats()["sessions"], outer.stats()["sessions"]) == (1, 1)
