"""Where the messages of a connection of the stateless era go, and that they go nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mcpdiag.config import Timeouts
from mcpdiag.errors import UpstreamClosed
from mcpdiag.protocol.message import decode
from mcpdiag.protocol.mirror import META_SUBSCRIPTION
from mcpdiag.upstream.client import Client
from mcpdiag.upstream.exchange import Exchange
from mcpdiag.upstream.stateless_router import StatelessRouter

pytestmark = pytest.mark.anyio


class Wire:
    """A router, what it has posted, and what it could give to nobody."""

    def __init__(self) -> None:
        self.posted: list[Any] = []
        self.lost: list[str] = []
        self.router = StatelessRouter(lambda line: self.posted.append(json.loads(line)), self.lost.append)

    def exchange(self, method: str, request_id: Any = 1) -> Exchange:
        message = decode(
            json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": {}}).encode()
        )
        exchange = Exchange(message, Client(""), "up", Timeouts(), clock=lambda: 0.0)
        if method == "subscriptions/listen":
            self.router.subscribe(exchange)
        else:
            self.router.open(exchange)
        return exchange

    def says(self, **message: Any) -> None:
        self.router.receive(decode(json.dumps({"jsonrpc": "2.0", **message}).encode()))

    def notifies(self, method: str, subscription: Any = None, **params: Any) -> None:
        meta = {} if subscription is None else {"_meta": {META_SUBSCRIPTION: subscription, "x": 1}}
        self.says(method=method, params={**params, **meta})


def got(exchange: Exchange) -> list[Any]:
    return [json.loads(data) for data in exchange.inbox.drain()]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.mark.parametrize("request_id", [7, "seven", 7.0, 'qu"ote'])
async def test_a_subscription_is_seen_under_the_clients_id(wire: Wire, request_id: Any) -> None:
    one, two = (
        wire.exchange("subscriptions/listen", request_id),
        wire.exchange("subscriptions/listen", request_id),
    )
    wire.notifies("notifications/resources/updated", two.rewritten_id, uri="a:b")
    params = {"uri": "a:b", "_meta": {META_SUBSCRIPTION: request_id, "x": 1}}
    assert got(two) == [{"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": params}]
    assert got(one) == []
    result = {"resultType": "complete", "_meta": {META_SUBSCRIPTION: one.rewritten_id}}
    wire.says(id=one.rewritten_id, result=result)
    assert one.final is not None
    assert json.loads(one.final)["id"] == request_id
    assert json.loads(one.final)["result"]["_meta"] == {META_SUBSCRIPTION: request_id}
    assert two.final is None


async def test_a_subscription_that_is_not_there_gets_nothing_and_neither_does_anybody_else(
    wire: Wire,
) -> None:
    listen, call = wire.exchange("subscriptions/listen"), wire.exchange("tools/call")
    for subscription in (99, call.rewritten_id, str(listen.rewritten_id), None):
        wire.notifies("notifications/tools/list_changed", subscription)
    assert got(listen) == got(call) == []
    assert wire.lost == ["notifications/tools/list_changed"] * 4


async def test_a_log_message_is_of_the_request_and_never_of_a_subscription(wire: Wire) -> None:
    listen = wire.exchange("subscriptions/listen")
    wire.notifies("notifications/message", data="nobody's")
    call = wire.exchange("tools/call")
    wire.notifies("notifications/message", data="the call's")
    other = wire.exchange("tools/call")
    wire.notifies("notifications/message", data="whose?")
    assert [each["params"]["data"] for each in got(call)] == ["the call's"]
    assert got(listen) == got(other) == []
    assert wire.lost == ["notifications/message"] * 2


async def test_a_server_that_asks_gets_no_answer(wire: Wire) -> None:
    """Not even to a ping: clients of this era write no responses."""
    call = wire.exchange("tools/call")
    for method in ("ping", "sampling/createMessage"):
        wire.says(id=1, method=method, params={})
    assert wire.posted == []
    assert got(call) == []
    assert wire.lost == ["ping", "sampling/createMessage"]


async def test_a_server_that_takes_a_subscription_back_ends_it_in_good_order(wire: Wire) -> None:
    listen = wire.exchange("subscriptions/listen", "mine")
    wire.notifies("notifications/cancelled", requestId=listen.rewritten_id, reason="shutting down")
    assert listen.final is not None
    assert json.loads(listen.final)["result"] == {
        "resultType": "complete",
        "_meta": {META_SUBSCRIPTION: "mine"},
    }
    assert not wire.router.close(listen)
    wire.says(id=listen.rewritten_id, result={})
    wire.notifies("notifications/cancelled", requestId=12345)


async def test_after_a_cancellation_nobody_gets_what_was_said_before_the_server_read_it(wire: Wire) -> None:
    gone, stays = wire.exchange("tools/call"), wire.exchange("tools/call")
    assert wire.router.close(gone)
    wire.notifies("notifications/message", data="whose?")
    wire.says(id=stays.rewritten_id, result={})  # of a request older than the cancellation: proves nothing
    later = wire.exchange("tools/call")
    wire.notifies("notifications/message", data="whose?")
    assert got(later) == []
    wire.says(id=later.rewritten_id, result={})
    last = wire.exchange("tools/call")
    wire.notifies("notifications/message", data="mine")
    assert [each["params"]["data"] for each in got(last)] == ["mine"]


async def test_the_end_of_the_connection_is_the_end_of_subscriptions_too(wire: Wire) -> None:
    listen, call = wire.exchange("subscriptions/listen"), wire.exchange("tools/call")
    wire.router.fail_all(lambda: UpstreamClosed("gone"))
    assert isinstance(listen.error, UpstreamClosed)
    assert isinstance(call.error, UpstreamClosed)
    assert not wire.router.close(listen)
