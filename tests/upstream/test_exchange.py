"""`Inbox`, `Client` and `Exchange`: what passes between the proxy and an upstream."""

from __future__ import annotations

import anyio
import pytest

from mcpdiag.config import Timeouts
from mcpdiag.errors import (
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    McpDiagError,
    RequestTimeout,
    ResponseTimeout,
    UpstreamClosed,
)
from mcpdiag.protocol.message import decode
from mcpdiag.upstream.client import INBOX_BYTES, INBOX_MESSAGES, MAX_ASKED, Asked, Client, Inbox
from mcpdiag.upstream.exchange import Exchange, Phase

pytestmark = pytest.mark.anyio

CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","uri":"u"}}'
TIMEOUTS = Timeouts(acquire_timeout=1, connect_timeout=2, request_timeout=3, response_timeout=4, deadline=10)


class Now:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def exchange(line: bytes = CALL, clock: Now | None = None, timeouts: Timeouts = TIMEOUTS) -> Exchange:
    return Exchange(decode(line), Client("a"), "srv", timeouts, clock or Now())


# -- inbox ----------------------------------------------------------------------------------------------------


async def test_messages_come_out_in_order_and_then_the_end_for_ever() -> None:
    inbox = Inbox()
    assert inbox.put(b"1")
    assert inbox.put(b"2")
    inbox.close()
    assert not inbox.put(b"3")
    assert [await inbox.get() for _ in range(4)] == [b"1", b"2", b"", b""]


async def test_a_reader_waits_for_a_message_or_the_end() -> None:
    inbox, got = Inbox(), list[bytes]()

    async def read() -> None:
        while data := await inbox.get():
            got.append(data)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            inbox.put(b"1")
            await anyio.wait_all_tasks_blocked()
            assert got == [b"1"]
            inbox.close()
    assert got == [b"1"]


async def test_a_cancelled_reader_takes_nothing_along() -> None:
    inbox = Inbox()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(inbox.get)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        inbox.put(b"1")
        assert await inbox.get() == b"1"


async def test_it_holds_a_thousand_messages_and_has_room_again_when_one_is_read() -> None:
    inbox = Inbox()
    assert all(inbox.put(b"x") for _ in range(INBOX_MESSAGES))
    assert not inbox.put(b"x")
    await inbox.get()
    assert inbox.put(b"x")
    assert len(inbox.drain()) == INBOX_MESSAGES
    assert inbox.put(b"x")


async def test_it_holds_16_mib_but_a_single_message_may_be_longer() -> None:
    inbox = Inbox()
    assert inbox.put(b"x" * (INBOX_BYTES - 1))
    assert inbox.put(b"x")
    assert not inbox.put(b"x")
    inbox.drain()
    assert inbox.put(b"x" * (INBOX_BYTES + 1))
    assert not inbox.put(b"x")


# -- client ---------------------------------------------------------------------------------------------------


async def test_what_comes_before_a_stream_opens_waits_for_it() -> None:
    client, stream = Client("a"), Inbox()
    listening = [client.listening]
    assert client.push(b"1")
    client.attach(stream)
    assert [*listening, client.listening] == [False, True]
    assert client.push(b"2")
    assert stream.drain() == [b"1", b"2"]
    assert client.pending.drain() == []


async def test_the_newest_stream_gets_the_messages_and_a_closed_one_hands_on_what_it_holds() -> None:
    client, old, new = Client("a"), Inbox(), Inbox()
    client.attach(old)
    client.attach(new)
    client.push(b"1")
    assert client.detach(new) == 0
    assert not new.drain()
    assert client.detach(old) == 0
    client.detach(old)
    assert client.pending.drain() == [b"1"]


async def test_what_the_next_stream_has_no_room_for_is_told() -> None:
    client, old, new = Client("a"), Inbox(), Inbox()
    client.attach(new)
    client.attach(old)
    for _ in range(3):
        client.push(b"x")
    while new.put(b"x"):
        pass
    new.drain()[: INBOX_MESSAGES - 1]
    for _ in range(INBOX_MESSAGES - 1):
        new.put(b"x")
    assert client.detach(old) == 2


async def test_questions_are_numbered_never_twice_and_bounded() -> None:
    client = Client("a")
    asked = Asked(lambda line: None, client, b"1")
    assert [client.ask(asked) for _ in range(3)] == [1, 2, 3]
    del client.asked[3]
    assert client.ask(asked) == 4
    for _ in range(MAX_ASKED):
        client.ask(asked)
    assert client.ask(asked) is None
    assert len(client.asked) == MAX_ASKED


async def test_only_the_questions_of_one_asker_are_forgotten() -> None:
    client, one, other = Client("a"), object(), object()
    mine = [Asked(lambda line: None, owner, b"1") for owner in (one, other, one)]
    for asked in mine:
        client.ask(asked)
    assert client.forget(one) == [mine[0], mine[2]]
    assert list(client.asked.values()) == [mine[1]]
    assert client.forget(one) == []


# -- exchange -------------------------------------------------------------------------------------------------


