"""The life of a connection is one table, and nothing moves outside it."""

from __future__ import annotations

import itertools

import pytest

from mcpdiag.connection.base import TRANSITIONS, Connection, ConnectionState, IllegalTransition, move
from mcpdiag.connection.scripted import ScriptedConnection

PAIRS = [*itertools.product(ConnectionState, repeat=2)]
LIFE = ["opening", "idle", "busy", "returning", "idle", "busy", "closing", "closed"]


@pytest.mark.parametrize(("old", "new"), [pair for pair in PAIRS if pair[1] in TRANSITIONS[pair[0]]])
def test_a_move_that_the_table_joins_gives_the_new_state(old: ConnectionState, new: ConnectionState) -> None:
    assert move(old, new) is new


@pytest.mark.parametrize(("old", "new"), [pair for pair in PAIRS if pair[1] not in TRANSITIONS[pair[0]]])
def test_any_other_move_raises_and_names_both_states(old: ConnectionState, new: ConnectionState) -> None:
    with pytest.raises(IllegalTransition, match=f"{old.value} -> {new.value}"):
        move(old, new)


def test_the_whole_life_of_a_connection_is_in_the_table() -> None:
    for old, new in itertools.pairwise(LIFE):
        move(ConnectionState(old), ConnectionState(new))


def test_every_state_leads_to_closed_and_nothing_leads_out_of_it() -> None:
    assert TRANSITIONS[ConnectionState.CLOSED] == frozenset()
    for state in ConnectionState:
        seen, ahead = {state}, {state}
        while ahead:
            ahead = {new for old in ahead for new in TRANSITIONS[old]} - seen
            seen |= ahead
        assert ConnectionState.CLOSED in seen


def test_a_connection_is_whatever_answers_the_questions_of_the_protocol() -> None:
    connection: Connection = ScriptedConnection()
    assert (connection.capacity, connection.healthy, connection.single_shot) == (1, True, False)
