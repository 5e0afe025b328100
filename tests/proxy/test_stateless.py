"""Revision 2026-07-28 through the proxy, in front of a stdio server and of an HTTP server."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpdiag.hooks import ExchangeDone
from mcpdiag.protocol.mirror import META_CAPABILITIES, META_VERSION
from tests.proxy.client import LIMIT, Client, Recorder, on_both_loops, pool, proxied, until
from tests.proxy.modern import META, VERSION, Journal, Modern, upstream
from tests.servers import asks, mini, stateless

pytestmark = [pytest.mark.anyio, on_both_loops]
KINDS = ["stdio", "multiplex", "http"]
both_kinds = pytest.mark.parametrize("kind", ["stdio", "http"])
every_kind = pytest.mark.parametrize("kind", KINDS)


def error_of(response: Any) -> Any:
    body = response.json()
    return body["error"] | {"of": body["id"]}


# -- what passes --------------------------------------------------------------------------------------------


@every_kind
async def test_a_request_stands_for_itself(kind: str) -> None:
    """No handshake, no session: a session id of whoever is ignored, and none is given out."""
    with upstream(kind) as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            response = await client.send(
                client.call("echo", text="hello"), {"mcp-session-id": "of another era", "last-event-id": "7"}
            )
            assert response.status_code == 200, response.text
            assert response.headers["content-type"] == "application/json"
            assert response.json()["result"]["content"][0]["text"] == "hello"
            assert "mcp-session-id" not in response.headers
            assert proxy.stats()["sessions"] == 0


async def test_an_http_server_gets_the_request_with_its_headers_and_without_a_session() -> None:
    with upstream("http") as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            headers = {
                "mcp-param-region": "us-west1", "Mcp-Param-Odd": "=?base64?not base64?=", "mcp-session-id": "x",
                "authorization": "Bearer mine",
            }  # fmt: skip
            message = client.call("request", text="7")
            response = await client.send(message, headers)
            seen = json.loads(response.json()["result"]["content"][0]["text"])
            assert seen["message"] == message
            for name, value in {
                "mcp-protocol-version": VERSION, "mcp-method": "tools/call", "mcp-name": "request",
                "mcp-param-region": "us-west1", "mcp-param-odd": "=?base64?not base64?=",
                "authorization": "Bearer mine",
            }.items():  # fmt: skip
                assert seen["headers"][name] == value
            assert "mcp-session-id" not in seen["headers"]


async def test_a_stdio_server_gets_the_request_and_no_other_first() -> None:
    """Only the probe that finds out its era comes before, once; every process serves whoever asks."""
    with upstream("stdio") as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            message = client.call("request")
            seen = json.loads((await client.send(message)).json()["result"]["content"][0]["text"])
            assert seen["message"]["params"] == message["params"]
            pids = {await client.say("pid") for _ in range(5)}
            assert len(pids) == 1
            assert proxy.stats()["upstreams"]["up"]["stateless_pool"]["opens"] == 1
            assert pool(proxy)["opens"] == 0


@every_kind
async def test_messages_before_the_answer_come_on_its_stream(kind: str) -> None:
    with upstream(kind) as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            message = client.call("progress", meta={"progressToken": "mine"}, steps=2)
            async with client.open(message) as stream:
                await until(lambda: stream.ended)
            assert stream.methods == ["notifications/progress", "notifications/progress", "None"]
            assert {each["params"]["progressToken"] for each in stream.messages[:2]} == {"mine"}
            assert stream.messages[-1]["id"] == message["id"]
            async with client.open(client.call("log", text="hey")) as stream:
                await until(lambda: stream.ended)
            assert stream.methods == ["notifications/message", "None"]


@both_kinds
async def test_many_clients_with_equal_ids_get_their_own_answers(kind: str) -> None:
    with upstream("multiplex" if kind == "stdio" else kind) as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            answers: dict[int, str] = {}

            async def ask(number: int) -> None:
                message = client.call("echo", text=str(number)) | {"id": "same"}
                answer = (await client.send(message)).json()
                assert answer["id"] == "same"
                answers[number] = answer["result"]["content"][0]["text"]

            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(ask, number)
            assert answers == {number: str(number) for number in range(50)}


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "headers", "code", "words"),
    [
        ({}, {"mcp-method": None}, -32020, "Mcp-Method is missing"),
        ({}, {"mcp-method": "tools/list"}, -32020, "Mcp-Method is 'tools/list'"),
        ({}, {"mcp-name": None}, -32020, "Mcp-Name is missing"),
        ({}, {"mcp-name": "Echo"}, -32020, "Mcp-Name is 'Echo'"),
        ({}, {"mcp-protocol-version": None}, -32020, "MCP-Protocol-Version is missing"),
        ({}, {"mcp-protocol-version": "2025-11-25"}, -32020, "MCP-Protocol-Version is '2025-11-25'"),
        ({"_meta": None}, {}, -32602, META_VERSION),
        ({"_meta": {META_VERSION: VERSION}}, {}, -32602, META_CAPABILITIES),
        ({"_meta": META | {META_VERSION: "v9"}}, {"mcp-protocol-version": "v9"}, -32022, "'v9'"),
        ({"_meta": META | {META_VERSION: "v9"}}, {}, -32020, "'v9'"),
    ],
)
@both_kinds
async def test_a_request_that_does_not_fit_its_headers_gets_400_with_its_id(
    kind: str, changes: Any, headers: Any, code: int, words: str
) -> None:
    """Before anything is sent to the server."""
    server: Any = stateless.command() if kind == "stdio" else "http://127.0.0.1:9/nobody"
    async with proxied(server) as proxy, Modern.at(proxy.url) as client:
        message = client.call("echo", text="x")
        message["params"] |= changes
        response = await client.send(message, headers)
        error = error_of(response)
        assert (response.status_code, error["code"], error["of"]) == (400, code, message["id"])
        assert words in error["message"]
        if code == -32022:
            assert error["data"] == {"supported": [VERSION], "requested": "v9"}


@both_kinds
async def test_statuses_of_errors_are_those_of_the_specification(kind: str) -> None:
    with upstream(kind) as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            for message, status, code in (
                (client.message("unknown/method"), 404, -32601),
                (client.message("ping"), 404, -32601),
                (client.call("sample"), 400, -32021),
            ):
                response = await client.send(message)
                error = error_of(response)
                assert (response.status_code, error["code"], error["of"]) == (status, code, message["id"])
            assert error["data"] == {"requiredCapabilities": {"sampling": {}}}
            assert "mcp-session-id" not in response.headers


async def test_initialize_of_this_era_never_reaches_a_shared_process() -> None:
    """There it would choose the era before for everybody (basic/versioning)."""
    with upstream("stdio") as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            response = await client.send(client.message("initialize"))
            assert (response.status_code, error_of(response)["code"]) == (404, -32601)
            assert await client.say("echo", text="x") == "x"


@both_kinds
async def test_responses_are_refused_and_notifications_accepted(kind: str) -> None:
    with upstream(kind) as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            sent = {"mcp-protocol-version": VERSION, "content-type": "application/json"}
            for body, status in (
                ({"jsonrpc": "2.0", "id": 1, "result": {}}, 400),
                ({"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "no"}}, 400),
                ([{"jsonrpc": "2.0", "method": "notifications/x"}], 400),
                ({"jsonrpc": "2.0", "method": "notifications/x"}, 202),
                ({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}, 202),
            ):
                response = await client.http.post(proxy.url, content=json.dumps(body), headers=sent)
                assert response.status_code == status, (body, response.text)


@both_kinds
async def test_there_is_only_post(kind: str) -> None:
    """With this era's header, and without one where the server is known to speak nothing else."""
    with upstream(kind, "--refuse-initialize") as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            accept = {"accept": "text/event-stream"}
            for method in ("GET", "DELETE"):
                headers = accept | {"mcp-protocol-version": VERSION, "mcp-session-id": "x"}
                response = await client.http.request(method, proxy.url, headers=headers)
                assert (response.status_code, response.headers["allow"]) == (405, "POST")
                assert (await client.http.request(method, proxy.url, headers=accept)).status_code == 400
            await client.request("server/discover")
            for method in ("GET", "DELETE"):
                assert (await client.http.request(method, proxy.url, headers=accept)).status_code == 405


