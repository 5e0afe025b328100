"""A proxy with real traffic fills the frames, and anybody may look meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from itertools import pairwise

import anyio
import pandas as pd
import pytest

import mcpdiag
from mcpdiag.embedded import COMMAND
from mcpdiag.errors import ConfigError
from mcpdiag.hooks import NO_HOOK, All, Ended, ExchangeDone, Happened, exchange_done
from mcpdiag.samples.recorder import BATCH, LONGEST_DETAIL, Recorder
from tests.conftest import RawClient
from tests.proxy.client import Client, proxied, until
from tests.proxy.client import Recorder as Kept

pytestmark = pytest.mark.anyio
DONE = ExchangeDone("up", "stdio", "tools/call", "echo", "s", "2025-11-25", "ok", total_ms=1.0)


def ended(
    method: str = "tools/call", *, messages: int = 1, sent: float | None = None, first: float | None = None
) -> Ended:
    """An exchange that ends now; it began a second ago, was sent after a quarter and had its first byte after three."""
    now = time.perf_counter()
    return (
        "up", "stdio", method, "echo", "s", "2025-11-25", "ok", now - 1, now - 0.75 if sent is None else sent,
        now - 0.25 if first is None else first, now, 0.001, 0.002, True, 1, messages, 0, 100, 90, "", None,
    )  # fmt: skip


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_each_exchange_is_a_row_and_the_user_s_hook_hears_of_it_too() -> None:
    kept = Kept()
    async with proxied(COMMAND, hook=kept) as proxy, Client.session(proxy.url) as client:
        await client.call("echo", text="a")
        await client.request("nonsense/method")
        await until(lambda: len(kept.done) == 3)
        requests = proxy.recorder.requests
        assert [*requests["method"]] == ["initialize", "tools/call", "nonsense/method"]
        assert [*requests["target"]] == ["", "echo", ""]
        assert [*requests["outcome"]] == ["ok", "ok", "rpc_error"]
        assert {*requests["session"]} == {"", client.session_id} or {*requests["session"]} == {
            client.session_id
        }
        assert (requests["total_ms"] > 0).all()
        assert requests["ts"].is_monotonic_increasing
        assert pd.Timestamp.now("UTC") - requests["ts"].iloc[-1] < pd.Timedelta(minutes=1)
    events = proxy.recorder.events
    assert "session_end" in {*events["kind"]}
    assert len(events) == len(kept.events) - len(kept.done)


async def test_without_recording_nothing_is_sampled_and_the_hook_is_the_user_s_own() -> None:
    async with proxied(COMMAND, record=False) as proxy:
        assert proxy._hook is NO_HOOK
        with pytest.raises(RuntimeError, match="record=False"):
            _ = proxy.recorder
    kept = Kept()
    async with proxied(COMMAND, record=False, hook=kept) as proxy:
        assert proxy._hook is kept
    with pytest.raises(ConfigError, match="capture without recording"):
        mcpdiag.Proxy({"up": COMMAND}, record=False, capture="somewhere")


async def test_payloads_are_never_recorded() -> None:
    async with proxied(COMMAND) as proxy, Client.session(proxy.url) as client:
        await client.call("echo", text="the-payload")
        recorder = proxy.recorder
        await until(lambda: recorder.written["requests"] == 2)
    for name in recorder.written:
        assert "the-payload" not in recorder.frame(name).to_csv()
        assert b"the-payload" not in recorder.rows(name).records


async def test_a_stream_gives_each_new_row_once_and_ends_with_the_proxy() -> None:
    pieces = []
    async with proxied(COMMAND) as proxy, Client.session(proxy.url) as client:
        recorder = proxy.recorder
        await until(lambda: recorder.written["requests"] == 1)

        async def listen() -> None:
            async for frame in recorder.stream("requests", every=0.001):
                assert len(frame)
                pieces.append(frame)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await anyio.lowlevel.checkpoint()
            for number in range(5):
                await client.call("echo", text=str(number))
            await until(lambda: sum(map(len, pieces)) == 5)
            await proxy.aclose()
    assert {*pd.concat(pieces)["method"]} == {"tools/call"}
    assert all(before["ts"].iloc[-1] <= after["ts"].iloc[0] for before, after in pairwise(pieces))


def test_a_stream_works_in_another_loop_than_the_proxy_s() -> None:
    """As in a notebook: the proxy in a thread of its own, the stream in the kernel's loop."""

    async def follow() -> int:
        rows = 0
        async for frame in proxy.recorder.stream("requests", every=0.01, since=0):
            rows += len(frame)
            if rows >= 2:
                return rows
        raise AssertionError("the stream ended")

    with mcpdiag.serve({"up": COMMAND}, port=0) as proxy:
        client = RawClient(proxy.url).initialize()
        assert client.call("echo", text="x") == "x"
        assert anyio.run(follow) == 2
    assert len(proxy.recorder.requests) == 2


