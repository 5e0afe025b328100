"""`http_client = "httpx"` behind the proxy: calls, streams, forward proxies, HTTP/2, and what is missing for them."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpdiag.config import UpstreamConfig
from mcpdiag.errors import StartError
from mcpdiag.upstream import dialer
from mcpdiag.upstream.dialer import Dialer
from tests.proxy.client import UVLOOP, Client, pool, proxied, until
from tests.servers.forward_proxy import ForwardProxy
from tests.servers.http2 import Http2Server
from tests.servers.http_faults import HttpFaults, blackhole
from tests.upstream.certificates import Files

pytestmark = pytest.mark.anyio
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


def by_httpx(url: str, **settings: Any) -> dict[str, Any]:
    return {"url": url, "http_client": "httpx", **settings}


# --- calls and streams


async def test_calls_share_the_connections_of_the_pool() -> None:
    async with (
        HttpFaults() as server,
        proxied(by_httpx(server.url), max_connections=2) as proxy,
        Client.session(proxy.url) as client,
    ):

        async def work(number: int) -> None:
            assert await client.say("echo", text=str(number)) == str(number)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(work, number)
        assert pool(proxy)["opens"] <= 2
        assert pool(proxy)["reuses"] >= 19
        assert {request.headers["host"] for request in server.requests} == {server.url.split("/")[2]}


async def test_a_streamed_answer_arrives_event_by_event_and_the_client_is_asked() -> None:
    async with (
        HttpFaults() as server,
        proxied(by_httpx(server.url)) as proxy,
        Client.session(proxy.url) as client,
    ):
        answer = await client.call("ask")
        assert answer["result"]["content"][0]["text"] == client.mark
        assert await client.say("drip", steps=3, every_ms=1) == "dripped"


async def test_the_listening_stream_is_relayed() -> None:
    async with (
        HttpFaults() as server,
        proxied(by_httpx(server.url)) as proxy,
        Client.session(proxy.url) as client,
        client.listen() as stream,
    ):
        await until(lambda: len(server.streams) == 1)
        for number in range(3):
            server.push(
                b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"data":%d}}\n\n' % number
            )
            await until(lambda: len(stream.messages) > number)  # noqa: B023
        assert [message["params"]["data"] for message in stream.messages] == [0, 1, 2]


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        ("drop", "upstream_closed"),
        ("drop_body", "upstream_closed"),
        ("hang", "request_timeout"),
        ("half_body", "response_timeout"),
        ("stalled_stream", "response_timeout"),
    ],
)
async def test_a_call_that_fails_is_a_typed_error_and_the_next_one_is_served(tool: str, kind: str) -> None:
    limits: dict[str, Any] = {"request_timeout": 0.3, "response_timeout": 0.3}
    async with (
        HttpFaults() as server,
        proxied(by_httpx(server.url), **limits) as proxy,
        Client.session(proxy.url) as client,
    ):
        answer = await client.call(tool)
        assert answer["error"]["data"]["type"] == kind
        assert await client.say("echo", text="goes on") == "goes on"
        await until(lambda: pool(proxy)["busy"] == 0)


async def test_too_long_an_answer_is_a_typed_error() -> None:
    async with (
        HttpFaults() as server,
        proxied(by_httpx(server.url, max_message_bytes=4096)) as proxy,
        Client.session(proxy.url) as client,
    ):
        answer = await client.call("make", size=10_000)
        assert "raise max_message_bytes" in answer["error"]["message"]
        assert len(await client.say("make", size=1000)) == 1000


async def test_a_cancelled_call_ends_at_the_server() -> None:
    async with (
        HttpFaults() as server,
        proxied(by_httpx(server.url)) as proxy,
        Client.session(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.whole, client.message("tools/call", {"name": "hang"}, "waits"))
        await until(lambda: server.posted("tools/call"))
        await client.cancel("waits")
        hung = next(each for each in server.requests if b'"hang"' in each.body)
        await until(hung.gone.is_set)


async def test_nobody_at_home_is_a_connect_error_and_no_answer_a_connect_timeout() -> None:
    async with proxied(by_httpx("http://127.0.0.1:9/mcp")) as proxy, Client.bare(proxy.url) as client:
        error = (await client.initialize())["error"]
        assert error["data"]["type"] == "connect_error"
        assert "http://127.0.0.1:9: refused" in error["message"]
    with blackhole() as url:
        async with (
            proxied(by_httpx(f"{url}?key=secret"), connect_timeout=0.2) as proxy,
            Client.bare(proxy.url) as client,
        ):
            error = (await client.initialize())["error"]
            assert error["data"]["type"] == "connect_timeout"
            assert "did not accept a connection within 0.2 s (connect_timeout)" in error["message"]
            assert "secret" not in error["message"]


# --- forward proxies


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_calls_go_through_the_forward_proxy(files: Files, secure: bool) -> None:
    """A tunnel for https, whole URLs for http."""
    async with (
        ForwardProxy("me:hunter2") as forward,
        HttpFaults(files.server() if secure else None) as server,
    ):
        tls = {"tls_ca": files.ca} if secure else {}
        upstream = by_httpx(server.url, proxy=forward.url, **tls)
        async with proxied(upstream) as proxy, Client.session(proxy.url) as client:
            assert await client.say("echo", text="through") == "through"
            assert await client.say("echo", text="and again") == "and again"
        host = server.url.split("/")[2]
        assert forward.asked[0] == (f"CONNECT {host} HTTP/1.1" if secure else f"POST {server.url} HTTP/1.1")
        assert not any("proxy-authorization" in request.headers for request in server.requests)


@pytest.mark.parametrize(
    ("variable", "bypass", "used"),
    [
        ("HTTP_PROXY", None, False),
        ("HTTPS_PROXY", None, True),
        ("https_proxy", None, True),
        ("ALL_PROXY", None, True),
        ("HTTPS_PROXY", "127.0.0.1", False),
        ("HTTPS_PROXY", "*", False),
        ("HTTPS_PROXY", "elsewhere.test", True),
    ],
)
async def test_the_variables_of_the_environment_hold(
    files: Files, monkeypatch: pytest.MonkeyPatch, variable: str, bypass: str | None, used: bool
) -> None:
    async with ForwardProxy() as forward, HttpFaults(files.server()) as server:
        monkeypatch.setenv(variable, forward.url)
        if bypass is not None:
            monkeypatch.setenv("NO_PROXY", bypass)
        async with (
            proxied(by_httpx(server.url, tls_ca=files.ca)) as proxy,
            Client.session(proxy.url) as client,
        ):
            assert await client.say("echo", text="hello") == "hello"
        assert bool(forward.asked) is used


async def test_the_setting_is_stronger_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with ForwardProxy() as forward, HttpFaults() as server:
        upstream = by_httpx(server.url, proxy=forward.url)
        async with proxied(upstream) as proxy, Client.session(proxy.url) as client:
            assert await client.say("echo", text="hello") == "hello"
        assert forward.asked


async def test_the_own_client_knows_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with HttpFaults() as server, proxied(server.url) as proxy, Client.session(proxy.url) as client:
        assert await client.say("echo", text="straight") == "straight"


async def test_a_proxy_that_refuses_the_password_is_named_without_it(files: Files) -> None:
    async with ForwardProxy("me:right") as forward, HttpFaults(files.server()) as server:
        wrong = forward.url.replace("right", "hunter2")
        upstream = by_httpx(server.url, proxy=wrong, tls_ca=files.ca)
        async with proxied(upstream) as proxy, Client.bare(proxy.url) as client:
            error = (await client.initialize())["error"]
        assert error["data"]["type"] == "connect_error"
        assert "407 Proxy Authentication Required; correct 'proxy'" in error["message"]
        assert "hunter2" not in str(error)
        assert "hunter2" not in repr(proxy.config)


# --- HTTP/2


async def test_over_http2_many_calls_share_one_connection(files: Files) -> None:
    async with Http2Server(files.server(alpn="h2")) as server:
        upstream = by_httpx(server.url, http2=True, tls_ca=files.ca)
        async with proxied(upstream) as proxy, Client.session(proxy.url) as client:
            answers: list[str] = []

            async def wait(text: str) -> None:
                answers.append(await client.say("wait", text=text))

            async with anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(wait, str(number))
                await until(lambda: server.inflight == 12)
                assert pool(proxy)["busy"] == 1
                server.go.set()
            assert sorted(answers, key=int) == [str(number) for number in range(12)]
            assert await client.say("stream") == "streamed"
            assert (server.connections, pool(proxy)["opens"]) == (1, 1)


async def test_http2_goes_through_a_tunnel_too(files: Files) -> None:
    async with ForwardProxy("me:hunter2") as forward, Http2Server(files.server(alpn="h2")) as server:
        upstream = by_httpx(server.url, http2=True, tls_ca=files.ca, proxy=forward.url)
        async with proxied(upstream) as proxy, Client.session(proxy.url) as client:
            assert await client.say("echo", text="both") == "both"
        assert len(forward.asked) == server.connections == 1


# --- the extra


@pytest.mark.parametrize(
    ("missing", "settings", "reason"),
    [
        ("httpx", {}, 'http_client = "httpx" needs the package httpx'),
        ("h2", {"url": "https://h/mcp", "http2": True}, "http2 = true needs the package h2"),
        ("socksio", {"proxy": "socks5://me:hunter2@p:1080"}, "a socks5:// proxy needs the package socksio"),
    ],
)
def test_a_package_that_is_missing_is_one_line_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, missing: str, settings: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(dialer, "find_spec", lambda name: None if name == missing else find_spec(name))
    config = UpstreamConfig.model_validate(by_httpx("http://h/mcp") | settings)
    with pytest.raises(StartError) as caught:
        Dialer("up", config)
    assert str(caught.value) == (
        f"the server 'up': {reason}, which is not installed; pip install 'mcpdiag[httpx]'"
    )


def test_without_httpx_everything_but_its_setting_works(tmp_path: Path) -> None:
    """In an interpreter in which importing httpx fails."""
    config = tmp_path / "mcpdiag.toml"
    config.write_text("port = 0\n[upstreams.up]\nurl = 'http://127.0.0.1:9/mcp'\nhttp_client = 'httpx'\n")
    code = (
        "import sys; sys.modules['httpx'] = None; import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'httpx' else find(name, package)\n"
        "import mcpdiag.upstream.http; from mcpdiag.cli import main; sys.argv = ['mcpdiag', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", code, "proxy", "--config", str(config)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert found.returncode == 3
    (line,) = found.stderr.splitlines()
    assert line == (
        "mcpdiag: the server 'up': http_client = \"httpx\" needs the package httpx, which is not installed; "
        "pip install 'mcpdiag[httpx]'"
    )


def test_importing_the_upstream_does_not_import_httpx() -> None:
    code = "import mcpdiag.upstream.http, sys; print('httpx' in sys.modules, 'h2' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_a_variable_that_is_no_proxy_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "ftp://me:hunter2@p")
    with pytest.raises(StartError, match="HTTP_PROXY") as caught:
        Dialer("up", UpstreamConfig.model_validate(by_httpx("http://h/mcp")))
    assert "hunter2" not in str(caught.value)
