"""The blocking session sends what the generator sends, and judges answers as it does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mcpdiag.bench.blocking import BlockingSession
from mcpdiag.bench.columns import CLOSED, CONNECT, HTTP_ERROR, OK, OUTCOMES, RPC_ERROR, TIMEOUT
from mcpdiag.bench.generator import Generator
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import Call, LoadSpec
from tests.bench.double import Double, Gone, Hang, Json, Refused

ECHO = Call(method="tools/call", params={"name": "echo", "arguments": {"message": "hello"}})


@pytest.fixture(
    params=[{}, {"sse": True}, {"keep_alive": False}, {"sse": True, "keep_alive": False}], ids=str
)
def server(request: pytest.FixtureRequest) -> Iterator[Double]:
    with Double(**request.param) as double:
        yield double


def test_calls_of_a_session_over_json_and_event_streams(server: Double) -> None:
    session = BlockingSession(server.url, calls=(ECHO, Call(method="tools/list")))
    session.open()
    assert [OUTCOMES[session.call(number)] for number in (0, 1, 0)] == ["ok"] * 3
    assert session.served == 3
    assert session.size > 10
    session.close()
    assert not session.usable
    assert server.methods == [
        "initialize", "notifications/initialized", "tools/call", "tools/list", "tools/call",
    ]  # fmt: skip
    calls = [headers for message, headers in server.requests if message["method"] == "tools/call"]
    assert {headers["mcp-session-id"] for headers in calls} == {"s1"}
    if server.keep_alive:
        assert server.verbs[-1] == "DELETE"


@pytest.mark.parametrize("era", ["handshake", "stateless"])
def test_the_bytes_are_those_of_the_generator(era: Any) -> None:
    """Method, params and headers of both are equal, but for the session."""
    call = Call(method="tools/call", params=ECHO.params, headers={"mcp-param-region": "eu"})
    headers = {"authorization": "Bearer x"}
    with Double() as server, Generator() as generator:
        generator.run(
            LoadSpec(url=server.url, headers=headers, era=era, calls=(call,), warmup_s=0.0, seconds=0.05)
        )
        theirs = next(each for each in server.requests if each[0]["method"] == "tools/call")
        server.requests.clear()
        session = BlockingSession(server.url, calls=(call,), headers=headers, era=era)
        session.open()
        assert session.call(0) == OK
        session.close()
        ours = next(each for each in server.requests if each[0]["method"] == "tools/call")
    for message, found in (theirs, ours):
        message["id"] = 0
        found.pop("mcp-session-id", None)
    assert ours == theirs


def test_failures_are_labelled_and_the_session_goes_on() -> None:
    kinds: Iterator[BaseException | None] = iter(
        [Refused("out of tokens"), Refused(status=503), Gone(), None, Hang(), None]
    )

    def answer(params: Json, session: str) -> str:
        if (failure := next(kinds)) is not None:
            raise failure
        return "fine"

    with Double(answer) as server:
        session = BlockingSession(server.url, calls=(ECHO,), timeout_s=0.3)
        session.open()
        found = []
        for _ in range(6):
            outcome = session.call(0)
            found.append((outcome, session.error))
        session.close()
    assert [outcome for outcome, _ in found] == [RPC_ERROR, HTTP_ERROR, CLOSED, OK, TIMEOUT, OK]
    assert found[0][1] == "out of tokens"
    assert found[1][1] == "HTTP status 503 and no answer"
    assert found[4][1] == "no answer within 0.3 s"


def test_a_session_that_the_server_forgot_has_to_be_opened_again() -> None:
    def forget(params: Json, session: str) -> str:
        raise Refused(status=404)

    with Double(forget) as server:
        session = BlockingSession(server.url, calls=(ECHO,))
        session.open()
        assert session.call(0) == HTTP_ERROR
        assert not session.usable
        session.open()
        assert session.served == 0
        session.close()
        assert server.methods.count("initialize") == 2


def test_a_server_that_is_not_there_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    session = BlockingSession(f"http://127.0.0.1:{port}/mcp", calls=(ECHO,))
    with pytest.raises(SessionError, match=f"no connection to 127.0.0.1:{port}: Connection refused"):
        session.open()
    assert not session.usable
    session.close()


def test_a_call_after_the_server_has_gone_fails_to_connect() -> None:
    with Double() as server:
        session = BlockingSession(server.url, calls=(ECHO,), timeout_s=1.0)
        session.open()
        assert session.call(0) == OK
    assert session.call(0) == CLOSED
    assert session.call(0) == CONNECT
    session.close()
