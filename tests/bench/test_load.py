"""The generator: what it counts, from when, and that nothing is lost on the way."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcpdiag.bench import columns
from mcpdiag.bench.columns import NEVER, OUTCOMES, Columns, Measurement, Report
from mcpdiag.bench.generator import Generator
from mcpdiag.bench.matrix import saturation
from mcpdiag.bench.session import SessionError
from mcpdiag.bench.spec import Call, LoadSpec
from mcpdiag.bench.statistics import quantile, summarize
from mcpdiag.embedded import COMMAND
from tests.bench.double import Double, Gone, Hang, Json, Refused
from tests.servers import stateless

CALL = Call(method="tools/call", params={"name": "echo", "arguments": {"message": "hello"}})
SHORT: Json = {"warmup_s": 0.05, "seconds": 0.3}


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    with Generator() as generator:
        yield generator


def outcomes(measurement: Measurement) -> Counter[str]:
    found = measurement.columns.outcome[: len(measurement.columns)]
    return Counter(OUTCOMES[each] for each in found)


def slow(measurement: Measurement, at_least_ms: float) -> int:
    """How many measured calls took so long."""
    c = measurement.columns
    return sum(
        0 <= c.intended_ns[at] < measurement.report.window_ns
        and c.done_ns[at] - c.intended_ns[at] >= at_least_ms * 1e6
        for at in range(len(c))
    )


@pytest.mark.slow
def test_an_open_loop_shows_a_stall_that_a_closed_loop_hides(generator: Generator) -> None:
    """The server answers nothing for 200 ms of each second, for two seconds: a fifth of the time.

    Of the calls due in a stall, half wait 100 ms or longer: of 200 a second those are 40. A closed loop's client
    waits itself, so there is one such call for each stall, three at most.
    """
    with Double(stall=(0.2, 1.0)) as server:
        common: Json = {"url": server.url, "calls": (CALL,), "warmup_s": 0.1, "seconds": 2.0}
        opened = generator.run(LoadSpec(**common, loop="open", rate=200, clients=64))
        closed = generator.run(LoadSpec(**common, clients=1))
    assert len(opened.columns) == 420  # every call that was due, warm-up too
    assert summarize(opened).calls == 400
    assert slow(opened, 100) >= 25
    # A call is in the last hundredth if it came in the first 10 ms of a stall: 0.2 s - 0.01 x 1 s.
    assert summarize(opened).p99_ms >= 150
    assert summarize(closed).calls >= 40
    assert slow(closed, 100) <= 6


def test_a_call_that_finds_no_client_free_waits_from_when_it_was_due(generator: Generator) -> None:
    """One client, 50 ms a call, a call due each 10 ms: the wait grows, and all of it counts."""

    def slowly(params: Json, session: str) -> str:
        import time

        time.sleep(0.05)
        return "late"

    with Double(slowly) as server:
        found = generator.run(
            LoadSpec(url=server.url, calls=(CALL,), loop="open", rate=100, clients=1, warmup_s=0, seconds=0.3)
        )
    assert outcomes(found) == {"ok": 30}
    # The last is due after 290 ms and starts after 29 others of at least 50 ms.
    assert summarize(found).max_ms >= 1000


def test_calls_that_are_never_sent_are_kept_with_the_time_they_waited(generator: Generator) -> None:
    def hang(params: Json, session: str) -> str:
        raise Hang

    with Double(hang) as server:
        spec = LoadSpec(
            url=server.url,
            calls=(CALL,),
            loop="open",
            rate=100,
            clients=2,
            warmup_s=0,
            seconds=0.2,
            timeout_s=0.3,
        )
        found = generator.run(spec)
    counted = outcomes(found)
    assert counted.total() == 20
    assert counted["ok"] == 0
    assert counted["timeout"] >= 2
    assert counted["not_sent"] >= 1
    sent = found.columns.sent_ns[: len(found.columns)]
    assert sum(each == NEVER for each in sent) == counted["not_sent"]
    assert summarize(found).p50_ms >= 300


def test_failures_are_labelled_and_never_dropped(generator: Generator) -> None:
    """Each kind of failure once in seven calls; the others succeed."""
    numbers = iter(range(10**6))

    def fail(params: Json, session: str) -> str:
        kind = next(numbers) % 5
        if kind == 0:
            raise Refused("out of tokens")
        if kind == 1:
            raise Refused(status=503)
        if kind == 2:
            raise Gone
        return "fine"

    with Double(fail) as server:
        found = generator.run(LoadSpec(url=server.url, calls=(CALL,), clients=2, **SHORT))
    counted = outcomes(found)
    assert {"ok", "rpc_error", "http_error", "closed"} == {*counted}
    assert max(counted.values()) <= 2 * min(counted.values()) + 10
    assert found.report.first_error in (
        "out of tokens",
        "HTTP status 503 and no answer",
        "the server closed the connection (end of file)",
    )
    summary = summarize(found)
    assert summary.calls == summary.ok + sum(summary.errors.values())


@pytest.mark.parametrize("keep_alive", [True, False])
def test_event_streams_are_answers_too(generator: Generator, keep_alive: bool) -> None:
    with Double(sse=True, keep_alive=keep_alive) as server:
        found = generator.run(LoadSpec(url=server.url, calls=(CALL,), clients=3, **SHORT))
    assert {*outcomes(found)} == {"ok"}
    assert len(found.columns) > 3
    assert server.methods.count("initialize") == 3  # a connection that ends does not end the session


def test_warm_up_does_not_count_but_is_stored(generator: Generator) -> None:
    with Double() as server:
        spec = LoadSpec(
            url=server.url, calls=(CALL,), loop="open", rate=100, clients=8, warmup_s=0.3, seconds=0.2
        )
        found = generator.run(spec)
    assert len(found.columns) == 50
    assert summarize(found).calls == 20
    assert min(found.columns.intended_ns) < 0


def test_sessions_end_after_their_calls_and_new_ones_begin(generator: Generator) -> None:
    with Double() as server:
        spec = LoadSpec(
            url=server.url, calls=(CALL,), clients=2, sessions_per_client=2, session_calls=5, **SHORT
        )
        found = generator.run(spec)
        sessions = Counter(
            headers.get("mcp-session-id", "") for m, headers in server.requests if m["method"] == "tools/call"
        )
    assert {*outcomes(found)} == {"ok"}
    assert found.report.sessions_opened == server.methods.count("initialize") > 4
    assert max(sessions.values()) == 5
    assert server.verbs.count("DELETE") == found.report.sessions_opened


def test_weights_are_the_shares_of_calls(generator: Generator) -> None:
    calls = (msgspec.structs.replace(CALL, weight=3.0), Call(method="ping"))
    with Double() as server:
        found = generator.run(
            LoadSpec(url=server.url, calls=calls, loop="open", rate=2000, clients=16, warmup_s=0, seconds=0.5)
        )
    share = sum(each == 0 for each in found.columns.call[: len(found.columns)]) / len(found.columns)
    assert len(found.columns) == 1000
    assert 0.68 < share < 0.82


def test_requests_of_the_stateless_era_carry_their_headers_and_meta(generator: Generator) -> None:
    """Against a server that checks nothing, and one that checks all of it."""
    call = Call(
        method="tools/call", params={"name": "écho", "arguments": {}}, headers={"mcp-param-region": "eu"}
    )
    with Double(lambda params, session: "ok") as server:
        spec = LoadSpec(url=server.url, era="stateless", calls=(call,), **SHORT)
        assert {*outcomes(generator.run(spec))} == {"ok"}
        message, headers = server.requests[0]
    assert "initialize" not in server.methods
    assert headers["mcp-method"] == "tools/call"
    assert headers["mcp-name"].startswith("=?base64?")  # not ASCII
    assert headers["mcp-protocol-version"] == "2026-07-28"
    assert headers["mcp-param-region"] == "eu"
    assert message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"


def test_stdio_servers_are_loaded_directly_in_both_eras(generator: Generator) -> None:
    echo = Call(method="tools/call", params={"name": "echo", "arguments": {"text": "hello"}})
    for command, era in ((COMMAND, "handshake"), (tuple(stateless.command()), "stateless")):
        spec = LoadSpec(command=command, era=era, calls=(echo,), clients=2, **SHORT)  # type: ignore[arg-type]
        found = generator.run(spec)
        assert {*outcomes(found)} == {"ok"}
        assert len(found.columns) >= 2


def test_a_tool_that_fails_is_no_success(generator: Generator) -> None:
    calls = (Call(method="tools/call", params={"name": "echo", "arguments": {}}),)
    found = generator.run(LoadSpec(command=COMMAND, calls=calls, **SHORT))
    assert {*outcomes(found)} == {"rpc_error"}
    assert found.report.first_error == "missing or unknown: text"


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"command": ("no-such-program",)}, "no-such-program cannot be started: No such file"),
        ({"command": (sys.executable, "-c", "import sys; sys.exit('no API key')")}, "it said: no API key"),
        ({"url": "http://127.0.0.1:1/mcp"}, "no connection to 127.0.0.1:1"),
    ],
)
def test_a_server_that_is_not_there_is_said(generator: Generator, server: Json, words: str) -> None:
    with pytest.raises(SessionError) as error:
        generator.run(LoadSpec(**server))
    assert words in str(error.value)


def test_a_server_that_goes_away_for_good_does_not_stop_the_run(generator: Generator) -> None:
    """A stdio server that exits at each call is started again for the next."""
    calls = (Call(method="tools/call", params={"name": "exit", "arguments": {"code": 3}}),)
    found = generator.run(LoadSpec(command=COMMAND, calls=calls, warmup_s=0, seconds=0.4))
    assert {*outcomes(found)} == {"closed"}
    assert "exited with code 3" in found.report.first_error


def test_the_command_line_writes_a_file_that_can_be_read(tmp_path: Path) -> None:
    spec, output = tmp_path / "spec.json", tmp_path / "out"
    with Double() as server:
        spec.write_bytes(msgspec.json.encode(LoadSpec(url=server.url, calls=(CALL,), **SHORT)))
        command = [sys.executable, "-m", "mcpdiag.bench.load", str(spec), "-o", str(output)]
        subprocess.run(command, check=True, timeout=30)
    found = columns.decode(output.read_bytes())
    assert {*outcomes(found)} == {"ok"}
    assert found.report.calls == ("tools/call echo",)
    assert 0 < found.report.lateness.cpu_share < 2


def test_a_wrong_spec_is_one_line(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text('{"url": "http://x", "clients": 0}')
    command = [sys.executable, "-m", "mcpdiag.bench.load", str(spec)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert found.returncode == 1
    assert "at least one client" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"url": "http://x", "command": ("x",)},
        {"url": "http://x", "calls": ()},
        {"url": "http://x", "loop": "open"},
        {"url": "http://x", "seconds": 0.0},
        {"url": "http://x", "think_time_s": float("nan")},
    ],
)
def test_a_spec_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs|times"):
        LoadSpec(**wrong)


# -- the pieces ------------------------------------------------------------------------------------------------


def measured(latencies_ms: list[float], **report: Any) -> Measurement:
    made = Columns()
    for number, latency in enumerate(latencies_ms):
        made.add(number * 1000, number * 1000, number * 1000 + int(latency * 1e6), 0, columns.OK)
    return Measurement(Report(window_ns=10**9, calls=("x",), **report), made)


def test_columns_grow_and_survive_the_pipe() -> None:
    made = measured([float(n) for n in range(3000)], first_error="ä")
    back = columns.decode(columns.encode(made))
    assert len(back.columns) == 3000
    assert back.report.first_error == "ä"
    for name in ("intended_ns", "sent_ns", "done_ns", "call", "outcome"):
        assert getattr(back.columns, name) == getattr(made.columns, name)[:3000]


@pytest.mark.parametrize("cut", [3, 30, -1])
def test_a_damaged_measurement_is_refused(cut: int) -> None:
    data = columns.encode(measured([1.0] * 10))
    with pytest.raises(ValueError, match="measurement"):
        columns.decode(data[:cut])


def test_a_slow_server_s_throughput_is_no_whole_number_of_calls() -> None:
    """An answer each 42 ms is 23.8 a second, though 9 or 10 end in 0.4 s."""
    for offset in range(0, 42, 5):
        made, window = Columns(), 400_000_000
        for number in range(-3, 15):
            done = (number * 42 + offset) * 1_000_000
            made.add(done - 42_000_000, done - 42_000_000, done, 0, columns.OK)
        found = summarize(Measurement(Report(window_ns=window, calls=("x",)), made))
        assert found.throughput_rps == pytest.approx(1000 / 42, rel=1e-3)


def test_a_server_that_stops_answering_is_not_flattered() -> None:
    made = Columns()
    for number in range(10):
        made.add(number * 10_000_000, number * 10_000_000, (number + 1) * 10_000_000, 0, columns.OK)
    found = summarize(Measurement(Report(window_ns=1_000_000_000, calls=("x",)), made))
    assert found.throughput_rps == 10


def test_quantiles_are_linear_between_values() -> None:
    assert quantile([1, 2, 3, 4], 0.5) == 2.5
    assert quantile([7], 0.99) == 7
    assert quantile([1.0, float("inf")], 1.0) == float("inf")


@pytest.mark.parametrize(
    ("lateness", "words"),
    [
        ({"cpu_share": 0.95}, "its core was 95% busy"),
        ({"late_p99_ms": 3.0}, "3.0 ms late"),
        ({"lag_p99_ms": 30.0}, "30.0 ms late"),
        ({"cpu_share": 0.5, "late_p99_ms": 0.5, "lag_p99_ms": 5.0}, ""),
    ],
)
def test_a_saturated_generator_says_so(lateness: dict[str, float], words: str) -> None:
    made = measured([2.0] * 100, lateness=columns.Lateness(**lateness))
    said = saturation(made, summarize(made))
    assert words in said
    assert bool(said) == bool(words)
