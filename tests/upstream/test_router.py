"""`Router`: whose each message of a connection is, without any process or client behind it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpdiag.config import Timeouts
from mcpdiag.errors import INTERNAL_ERROR, METHOD_NOT_FOUND, UpstreamClosed, UpstreamProtocolError
from mcpdiag.protocol.message import Message, decode
from mcpdiag.upstream.client import INBOX_BYTES, INBOX_MESSAGES, MAX_ASKED, Client, Inbox
from mcpdiag.upstream.exchange import Exchange
from mcpdiag.upstream.router import LIST_CHANGED, MAX_TASK_TOKENS, Router

pytestmark = pytest.mark.anyio
LOG = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}'
ROOTS = b'{"jsonrpc":"2.0","id":"r1","method":"roots/list"}'
TOOLS_CHANGED = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'


class Wire:
    """A router, and what it posted to the server or could not deliver."""

    def __init__(self, owner: Client | None = None) -> None:
        self.posted: list[dict[str, Any]] = []
        self.undelivered: list[str] = []
        self.router = Router(
            lambda line: self.posted.append(json.loads(line)), self.undelivered.append, owner
        )

    def receive(self, line: bytes | dict[str, Any]) -> None:
        self.router.receive(
            decode(line if isinstance(line, bytes) else json.dumps({"jsonrpc": "2.0", **line}).encode())
        )

    def open(self, client: Client, params: bytes = b'{"name":"t"}', *, id: bytes = b"1") -> Exchange:  # noqa: A002
        message = Message(jsonrpc="2.0", method="tools/call", **raw(id=id, params=params))
        exchange = Exchange(message, client, "srv", Timeouts(), clock=lambda: 0.0)
        self.sent = json.loads(self.router.open(exchange))
        return exchange

    def answer(self, exchange: Exchange, **result: Any) -> None:
        self.receive({"id": exchange.rewritten_id, "result": result})

    def handshake(self) -> None:
        """The proxy's own."""
        self.router.call("initialize", b"{}", lambda message: None)
        self.receive({"id": self.router._last_id, "result": {}})


def raw(**members: bytes) -> Any:
    return {
        name: decode(b'{"jsonrpc":"2.0","id":1,"result":%b}' % value).result
        for name, value in members.items()
    }


def client(name: str = "a", *capabilities: str) -> Client:
    made = Client(name)
    made.capabilities = frozenset(capabilities)
    return made


def listening(listener: Client) -> Inbox:
    inbox = Inbox()
    listener.attach(inbox)
    return inbox


def read(inbox: Inbox) -> list[dict[str, Any]]:
    return [json.loads(data) for data in inbox.drain()]


# -- ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw_id", [b"1", b'"1"', b"1.0", b"-7", b'"a\\u00e4\\n"', b"12345678901234567890", b'""']
)
async def test_an_answer_comes_back_with_exactly_the_id_that_the_client_wrote(raw_id: bytes) -> None:
    wire = Wire()
    exchange = wire.open(client(), id=raw_id)
    assert wire.sent["id"] == exchange.rewritten_id == 1
    wire.receive(b'{"jsonrpc":"2.0","id":1,"result":{"x": [1.50, "\\u00e4"]}}')
    assert exchange.final == b'{"jsonrpc":"2.0","id":%b,"result":{"x": [1.50, "\\u00e4"]}}' % raw_id
    assert exchange.outcome == "ok"
    assert wire.router.answered == 1


async def test_the_same_id_of_two_clients_is_two_exchanges() -> None:
    wire = Wire()
    one, other = wire.open(client("a")), wire.open(client("b"))
    wire.answer(other, whose="b")
    wire.answer(one, whose="a")
    assert b'"a"' in (one.final or b"")
    assert b'"b"' in (other.final or b"")


async def test_an_error_is_relayed_as_it_came() -> None:
    wire = Wire()
    exchange = wire.open(client(), id=b'"q"')
    wire.receive(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"no","data":{"a":1}}}')
    assert (
        exchange.final == b'{"jsonrpc":"2.0","id":"q","error":{"code":-32602,"message":"no","data":{"a":1}}}'
    )
    assert exchange.outcome == "rpc_error"


async def test_a_number_written_as_a_float_is_the_same_number() -> None:
    wire = Wire()
    exchange = wire.open(client(), b'{"_meta":{"progressToken":"t"}}')
    wire.receive(b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1.0}}')
    wire.receive(b'{"jsonrpc":"2.0","id":1.0,"result":{}}')
    assert exchange.messages == 1
    assert exchange.final is not None