async def test_a_page_may_send_the_headers_of_this_era() -> None:
    """Those of parameters by the names that it asks for, and nothing else that it asks for."""
    async with proxied(stateless.command()) as proxy, Modern.at(proxy.url) as client:
        asked = "content-type, Mcp-Param-Region,mcp-param-x, x-secret"
        headers = {"origin": "http://localhost:6274", "access-control-request-headers": asked}
        response = await client.http.request("OPTIONS", proxy.url, headers=headers)
        allowed = set(response.headers["access-control-allow-headers"].split(", "))
        assert {"mcp-method", "mcp-name", "mcp-param-region", "mcp-param-x"} < allowed
        assert "x-secret" not in allowed


# -- parameters in headers ----------------------------------------------------------------------------------


async def test_headers_of_parameters_are_checked_once_the_tool_was_listed() -> None:
    """In front of a stdio server, which gets no headers; before the list has passed nobody knows what they mean."""
    with upstream("stdio") as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            wrong = {"mcp-param-region": "eu"}
            call = client.call("where", region="us", limit=42)
            assert (await client.send(call, wrong)).status_code == 200
            await client.request("tools/list")
            for headers, status in (
                (wrong, 400),
                ({"mcp-param-region": "us"}, 400),
                ({"mcp-param-region": "us", "mcp-param-limit": "42.0", "mcp-param-x": "?"}, 200),
            ):
                assert (await client.send(call, headers)).status_code == status
            absent = client.call("where", region=None)
            assert (await client.send(absent)).status_code == 200
            response = await client.send(absent, wrong)
            assert (response.status_code, error_of(response)["code"]) == (400, -32020)
            assert "Mcp-Param-Region" in error_of(response)["message"]


