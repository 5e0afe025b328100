"""What the endpoint refuses, in which words, and that it goes on serving; batches; servers that cannot start."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import pytest

import mcpdiag
from mcpdiag.embedded import COMMAND
from mcpdiag.serve import BackgroundProxy, Proxy
from tests.conftest import RawClient
from tests.proxy import raw
from tests.proxy.client import LIMIT, UVLOOP, Client, Recorder, on_both_loops, pool, proxied, text_of, until
from tests.servers import marked

LIMIT_BYTES = 4096
PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
BIG = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"%b"}}' % (b"x" * LIMIT_BYTES)
NAMES = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")


@pytest.fixture
def anyio_backend() -> Any:
    return UVLOOP


# -- bad input ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[BackgroundProxy, RawClient]]:
    """A proxy with a token and a small body limit, and a client with a session there."""
    with mcpdiag.serve({"demo": COMMAND}, port=0, token="s3cret", max_body_bytes=LIMIT_BYTES) as proxy:
        client = RawClient(proxy.url)
        client.headers["authorization"] = "Bearer s3cret"
        yield proxy, client.initialize()


def case(
    status: int,
    code: int,
    *words: str,
    body: bytes = PING,
    headers: dict[str, str | None] | None = None,
    **how: Any,
) -> Any:
    """A row: a request, and the status, the JSON-RPC code and the words of its refusal."""
    return status, code, words, {"body": body, "headers": headers or {}, **how}


CASES = {
    # not JSON: -32700
    "empty": case(400, -32700, "not JSON", body=b""),
    "half an object": case(400, -32700, "not JSON", body=b'{"jsonrpc":"2.0"'),
    "words": case(400, -32700, "not JSON", body=b"hello"),
    "not UTF-8": case(400, -32700, "UTF-8", "byte 1", body=b'"\xff"'),
    "too deep": case(400, -32700, "deep", body=b'{"jsonrpc":"2.0","id":1,"method":"m","params":' + b"[" * 3000),
    "trailing bytes": case(400, -32700, "not JSON", body=PING + b"x"),
    # not JSON-RPC: -32600
    "a number": case(400, -32600, "JSON-RPC", body=b"1"),
    "an empty object": case(400, -32600, "jsonrpc", '"2.0"', body=b"{}"),
    "version 1.0": case(400, -32600, "jsonrpc", '"2.0"', body=b'{"jsonrpc":"1.0","id":1,"method":"ping"}'),
    "no method": case(400, -32600, "method", body=b'{"jsonrpc":"2.0","id":1}'),
    "null id": case(400, -32600, '"id"', "string or a number", body=PING.replace(b"1,", b"null,")),
    "bool id": case(400, -32600, '"id"', "string or a number", body=PING.replace(b"1,", b"true,")),
    "list id": case(400, -32600, '"id"', "string or a number", body=PING.replace(b"1,", b"[1],")),
    "params a string": case(400, -32600, '"params"', "object", body=PING.replace(b"}", b',"params":"x"}')),
    "method and result": case(400, -32600, "both", body=PING.replace(b"}", b',"result":{}}')),
    "an empty batch": case(400, -32600, "empty batch", body=b"[]"),
    "a batch": case(400, -32600, "batches", "2025-03-26", "one message", body=b"[%b]" % PING),
    # revisions
    "unknown revision": case(400, -32600, "'1999-01-01'", *NAMES, headers={"MCP-Protocol-Version": "1999-01-01"}),
    "empty revision": case(400, -32600, "''", *NAMES, headers={"MCP-Protocol-Version": ""}),
    "unknown revision, GET": case(
        400, -32600, "'x'", *NAMES, body=b"", method="GET", headers={"MCP-Protocol-Version": "x"}
    ),
    "unknown revision, DELETE": case(
        400, -32600, "'x'", *NAMES, body=b"", method="DELETE", headers={"MCP-Protocol-Version": "x"}
    ),
    # media types
    "only JSON accepted": case(
        406, -32600, "application/json and text/event-stream", "found", headers={"Accept": "application/json"}
    ),
    "only events accepted": case(
        406, -32600, "application/json and text/event-stream", "found", headers={"Accept": "text/event-stream"}
    ),
    "HTML accepted": case(406, -32600, "text/html", headers={"Accept": "text/html"}),
    "events refused by weight": case(406, -32600, "q=0", headers={"Accept": "*/*, text/event-stream;q=0"}),
    "GET accepts JSON": case(
        406, -32600, "text/event-stream", body=b"", method="GET", headers={"Accept": "application/json"}
    ),
    "text": case(415, -32600, "application/json", "text/plain", headers={"Content-Type": "text/plain"}),
    "a form": case(415, -32600, "application/json", "form", headers={"Content-Type": "multipart/form-data"}),
    "no type": case(415, -32600, "application/json", "none", headers={"Content-Type": None}),
    "JSON lines": case(415, -32600, "jsonl", headers={"Content-Type": "application/jsonl"}),
    # size
    "too large, declared": case(413, -32600, str(len(BIG)), str(LIMIT_BYTES), "max_body_bytes", body=BIG),
    "too large, chunked": case(413, -32600, str(LIMIT_BYTES), "max_body_bytes", body=BIG, chunked=True),
    "far too large, chunked": case(413, -32600, "max_body_bytes", body=b"x" * 1_000_000, chunked=True),
    # sessions
    "no session": case(400, -32600, "Mcp-Session-Id is missing", "initialize", headers={"Mcp-Session-Id": None}),
    "no session, GET": case(
        400, -32600, "missing", "initialize", body=b"", method="GET", headers={"Mcp-Session-Id": None}
    ),
    "no session, DELETE": case(
        400, -32600, "missing", "initialize", body=b"", method="DELETE", headers={"Mcp-Session-Id": None}
    ),
    "no session, batch": case(400, -32600, "missing", body=b"[]", headers={"Mcp-Session-Id": None}),
    "unknown session": case(404, -32600, "no such session", "initialize", headers={"Mcp-Session-Id": "0" * 32}),
    "unknown session, GET": case(
        404, -32600, "no such session", "initialize", body=b"", method="GET", headers={"Mcp-Session-Id": "\xff"}
    ),
    "unknown session, DELETE": case(
        404, -32600, "no such session", "initialize", body=b"", method="DELETE", headers={"Mcp-Session-Id": "x"}
    ),
    # who may come
    "bad Host": case(403, -32600, "evil.example", "allowed_hosts", headers={"Host": "evil.example"}),
    "no Host": case(403, -32600, "Host ''", "allowed_hosts", headers={"Host": None}),
    "bad Origin": case(403, -32600, "evil.example", "allowed_origins", headers={"Origin": "http://evil.example"}),
    "broken Origin": case(403, -32600, "http://[", "allowed_origins", headers={"Origin": "http://["}),
    "no token": case(401, -32600, "no token", "Authorization: Bearer", headers={"Authorization": None}),
    "bad token": case(401, -32600, "wrong token", "Authorization: Bearer", headers={"Authorization": "Bearer x"}),
    # where and how
    "unknown path": case(404, -32600, "/nothing", "/demo/mcp, /mcp", path="/nothing"),
    "unknown upstream": case(404, -32600, "/other/mcp", "/demo/mcp, /mcp", path="/other/mcp"),
    "a slash too many": case(404, -32600, "/mcp/", "/demo/mcp, /mcp", path="/mcp/"),
    "PUT": case(405, -32600, "PUT", "GET, POST, DELETE", method="PUT"),
    "PATCH": case(405, -32600, "PATCH", "GET, POST, DELETE", method="PATCH"),
    "OPTIONS without Origin": case(405, -32600, "OPTIONS", "GET, POST, DELETE", body=b"", method="OPTIONS"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "code", "words", "how"), CASES.values(), ids=CASES)
def test_bad_input_is_refused_by_name_and_the_proxy_goes_on(
    guarded: tuple[BackgroundProxy, RawClient],
    status: int,
    code: int,
    words: tuple[str, ...],
    how: dict[str, Any],
) -> None:
    proxy, client = guarded
    own = {"Authorization": "Bearer s3cret", "Mcp-Session-Id": client.headers["mcp-session-id"]}
    got = raw.send(proxy.url, **{**how, "headers": {**own, **how["headers"]}})
    assert (got.status, got.error["code"]) == (status, code), got
    assert got.headers["content-type"] == "application/json"
    message = got.error["message"]
    assert "\n" not in message
    for word in words:
        assert word in message
    assert json.loads(got.body)["id"] is None
    assert ("allow" in got.headers) == (status == 405)
    assert ("www-authenticate" in got.headers) == (status == 401)
    assert client.call("echo", text="still here") == "still here"
    assert proxy.stats()["sessions"] == 1


def test_an_unknown_revision_gets_the_known_ones_as_data(guarded: tuple[BackgroundProxy, RawClient]) -> None:
    proxy, _ = guarded
    headers = {"Authorization": "Bearer s3cret", "MCP-Protocol-Version": "1999-01-01"}
    error = raw.send(proxy.url, PING, headers=headers).error
    assert error["data"] == {"supported": [*NAMES], "requested": "1999-01-01"}


@pytest.mark.parametrize("revision", NAMES)
def test_every_revision_of_the_handshake_era_passes(
    guarded: tuple[BackgroundProxy, RawClient], revision: str
) -> None:
    _, client = guarded
    status, _, body = client.post(
        {"jsonrpc": "2.0", "id": 1, "method": "ping"}, mcp_protocol_version=revision
    )
    assert (status, json.loads(body)["result"]) == (200, {})


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": "APPLICATION/JSON"},
        {"Accept": "*/*"},
        {"Accept": "text/*, application/*;q=0.5"},
        {"Accept": None},
        {"Authorization": "bearer s3cret"},
        {"Host": "LOCALHOST"},
        {"Origin": "http://localhost:3000"},
    ],
    ids=str,
)
def test_other_ways_to_write_a_good_request_pass(
    guarded: tuple[BackgroundProxy, RawClient], headers: dict[str, str | None]
) -> None:
    proxy, client = guarded
    own = {"Authorization": "Bearer s3cret", "Mcp-Session-Id": client.headers["mcp-session-id"]}
    assert raw.send(proxy.url, PING, headers={**own, **headers}).status == 200


def test_head_is_refused_without_a_body(guarded: tuple[BackgroundProxy, RawClient]) -> None:
    proxy, _ = guarded
    got = raw.send(proxy.url, method="HEAD", headers={"Authorization": "Bearer s3cret"})
    assert (got.status, got.headers["allow"], got.body) == (405, "GET, POST, DELETE", b"")


def test_the_largest_body_allowed_passes(guarded: tuple[BackgroundProxy, RawClient]) -> None:
    """The limit itself is inside, one byte more is outside; declared and chunked alike."""
    proxy, client = guarded
    own = {"Authorization": "Bearer s3cret", "Mcp-Session-Id": client.headers["mcp-session-id"]}
    exact = PING + b" " * (LIMIT_BYTES - len(PING))
    for chunked in (False, True):
        assert raw.send(proxy.url, exact, headers=own, chunked=chunked).status == 200
        assert raw.send(proxy.url, exact + b" ", headers=own, chunked=chunked).status == 413


def test_a_connection_survives_every_refusal(guarded: tuple[BackgroundProxy, RawClient]) -> None:
    """After a refused body, of which nothing or half was read, the next request on the same connection is served."""
    proxy, client = guarded
    own = {"Authorization": "Bearer s3cret", "Mcp-Session-Id": client.headers["mcp-session-id"]}

    def request(body: bytes, **headers: str) -> bytes:
        framing = {"Content-Length": str(len(body))}
        return raw.head(proxy.url, headers={**own, **framing, **headers}) + b"\r\n" + body

    with raw.connect(proxy.url) as connection:
        for bad, status in (
            (request(BIG), 413),
            (request(PING, Host="evil.example"), 403),
            (request(b"{"), 400),
        ):
            connection.sendall(bad)
            assert raw.receive(connection).status == status
            connection.sendall(request(PING))
            assert json.loads(raw.receive(connection).body)["result"] == {}


def test_a_client_that_leaves_in_the_middle_of_its_request_is_forgotten(
    guarded: tuple[BackgroundProxy, RawClient],
) -> None:
    proxy, client = guarded
    own = {"Authorization": "Bearer s3cret", "Mcp-Session-Id": client.headers["mcp-session-id"]}
    for framing, body in (
        ({"Content-Length": "1000"}, PING),
        ({"Transfer-Encoding": "chunked"}, b"5\r\n{\"jso\r\n"),
        ({"Content-Length": "1000"}, b""),
    ):  # fmt: skip
        with raw.connect(proxy.url) as connection:
            connection.sendall(raw.head(proxy.url, headers={**own, **framing}) + b"\r\n" + body)
    assert client.call("echo", text="still here") == "still here"
    assert proxy.stats()["calls"] == 0


def test_a_preflight_says_what_a_page_may_send() -> None:
    """CORS: it carries no token, an allowed page reads the session id, a foreign page gets 403 and no permission."""
    page = "http://localhost:6274"
    with mcpdiag.serve({"demo": COMMAND}, port=0, token="s3cret") as proxy:
        asks = {"Origin": page, "Access-Control-Request-Method": "POST"}
        got = raw.send(proxy.url, method="OPTIONS", headers=asks)
        assert (got.status, got.body) == (204, b"")
        assert got.headers["access-control-allow-origin"] == page
        assert got.headers["vary"] == "origin"
        assert {"GET", "POST", "DELETE"} == set(got.headers["access-control-allow-methods"].split(", "))
        allowed = set(got.headers["access-control-allow-headers"].split(", "))
        assert {
            "authorization",
            "content-type",
            "mcp-session-id",
            "mcp-protocol-version",
            "mcp-method",
            "mcp-name",
            "last-event-id",
        } == allowed
        client = RawClient(proxy.url)
        client.headers |= {"authorization": "Bearer s3cret", "origin": page}
        status, headers, _ = client.initialize().post({"jsonrpc": "2.0", "id": 1, "method": "ping"})
        assert status == 200
        assert headers["access-control-allow-origin"] == page
        assert headers["access-control-expose-headers"] == "mcp-session-id"
        for method in ("OPTIONS", "POST"):
            refused = raw.send(proxy.url, method=method, headers={"Origin": "http://evil.example"})
            assert refused.status == 403
            assert "access-control-allow-origin" not in refused.headers


# -- notifications and responses that nobody waits for -----------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        {"method": "notifications/cancelled", "params": {"requestId": None}},
        {"method": "notifications/cancelled", "params": {"requestId": {}}},
        {"method": "notifications/cancelled", "params": {"requestId": 12345}},
        {"method": "notifications/cancelled", "params": {}},
        {"method": "notifications/cancelled", "params": []},
        {"method": "notifications/cancelled"},
        {"method": "notifications/progress", "params": {"progressToken": "nobody's", "progress": 1}},
        {"method": "notifications/progress"},
        {"id": 12345, "result": {}},
        {"id": "nobody's", "result": {}},
        {"id": 1.5, "error": {"code": 1, "message": "no"}},
        {"id": None, "error": {"code": 1, "message": "no"}},
    ],
    ids=json.dumps,
)
def test_what_nobody_waits_for_is_accepted_and_ignored(
    guarded: tuple[BackgroundProxy, RawClient], message: dict[str, Any]
) -> None:
    """2025-11-25, cancellation: malformed notifications and unknown ids should be ignored."""
    _, client = guarded
    status, _, body = client.post({"jsonrpc": "2.0", **message})
    assert (status, body) == (202, b"")
    assert client.call("echo", text="still here") == "still here"


# -- batches --------------------------------------------------------------------------------------------------


def request(number: Any, tool: str, **arguments: Any) -> dict[str, Any]:
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def answers_in(body: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]


@on_both_loops
@pytest.mark.anyio
async def test_a_batch_is_answered_by_one_stream_in_which_every_id_has_its_answer() -> None:
    async with proxied([*marked.COMMAND]) as proxy, Client.session(proxy.url, version="2025-03-26") as client:
        batch = [
            request(1, "echo", text="one"),
            {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"},
            request("two", "sleep", seconds=0.05),
            request(3, "nothing"),
            {"jsonrpc": "2.0", "id": 4, "method": "no/such/method"},
            request(5.5, "echo", text="five"),
        ]
        response = await client.whole(batch)
        assert response.headers["content-type"] == "text/event-stream"
        answers = {answer["id"]: answer for answer in answers_in(response.text)}
        assert set(answers) == {1, "two", 3, 4, 5.5}
        assert text_of(answers[1]) == "one"
        assert text_of(answers["two"]) == "awake"
        assert text_of(answers[5.5]) == "five"
        assert "error" in answers[3]
        assert "error" in answers[4]
        assert await client.say("echo", text="after") == "after"


@pytest.mark.anyio
async def test_a_batch_without_a_request_has_no_answer() -> None:
    async with proxied([*marked.COMMAND]) as proxy, Client.session(proxy.url, version="2025-03-26") as client:
        note = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
        response = await client.whole([note, note, {"jsonrpc": "2.0", "id": 99, "result": {}}])
        assert (response.status_code, response.content) == (202, b"")


@on_both_loops
@pytest.mark.anyio
async def test_in_a_batch_a_timeout_takes_only_its_own_request() -> None:
    """One part fails in time, with its id; the others are answered, and a cancelled one has no answer at all."""
    timeouts = {"request_timeout": 0.3}
    async with (
        proxied([*marked.COMMAND], timeouts=timeouts) as proxy,
        Client.session(proxy.url, version="2025-03-26") as client,
    ):
        async with anyio.create_task_group() as tasks:
            batch = [request(1, "hang"), request(2, "echo", text="two"), request(3, "hang")]
            box = []

            async def send() -> None:
                box.append(await client.whole(batch))

            tasks.start_soon(send)
            await until(lambda: proxy.stats()["calls"] == 2)
            await client.cancel(3)
        answers = {answer["id"]: answer for answer in answers_in(box[0].text)}
        assert set(answers) == {1, 2}
        assert answers[1]["error"]["data"]["type"] == "request_timeout"
        assert text_of(answers[2]) == "two"


NOTE = {"jsonrpc": "2.0", "method": "notifications/x"}
BAD_BATCHES: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "one id twice": ([request(1, "echo", text="a"), request(1, "echo", text="b")], 400, ("same id",)),
    "1 and 1.0": ([request(1, "echo", text="a"), request(1.0, "echo", text="b")], 400, ("same id",)),
    "initialize": ([{"jsonrpc": "2.0", "id": 1, "method": "initialize"}], 400, ("initialize", "alone")),
    "a number": ([request(1, "echo", text="a"), 7], 400, ("not a JSON-RPC message",)),
    "empty": ([], 400, ("empty batch",)),
    "too many": ([NOTE] * 1001, 413, ("1001", "1000", "in parts")),
}


@pytest.mark.anyio
async def test_a_bad_batch_is_refused_before_any_of_it_runs() -> None:
    hook = Recorder()
    async with (
        proxied([*marked.COMMAND], hook=hook) as proxy,
        Client.session(proxy.url, version="2025-03-26") as client,
    ):
        for name, (batch, status, words) in BAD_BATCHES.items():
            response = await client.whole(batch)
            assert response.status_code == status, name
            for word in words:
                assert word in response.json()["error"]["message"], name
        assert [event.method for event in hook.done] == ["initialize"]
        assert await client.say("echo", text="after") == "after"


@pytest.mark.anyio
async def test_batches_are_refused_by_name_in_every_other_revision() -> None:
    async with proxied([*marked.COMMAND]) as proxy:
        for version in ("2024-11-05", "2025-06-18", "2025-11-25"):
            async with Client.session(proxy.url, version=version) as client:
                response = await client.whole([request(1, "echo", text="a")])
                assert response.status_code == 400
                assert version in response.json()["error"]["message"]


@pytest.mark.anyio
async def test_an_id_that_is_in_flight_is_refused_also_in_a_batch() -> None:
    async with proxied([*marked.COMMAND]) as proxy, Client.session(proxy.url, version="2025-03-26") as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.whole, request(7, "hang"))
            await until(lambda: proxy.stats()["calls"] == 1)
            for again in (
                request(7, "echo", text="x"),
                request(7.0, "echo", text="x"),
                [request(7, "echo", text="x")],
            ):
                response = await client.whole(again)
                assert response.status_code == 400
                assert "7" in response.json()["error"]["message"]
                assert "in flight" in response.json()["error"]["message"]
            other = await client.request("tools/call", {"name": "echo", "arguments": {"text": "x"}}, "7")
            assert text_of(other) == "x"  # a string is another id than a number
            await client.cancel(7)
        assert (
            text_of(await client.request("tools/call", {"name": "echo", "arguments": {"text": "x"}}, 7))
            == "x"
        )


# -- servers that cannot start ----------------------------------------------------------------------------------

DIES = "import sys; print('one', file=sys.stderr); print('disk is full', file=sys.stderr); sys.exit(7)"
PRINTS = "print('Welcome to the server!', flush=True); import sys; print('to stderr', file=sys.stderr); input(); input()"
REFUSES = """
import json
message = json.loads(input())
answer = {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32602, "message": "no licence for this host"}}
print(json.dumps(answer), flush=True)
input()
"""


MODES = ("session", "request", "multiplex")


def _has_no_process(proxy: Proxy, name: str) -> bool:
    return bool(pool(proxy, name)["size"] + pool(proxy, name)["closing"] == 0)


def program(source: str) -> list[str]:
    return [sys.executable, "-S", "-c", source]


BROKEN: dict[str, tuple[list[str], str, tuple[str, ...]]] = {
    "does not exist": (
        ["/no/such/program", "--flag"],
        "connect_error",
        ("/no/such/program --flag", "no program"),
    ),
    "may not be run": (["/dev/null"], "connect_error", ("/dev/null", "may not be executed")),
    "exits at once": (
        program(DIES),
        "upstream_closed",
        (sys.executable, "exited with code 7", "one | disk is full"),
    ),
    "prints and hangs": (
        program(PRINTS),
        "connect_timeout",
        (sys.executable, "1 s", "connect_timeout", "not JSON-RPC", "Welcome to the server!", "to stderr"),
    ),
    "says nothing": (
        program("input(); input(); input()"),
        "connect_timeout",
        (sys.executable, "1 s", "connect_timeout"),
    ),
}


@on_both_loops
@pytest.mark.anyio
async def test_a_server_that_cannot_start_fails_initialize_in_its_own_words() -> None:
    """In each pool mode: one line that names the command, how it ended and what it said; no session, no child."""
    rows = {
        f"{name.replace(' ', '-')}.{mode}": (mode, *row) for name, row in BROKEN.items() for mode in MODES
    }
    upstreams = {
        name: {"command": command[0], "args": command[1:], "close_timeout": 0.2, "pool_mode": mode}
        for name, (mode, command, _, _) in rows.items()
    }
    checked = []

    async def fail(proxy: Proxy, name: str) -> None:
        async with Client.bare(proxy.urls[name]) as client:
            response = await client.whole(
                client.message("initialize", {"protocolVersion": "2025-11-25"}, "first")
            )
        assert response.status_code == 200, name
        assert "mcp-session-id" not in response.headers, name
        assert response.json()["id"] == "first", name
        error = response.json()["error"]
        _, _, kind, words = rows[name]
        assert (error["data"]["type"], error["data"]["upstream"]) == (kind, name)
        assert 0 <= error["data"]["elapsed_ms"] < LIMIT * 1000, name
        for word in (f"'{name}'", *words):
            assert word in error["message"], name
        assert "\n" not in error["message"], name
        checked.append(name)

    async with proxied(named=upstreams, timeouts={"connect_timeout": 1}) as proxy:
        async with anyio.create_task_group() as tasks:
            for name in upstreams:
                tasks.start_soon(fail, proxy, name)
        assert sorted(checked) == sorted(upstreams)
        assert proxy.stats()["sessions"] == 0
        for name in upstreams:
            await until(partial(_has_no_process, proxy, name), f"the child of {name} is gone")


@on_both_loops
@pytest.mark.anyio
async def test_a_server_that_refuses_the_handshake_is_quoted() -> None:
    """In session mode its own error is relayed as it is; no session and no child are left."""
    async with proxied(program(REFUSES), close_timeout=0.2) as proxy:
        async with Client.bare(proxy.url) as client:
            response = await client.whole(client.message("initialize", {"protocolVersion": "2025-11-25"}))
            assert response.json()["error"] == {"code": -32602, "message": "no licence for this host"}
            assert "mcp-session-id" not in response.headers
        assert proxy.stats()["sessions"] == 0
        await until(lambda: pool(proxy)["size"] + pool(proxy)["closing"] == 0, "the child is gone")


@on_both_loops
@pytest.mark.anyio
async def test_a_server_that_dies_during_a_call_is_named_and_replaced() -> None:
    """The error has the exit code and the last words; the session goes on with a new process."""
    async with proxied([*marked.COMMAND]) as proxy, Client.session(proxy.url) as client:
        answer = await client.call("exit", code=9, words="out of memory")
        error = answer["error"]
        assert "exited with code 9" in error["message"]
        assert "out of memory" in error["message"]
        data = {key: value for key, value in error["data"].items() if key != "elapsed_ms"}
        assert data == {
            "type": "upstream_closed",
            "upstream": "up",
            "phase": "request",
            "exit_code": 9,
            "stderr_tail": "out of memory",
        }
        assert await client.say("echo", text="again") == "again"


HARMLESS_GARBAGE = {
    "a cancellation of null": '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":null}}',
    "a token of 5000 digits": '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s}}'
    % ("9" * 5000),
    "an id of 5000 digits": '{"jsonrpc":"2.0","id":%s,"result":{}}' % ("9" * 5000),
    "words": "hello",
    "half a message": '{"jsonrpc":"2.0","id":1',
    "an answer to nobody": '{"jsonrpc":"2.0","id":4711,"result":{}}',
    "a batch with a hole": '[{"jsonrpc":"2.0","method":"notifications/message"},null]',
    "progress without params": '{"jsonrpc":"2.0","method":"notifications/progress"}',
}


@pytest.mark.anyio
async def test_no_line_of_a_server_ends_the_proxy() -> None:
    """What one server writes leaves its own call, the other client and the other upstream alone."""
    async with (
        proxied([*marked.COMMAND], [*marked.COMMAND]) as proxy,
        Client.session(proxy.urls["up"]) as first,
        Client.session(proxy.urls["up"]) as second,
        Client.session(proxy.urls["up2"]) as third,
    ):
        for name, line in HARMLESS_GARBAGE.items():
            assert await first.say("raw", line=line) == "written", name
            for client in (first, second, third):
                assert await client.say("echo", text="still here") == "still here", name