async def test_a_number_written_as_text_is_another_id() -> None:
    wire = Wire()
    exchange = wire.open(client())
    wire.receive(b'{"jsonrpc":"2.0","id":"1","result":{}}')
    assert exchange.final is None


async def test_a_late_answer_and_a_second_answer_are_dropped() -> None:
    wire = Wire()
    late, twice = wire.open(client()), wire.open(client())
    assert wire.router.close(late)
    wire.answer(late)
    wire.answer(twice, first=True)
    wire.answer(twice, second=True)
    assert late.final is None
    assert b"first" in (twice.final or b"")
    assert wire.router.answered == 1
    assert not wire.router.close(twice)
    assert wire.undelivered == []


async def test_an_error_that_names_no_request_is_counted() -> None:
    """Perhaps it is about a notification, so it must not end the call that is in flight."""
    wire = Wire()
    exchange = wire.open(client())
    wire.receive(b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}')
    wire.receive(b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"?"}}')
    assert exchange.final is None
    assert wire.undelivered == ["response", "response"]


async def test_a_request_of_the_proxy_itself_gets_its_answer_and_is_no_exchange() -> None:
    wire, heard = Wire(), list[Message]()
    exchange = wire.open(client())
    line = wire.router.call("ping", b"{}", heard.append)
    assert json.loads(line) == {"jsonrpc": "2.0", "id": 2, "method": "ping", "params": {}}
    wire.receive({"id": 2, "result": {}})
    assert len(heard) == 1
    assert exchange.final is None
    assert wire.router.answered == 0


# -- progress -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [b"7", b'"7"', b'"\\u00e4\\""', b"1.50", b"-1"])
async def test_progress_goes_where_its_token_points_with_the_token_that_the_client_wrote(
    token: bytes,
) -> None:
    wire = Wire()
    params = b'{"name":"t","_meta":{"x": 1.0,"progressToken":%b},"arguments":{ "a" : 1}}' % token
    exchange, other = wire.open(client("a"), params), wire.open(client("b"), params)
    assert wire.sent["params"]["_meta"] == {"x": 1.0, "progressToken": other.rewritten_id}
    assert wire.sent["params"]["arguments"] == {"a": 1}
    number = exchange.rewritten_id
    wire.receive(
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%d,"progress":1.50}}'
        % number
    )
    (data,) = exchange.inbox.drain()
    assert b'"progressToken":%b' % token in data
    assert b'"progress":1.50' in data
    assert other.inbox.drain() == []


@pytest.mark.parametrize(
    "params",
    [
        b'{"progressToken":2}',  # known, but its client asked for none
        b'{"progressToken":3}',
        b'{"progressToken":"1"}',
        b'{"progressToken":null}',
        b'{"progressToken":{}}',
        b'{"progressToken":%b}' % (b"9" * 5000),
        b"{}",
        b"[]",
    ],
)
async def test_progress_for_nobody_is_counted(params: bytes) -> None:
    wire = Wire(client())
    one, other = wire.open(client(), b'{"_meta":{"progressToken":"t"}}'), wire.open(client())
    wire.receive(b'{"jsonrpc":"2.0","method":"notifications/progress","params":%b}' % params)
    assert one.messages == other.messages == 0
    assert wire.undelivered == ["notifications/progress"]


async def test_progress_after_the_answer_is_counted() -> None:
    wire = Wire(client())
    exchange = wire.open(client(), b'{"_meta":{"progressToken":"t"}}')
    wire.answer(exchange)
    wire.receive({"method": "notifications/progress", "params": {"progressToken": 1}})
    assert wire.undelivered == ["notifications/progress"]


async def test_the_progress_of_a_call_that_became_a_task_goes_to_the_session() -> None:
    """2025-11-25, "Tasks": the token of the request stays valid for the lifetime of the task."""
    owner = client()
    wire, inbox = Wire(owner), listening(owner)
    for number in range(MAX_TASK_TOKENS + 1):
        exchange = wire.open(owner, b'{"task":{},"_meta":{"progressToken":"t%d"}}' % number)
        wire.answer(exchange, task={"taskId": "x"})
    wire.receive({"method": "notifications/progress", "params": {"progressToken": exchange.rewritten_id}})
    assert [message["params"]["progressToken"] for message in read(inbox)] == [f"t{MAX_TASK_TOKENS}"]
    wire.receive(
        {"method": "notifications/progress", "params": {"progressToken": 1}}
    )  # the oldest was forgotten
    assert wire.undelivered == ["notifications/progress"]


