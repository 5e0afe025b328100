"""What era a stdio server speaks is found out once, from what a fresh process answers; and nothing is started twice."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from mcpdiag.config import PoolLimits, Timeouts, UpstreamConfig
from mcpdiag.errors import ConnectError, ConnectTimeout, McpDiagError
from mcpdiag.protocol.message import decode
from mcpdiag.protocol.mirror import META_CAPABILITIES, META_VERSION
from mcpdiag.upstream import stdio_stateless
from mcpdiag.upstream.base import Answer
from mcpdiag.upstream.client import Client
from mcpdiag.upstream.exchange import Exchange
from mcpdiag.upstream.stdio import StdioUpstream
from mcpdiag.upstream.stdio_stateless import StatelessProcesses
from tests.servers import stateless

pytestmark = pytest.mark.anyio
VERSION = "2026-07-28"
META = {META_VERSION: VERSION, META_CAPABILITIES: {}}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def answers(*lines: str) -> list[str]:
    """A server that answers the n-th line it reads with the n-th of these, in which ID is the id; "" is silence."""
    code = (
        "import json, sys\n"
        f"for line, answer in zip(sys.stdin, {lines!r}):\n"
        "    if answer:\n"
        "        print(answer.replace('ID', str(json.loads(line)['id'])), flush=True)\n"
        "sys.stdin.read()\n"
    )
    return [sys.executable, "-I", "-S", "-c", code]


def error(code: int, data: str = "null") -> str:
    return f'{{"jsonrpc":"2.0","id":ID,"error":{{"code":{code},"message":"no","data":{data}}}}}'


def result(body: str) -> str:
    return f'{{"jsonrpc":"2.0","id":ID,"result":{body}}}'


INITIALIZED = result(
    '{"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{"name":"x","version":"1"}}'
)
EMPTY = result("{}")


@asynccontextmanager
async def started(command: list[str], **settings: Any) -> AsyncIterator[StdioUpstream]:
    timeouts = Timeouts(connect_timeout=settings.pop("connect_timeout", 10.0))
    config = UpstreamConfig(command=command[0], args=tuple(command[1:]), timeouts=timeouts, **settings)
    upstream = StdioUpstream("up", config)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            await upstream.start(tasks)
            try:
                yield upstream
            finally:
                await upstream.aclose(drain_timeout=0, force=True)


async def ask(upstream: StdioUpstream, method: str = "tools/list", **params: Any) -> Answer:
    message = decode(
        json.dumps(
            {"jsonrpc": "2.0", "id": "mine", "method": method, "params": {"_meta": META, **params}}
        ).encode()
    )
    client = Client("")
    exchange = Exchange(message, client, upstream.name, upstream.config.timeouts)
    try:
        with exchange.scope:
            return await upstream.stateless_session(client).exchange(exchange)
    finally:
        exchange.end(reusable=True)
    raise exchange.timeout_error()


@pytest.mark.parametrize(
    ("first", "supported"),
    [
        (error(-32601), ["2025-06-18"]),
        (error(-32602), ["2025-06-18"]),
        (error(-32000), ["2025-06-18"]),
        (EMPTY, ["2025-06-18"]),
        (result('{"supportedVersions":"2026-07-28"}'), ["2025-06-18"]),
        (result('{"supportedVersions":["2025-03-26"],"capabilities":{}}'), ["2025-03-26"]),
        (error(-32022, '{"supported":["2099-01-01"],"requested":"2026-07-28"}'), ["2099-01-01"]),
    ],
)
async def test_what_is_no_answer_of_this_era_names_what_the_server_speaks(
    first: str, supported: list[str]
) -> None:
    async with started(answers(first, INITIALIZED)) as upstream:
        for _ in range(2):
            answer = await ask(upstream)
            refused = json.loads(answer.body)
            assert (answer.status, refused["id"], refused["error"]["code"]) == (400, "mine", -32022)
            assert refused["error"]["data"] == {"supported": supported, "requested": VERSION}
        assert not upstream.stateless or not upstream.stateless.started


@pytest.mark.parametrize(
    "first",
    [
        result('{"supportedVersions":["2026-07-28"],"capabilities":{}}'),
        result('{"supportedVersions":["2025-11-25","2026-07-28"]}'),
        error(-32022, '{"supported":["2026-07-28"],"requested":"?"}'),
        error(-32021),
        error(-32020),
    ],
)
async def test_an_answer_of_this_era_lets_the_same_process_serve(first: str) -> None:
    async with started(answers(first, EMPTY)) as upstream:
        answer = await ask(upstream)
        assert (answer.status, json.loads(answer.body)) == (
            200,
            {"jsonrpc": "2.0", "id": "mine", "result": {}},
        )
        assert upstream.stateless is not None
        assert upstream.stateless.stats().opens == 1


async def test_a_server_that_is_silent_before_its_handshake_is_of_the_era_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stdio_stateless, "PATIENCE", 0.1)
    async with started(answers("", INITIALIZED)) as upstream:
        assert json.loads((await ask(upstream)).body)["error"]["data"]["supported"] == ["2025-06-18"]


async def test_a_server_that_is_only_slow_to_start_is_not_mistaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers the probe first, although it has been asked for a handshake meanwhile."""
    monkeypatch.setattr(stdio_stateless, "PATIENCE", 0.05)
    async with started(stateless.command("--late", "0.5")) as upstream:
        assert (await ask(upstream)).status == 200


async def test_silence_for_good_ends_with_connect_timeout() -> None:
    async with started(answers("", "", ""), connect_timeout=0.3) as upstream:
        with pytest.raises(ConnectTimeout, match="connect_timeout"):
            await ask(upstream)


async def test_a_refusal_of_both_is_told_in_the_servers_words() -> None:
    async with started(answers(error(-32601), error(-32603))) as upstream:
        with pytest.raises(ConnectError, match="refused to initialize: no"):
            await ask(upstream)


async def test_a_program_that_ends_is_no_verdict() -> None:
    async with started([sys.executable, "-c", "print('bye'); import sys; sys.exit(5)"]) as upstream:
        for _ in range(2):
            with pytest.raises(McpDiagError) as caught:
                await ask(upstream)
            assert caught.value.data["exit_code"] == 5
        assert upstream.learned.versions == ()


async def test_warm_processes_start_only_once_the_era_is_known() -> None:
    async with started(stateless.command(), pool=PoolLimits(min_connections=2)) as upstream:
        assert getattr(upstream, "stateless") is None, "nothing of this era before a request of it"  # noqa: B009
        await ask(upstream)
        stateless_era = upstream.stateless
        assert isinstance(stateless_era, StatelessProcesses)
        assert stateless_era.mode == "request"
    async with started(answers(error(-32601), INITIALIZED), pool=PoolLimits(min_connections=2)) as upstream:
        await ask(upstream)
        assert upstream.stateless is not None
        assert upstream.stateless.stats().opens == 0


async def test_multiplex_is_kept() -> None:
    async with started(stateless.command(), pool_mode="multiplex") as upstream:
        pids = set()
        async with anyio.create_task_group() as tasks:

            async def pid() -> None:
                pids.add((await ask(upstream, "tools/call", name="pid")).body)

            for _ in range(10):
                tasks.start_soon(pid)
        assert len(pids) == 1
        assert upstream.stateless is not None
        assert upstream.stateless.mode == "multiplex"
