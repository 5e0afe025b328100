"""`mcpdiag proxy --stdio`: what a client sees that starts the proxy as its server, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import anyio
import psutil
import pytest

import mcpdiag
from mcpdiag.embedded import COMMAND
from tests.proxy.stdio_client import LIMIT, MCPDIAG, Json, StdioClient, started, text_of
from tests.servers.mini import command

Start = Callable[..., AbstractContextManager[StdioClient]]
EMBEDDED = ["--", *COMMAND]


@pytest.fixture(params=["stdio", pytest.param("http", marks=pytest.mark.slow)])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts the proxy in front of a server's command, as a stdio server or as an HTTP one."""
    servers: list[mcpdiag.BackgroundProxy] = []

    def over_http(
        *args: str, server: list[str] | None = None, **environment: str
    ) -> AbstractContextManager[StdioClient]:
        servers.append(mcpdiag.serve({"inner": server or [*COMMAND]}, port=0, drain_timeout=0))
        return started("--url", servers[-1].url, *args, **environment)

    def over_stdio(
        *args: str, server: list[str] | None = None, **environment: str
    ) -> AbstractContextManager[StdioClient]:
        return started(*args, "--", *(server or COMMAND), **environment)

    yield over_http if request.param == "http" else over_stdio
    for each in servers:
        each.close()


def error_of(answer: Json) -> tuple[object, int]:
    return answer["id"], answer["error"]["code"]


# -- a session ------------------------------------------------------------------------------------------------


def test_a_session_from_initialize_to_the_end_of_stdin(start: Start) -> None:
    with start() as client:
        assert client.initialize()["result"]["serverInfo"]["name"] == "mcpdiag-embedded"
        tools = client.request("tools/list")["result"]["tools"]
        assert "echo" in {tool["name"] for tool in tools}
        assert client.say("echo", text="grüße\n") == "grüße\n"
        server = psutil.Process(int(client.say("whoami")))
        code, rest, errors = client.finish()
        assert (code, rest) == (0, [])
        assert len(errors.splitlines()) == 1
        assert errors.endswith("over stdio\n")
        psutil.wait_procs([server], LIMIT)
        assert not server.is_running()


def test_calls_overlap_and_are_answered_by_their_ids(start: Start) -> None:
    with start() as client:
        client.initialize()
        slow = client.send_call("sleep", seconds=60)
        quick = [client.send_call("echo", text=f"text {number}") for number in range(20)]
        for number, request_id in reversed([*enumerate(quick)]):
            assert text_of(client.answer(request_id)) == f"text {number}"
        client.notify("notifications/cancelled", {"requestId": slow})


def test_a_cancelled_call_is_not_answered_and_the_session_goes_on(start: Start) -> None:
    with start(MCPDIAG_DRAIN_TIMEOUT="1h") as client:
        client.initialize()
        slow = client.send_call("sleep", seconds=60)  # the cancellation is right behind it
        client.notify("notifications/cancelled", {"requestId": slow, "reason": "changed my mind"})
        assert client.say("echo", text="on") == "on"
        code, rest, _ = client.finish()
        assert (code, rest) == (0, [])


def test_ids_may_be_texts_and_come_back_as_they_were(start: Start) -> None:
    with start() as client:
        client.initialize()
        assert client.answer(client.send("ping", request_id="the first"))["result"] == {}
        assert client.answer(client.send("ping", request_id=2**53))["result"] == {}


def test_progress_comes_before_the_answer_with_the_client_s_token(start: Start) -> None:
    with start() as client:
        client.initialize()
        assert text_of(client.answer(client.send_call("progress", token="mine", steps=3))) == "done"
        seen = [(each["params"]["progressToken"], each["params"]["progress"]) for each in client.others]
        assert seen == [("mine", 1), ("mine", 2), ("mine", 3)]