# -- messages without an address ------------------------------------------------------------------------------


async def test_a_message_goes_to_the_only_exchange_in_flight() -> None:
    owner = client()
    for wire in (Wire(), Wire(owner)):
        stream = listening(owner)
        exchange = wire.open(owner)
        wire.receive(LOG)
        assert [message["method"] for message in read(exchange.inbox)] == ["notifications/message"]
        assert read(stream) == []


async def test_with_several_in_flight_it_goes_to_the_clients_stream() -> None:
    owner = client()
    for wire in (Wire(), Wire(owner)):
        stream = listening(owner)
        exchanges = [wire.open(owner), wire.open(owner)]
        wire.receive(LOG)
        assert len(read(stream)) == 1
        assert [exchange.messages for exchange in exchanges] == [0, 0]


async def test_with_several_in_flight_and_no_stream_it_goes_to_the_youngest() -> None:
    owner = client()
    for wire in (Wire(), Wire(owner)):
        old, young = wire.open(owner), wire.open(owner)
        wire.receive(LOG)
        assert (old.messages, young.messages) == (0, 1)


async def test_with_none_in_flight_it_goes_to_the_owner() -> None:
    owner = client()
    wire = Wire(owner)
    wire.receive(LOG)
    assert len(read(listening(owner))) == 1, "kept until a stream opens"


async def test_with_none_in_flight_and_no_owner_it_is_counted() -> None:
    wire = Wire()
    wire.answer(wire.open(client()))
    wire.receive(LOG)
    assert wire.undelivered == ["notifications/message"]


async def test_it_reaches_nobody_if_it_could_be_of_two_clients() -> None:
    wire, streams = Wire(), list[Inbox]()
    for name in "ab":
        each = client(name)
        streams.append(listening(each))
        wire.open(each)
    wire.receive(LOG)
    wire.receive(ROOTS)
    assert wire.undelivered == ["notifications/message", "roots/list"]
    assert [read(stream) for stream in streams] == [[], []]
    assert all(exchange.messages == 0 for exchange in wire.router.exchanges.values())
    assert wire.posted[0]["error"]["code"] == METHOD_NOT_FOUND


async def test_it_reaches_nobody_if_it_could_be_of_a_call_that_was_given_up() -> None:
    """The server may still work on it; once it has answered it, the other client is the only one."""
    wire = Wire()
    given_up, other = wire.open(client("a")), wire.open(client("b"))
    wire.router.close(given_up)
    wire.receive(LOG)
    assert other.messages == 0
    assert wire.undelivered == ["notifications/message"]
    wire.answer(given_up)
    wire.receive(LOG)
    assert other.messages == 1


async def test_lists_that_changed_concern_all_who_share_the_server() -> None:
    wire = Wire()
    audience = [client("a"), client("b")]
    wire.router.audience = lambda: audience
    exchange = wire.open(audience[0])
    for method in sorted(LIST_CHANGED):
        wire.receive({"method": method})
    assert exchange.messages == 0
    for each in audience:
        assert [message["method"] for message in read(each.pending)] == sorted(LIST_CHANGED)


async def test_a_changed_list_that_a_client_has_no_room_for_is_counted() -> None:
    wire, behind = Wire(), client()
    wire.router.audience = lambda: [behind]
    for _ in range(INBOX_MESSAGES + 2):
        wire.receive(TOOLS_CHANGED)
    assert wire.undelivered == ["notifications/tools/list_changed"] * 2


async def test_on_a_connection_of_one_client_a_changed_list_goes_the_usual_way() -> None:
    owner = client()
    wire = Wire(owner)
    exchange = wire.open(owner)
    wire.receive(TOOLS_CHANGED)
    assert exchange.messages == 1


async def test_line_breaks_between_tokens_do_not_reach_the_other_side() -> None:
    """One message is one line, in both directions."""
    wire = Wire()
    exchange = wire.open(client(), b'{"a":\r\n1,"_meta":{"progressToken":\n5}}')
    line = wire.router.open(exchange)
    wire.receive(b'{"jsonrpc":"2.0","method":"notifications/message","params":{\r\n"data":1}}')
    wire.receive(b'{"jsonrpc":"2.0","id":%d,"result":{\r\n"a":1}}' % exchange.rewritten_id)
    for data in (line, *exchange.inbox.drain(), exchange.final or b"\n"):
        assert b"\n" not in data
        assert b"\r" not in data


# -- what the server asks -------------------------------------------------------------------------------------


