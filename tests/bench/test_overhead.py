"""Direct against proxied, on servers whose times can be computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpdiag.bench.overhead import OverheadRun, Side, SideKey
from mcpdiag.bench.raw import RawFile
from mcpdiag.bench.result import Config
from mcpdiag.bench.spec import Call
from mcpdiag.bench.workload import Workload
from mcpdiag.cli.bench_proxies import Target
from mcpdiag.cli.bench_sides import Sides
from mcpdiag.errors import StartError
from tests.bench.double import Double
from tests.conftest import own_processes
from tests.servers import one_at_a_time

ECHO = Workload(
    source="default", calls=(Call(method="tools/call", params={"name": "echo", "arguments": {"text": "hi"}}),)
)


def config(transport: str, *, clients: int, repeat: int, max_connections: int = 10) -> Config:
    return Config(
        pool_mode="session",
        max_connections=max_connections,
        clients=(clients,),
        transports=(transport,),  # type: ignore[arg-type]
        warmup_s=0.2,
        seconds=0.6,
        repeat=repeat,
        timeout_s=10.0,
        seed=1,
    )


def sides(target: Target, found: Config) -> Sides:
    return Sides(
        target,
        pool_mode=found.pool_mode,
        max_connections=found.max_connections,
        timeout_s=found.timeout_s,
    )


@pytest.mark.slow
def test_a_queue_of_the_proxy_is_told_from_the_server(tmp_path: Path) -> None:
    """The server takes 20 ms for each call, the pool has one connection, 4 clients call: 3 turns of waiting.

    Directly the same 4 wait in the server's own line, so it takes them 80 ms too; the proxy sees the server answer
    within one turn, and three in its queue.
    """
    before = own_processes()
    with one_at_a_time.running("--service-ms", "20") as url:
        found = config("http", clients=4, repeat=3, max_connections=1)
        with RawFile(tmp_path) as raw:
            run = OverheadRun(found, ECHO, sides(Target(url=url), found), sampling=True, raw=raw)
            run.run()
    (overhead,) = run.overhead
    parts = overhead.p50.parts
    assert overhead.p50.direct_ms >= 75
    assert overhead.p50.proxied_ms >= 75
    assert 19 <= parts.first_ms < 40
    assert 50 <= parts.queue_ms < 120
    assert parts.total_ms + overhead.p50.hop_ms == pytest.approx(overhead.p50.proxied_ms)
    assert overhead.sampling is not None
    assert [cell.way for cell in run.cells] == ["direct", "proxied", "unsampled"]
    assert all(len(cell.repetitions) == 3 for cell in run.cells)
    proxied = run.cells[1]
    # The recorder had each call that the client measured, and those that were on their way at the end.
    counted = sum(each.summary.calls for each in proxied.repetitions)
    assert abs(overhead.exchanges - counted) <= 4 * 3
    assert proxied.repetitions[0].memory.rss_bytes > 10_000_000
    assert own_processes() == before


@pytest.mark.slow
def test_a_stdio_server_is_measured_in_both_ways() -> None:
    """Proxied takes longer than direct, for there is one more process on the way."""
    found = config("stdio", clients=2, repeat=1)
    run = OverheadRun(found, ECHO, sides(Target(), found))
    run.run()
    (overhead,) = run.overhead
    assert overhead.transport == "stdio"
    assert overhead.p50.added.value > 0
    assert overhead.throughput.value < 1
    assert overhead.exchanges > 10
    assert all(each.summary.errors == {} for cell in run.cells for each in cell.repetitions)


def test_headers_reach_the_server_as_they_are_in_both_ways() -> None:
    """A value that looks like a variable of a configuration file is none here."""
    keys: tuple[SideKey, ...] = (("http", "direct"), ("http", "proxied"))
    from msgspec.structs import replace

    from mcpdiag.bench import discover
    from mcpdiag.bench.spec import LoadSpec

    with Double() as server:
        target = Target(url=server.url, headers=(("x-key", "${home} $$ x"),))
        found = config("http", clients=1, repeat=1)
        with sides(target, found)(keys) as running:
            ways: list[Side] = [running[key] for key in keys]
            for side in ways:
                server.requests.clear()
                endpoint = side.endpoint
                spec = LoadSpec(url=endpoint.url, headers=endpoint.headers)
                discover.tools_of(replace(spec, timeout_s=5.0))
                assert {headers["x-key"] for _, headers in server.requests} == {"${home} $$ x"}
            seen = running["http", "proxied"].phases({"tools/list"})
            assert len(seen) == 1
            assert len(running["http", "proxied"].phases({"tools/list"})) == 0  # only what came since


def test_a_proxy_that_does_not_start_says_why() -> None:
    found = config("stdio", clients=1, repeat=1)
    keys: tuple[SideKey, ...] = (("stdio", "proxied"),)
    with pytest.raises(StartError, match="the proxy did not start: .*no program 'no-such-program'"):
        with sides(Target(command=("no-such-program",)), found)(keys):
            pass
