"""The books of the pool, with no event loop: every decision is a plain call, and the numbers always add up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mcpdiag.config import PoolLimits
from mcpdiag.connection.base import ConnectionState, IllegalTransition
from mcpdiag.connection.scripted import Script, ScriptedConnection
from mcpdiag.pool.ledger import Ledger, Slot
from mcpdiag.pool.waiter import Waiter
from tests.pool.harness import check_books

Books = Ledger[ScriptedConnection]
Place = Slot[ScriptedConnection]
BUSY = ConnectionState.BUSY
PLAIN = Script()


def books(jitter: float = 0.0, **limits: Any) -> Books:
    return Ledger(PoolLimits(**{"max_connections": 3, **limits}), jitter=lambda: jitter)


def opened(ledger: Books, now: float = 0.0, script: Script = PLAIN) -> Place:
    """A place with a connection that was opened just now."""
    slot = ledger.reserve()
    assert slot is not None
    ledger.opened(slot, ScriptedConnection(script), now, 0.5)
    return slot


def connection_of(slot: Place) -> ScriptedConnection:
    assert slot.connection is not None
    return slot.connection


def queue(ledger: Books, *, exclusive: bool = False, opening: bool = False) -> Waiter[ScriptedConnection]:
    waiter: Waiter[ScriptedConnection] = Waiter(0.0, exclusive=exclusive)
    waiter.opening = opening
    ledger.waiters.append(waiter)
    return waiter


def returned(ledger: Books, slot: Place, now: float = 0.0) -> None:
    assert ledger.release(slot)
    ledger.returned(slot, now)


# -- handing out -------------------------------------------------------------------------------------------


def test_there_are_never_more_places_than_max_connections() -> None:
    ledger = books()
    assert all(ledger.reserve() for _ in range(3))
    assert ledger.reserve() is None
    assert ledger.size == 3


def test_the_freshest_idle_connection_is_used_first_so_that_the_rest_can_expire() -> None:
    ledger = books()
    first, second = opened(ledger), opened(ledger)
    assert ledger.take() is second
    assert ledger.take() is first
    assert ledger.take() is None
    assert ledger.stats().acquires_ready == 2


def test_an_idle_connection_that_was_lost_is_doomed_instead_of_handed_out() -> None:
    ledger = books()
    healthy, lost = opened(ledger), opened(ledger)
    connection_of(lost).lose()
    assert ledger.take() is healthy
    assert ledger.take_doomed() == [lost]
    assert ledger.count.closed_lost == 1


def test_the_first_lease_of_a_connection_is_no_reuse_and_every_further_one_is() -> None:
    ledger = books()
    slot = opened(ledger)
    for _ in range(3):
        assert ledger.take() is slot
        returned(ledger, slot)
    assert ledger.stats().reuses == 2


def test_a_shared_connection_with_room_is_preferred_to_an_idle_one_and_the_emptiest_to_a_fuller_one() -> None:
    ledger = books()
    first, second = (opened(ledger, script=Script(capacity=3)) for _ in range(2))
    assert [ledger.take() for _ in range(4)] == [second, second, second, first]
    ledger.release(second)
    ledger.release(second)  # one exchange left on each: a draw goes to the one that was busy first
    assert ledger.take() is second
    assert ledger.take() is first


def test_nobody_joins_an_exclusive_lease() -> None:
    ledger = books()
    slot = opened(ledger, script=Script(capacity=9))
    assert ledger.take(exclusive=True) is slot
    assert ledger.take() is None
    returned(ledger, slot)
    assert [ledger.take(), ledger.take()] == [slot, slot]


def test_an_exclusive_lease_is_never_of_a_connection_that_others_use() -> None:
    ledger = books()
    shared = opened(ledger, script=Script(capacity=9))
    assert ledger.take() is shared
    assert ledger.take(exclusive=True) is None


def test_nobody_joins_a_shared_connection_that_was_lost() -> None:
    ledger = books()
    slot = opened(ledger, script=Script(capacity=9))
    assert ledger.take() is slot
    connection_of(slot).lose()
    assert ledger.take() is None


# -- waiters -----------------------------------------------------------------------------------------------


def test_waiters_are_served_in_the_order_of_arrival() -> None:
    ledger = books(max_connections=1)
    slot = opened(ledger)
    ledger.take()
    waiters = [queue(ledger) for _ in range(3)]
    for waiter in waiters:
        returned(ledger, slot, now=2.0)
        assert waiter.slot is slot
        assert ledger.accepted(waiter, 2.0) is slot
    assert (ledger.count.acquires_waited, ledger.count.wait_s, ledger.count.reuses) == (3, 6.0, 3)


def test_a_waiter_that_has_left_is_passed_over() -> None:
    ledger = books(max_connections=1)
    slot = opened(ledger)
    ledger.take()
    gone, stays = queue(ledger), queue(ledger)
    gone.leave()
    returned(ledger, slot)
    assert (gone.slot, stays.slot) == (None, slot)


def test_a_caller_that_goes_away_leaves_the_queue_and_takes_nothing_more() -> None:
    ledger = books()
    waiter = queue(ledger)
    for _ in range(2):
        ledger.leave(waiter)
    assert (ledger.stats().waiting, waiter.pending) == (0, False)


def test_an_offer_counts_as_a_lease_only_once_the_caller_takes_it() -> None:
    ledger = books(max_connections=1)
    waiter = queue(ledger, opening=True)
    slot = opened(ledger)
    assert waiter.slot is slot
    assert ledger.stats().acquires == 0
    assert ledger.release(slot, unused=True)
    ledger.returned(slot, 0.0)
    assert ledger.take() is slot
    assert (ledger.stats().acquires, ledger.stats().reuses, ledger.stats().returns) == (1, 0, 0)


def test_a_new_shared_connection_serves_as_many_waiters_as_it_has_room_for() -> None:
    ledger = books()
    waiters = [queue(ledger, opening=True) for _ in range(4)]
    slot = opened(ledger, script=Script(capacity=3))
    assert [waiter.slot for waiter in waiters] == [slot, slot, slot, None]


def test_room_that_comes_free_on_a_shared_connection_goes_to_the_first_waiter_that_shares() -> None:
    ledger = books(max_connections=1)
    slot = opened(ledger, script=Script(capacity=2))
    ledger.take()
    ledger.take()
    first, second = queue(ledger), queue(ledger)
    assert not ledger.release(slot)
    ledger.share()
    assert (first.slot, second.slot) == (slot, None)


def test_nobody_new_joins_the_emptiest_shared_connection_while_a_caller_waits_for_one_of_its_own() -> None:
    ledger = books(max_connections=1)
    slot = opened(ledger, script=Script(capacity=9))
    ledger.take()
    exclusive, sharing = queue(ledger, exclusive=True), queue(ledger)
    ledger.share()
    assert ledger.take() is None
    assert sharing.slot is None
    returned(ledger, slot)
    assert exclusive.slot is slot
    assert sharing.slot is None
    returned(ledger, slot)
    assert sharing.slot is slot


def test_the_fuller_shared_connections_stay_open_to_all_while_one_is_emptied_for_a_caller() -> None:
    ledger = books(max_connections=2)
    for _ in range(2):
        opened(ledger, script=Script(capacity=3))
    fuller, _, _, emptier = [ledger.take() for _ in range(4)]
    assert fuller is not None
    assert not ledger.release(fuller)
    queue(ledger, exclusive=True)
    sharing, late = queue(ledger), queue(ledger)
    ledger.share()
    assert (sharing.slot, late.slot) == (fuller, None)
    assert fuller is not emptier


def test_those_who_share_do_not_fill_up_a_connection_over_the_head_of_one_who_wants_it_alone() -> None:
    ledger = books(max_connections=1)
    slot = opened(ledger, script=Script(capacity=9))
    ledger.take(exclusive=True)
    first, exclusive, last = queue(ledger), queue(ledger, exclusive=True), queue(ledger)
    returned(ledger, slot)
    assert (first.slot, exclusive.slot, last.slot) == (slot, None, None)


def test_an_exclusive_caller_for_whom_a_connection_is_being_opened_spares_none() -> None:
    ledger = books()
    slot = opened(ledger, script=Script(capacity=9))
    ledger.take()
    queue(ledger, exclusive=True, opening=True)
    assert ledger.take() is slot


def test_sharing_passes_over_an_exclusive_caller_where_another_connection_is_spared_for_it() -> None:
    ledger = books(max_connections=2)
    first, second = (opened(ledger, script=Script(capacity=3)) for _ in range(2))
    assert [ledger.take() for _ in range(6)].count(first) == 3
    exclusive, sharing = queue(ledger, exclusive=True), queue(ledger)
    ledger.release(first)
    ledger.release(first)
    ledger.release(second)
    ledger.share()
    assert (exclusive.slot, sharing.slot) == (None, second)


def test_a_free_place_is_opened_for_the_first_waiter_without_an_open() -> None:
    ledger = books(max_connections=2)
    queue(ledger, opening=True)
    ledger.reserve()
    second = queue(ledger)
    due = ledger.next_open()
    assert due is not None
    assert due[1] is second
    second.expect_open()
    queue(ledger)
    assert ledger.next_open() is None, "the pool is full"


def test_nothing_is_opened_if_every_waiter_has_an_open_under_way() -> None:
    ledger = books()
    queue(ledger, opening=True)
    assert ledger.next_open() is None


# -- taking back -------------------------------------------------------------------------------------------


def test_a_connection_given_back_as_not_reusable_is_doomed_and_its_place_is_free() -> None:
    ledger = books(max_connections=1)
    slot = opened(ledger)
    ledger.take()
    assert not ledger.release(slot, reusable=False)
    assert ledger.take_doomed() == [slot]
    assert ledger.reserve() is not None
    assert (ledger.stats().returns, ledger.stats().returns_bad, ledger.stats().closing) == (1, 1, 1)
    assert (ledger.count.closed_single_shot, ledger.count.closed_lost) == (0, 0)


def test_a_shared_connection_is_kept_for_the_others_when_one_exchange_goes_wrong() -> None:
    ledger = books()
    slot = opened(ledger, script=Script(capacity=2))
    ledger.take()
    ledger.take()
    assert not ledger.release(slot, reusable=False)
    assert slot.state is BUSY
    assert ledger.take_doomed() == []


def test_a_return_to_the_books_of_a_closed_connection_only_counts() -> None:
    ledger = books()
    slot = opened(ledger)
    ledger.take()
    ledger.doom_leased()
    ledger.closed(slot)
    assert not ledger.release(slot)
    ledger.returned(slot, 0.0)
    assert ledger.stats().returns == 1
    assert ledger.size == 0


def test_a_connection_that_was_lost_while_leased_is_doomed_when_it_comes_back() -> None:
    ledger = books()
    slot = opened(ledger)
    ledger.take()
    connection_of(slot).lose()
    returned(ledger, slot)
    assert ledger.take_doomed() == [slot]
    assert ledger.count.closed_lost == 1


@pytest.mark.parametrize("reusable", [True, False])
def test_a_single_shot_connection_is_counted_as_such_however_it_is_given_back(reusable: bool) -> None:
    ledger = books()
    slot = opened(ledger, script=Script(single_shot=True))
    ledger.take()
    with connection_of(slot).exchange():
        pass
    if ledger.release(slot, reusable=reusable):
        ledger.returned(slot, 0.0)
    assert ledger.take_doomed() == [slot]
    assert (ledger.count.closed_single_shot, ledger.count.closed_lost) == (1, 0)


def test_a_connection_older_than_max_lifetime_is_not_reused() -> None:
    ledger = books(max_lifetime=100.0)
    slot = opened(ledger, now=10.0)
    ledger.take()
    returned(ledger, slot, now=110.0)
    assert ledger.take_doomed() == [slot]
    assert ledger.count.closed_lifetime == 1


@pytest.mark.parametrize(("jitter", "expires_at"), [(0.0, 110.0), (0.5, 105.0), (1.0, 100.0)])
def test_the_jitter_takes_up_to_a_tenth_off_max_lifetime(jitter: float, expires_at: float) -> None:
    assert opened(books(jitter, max_lifetime=100.0), now=10.0).expires_at == pytest.approx(expires_at)


def test_a_return_that_finds_no_room_on_the_channel_is_doomed_and_counted() -> None:
    ledger = books(max_connections=1)
    slot = opened(ledger)
    ledger.take()
    assert ledger.release(slot)
    ledger.overflowed(slot)
    assert ledger.take_doomed() == [slot]
    assert ledger.count.return_overflows == 1
    assert ledger.reserve() is not None


# -- expiry and shutting -----------------------------------------------------------------------------------


def test_idle_connections_expire_the_stalest_first_and_min_connections_stay() -> None:
    ledger = books(min_connections=1, idle_timeout=60.0)
    slots = [opened(ledger, now=float(now)) for now in (0, 30, 50)]
    ledger.expire(60.0)
    assert ledger.take_doomed() == slots[:1]
    ledger.expire(1000.0)
    assert ledger.take_doomed() == slots[1:2]
    assert ledger.count.closed_idle == 2
    assert ledger.take() is slots[2]


def test_old_and_lost_connections_go_even_below_min_connections() -> None:
    ledger = books(min_connections=3, max_lifetime=100.0)
    old, young, lost = opened(ledger, now=0.0), opened(ledger, now=50.0), opened(ledger, now=50.0)
    connection_of(lost).lose()
    ledger.expire(100.0)
    assert ledger.take_doomed() == [old, lost]
    assert (ledger.count.closed_lifetime, ledger.count.closed_lost) == (1, 1)
    assert ledger.take() is young


def test_busy_connections_count_as_warm_but_are_not_expired_under_their_lease() -> None:
    ledger = books(min_connections=1, idle_timeout=60.0, max_lifetime=100.0)
    idle, busy = opened(ledger), opened(ledger)
    assert ledger.take() is busy
    ledger.expire(1000.0)
    assert ledger.take_doomed() == [idle]
    assert busy.state is BUSY


def test_an_old_shared_connection_under_steady_load_takes_nobody_new_so_that_it_can_be_replaced() -> None:
    ledger = books(max_lifetime=100.0)
    slot = opened(ledger, script=Script(capacity=9))
    ledger.take()
    ledger.expire(99.0)
    assert ledger.take() is slot
    ledger.expire(100.0)
    assert ledger.take() is None
    ledger.release(slot)
    returned(ledger, slot, now=100.0)
    assert ledger.count.closed_lifetime == 1


def test_an_old_shared_connection_goes_on_while_there_is_no_place_for_another() -> None:
    ledger = books(max_connections=1, max_lifetime=100.0)
    slot = opened(ledger, script=Script(capacity=9))
    ledger.take()
    ledger.expire(1000.0)
    assert ledger.take() is slot


def test_a_connection_that_tells_that_it_was_lost_is_doomed_at_once_if_idle_and_on_return_if_busy() -> None:
    ledger = books()
    busy, idle = opened(ledger), opened(ledger)
    assert ledger.take() is idle
    idle, busy = busy, idle
    for slot in (busy, idle):
        connection_of(slot).lose()
        ledger.lost(connection_of(slot))
    assert ledger.take_doomed() == [idle]
    assert busy.state is BUSY


def test_shutting_dooms_what_is_idle_hands_over_the_waiters_and_admits_nobody() -> None:
    ledger = books()
    idle, busy = opened(ledger), opened(ledger)
    assert ledger.take() is busy
    waiter = queue(ledger)
    assert ledger.shut() == [waiter]
    assert ledger.shut() == []
    assert ledger.take_doomed() == [idle]
    assert ledger.reserve() is None


def test_while_shutting_whatever_comes_back_or_is_opened_late_is_doomed() -> None:
    ledger = books()
    late, busy = ledger.reserve(), opened(ledger)
    assert late is not None
    assert ledger.take() is busy
    ledger.shut()
    returned(ledger, busy)
    ledger.opened(late, ScriptedConnection(), 0.0, 0.0)
    assert ledger.take_doomed() == [busy, late]


def test_an_illegal_move_raises_instead_of_spoiling_the_numbers() -> None:
    ledger = books()
    slot = opened(ledger)
    with pytest.raises(IllegalTransition, match="idle -> closed"):
        ledger.closed(slot)


def test_a_cancelled_open_is_no_error_but_frees_its_place() -> None:
    ledger = books(max_connections=2)
    first, second = ledger.reserve(), ledger.reserve()
    assert first is not None
    assert second is not None
    ledger.open_failed(first)
    ledger.open_failed(second, cancelled=True)
    assert (ledger.count.open_errors, ledger.size) == (1, 0)


# -- any order of all that ---------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, the numbers add up and nobody waits beside an idle connection."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = books(jitter=0.5, min_connections=1, max_lifetime=50.0, idle_timeout=9.0)
        self.now = 0.0
        self.opening: list[Place] = []
        self.leases: list[Place] = []
        self.channel: list[Place] = []
        self.waiters: list[Waiter[ScriptedConnection]] = []

    @rule(exclusive=st.booleans())
    def acquire(self, exclusive: bool) -> None:
        if self.ledger.shutting:
            return
        slot = self.ledger.take(exclusive=exclusive)
        if slot is not None:
            self.leases.append(slot)
            return
        place = self.ledger.reserve()
        self.waiters.append(queue(self.ledger, exclusive=exclusive, opening=place is not None))
        if place is not None:
            self.opening.append(place)

    @precondition(lambda self: self.opening)
    @rule(data=st.data(), capacity=st.sampled_from([1, 1, 3]), dead=st.booleans(), fails=st.booleans())
    def open_ends(self, data: st.DataObject, capacity: int, dead: bool, fails: bool) -> None:
        slot = self.opening.pop(data.draw(st.integers(0, len(self.opening) - 1)))
        if fails:
            self.ledger.open_failed(slot, cancelled=dead)
            return
        connection = ScriptedConnection(
            Script(capacity=capacity, single_shot=capacity == 1 and self.now > 30.0)
        )
        connection.lost = dead
        self.ledger.opened(slot, connection, self.now, 0.1)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), reusable=st.booleans(), used=st.booleans())
    def release(self, data: st.DataObject, reusable: bool, used: bool) -> None:
        slot = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        connection = connection_of(slot)
        if used and connection.healthy and connection.inflight < connection.capacity:
            with connection.exchange():
                pass
        if self.ledger.release(slot, reusable=reusable):
            if len(self.channel) >= 2:
                self.ledger.overflowed(slot)
            else:
                self.channel.append(slot)

    @precondition(lambda self: self.channel)
    @rule()
    def drain(self) -> None:
        self.ledger.returned(self.channel.pop(0), self.now)

    @precondition(lambda self: self.waiters)
    @rule(data=st.data(), cancelled=st.booleans())
    def waiter_wakes(self, data: st.DataObject, cancelled: bool) -> None:
        waiter = self.waiters.pop(data.draw(st.integers(0, len(self.waiters) - 1)))
        if waiter.slot is not None and not cancelled:
            self.leases.append(self.ledger.accepted(waiter, self.now))
            return
        self.ledger.leave(waiter)
        if waiter.slot is not None and self.ledger.release(waiter.slot, unused=True):
            self.channel.append(waiter.slot)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def server_ends_one(self, data: st.DataObject) -> None:
        connection = connection_of(data.draw(st.sampled_from(self.leases)))
        connection.lose()
        self.ledger.lost(connection)

    @rule(seconds=st.sampled_from([0.0, 5.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.ledger.expire(self.now)

    @rule()
    def shell_settles(self) -> None:
        for slot in self.ledger.take_doomed():
            self.ledger.closed(slot)
        self.ledger.share()
        while (due := self.ledger.next_open()) is not None:
            due[1].expect_open()
            self.opening.append(due[0])

    @rule(now=st.sampled_from([False] * 9 + [True]))
    def shut(self, now: bool) -> None:
        if now:
            self.ledger.shut()
            self.ledger.doom_leased()

    @invariant()
    def numbers_add_up(self) -> None:
        check_books(self.ledger)
        stats = self.ledger.stats()
        assert stats.acquires == stats.returns + len(self.leases)
        assert stats.opening == len(self.opening)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
