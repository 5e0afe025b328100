"""An upstream knows the processes that it has started, in both eras, and only while they run."""

from __future__ import annotations

import sys

import psutil
import pytest

from mcpdiag.embedded import COMMAND
from tests.proxy.client import Client, proxied, text_of, until
from tests.proxy.modern import Modern, upstream

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_pids_are_those_of_the_processes_that_run() -> None:
    async with proxied(COMMAND) as proxy:
        (server,) = proxy._upstreams
        assert server.pids() == []
        async with Client.session(proxy.url) as one, Client.session(proxy.url) as two:
            pids = {int(text_of(await client.call("whoami"))) for client in (one, two)}
            assert {*server.pids()} == pids
            assert all(psutil.Process(pid).parent() == psutil.Process() for pid in pids)
            first = int(text_of(await one.call("whoami")))
            await one.call("exit", code=0)
            await until(lambda: {*server.pids()} == pids - {first})
    assert server.pids() == []


async def test_the_processes_of_the_stateless_era_have_their_own_pool_and_are_known_too() -> None:
    with upstream("stdio") as server:
        async with proxied(server, sample_every=0.01) as proxy, Modern.at(proxy.url) as client:
            pid = int(await client.say("pid"))
            assert pid in proxy._upstreams[0].pids()
            recorder = proxy.recorder
            await until(lambda: pid in {*recorder.memory["pid"]})

            def sizes() -> dict[str, int]:
                """Of the last reading of each pool."""
                return {row["era"]: row["size"] for row in recorder.pool.to_dict("records")}

            await until(lambda: sizes() == {"handshake": 0, "stateless": 1})


async def test_a_program_that_cannot_run_has_no_pid() -> None:
    async with proxied([sys.executable, "-c", "raise SystemExit(3)"]) as proxy:
        async with Client.bare(proxy.url) as client:
            assert "error" in await client.initialize()
        await until(lambda: proxy._upstreams[0].pids() == [])