async def test_an_http_server_checks_the_headers_of_its_parameters_itself() -> None:
    """What the proxy saw listed may be old, or meant for another caller."""
    with upstream("http") as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            await client.request("tools/list")
            call = client.call("where", region="us")
            assert (await client.send(call, {"mcp-param-region": "eu"})).status_code == 200


# -- cancellation and the end -------------------------------------------------------------------------------


@every_kind
async def test_closing_the_response_cancels_the_request_at_the_server(kind: str, tmp_path: Path) -> None:
    journal, hook = Journal(tmp_path / "journal"), Recorder()
    with upstream(kind, "--journal", str(journal.path)) as server:
        async with proxied(server, hook=hook) as proxy, Modern.at(proxy.url) as client:
            for mark in ("m1", "m2"):  # the second one finds nothing held by the first
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.send, client.call("wait", mark=mark))
                    await until(partial(journal.__contains__, f"waiting {mark}"))
                    assert proxy.stats()["calls"] == 1
                    tasks.cancel_scope.cancel()
                # A process that is not shared ends with its request; perhaps before it has noted more.
                told = "notifications/cancelled" if kind == "stdio" else f"cancelled {mark}"
                await until(partial(journal.says, told))
            await until(lambda: not proxy.stats()["calls"])
            assert [done.outcome for done in hook.done] == ["cancelled", "cancelled"]
            assert await client.say("echo", text="still here") == "still here"


@pytest.mark.parametrize("kind", ["multiplex", "http"])
async def test_a_cancelled_request_leaves_the_others_alone(kind: str, tmp_path: Path) -> None:
    """With the same id, on the same process."""
    journal = Journal(tmp_path / "journal")
    with upstream(kind, "--journal", str(journal.path)) as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            async with client.open(client.call("log", text="warm")) as warm:
                await until(lambda: warm.ended)
            async with anyio.create_task_group() as tasks:
                stays = anyio.CancelScope()

                async def stay() -> None:
                    with stays:
                        await client.send(client.call("wait", mark="stays") | {"id": 1})

                tasks.start_soon(stay)
                await until(lambda: "waiting stays" in journal)
                with anyio.CancelScope() as goes:
                    async with anyio.create_task_group() as inner:
                        inner.start_soon(client.send, client.call("wait", mark="goes") | {"id": 1})
                        await until(lambda: "waiting goes" in journal)
                        goes.cancel()
                await until(lambda: "cancelled goes" in journal)
                assert proxy.stats()["calls"] == 1
                assert "cancelled stays" not in journal
                stays.cancel()
            await until(lambda: "cancelled stays" in journal)
            # An answer to a later request proves that the server has read the cancellations: what it says from now
            # on is of nobody who has left.
            await client.say("echo", text="x")
            async with client.open(client.call("log", text="of one")) as stream:
                await until(lambda: stream.ended)
            assert stream.methods == ["notifications/message", "None"]