def test_the_server_asks_and_the_client_answers(start: Start) -> None:
    with start(server=command("asks")) as client:
        client.initialize(sampling={})
        call = client.send_call("sample", text="what?")
        question = client.receive()
        assert question["method"] == "sampling/createMessage"
        assert question["params"]["messages"][0]["content"]["text"] == "what?"
        client.write(json.dumps({"jsonrpc": "2.0", "id": question["id"], "result": {"said": 42}}).encode())
        assert text_of(client.answer(call)) == '{"said": 42}'


def test_what_the_server_says_after_its_answer_arrives(start: Start) -> None:
    """It belongs to no call, so it takes the session's own stream."""
    with start(server=command("asks")) as client:
        client.initialize()
        call = client.send_call("log_late", text="too late")
        messages = [client.receive(), client.receive()]
        late = next(message for message in messages if "method" in message)
        assert late["params"]["data"] == "too late"
        assert [message["id"] for message in messages if "method" not in message] == [call]


def test_an_error_of_the_proxy_says_what_happened(start: Start) -> None:
    with start("--request-timeout", "1s") as client:
        client.initialize()
        error = client.answer(client.send_call("sleep", seconds=60))["error"]
        assert error["data"]["type"] == "request_timeout"
        assert "(request_timeout)" in error["message"]
        assert client.say("echo", text="on") == "on"


def test_a_batch_is_answered_in_the_revision_that_has_them() -> None:
    pings = [{"jsonrpc": "2.0", "id": f"p{number}", "method": "ping"} for number in range(2)]
    note = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
    with started(*EMBEDDED) as client:
        client.initialize("2025-03-26")
        client.write(json.dumps([*pings, note]).encode())
        assert {client.receive()["id"], client.receive()["id"]} == {"p0", "p1"}
    with started(*EMBEDDED) as client:
        client.initialize("2025-11-25")
        client.write(json.dumps(pings).encode())
        assert [error_of(client.receive()), error_of(client.receive())] == [("p0", -32600), ("p1", -32600)]


@pytest.mark.parametrize("mode", ["request", "multiplex"])
def test_shared_pool_modes_serve_stdio_clients_too(mode: str) -> None:
    with started("--pool-mode", mode, *EMBEDDED) as client:
        client.initialize()
        calls = [client.send_call("echo", text=str(number)) for number in range(10)]
        assert [text_of(client.answer(call)) for call in calls] == [str(number) for number in range(10)]


# -- mistakes of the client -----------------------------------------------------------------------------------


def test_garbage_is_answered_and_the_session_goes_on(start: Start) -> None:
    with start(MCPDIAG_MAX_BODY_BYTES="2000") as client:
        client.initialize()
        for line, code in [
            (b"hello", -32700),
            (b"{", -32700),
            (b"\xff\xfe", -32700),
            (b'{"jsonrpc": "2.0", "id": 1}', -32600),
            (b'{"id": 1, "method": "ping"}', -32600),
            (b"[]", -32600),
            (b'"' + b"x" * 3000 + b'"', -32700),
            (b"[" * 1000, -32700),
        ]:
            client.write(line)
            assert error_of(client.receive()) == (None, code), line[:50]
        client.write(b"")
        client.write(b" \r")
        assert client.say("echo", text="on") == "on"


def test_a_line_that_is_too_long_says_what_to_raise() -> None:
    with started(*EMBEDDED, MCPDIAG_MAX_BODY_BYTES="2000") as client:
        client.write(b"x" * 3000)
        assert "2000 bytes; send less, or raise max_body_bytes" in client.receive()["error"]["message"]


def test_requests_out_of_order_are_refused(start: Start) -> None:
    with start() as client:
        assert (
            error_of(client.request("server/discover"))[1] == -32601
        )  # clients of 2026-07-28 fall back on it
        assert error_of(client.request("tools/list"))[1] == -32600
        assert client.request("ping")["result"] == {}
        client.notify("notifications/initialized")
        client.write(b'{"jsonrpc": "2.0", "id": 99, "result": {}}')
        assert "result" in client.initialize()
        again = client.request("initialize", {"protocolVersion": "2025-11-25"})
        assert error_of(again)[1] == -32600
        assert client.say("echo", text="on") == "on"


