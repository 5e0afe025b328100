"""The events that a session keeps: ids, bounds, what was dropped, who waits."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpdiag.protocol.sse import Decoder, Event
from mcpdiag.proxy.store import EventStore


def decoded(data: bytes) -> Event:
    (event,) = Decoder(1000).feed(data)
    return event


def test_ids_name_the_stream_and_the_event() -> None:
    store = EventStore()
    one, two = store.stream(), store.stream()
    ids = [decoded(stream.add(Event(b"{}"))).id for stream in (one, two, one, store.listening)]
    assert ids == [b"1-1", b"2-1", b"1-2", b"0-1"]
    assert store.find(b"1-1") == (one, 1)
    assert store.find(b"0-0") == (store.listening, 0)


def test_an_event_keeps_its_data_name_and_retry_but_not_the_servers_id() -> None:
    stream = EventStore().stream()
    event = decoded(stream.add(Event(b"a\nb", b"message", b"theirs", 7)))
    assert event == Event(b"a\nb", b"message", b"1-1", 7)
    here = decoded(stream.here())
    assert (here.id, here.data, here.has_data) == (b"1-1", b"", True)
    assert stream.last == 1


@pytest.mark.parametrize(
    "event_id", [b"", b"x", b"1", b"1-", b"-1", b"1-2", b"7-1", b"1-1-1", b"1-1 ", b"9" * 99]
)
def test_an_id_that_is_not_of_this_session_is_not_found(event_id: bytes) -> None:
    store = EventStore()
    store.stream().add(Event(b"{}"))
    assert store.find(event_id) is None


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300)), max_size=60),
    st.integers(1, 8),
    st.integers(1, 900),
)
def test_it_never_holds_more_than_its_bounds_and_counts_the_rest(
    adds: list[tuple[int, int]], max_events: int, max_bytes: int
) -> None:
    store = EventStore(max_events=max_events, max_bytes=max_bytes)
    streams = [store.listening, *(store.stream() for _ in range(3))]
    for number, size in adds:
        streams[number].add(Event(b"x" * size))
    kept = [each for stream in streams for each in stream.after(0)]
    size = sum(len(each.data) for each in kept)
    assert len(kept) <= max_events
    assert size <= max_bytes or len(kept) == 1
    assert len(kept) + store.dropped == len(adds)
    for stream in streams:  # what is kept is the newest of each, without gaps
        numbers = [each.number for each in stream.after(0)]
        assert numbers == [*range(stream.last - len(numbers) + 1, stream.last + 1)]


def test_a_stream_is_forgotten_with_its_last_event_once_it_is_done() -> None:
    store = EventStore(max_events=2)
    empty, full = store.stream(), store.stream()
    full.add(Event(b"1"))
    empty.close()
    full.close()
    assert store.find(b"1-0") is None
    assert store.find(b"2-1") == (full, 1)
    for _ in range(2):
        store.listening.add(Event(b"2"))
    assert store.find(b"2-1") is None
    assert store.find(b"0-1") is not None


@pytest.mark.anyio
async def test_a_reader_waits_for_the_next_event_and_for_the_end() -> None:
    stream = EventStore().stream()
    woken: list[int] = []

    async def read() -> None:
        while not stream.done:
            await stream.wait()
            woken.append(stream.last)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            for step in (lambda: stream.add(Event(b"1")), lambda: stream.add(Event(b"2")), stream.close):
                await anyio.wait_all_tasks_blocked()
                step()
    assert woken == [1, 2, 2]
