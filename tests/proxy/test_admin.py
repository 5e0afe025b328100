"""Health and numbers: who may see them, and what is not in them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import mcpdiag
from mcpdiag.config import ProxyConfig, UpstreamConfig
from mcpdiag.embedded import COMMAND
from mcpdiag.proxy.admin import admin_app
from mcpdiag.proxy.guard import Guard
from mcpdiag.serve import BackgroundProxy
from tests.proxy import raw

TOKEN = {"Authorization": "Bearer s3cret-token"}


@pytest.fixture(scope="module")
def proxy() -> Iterator[BackgroundProxy]:
    upstream = {"command": COMMAND[0], "args": [COMMAND[1], "--key=s3cret-arg"], "env": {"KEY": "s3cret-env"}}
    with mcpdiag.serve({"demo": upstream}, port=0, admin_port=0, token="s3cret-token") as running:
        yield running


def get(proxy: BackgroundProxy, path: str, method: str = "GET", **headers: str) -> raw.Got:
    return raw.send(proxy.admin_url + path, method=method, headers=headers)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/healthz", {}, 200),
        ("/readyz", {}, 200),
        ("/stats", TOKEN, 200),
        ("/stats", {}, 401),
        ("/stats", {"Authorization": "Bearer guess"}, 401),
        ("/healthz", {"Host": "evil.example"}, 403),
        ("/readyz", {"Host": "evil.example"}, 403),
        ("/stats", {**TOKEN, "Host": "evil.example"}, 403),
        ("/healthz", {"Origin": "http://evil.example"}, 403),
        ("/stats", {**TOKEN, "Origin": "http://evil.example"}, 403),
        ("/nothing", TOKEN, 404),
        ("/mcp", TOKEN, 404),
    ],
)
def test_who_may_look(proxy: BackgroundProxy, path: str, headers: dict[str, str], status: int) -> None:
    """Health needs no token, numbers do; the Host check holds for all of them."""
    got = get(proxy, path, **headers)
    assert got.status == status
    if status == 401:
        assert got.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/stats"])
def test_looking_is_all_one_can_do(proxy: BackgroundProxy, path: str) -> None:
    got = get(proxy, path, "POST", **TOKEN)
    assert got.status == 405
    assert "GET" in got.headers["allow"]


def test_the_numbers_are_those_of_the_proxy_and_name_no_secret(proxy: BackgroundProxy) -> None:
    got = get(proxy, "/stats", **TOKEN)
    numbers = json.loads(got.body)
    assert numbers["upstreams"]["demo"]["pool"]["max"] == 10
    assert numbers["upstreams"]["demo"]["mode"] == "session"
    assert set(numbers) == set(proxy.stats())
    for path in ("/healthz", "/readyz", "/stats", "/nothing"):
        assert b"s3cret" not in get(proxy, path, **TOKEN).body


def test_the_mcp_port_has_no_numbers(proxy: BackgroundProxy) -> None:
    port = proxy.url.removesuffix("/mcp")
    assert raw.send(port + "/stats", method="GET", headers=TOKEN).status == 404


@pytest.mark.anyio
async def test_ready_ends_when_no_new_session_is_admitted() -> None:
    """`/readyz` turns to 503 and names the reason, while `/healthz` stays 200."""
    ready = True
    guard = Guard(ProxyConfig(upstreams={"up": UpstreamConfig(command="true")}))
    app = admin_app(guard, lambda: ready, dict)

    async def look(path: str) -> tuple[int, bytes]:
        sent: list[dict[str, object]] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: object) -> None:
            assert isinstance(message, dict)
            sent.append(message)

        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        status, body = sent[0]["status"], sent[1]["body"]
        assert isinstance(status, int)
        assert isinstance(body, bytes)
        return status, body

    assert await look("/readyz") == (200, b"ready\n")
    ready = False
    assert await look("/readyz") == (503, b"shutting down\n")
    assert await look("/healthz") == (200, b"ok\n")