async def test_a_ping_is_answered_by_the_proxy() -> None:
    wire = Wire(client())
    wire.receive({"id": "p", "method": "ping"})
    assert wire.posted == [{"jsonrpc": "2.0", "id": "p", "result": {}}]


async def test_a_question_gets_an_id_of_the_clients_and_its_answer_the_servers() -> None:
    owner = client()
    wire = Wire(owner)
    exchange = wire.open(owner)
    wire.receive(ROOTS)
    wire.receive({"id": 1, "method": "elicitation/create", "params": {"_meta": {"progressToken": "mine"}}})
    first, second = read(exchange.inbox)
    assert (first["id"], first["method"]) == (1, "roots/list")
    assert (second["id"], second["params"]) == (2, {"_meta": {"progressToken": "mine"}})
    assert owner.asked[1].server_id == b'"r1"'
    assert owner.asked[2].progress_token == b'"mine"'
    owner.asked[1].reply(b'{"posted":true}')
    assert wire.posted == [{"posted": True}]


async def test_a_client_is_asked_only_what_it_can_do_if_the_proxy_made_the_handshake() -> None:
    """Then the server does not know it. With a handshake of its own, the client itself refuses."""
    able, unable = client("a", "roots"), client("b")
    for asked, owner, own, reached in [
        (able, None, True, True),
        (unable, None, True, False),
        (unable, unable, True, False),
        (unable, unable, False, True),
    ]:
        wire = Wire(owner)
        if own:
            wire.handshake()
        exchange = wire.open(asked)
        wire.receive(ROOTS)
        assert exchange.messages == reached
        assert wire.undelivered == ([] if reached else ["roots/list"])
        assert [message["error"]["code"] for message in wire.posted] == (
            [] if reached else [METHOD_NOT_FOUND]
        )


async def test_a_method_that_nobody_knows_is_relayed() -> None:
    wire = Wire()
    wire.handshake()
    exchange = wire.open(client())
    wire.receive({"id": 1, "method": "x/new"})
    assert exchange.messages == 1


async def test_too_many_open_questions_are_refused() -> None:
    owner = client()
    wire = Wire(owner)
    stream = listening(owner)
    for number in range(MAX_ASKED + 1):
        wire.receive({"id": number, "method": "roots/list"})
        read(stream)
    assert len(owner.asked) == MAX_ASKED
    assert wire.undelivered == ["roots/list"]
    (refused,) = wire.posted
    assert (refused["id"], refused["error"]["code"]) == (MAX_ASKED, INTERNAL_ERROR)


@pytest.mark.parametrize("requested", [b'"r1"', b'"r1","reason":"x"'])
async def test_a_question_taken_back_is_taken_back_under_the_clients_number(requested: bytes) -> None:
    owner = client()
    wire = Wire(owner)
    wire.open(owner)
    exchange = wire.open(owner)  # without a stream all goes to the youngest
    wire.receive(ROOTS)
    wire.receive(
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%b}}' % requested
    )
    asked, taken_back = read(exchange.inbox)
    assert taken_back["params"]["requestId"] == asked["id"] == 1
    assert owner.asked == {}


