"""A proxy that mixes up its clients is caught, whatever it mixes up; one that does not is not."""

from __future__ import annotations

import threading

import pytest

from mcpdiag.bench.discover import Tool
from mcpdiag.bench.isolation import Isolation, check, probe, together
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.bench.workload import Workload
from tests.bench.double import ECHO, Double, Json, Refused

TOOL = Tool("echo", ECHO["inputSchema"])
LOAD = Workload(source="default", calls=(Call(method="tools/list"),))
CALL, ARGUMENT = probe([TOOL], LOAD)


class Leaky:
    """Answers every twentieth call with what another session has sent last."""

    def __init__(self) -> None:
        self.last: dict[str, str] = {}
        self.calls = 0
        self.lock = threading.Lock()

    def __call__(self, params: Json, session: str) -> str:
        with self.lock:
            self.calls += 1
            others = [text for name, text in self.last.items() if name != session]
            self.last[session] = params["arguments"]["message"]
            return others[0] if self.calls % 20 == 0 and others else self.last[session]


def test_clients_that_stay_apart_are_isolated() -> None:
    with Double() as server:
        found = check(LoadSpec(url=server.url), CALL, ARGUMENT, 0.3)
    assert found.verdict == "isolated"
    assert found.by == "arguments"
    assert found.exchanges > 8
    assert "GET" in server.verbs  # both listen


def test_an_answer_with_the_other_one_s_text_is_cross_talk() -> None:
    with Double(Leaky()) as server:
        found = check(LoadSpec(url=server.url), CALL, ARGUMENT, 0.5)
    assert found.verdict == "cross-talk"
    assert found.foreign > 0
    assert "received" in found.evidence
    assert any(mark in found.evidence for mark in ("alpha-5d1c", "omega-9b7e"))


def test_an_answer_without_one_s_own_text_is_cross_talk() -> None:
    with Double(lambda params, session: "always the same") as server:
        assert check(LoadSpec(url=server.url), CALL, ARGUMENT, 0.1).verdict == "cross-talk"


def test_without_an_echo_tool_the_request_ids_are_the_marks() -> None:
    """An answer to somebody else's request is seen even if all answers look the same."""

    class Mixed(Double):
        seen: list[int]

        def _result(self, message: Json, session: str) -> Json:
            if message["method"] == "tools/list":
                earlier = [m["id"] for m, _ in self.requests if m.get("method") == "tools/list"]
                if len(earlier) > 20:
                    message["id"] = earlier[0] + 4_000_000_000  # of another client's range
            return super()._result(message, session)

    call, argument = probe([Tool("add")], LOAD)
    assert (call, argument) == (LOAD.calls[0], "")
    with Mixed() as server:
        found = check(LoadSpec(url=server.url), call, argument, 0.5)
    assert found.verdict == "cross-talk"
    assert found.by == "ids"
    with Double() as right:
        assert check(LoadSpec(url=right.url), call, argument, 0.1).verdict == "isolated"


def test_a_server_that_fails_every_call_gives_no_verdict() -> None:
    def refuse(params: Json, session: str) -> str:
        raise Refused("out of tokens")

    with Double(refuse) as server:
        found = check(LoadSpec(url=server.url), CALL, ARGUMENT, 0.1)
    assert (found.verdict, found.evidence) == ("inconclusive", "out of tokens")
    assert check(LoadSpec(url="http://127.0.0.1:1/mcp"), CALL, ARGUMENT, 0.1).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["isolated", "isolated"], "isolated"),
        (["isolated", "inconclusive"], "inconclusive"),
        (["inconclusive", "cross-talk", "isolated"], "cross-talk"),
    ],
)
def test_the_worst_of_several_verdicts_counts(verdicts: list[str], expected: str) -> None:
    found = together([Isolation(verdict=each, exchanges=5) for each in verdicts])  # type: ignore[arg-type]
    assert found.verdict == expected
    assert found.exchanges == 5 * len(verdicts)