def test_an_id_that_is_in_flight_cannot_be_used_again(start: Start) -> None:
    with start() as client:
        client.initialize()
        call = client.send_call("sleep", seconds=60)
        client.send("ping", request_id=call)
        refused = client.receive()
        assert error_of(refused) == (None, -32600)
        assert f"the id {call} " in refused["error"]["message"]
        client.notify("notifications/cancelled", {"requestId": call})


def test_initialize_may_be_tried_again_after_it_failed(tmp_path: Path) -> None:
    fails_once = (
        "import os, sys\n"
        "if not os.path.exists(sys.argv[1]): open(sys.argv[1], 'w').close(); sys.exit(3)\n"
        "sys.path.insert(0, sys.argv[2]); import embedded; embedded.main()"
    )
    server = [sys.executable, "-c", fails_once, str(tmp_path / "seen"), str(Path(COMMAND[1]).parent)]
    with started("--", *server) as client:
        assert "exited with code 3" in client.initialize()["error"]["message"]
        assert "result" in client.initialize()
        assert client.say("echo", text="on") == "on"


# -- the end --------------------------------------------------------------------------------------------------


def hasty(*calls: Json) -> bytes:
    """What a client writes that waits for nothing."""
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "x", "version": "1"},
    }
    messages: list[Json] = [
        {"id": "hello", "method": "initialize", "params": params},
        {"method": "notifications/initialized"},
        *({"id": number, "method": "tools/call", "params": call} for number, call in enumerate(calls)),
    ]
    return b"\n".join(json.dumps({"jsonrpc": "2.0", **message}).encode() for message in messages)


def test_all_that_came_before_the_end_is_answered(start: Start) -> None:
    """Even the last line without its line end, and a call that takes a while."""
    with start() as client:
        client.write(
            hasty(
                {"name": "sleep", "arguments": {"seconds": 0.5}},
                {"name": "echo", "arguments": {"text": "quick"}},
            )
        )
        client._stdin.write(b'{"jsonrpc":"2.0","id":"last","method":"ping"}')
        code, rest, _ = client.finish()
        assert code == 0
        assert {message["id"] for message in rest if "result" in message} == {"hello", 0, 1, "last"}


def test_a_call_longer_than_drain_timeout_ends_in_a_typed_error(start: Start) -> None:
    with start(MCPDIAG_DRAIN_TIMEOUT="200ms") as client:
        client.initialize()
        call = client.send_call("sleep", seconds=60)
        client.say("echo", text="the call before has been taken")
        code, rest, _ = client.finish()
        assert code == 0
        assert [message["id"] for message in rest] == [call]
        assert rest[0]["error"]["data"]["type"] == "shutting_down"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_all_it_started(start: Start, number: signal.Signals) -> None:
    with start(MCPDIAG_DRAIN_TIMEOUT="100ms") as client:
        client.initialize()
        call = client.send_call("sleep", seconds=60)
        client.say("echo", text="the call before has been taken")
        children = psutil.Process(client.process.pid).children(recursive=True)
        client.process.send_signal(number)
        assert client.answer(call)["error"]["data"]["type"] == "shutting_down"
        with pytest.raises(EOFError, match="over stdio\n$"):
            client.receive()
        assert client.process.wait(LIMIT) == 0
        assert not [child for child in children if child.is_running()]


@pytest.mark.slow
def test_a_proxy_may_be_the_server_of_a_proxy_and_none_is_left_if_the_first_is_killed() -> None:
    """As where a gateway runs many servers and one of them is wrapped itself."""
    with started("--", *MCPDIAG, "proxy", "--stdio", *EMBEDDED) as client:
        client.initialize()
        server = psutil.Process(int(client.say("whoami")))
        left = psutil.Process(client.process.pid).children(recursive=True)
        assert server in left
        client.process.kill()
        client.process.wait()
        _, alive = psutil.wait_procs(left, LIMIT)
        assert alive == []