@pytest.mark.parametrize(
    "params", [b'{"requestId":"r2"}', b'{"requestId":null}', b'{"requestId":{}}', b"{}", b"[]"]
)
async def test_taking_back_what_was_not_asked_changes_nothing(params: bytes) -> None:
    owner = client()
    wire = Wire(owner)
    exchange = wire.open(owner)
    wire.receive(ROOTS)
    wire.receive(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":%b}' % params)
    assert len(read(exchange.inbox)) == 1
    assert list(owner.asked) == [1]


async def test_one_connection_cannot_take_back_the_question_of_another() -> None:
    asked = client()
    one, other = Wire(asked), Wire(asked)
    one.receive(ROOTS)
    other.receive({"id": "r2", "method": "roots/list"})
    other.receive({"method": "notifications/cancelled", "params": {"requestId": "r1"}})
    assert list(asked.asked) == [1, 2]


async def test_a_question_taken_back_from_a_client_that_does_not_read_is_counted() -> None:
    owner = client()
    wire = Wire(owner)
    stream = listening(owner)
    wire.receive(ROOTS)
    while stream.put(b"{}"):
        pass
    wire.receive({"method": "notifications/cancelled", "params": {"requestId": "r1"}})
    assert wire.undelivered == ["notifications/cancelled"]


@pytest.mark.parametrize("how", ["answered", "given up"])
async def test_on_a_shared_connection_a_question_ends_with_its_exchange(how: str) -> None:
    """The server is told, so that it does not wait; the client's late response then reaches nobody."""
    wire, asked = Wire(), client("a", "roots")
    first, second = wire.open(asked), wire.open(asked)
    wire.receive(ROOTS)
    wire.answer(first)
    assert list(asked.asked) == [1], "its client has another exchange here"
    wire.answer(second) if how == "answered" else wire.router.close(second)
    assert asked.asked == {}
    (told,) = wire.posted
    assert (told["id"], told["error"]["code"]) == ("r1", INTERNAL_ERROR)


async def test_on_a_connection_of_its_own_a_question_outlives_its_exchange() -> None:
    owner = client()
    wire = Wire(owner)
    exchange = wire.open(owner)
    wire.receive(ROOTS)
    wire.answer(exchange)
    assert list(owner.asked) == [1]


# -- the end --------------------------------------------------------------------------------------------------


async def test_cancellation_names_the_servers_number_and_the_reason() -> None:
    wire = Wire()
    wire.open(client())
    exchange = wire.open(client(), id=b'"mine"')
    line = wire.router.cancel_line(exchange, 'a "reason"\n')
    assert json.loads(line) == {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": 2, "reason": 'a "reason"\n'},
    }


async def test_when_the_connection_is_lost_every_exchange_fails_and_every_question_is_void() -> None:
    """Also questions to a client whose session has just let go of the connection."""
    owner = client()
    wire = Wire(owner)
    exchanges = [wire.open(owner), wire.open(owner)]
    wire.receive(ROOTS)
    wire.router.call("ping", b"{}", lambda message: pytest.fail("answered"))
    wire.router.owner = None
    wire.router.fail_all(lambda: UpstreamClosed("gone"))
    wire.receive({"id": 3, "result": {}})
    assert [type(exchange.error) for exchange in exchanges] == [UpstreamClosed, UpstreamClosed]
    assert owner.asked == {}
    assert wire.posted == []


async def test_a_question_of_another_connection_survives() -> None:
    asked = client()
    lost, alive = Wire(asked), Wire(asked)
    lost.receive(ROOTS)
    alive.receive(ROOTS)
    lost.router.fail_all(lambda: UpstreamClosed("gone"))
    assert list(asked.asked) == [2]


async def test_a_client_that_does_not_read_loses_its_exchange_and_the_server_is_told() -> None:
    wire, slow = Wire(), client()
    exchange, given_up = wire.open(slow), wire.open(slow)
    wire.router.close(given_up)
    for number in range(INBOX_MESSAGES + 5):
        wire.receive(LOG)
        assert (exchange.error is None) == (number < INBOX_MESSAGES)
    assert isinstance(exchange.error, UpstreamProtocolError)
    assert "the client reads too slowly: 1001 messages of 'srv'" in str(exchange.error)
    assert [message["params"] for message in wire.posted] == [
        {"requestId": exchange.rewritten_id, "reason": "the client reads too slowly"}
    ]
    assert len(wire.undelivered) == 5
    assert len(exchange.inbox.drain()) == INBOX_MESSAGES


async def test_progress_for_a_client_that_does_not_read_ends_its_exchange_too() -> None:
    wire = Wire(owner := client())
    exchange = wire.open(owner, b'{"_meta":{"progressToken":"t"}}')
    for _ in range(INBOX_MESSAGES + 1):
        wire.receive({"method": "notifications/progress", "params": {"progressToken": 1}})
    assert exchange.error is not None
    assert wire.undelivered == ["notifications/progress"]


async def test_a_question_to_a_client_that_does_not_read_is_refused() -> None:
    for owner in (None, client()):
        wire, asked = Wire(owner), owner or client()
        exchange = wire.open(asked)
        while exchange.deliver(b"{}"):
            pass
        wire.receive(ROOTS)
        assert exchange.error is not None
        assert asked.asked == {}
        assert wire.undelivered == ["roots/list"]
        assert [message["id"] for message in wire.posted if "error" in message] == ["r1"]


async def test_bytes_are_bounded_too_but_a_single_message_is_not_refused() -> None:
    wire = Wire(owner := client())
    exchange = wire.open(owner)
    big = {"method": "notifications/message", "params": {"data": "x" * (INBOX_BYTES + 1)}}
    wire.receive(big)
    assert exchange.error is None
    wire.receive(LOG)
    assert exchange.error is not None


# -- lines that were too long ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b'{"jsonrpc":"2.0","id":2,"result":{"content":[{"type":"te',
        b'{"id":2,"jsonrpc":"2.0","result":{',
        b' { "jsonrpc" : "2.0" , "id" : 2 , "error" : {"code": 1',
    ],
)
async def test_an_answer_that_is_too_long_ends_the_exchange_that_it_names(head: bytes) -> None:
    wire = Wire()
    other, exchange = wire.open(client()), wire.open(client())
    wire.router.oversized(head)
    assert isinstance(exchange.error, UpstreamProtocolError)
    assert "the answer of 'srv' to tools/call is longer than the proxy takes; raise max_message_bytes" in str(
        exchange.error
    )
    assert other.error is None