def test_memory_is_constant_and_what_is_overwritten_is_counted_and_shown() -> None:
    recorder = Recorder(requests=10)
    for _ in range(25):
        recorder.emit(DONE)
    assert len(recorder.requests) == 10
    assert recorder.dropped == {"requests": 15, "pool": 0, "memory": 0, "heap": 0, "events": 0}
    assert recorder.written["requests"] == 25
    assert repr(recorder) == "<Recorder 10 requests, 0 pool, 0 memory, 0 heap, 0 events; dropped 15 requests>"
    html = recorder._repr_html_()
    assert ">requests</td><td>10</td><td>15</td>" in html
    assert ">echo</td><td>10</td>" in html


def test_exchanges_are_rows_in_order_with_their_own_time_whoever_makes_rows_of_them() -> None:
    """The loop makes rows of a full batch, readers of what waits; both at once lose, repeat or swap nothing."""
    recorder = Recorder(requests=1_000_000)
    began = time.time_ns()
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        since = 0
        try:
            while not done.is_set():
                frame = recorder.frame("requests", since)
                assert [*frame["messages"]] == [*range(since, since + len(frame))]
                since += len(frame)
        except BaseException as failure:
            failures.append(failure)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(20_000):
        recorder.ended(ended(messages=number))
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    requests = recorder.requests
    assert [*requests["messages"]] == [*range(20_000)]
    times = [*requests["ts"].astype("int64")]
    assert began <= times[0] + 1_000_000  # the two clocks are read one after the other
    assert times[-1] <= time.time_ns() + 1_000_000
    assert max(a - b for a, b in pairwise(times)) < 1_000_000


def test_an_exchange_as_the_core_has_it_is_the_row_of_its_event() -> None:
    """In milliseconds, from phases on another clock; a new text and one too many take another way to the same row."""
    core, made = Recorder(names=3), Recorder(names=3)
    for number in range(6):
        each = ended(method=f"m{number % 4}", messages=number)
        core.ended(each)
        made.emit(exchange_done(each))
    never = ended(sent=0.0, first=0.0)
    core.ended(never)
    made.emit(exchange_done(never))
    frames = [recorder.requests.drop(columns="ts") for recorder in (core, made)]
    assert frames[0].to_dict("list") == frames[1].to_dict("list")
    row = frames[0].iloc[0]
    assert row[["queue_ms", "connect_ms", "first_ms", "total_ms", "sent_ms"]].tolist() == pytest.approx(
        [1, 2, 500, 1000, 250]
    )
    assert frames[0].iloc[6][["first_ms", "sent_ms"]].tolist() == [0, 0]
    assert [*frames[0]["method"]] == ["m0", "m1", "(other)", "(other)", "m0", "m1", "(other)"]


def test_hooks_that_want_the_event_share_one_and_the_recorder_needs_none() -> None:
    first, second, recorder = Kept(), Kept(), Recorder()
    hooks = All([first, recorder, second])
    hooks.ended(ended())
    hooks.emit(Happened("child_exit", "up"))
    assert len(first.done) == len(second.done) == len(recorder.requests) == 1
    assert first.done[0] is second.done[0]
    assert len(first.events) == len(second.events) == 2
    assert len(recorder.events) == 1


def test_a_reader_that_makes_rows_never_holds_the_loop_up() -> None:
    recorder = Recorder()
    with recorder._settling:
        for _ in range(3 * BATCH):
            recorder.ended(ended())
        assert recorder._requests.written == 0
    recorder.ended(ended())
    assert recorder._requests.written == 3 * BATCH + 1


def test_the_detail_of_an_event_is_cut() -> None:
    recorder = Recorder()
    recorder.emit(Happened("stray_output", "up", detail="x" * 10_000))
    recorder.emit(Happened("stray_output", "up", detail="half a pair: \ud800"))
    assert [*recorder.events["detail"]] == ["x" * LONGEST_DETAIL, "half a pair: ?"]


def test_html_of_names_that_a_client_chose_is_escaped() -> None:
    recorder = Recorder()
    recorder.emit(ExchangeDone("up", "stdio", "tools/call", "<script>", "s", "", "ok"))
    assert "<script>" not in recorder._repr_html_()


@pytest.mark.parametrize(
    ("missing", "code", "says"),
    [
        ("pandas", "recorder.requests", "frames need pandas; pip install 'mcpdiag[notebook]'"),
        ("pyarrow", "recorder.save('unused')", "captures need pyarrow; pip install 'mcpdiag[notebook]'"),
    ],
)
def test_a_missing_library_is_named_with_what_to_install(missing: str, code: str, says: str) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import mcpdiag\nrecorder = mcpdiag.Recorder()\nrecorder._repr_html_()\n"
        f"try:\n    {code}\nexcept ImportError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == says, found.stderr