async def test_only_the_first_end_counts() -> None:
    answered, failed = exchange(), exchange()
    answered.finish(b"1", is_error=False)
    answered.finish(b"2", is_error=True)
    answered.fail(UpstreamClosed("x"))
    assert (answered.final, answered.error, answered.outcome) == (b"1", None, "ok")
    error = UpstreamClosed("x")
    failed.fail(error)
    failed.fail(UpstreamClosed("y"))
    failed.finish(b"2", is_error=False)
    assert (failed.final, failed.error) == (None, error)
    assert await failed.inbox.get() == b""


async def test_what_it_holds_is_given_back_once() -> None:
    given: list[bool] = []
    ended = exchange()
    ended.on_end = given.append
    ended.end(reusable=True)
    ended.end(reusable=False)
    assert given == [True]


async def test_a_second_attempt_starts_afresh_with_its_own_limit_inside_the_deadline() -> None:
    clock, given = Now(), list[bool]()
    tried = exchange(clock=clock)
    tried.on_end = given.append
    clock.at += 2.9
    tried.fail(ConnectError("x"))
    tried.again()
    assert given == [False]
    assert (tried.attempts, tried.error, tried.final) == (2, None, None)
    assert not tried.inbox.closed
    tried.sending()
    assert tried.scope.deadline == pytest.approx(105.9)
    clock.at += 6
    tried.again()
    assert tried.scope.deadline == 110.0


async def test_cancellation_keeps_the_reason_and_ends_its_scope() -> None:
    cancelled = exchange()
    with anyio.fail_after(10):
        with cancelled.scope:
            cancelled.cancel("enough")
            await anyio.sleep_forever()
    assert cancelled.cancelled
    assert cancelled.cancel_reason == "enough"


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (CALL, "t"),
        (CALL.replace(b"tools/call", b"prompts/get"), "t"),
        (CALL.replace(b"tools/call", b"resources/read"), "u"),
        (CALL.replace(b"tools/call", b"tools/list"), ""),
    ],
)
async def test_the_target_is_what_the_method_names(line: bytes, target: str) -> None:
    assert exchange(line).target == target


async def test_the_limit_moves_with_the_phase_and_never_beyond_the_deadline() -> None:
    clock = Now()
    moving = exchange(clock=clock)
    assert (moving.phase, moving.scope.deadline) == (Phase.REQUEST, 103.0)
    moving.enter(Phase.QUEUE)
    assert moving.scope.deadline == 110.0, "the pool keeps acquire_timeout"
    moving.enter(Phase.CONNECT)
    assert moving.scope.deadline == 102.0
    clock.at = 101.0
    moving.sending()
    assert (moving.phase, moving.scope.deadline) == (Phase.REQUEST, 104.0)
    clock.at = 103.5
    assert moving.deliver(b"{}")
    assert (moving.phase, moving.scope.deadline, moving.messages) == (Phase.RESPONSE, 107.5, 1)
    clock.at = 107.0
    moving.heard()
    assert moving.scope.deadline == 110.0


async def test_the_first_sign_of_an_answer_is_timed_once() -> None:
    timed = exchange()
    timed.heard()
    first = timed.first_at
    timed.heard()
    timed.finish(b"{}", is_error=True)
    assert timed.first_at == first > 0
    assert timed.outcome == "rpc_error"


async def test_waiting_is_queueing_for_a_used_connection_and_connecting_for_a_new_one() -> None:
    waited = exchange()
    waited.note_wait(1.0, reused=True)
    waited.note_wait(2.0, reused=False)
    assert (waited.queue_s, waited.connect_s) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("phase", "kind", "limit_ms", "words"),
    [
        (Phase.CONNECT, ConnectTimeout, 2000, "the server 'srv' was not ready within 2 s (connect_timeout)"),
        (
            Phase.REQUEST,
            RequestTimeout,
            3000,
            "sent nothing in answer to tools/call 't' within 3 s (request_timeout)",
        ),
        (Phase.RESPONSE, ResponseTimeout, 4000, "fell silent inside its answer to tools/call 't'"),
    ],
)
async def test_the_error_of_a_limit_names_it_with_the_remedy(
    phase: Phase, kind: type[McpDiagError], limit_ms: int, words: str
) -> None:
    late = exchange()
    late.enter(phase)
    error = late.timeout_error()
    assert type(error) is kind
    assert words in str(error)
    assert f"raise {phase.value}_timeout for 'srv'" in str(error)
    assert error.data["upstream"] == "srv"
    assert (error.data["phase"], error.data["limit_ms"]) == (phase.value, limit_ms)
    assert error.data["elapsed_ms"] >= 0


async def test_the_error_of_the_deadline_names_it_and_the_phase() -> None:
    clock = Now()
    late = exchange(CALL.replace(b"tools/call", b"ping"), clock)
    late.enter(Phase.QUEUE)
    clock.at = 110.0
    error = late.timeout_error()
    assert isinstance(error, DeadlineExceeded)
    assert str(error).startswith("ping on 'srv' did not finish within 10 s (deadline, in phase queue)")
    assert error.data["limit_ms"] == 10_000