async def test_an_answer_that_is_too_long_and_ends_with_its_id_ends_the_only_exchange() -> None:
    """So the TypeScript SDK writes them."""
    wire = Wire()
    exchange = wire.open(client())
    wire.router.oversized(b'{"result":{"content":[{"type":"text","text":"aaaa')
    assert exchange.error is not None


@pytest.mark.parametrize(
    "head",
    [
        b'{"result":{"content":[{"type":"text","text":"aaaa',
        b'{"jsonrpc":"2.0","id":3,"result":{',
        b'{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{',
        b'{"jsonrpc":"2.0","method":"notifications/message","params":{"id":1,"result":',
        b"aaaaaaaaaaaaaaaaaaaaaaa",
        b"",
    ],
)
async def test_any_other_line_that_is_too_long_ends_nothing(head: bytes) -> None:
    wire = Wire()
    exchanges = [wire.open(client()), wire.open(client())]
    wire.router.oversized(head)
    assert all(exchange.error is None for exchange in exchanges)


async def test_it_is_not_taken_for_the_answer_of_one_exchange_if_another_was_given_up() -> None:
    wire = Wire()
    exchange, given_up = wire.open(client("a")), wire.open(client("b"))
    wire.router.close(given_up)
    wire.router.oversized(b'{"result":{"content":[{"type":"text","text":"aaaa')
    assert exchange.error is None


# -- isolation ------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["open", "open", "answer", "give up", "log", "log", "ask", "progress", "listen", "take back"]
        ),
        st.integers(0, 30),
    ),
    max_size=60,
)


@given(steps=STEPS)
async def test_whatever_happens_no_client_sees_what_another_caused(steps: list[tuple[str, int]]) -> None:
    """A server that shares its connection among three clients and marks each message with the call that caused it."""
    wire = Wire()
    clients = [client(name, "roots") for name in "abc"]
    open_calls: list[Exchange] = []
    given_up: list[Exchange] = []
    for what, number in steps:
        causes = [*open_calls, *given_up]  # a server may go on about a call that was given up
        if what == "open":
            caller = clients[number % 3]
            params = b'{"_meta":{"progressToken":"%b"}}' % caller.id.encode()
            open_calls.append(wire.open(caller, params, id=b'"%b"' % caller.id.encode()))
            continue
        if what == "listen":
            listening(clients[number % 3])
            continue
        if not causes:
            continue
        cause = causes[number % len(causes)]
        mark = {"of": cause.client.id}
        if what == "answer":
            wire.answer(cause, **mark)
            (open_calls if cause in open_calls else given_up).remove(cause)
        elif what == "give up" and cause in open_calls:
            wire.router.close(cause)
            open_calls.remove(cause)
            given_up.append(cause)
        elif what == "log":
            wire.receive({"method": "notifications/message", "params": mark})
        elif what == "ask":
            wire.receive({"id": f"q{number}", "method": "roots/list", "params": mark})
        elif what == "take back":
            wire.receive({"method": "notifications/cancelled", "params": {"requestId": f"q{number}"}})
        elif what == "progress":
            wire.receive(
                {"method": "notifications/progress", "params": {"progressToken": cause.rewritten_id, **mark}}
            )
        for each in (*open_calls, *given_up, cause):
            seen = [*each.inbox.drain(), *([each.final] if each.final else [])]
            assert all(said_of(data) in (each.client.id, None) for data in seen)
            assert each.final is None or json.loads(each.final)["id"] == each.client.id
    for someone in clients:
        for inbox in (someone.pending, *someone.streams):
            assert all(said_of(data) in (someone.id, None) for data in inbox.drain())


def said_of(data: bytes) -> str | None:
    message = json.loads(data)
    body = message.get("params", message.get("result", {}))
    if "progressToken" in body:
        assert body["progressToken"] == body["of"]
    found: str | None = body.get("of")
    return found
