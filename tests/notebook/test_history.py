"""What a live view keeps: new rows only, at most so many, in one minute."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

import mcpdiag
from mcpdiag.embedded import COMMAND
from mcpdiag.hooks import ExchangeDone
from mcpdiag.notebook import history
from mcpdiag.notebook.history import History
from mcpdiag.notebook.picture import picture
from mcpdiag.notebook.source import Source, source_of
from mcpdiag.pool.stats import PoolStats
from mcpdiag.samples.schema import FrameName
from tests.conftest import RawClient
from tests.samples.test_remote import free_port, running


def clock(step_ms: float) -> Callable[[], int]:
    """Ends an exchange every so many milliseconds."""
    ticks = count(1_800_000_000 * 10**9, int(step_ms * 1e6))
    return lambda: next(ticks)


def calls(recorder: mcpdiag.Recorder, number: int, outcome: str = "ok", total_ms: float = 1.0) -> None:
    for _ in range(number):
        recorder.emit(ExchangeDone("up", "stdio", "tools/call", "t", "s", "", outcome, total_ms=total_ms))


def test_a_look_finds_the_rows_that_are_new_and_counts_the_window() -> None:
    recorder = mcpdiag.Recorder(clock=clock(10))
    calls(recorder, 100, total_ms=5.0)
    seen = History(Source(recorder, None), window=60)
    first = seen.look()
    assert (first.calls, first.window_calls) == (0, 100), "what was there before is no rate"
    calls(recorder, 10, total_ms=50.0)
    calls(recorder, 2, "request_timeout")
    second = seen.look()
    assert (second.calls, second.errors, second.window_calls, second.window_errors) == (12, 2, 112, 2)
    assert second.p50_ms == 50.0
    assert second.window_p50_ms == 5.0
    third = seen.look()
    assert (third.calls, third.per_s, third.window_calls) == (0, 0.0, 112)


def test_rows_older_than_the_window_are_forgotten() -> None:
    recorder = mcpdiag.Recorder(clock=clock(100))  # ten a second
    seen = History(Source(recorder, None), window=5)
    for _ in range(10):
        calls(recorder, 30)
        found = seen.look()
    assert len(seen.requests) in {50, 51}
    assert 50 <= found.window_calls <= 60, "counted by whole seconds"
    span = seen.requests["ts"].max() - seen.requests["ts"].min()
    assert span.total_seconds() <= 5


def test_a_look_reads_no_row_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = mcpdiag.Recorder(clock=clock(1))
    calls(recorder, 100_000)
    read: list[int] = []
    rows = recorder.rows

    def counted(name: FrameName, since: int = 0) -> object:
        found = rows(name, since)
        if name == "requests":
            read.append(len(found))
        return found

    monkeypatch.setattr(recorder, "rows", counted)
    seen = History(Source(recorder, None), window=60)
    for _ in range(5):
        calls(recorder, 7)
        seen.look()
    assert read == [history.FIRST + 7, 7, 7, 7, 7]


def test_more_calls_than_are_drawn_are_thinned_and_errors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 1000)
    recorder = mcpdiag.Recorder(clock=clock(1))
    seen = History(Source(recorder, None), window=60)
    for _ in range(20):
        calls(recorder, 500)
        calls(recorder, 1, "request_timeout")
        found = seen.look()
        assert len(seen.requests) <= 1000 + history.ERRORS
    assert seen.one_in == 16
    assert found.window_calls == 20 * 501, "counted whole"
    assert (seen.requests["outcome"] == "request_timeout").sum() == 20
    recorder_later = mcpdiag.Recorder(clock=clock(1))
    calm = History(Source(recorder_later, None), window=60)
    calls(recorder_later, 100)
    calm.look()
    assert calm.one_in == 1


def test_a_recorder_alone_knows_its_pools_by_their_rows() -> None:
    recorder = mcpdiag.Recorder(clock=clock(10))
    recorder.pool_row("a", "session", "handshake", PoolStats(max=4, size=3, busy=2, idle=1, waiting=5))
    found = History(Source(recorder, None), window=60).look()
    assert found.pools == (("a", 2, 1, 0, 5, 4),)
    assert found.inflight is None


def test_a_proxy_knows_its_pools_of_this_moment() -> None:
    with mcpdiag.serve({"demo": COMMAND}, port=0) as proxy:
        RawClient(proxy.url).initialize()
        found = History(source_of(proxy, "live"), window=60).look()
        assert found.pools == (("demo", 1, 0, 0, 0, 10),)
        assert found.inflight == 0


def test_after_a_restart_everything_is_counted_anew() -> None:
    port = free_port()

    def start_and_call(times: int, url: str) -> None:
        client = RawClient(url).initialize()
        for _ in range(times):
            client.call("echo", text="x")

    with running("--admin-port", str(port)) as (url, admin, _):
        seen = History(source_of(mcpdiag.attach(admin), "live"), window=60)
        start_and_call(5, url)
        assert seen.look().window_calls == 6
    with running("--admin-port", str(port)) as (url, _, _):
        start_and_call(2, url)
        found = seen.look()
        assert (found.restarts, found.window_calls) == (1, 3)
        start_and_call(1, url)
        assert seen.look().calls == 2


def test_rows_that_were_overwritten_between_two_looks_are_told() -> None:
    recorder = mcpdiag.Recorder(requests=10, clock=clock(1))
    seen = History(Source(recorder, None), window=60)
    calls(recorder, 35)
    assert seen.look().missed == 25


def test_the_picture_is_a_png_of_800_pixels_with_or_without_rows() -> None:
    recorder = mcpdiag.Recorder(clock=clock(10))
    seen = History(Source(recorder, None), window=60)
    for _ in range(2):
        png = picture(seen.requests, seen.pool)
        assert png.startswith(b"\x89PNG")
        assert int.from_bytes(png[16:20], "big") == 800
        calls(recorder, 100)
        recorder.pool_row("a", "session", "handshake", PoolStats(max=4, size=3, busy=2, idle=1))
        seen.look()


def test_what_cannot_be_looked_at_is_said() -> None:
    with pytest.raises(TypeError, match="live looks at a proxy, a recorder, .*; found an int"):
        source_of(1, "live")
    for wrong in ({"every": 0.01}, {"every": 10, "window": 15}):
        with pytest.raises(ValueError, match=r"a look takes at least 0\.2 s"):
            from mcpdiag.notebook import live

            live(mcpdiag.Recorder(), **wrong)


def test_outside_of_a_kernel_a_live_view_names_the_alternative() -> None:
    from mcpdiag.notebook import live

    with pytest.raises(RuntimeError, match=r"in a terminal use `mcpdiag top URL`"):
        live(mcpdiag.Recorder())