def test_a_server_that_never_gets_ready_does_not_keep_it_after_the_end() -> None:
    with started("--", *command("hangs"), MCPDIAG_DRAIN_TIMEOUT="100ms") as client:
        client.write(hasty())
        code, _, errors = client.finish()
        assert code == 0
        assert "Traceback" not in errors


def test_a_client_that_reads_no_more_ends_it_without_draining() -> None:
    with started(*EMBEDDED, MCPDIAG_DRAIN_TIMEOUT="1h") as client:
        client.initialize()
        client.send_call("sleep", seconds=3600)
        client.say("echo", text="the call before has been taken")
        client._stdout.close()
        client.send("ping")
        assert client.process.wait(LIMIT) == 0


def test_a_signal_after_the_end_of_stdin_does_not_wait_for_calls() -> None:
    """How the official clients stop a server that takes too long."""
    with started("--log-level", "info", *EMBEDDED, MCPDIAG_DRAIN_TIMEOUT="1h") as client:
        client.initialize()
        client.send_call("sleep", seconds=3600)
        client.hang_up()
        while b"the client has gone; 1 calls in flight" not in client._stderr.readline():
            assert client.process.poll() is None
        client.process.send_signal(signal.SIGTERM)
        assert client.process.wait(LIMIT) == 0


def test_a_client_that_neither_reads_nor_writes_is_not_waited_for() -> None:
    with started(*EMBEDDED, MCPDIAG_DRAIN_TIMEOUT="100ms") as client:
        client.initialize()
        for _ in range(40):  # more than pipe and queues take
            client.send_call("echo", text="x" * 50_000)
        client.hang_up()
        assert client.process.wait(LIMIT) == 0


# -- stdin and stdout -----------------------------------------------------------------------------------------


def test_a_client_that_does_not_read_blocks_nothing_else() -> None:
    """Its answers fill the pipe, and wait; the admin port answers meanwhile; then it gets everything."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with started("--admin-port", str(port), *EMBEDDED) as client:
        client.initialize()
        text = "x" * 300_000
        calls = [client.send_call("echo", text=text) for _ in range(8)]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=LIMIT) as response:
            assert json.load(response)["sessions"] == 1
        for call in calls:
            assert text_of(client.answer(call)) == text


def test_no_port_is_opened_unless_asked() -> None:
    with started(*EMBEDDED) as client:
        client.initialize()
        process = psutil.Process(client.process.pid)
        assert [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN] == []


@contextmanager
def proxy_on(source: int, sink: int) -> Iterator[subprocess.Popen[bytes]]:
    """The proxy with these descriptors as its stdin and stdout; it ends by itself, with code 0."""
    process = subprocess.Popen(
        [*MCPDIAG, "proxy", "--stdio", *EMBEDDED], stdin=source, stdout=sink, stderr=subprocess.DEVNULL
    )
    try:
        yield process
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait()


def test_stdin_and_stdout_may_be_files(tmp_path: Path) -> None:
    question, answer = tmp_path / "in", tmp_path / "out"
    question.write_bytes(hasty({"name": "echo", "arguments": {"text": "from a file"}}))
    with question.open("rb") as source, answer.open("wb") as sink, proxy_on(source.fileno(), sink.fileno()):
        pass
    messages = [json.loads(line) for line in answer.read_bytes().splitlines()]
    assert [message["id"] for message in messages] == ["hello", 0]


def test_stdin_may_have_ended_before_it_began() -> None:
    with proxy_on(subprocess.DEVNULL, subprocess.DEVNULL):
        pass


def test_stdin_and_stdout_may_be_one_socket() -> None:
    """As Node's child processes have them."""
    ours, theirs = socket.socketpair()
    text = "y" * 1_000_000
    with ours, theirs, proxy_on(theirs.fileno(), theirs.fileno()):
        theirs.close()
        ours.sendall(hasty({"name": "echo", "arguments": {"text": text}}) + b"\n")
        ours.shutdown(socket.SHUT_WR)
        with ours.makefile("rb") as reader:
            messages = [json.loads(line) for line in reader]
    assert text_of(messages[-1]) == text