@both_kinds
async def test_a_call_in_flight_is_waited_for_when_the_proxy_closes(kind: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    with upstream(kind, "--journal", str(journal.path)) as server:
        async with proxied(server, drain_timeout=0.2) as proxy, Modern.at(proxy.url) as client:
            answers: list[Any] = []

            async def call() -> None:
                answers.append((await client.send(client.call("wait", mark="m"))).json())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await until(lambda: "waiting m" in journal)
                await proxy.aclose()
            assert answers[0]["error"]["data"]["type"] == "shutting_down"


@both_kinds
async def test_limits_are_those_of_any_exchange(kind: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    with upstream(kind, "--journal", str(journal.path)) as server:
        async with proxied(server, request_timeout=1.0) as proxy, Modern.at(proxy.url) as client:
            message = client.call("wait", mark="m")
            response = await client.send(message)
            error = error_of(response)
            assert (response.status_code, error["data"]["type"], error["of"]) == (
                200, "request_timeout", message["id"],
            )  # fmt: skip
            await until(lambda: journal.says("notifications/cancelled" if kind == "stdio" else "cancelled m"))


async def test_a_process_that_dies_is_told_of_and_replaced() -> None:
    with upstream("stdio") as server:
        async with proxied(server) as proxy, Modern.at(proxy.url) as client:
            answer = await client.request("tools/call", {"name": "die", "arguments": {}})
            assert answer["error"]["data"]["type"] == "upstream_closed"
            assert answer["error"]["data"]["exit_code"] == 3
            assert await client.say("echo", text="again") == "again"


@both_kinds
async def test_an_answer_that_breaks_off_is_not_resumed_but_told_of(kind: str) -> None:
    """This era has no resumption: an error is the last event, with the request's id."""
    hook = Recorder()
    with upstream(kind) as server:
        async with proxied(server, hook=hook) as proxy, Modern.at(proxy.url) as client:
            message = client.call("break_off")
            async with client.open(message) as stream:
                await until(lambda: stream.ended)
            assert stream.methods == ["notifications/message", "None"]
            assert stream.messages[-1]["id"] == message["id"]
            assert stream.messages[-1]["error"]["data"]["type"] == "upstream_closed"
    assert not hook.happened("reconnect_attempt")


# -- records ------------------------------------------------------------------------------------------------


@both_kinds
async def test_the_legs_of_an_operation_are_joined_in_the_records(kind: str) -> None:
    """Input-required results and their retries pass as they are."""
    hook = Recorder()
    with upstream(kind) as server:
        async with proxied(server, hook=hook) as proxy, Modern.at(proxy.url) as client:
            results = []
            for _ in range(2):
                params: Any = {"name": "ask", "arguments": {"rounds": 2}}
                for _ in range(2):
                    result = (await client.request("tools/call", params))["result"]
                    assert result["resultType"] == "input_required"
                    assert result["inputRequests"] == {"roots": stateless.ROOTS}
                    responses = {"roots": {"roots": [{"uri": "file:///"}]}}
                    params |= {"requestState": result["requestState"], "inputResponses": responses}
                results.append((await client.request("tools/call", params))["result"])
                assert json.loads(results[-1]["content"][0]["text"]) == responses
            await client.request("tools/call", {"name": "blind", "arguments": {}})
            await client.say("echo", text="x")
    operations = [done.operation for done in hook.done]
    assert operations[0] == operations[1] == operations[2] != ""
    assert operations[3] == operations[4] == operations[5] != ""
    assert operations[0] != operations[3]
    assert operations[6] not in {"", operations[0], operations[3]}
    assert operations[7] == ""


@both_kinds
async def test_a_record_names_the_revision_and_no_session(kind: str) -> None:
    hook = Recorder()
    with upstream(kind) as server:
        async with proxied(server, hook=hook) as proxy, Modern.at(proxy.url) as client:
            await client.say("echo", text="x")
            await client.request("nothing/here")
    for done in hook.done:
        assert isinstance(done, ExchangeDone)
        assert (done.session, done.protocol, done.inflight) == ("", VERSION, 0)
    assert [done.method for done in hook.done] == ["tools/call", "nothing/here"]
    assert hook.done[0].outcome == "ok"
    assert hook.done[1].outcome in {"rpc_error", "http_404"}


# -- the eras beside each other -----------------------------------------------------------------------------


@both_kinds
async def test_both_eras_are_served_at_once(kind: str) -> None:
    if kind == "stdio":
        server: Any = stateless.command()
        async with proxied(server) as proxy, Modern.at(proxy.url) as modern, Client.session(proxy.url) as old:
            assert await modern.say("echo", text="new") == "new"
            assert await old.say("echo", text="old") == "old"
            assert await modern.say("pid") != await old.say("pid")
            assert proxy.stats()["sessions"] == 1
        return
    with upstream(kind) as url:
        async with proxied(url) as proxy, Modern.at(proxy.url) as modern:
            assert await modern.say("echo", text="new") == "new"
            async with Client.bare(proxy.url) as old:
                message = old.message("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}})
                assert "result" in (await old.whole(message)).json()


async def test_sessions_do_not_limit_requests_that_have_none() -> None:
    async with proxied(stateless.command(), max_sessions=1) as proxy:
        async with Client.session(proxy.url), Modern.at(proxy.url) as modern:
            assert await modern.say("echo", text="x") == "x"


async def test_a_server_of_the_era_before_is_named_as_such_at_once() -> None:
    """400 with -32022 and what it speaks; it is asked once, on a process that nobody else gets."""
    hook = Recorder()
    async with proxied(mini.command("asks"), hook=hook) as proxy, Modern.at(proxy.url) as client:
        for _ in range(3):
            response = await client.send(client.call("echo", text="x"))
            error = error_of(response)
            assert (response.status_code, error["code"]) == (400, -32022)
            assert error["data"] == {"supported": ["2025-11-25"], "requested": VERSION}
        assert [done.outcome for done in hook.done] == ["rpc_error"] * 3
        assert len(hook.happened("child_exit")) == 1
        async with Client.session(proxy.url) as old:
            assert await old.say("echo", text="old") == "old"
    assert asks.__doc__


async def test_a_handshake_with_a_server_of_this_era_alone_gets_the_servers_own_error() -> None:
    async with proxied(stateless.command("--refuse-initialize")) as proxy, Client.bare(proxy.url) as client:
        answer = await client.initialize()
        assert answer["error"]["code"] == -32601
        assert "speaks only 2026-07-28" in answer["error"]["message"]


async def test_a_program_that_cannot_start_is_told_of_and_tried_again() -> None:
    async with (
        proxied(["/bin/sh", "-c", "echo no luck >&2; exit 4"]) as proxy,
        Modern.at(proxy.url) as client,
    ):
        for _ in range(2):
            answer = await client.request("tools/list")
            assert answer["error"]["data"]["type"] in {"upstream_closed", "connect_error"}
            assert "no luck" in answer["error"]["message"]


async def test_many_requests_find_out_the_era_together() -> None:
    """One process is asked, and its answer, or its failure, is everybody's."""
    hook = Recorder()
    async with proxied(["/bin/sh", "-c", "exit 4"], hook=hook) as proxy, Modern.at(proxy.url) as client:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await client.request("tools/list"))

        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(ask)
        assert len(answers) == 20
        assert all("error" in answer for answer in answers)
        assert len(hook.happened("child_exit")) <= 2