def test_stdin_and_stdout_may_be_a_terminal() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb+", buffering=0) as terminal:
        with proxy_on(theirs, theirs):
            os.close(theirs)
            terminal.write(hasty() + b"\n\x04")  # Ctrl-D
        said = b""
        with suppress(OSError):  # how Linux tells the end of a terminal
            while chunk := terminal.read(65536):
                said += chunk
    assert b'"id":"hello","result"' in said


def test_the_descriptors_stay_blocking_for_whoever_shares_them() -> None:
    source, feed = os.pipe()
    drain, sink = os.pipe()
    with ExitStack() as stack:
        for descriptor in (source, drain, sink):
            stack.callback(os.close, descriptor)
        with proxy_on(source, sink):
            with os.fdopen(feed, "wb") as writer:
                writer.write(hasty() + b"\n")
                writer.flush()
                assert b"hello" in os.read(drain, 1000)
                assert os.get_blocking(source)
                assert os.get_blocking(sink)


@pytest.mark.parametrize("uvloop", [True, False])
def test_a_proxy_in_a_running_loop_takes_any_descriptors(uvloop: bool, nothing_left: None) -> None:
    async def main() -> None:
        (source, feed), (drain, sink) = os.pipe(), os.pipe()
        try:
            async with mcpdiag.Proxy({"demo": COMMAND}, stdio=(source, sink)) as proxy:
                os.write(feed, hasty({"name": "echo", "arguments": {"text": "x"}}) + b"\n")
                said = b""
                while said.count(b"\n") < 2:
                    await anyio.wait_readable(drain)
                    said += os.read(drain, 1000)
                assert [json.loads(line)["id"] for line in said.splitlines()] == ["hello", 0]
                os.close(feed)
                assert proxy.front is not None
                await proxy.front.client_gone.wait()
                assert not proxy.front.in_a_hurry
        finally:
            for descriptor in (source, drain, sink):
                os.close(descriptor)

    anyio.run(main, backend_options={"use_uvloop": uvloop})


def test_nothing_but_mcp_gets_to_stdout() -> None:
    code = (
        "import os, subprocess, sys; from mcpdiag.proxy.descriptors import claim; source, sink = claim()\n"
        "print('stray'); sys.stdout.flush(); os.write(sink, os.read(source, 100))\n"
        "subprocess.run([sys.executable, '-c', 'import sys; print(len(sys.stdin.read()))'])"
    )
    found = subprocess.run([sys.executable, "-c", code], input=b"mcp", capture_output=True, timeout=LIMIT)
    assert found.stdout == b"mcp"
    assert found.stderr == b"stray\n0\n"


# -- the command line -----------------------------------------------------------------------------------------


@pytest.fixture
def two_servers(tmp_path: Path) -> str:
    file = tmp_path / "mcp.json"
    server = {"command": COMMAND[0], "args": [COMMAND[1]]}
    file.write_text(json.dumps({"mcpServers": {"one": server, "two": server}}))
    return str(file)


def test_one_of_several_servers_is_served_by_name(two_servers: str) -> None:
    with started("--config", two_servers, "--name", "two") as client:
        client.initialize()
        assert client.say("echo", text="x") == "x"
        code, _, errors = client.finish()
        assert code == 0
        assert errors.startswith("mcpdiag: two (")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "found one, two; give one of them with --name"),
        (["--name", "three"], "there is no server 'three'"),
        (["--port", "0", "--name", "one"], "no port is opened"),
    ],
)
def test_a_mistake_is_said_without_a_traceback(two_servers: str, args: list[str], words: str) -> None:
    found = subprocess.run(
        [*MCPDIAG, "proxy", "--stdio", "--config", two_servers, *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert found.returncode == 2
    assert words in " ".join(found.stderr.replace("│", " ").split())
    assert "Traceback" not in found.stderr
    assert found.stdout == ""
