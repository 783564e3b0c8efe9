"""The ring never waits for a reader, and a reader always learns what it missed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.flow.ring import READ_SIZE, Query, Reader, Ring
from nodenet.flow.types import EventType, Flow, FlowType, Lost, LostSource, Party, Verdict


def flow(number: int) -> Flow:
    nobody = Party(0)
    return Flow(number, number, FlowType.L3_L4, EventType.TRACE, 0, Verdict.FORWARDED, nobody, nobody)


def filled(capacity: int, count: int) -> Ring:
    ring = Ring(capacity)
    for number in range(1, count + 1):
        ring.append(flow(number))
    return ring


def drain(reader: Reader) -> list[object]:
    found: list[object] = []
    while True:
        batch = reader.read()
        found += [item.number if isinstance(item, Flow) else item for item in batch.items]
        if batch.done or reader.waiting:
            return found


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), [4, 5, 6, 7]),
        (Query(number=2), [6, 7]),
        (Query(number=99), [4, 5, 6, 7]),
        (Query(number=2, first=True), [4, 5]),
        (Query(since=6), [6, 7]),
        (Query(until=5), [4, 5]),
        (Query(since=5, until=6), [5, 6]),
        (Query(number=1, since=5, until=6), [6]),
        (Query(number=1, first=True, since=5), [5]),
        (Query(number=1, matches=lambda f: f.number % 2 == 0), [6]),
        (Query(number=1, first=True, matches=lambda f: f.number % 2 == 1), [5]),
        (Query(follow=True), []),
        (Query(follow=True, number=2), [6, 7]),
        (Query(follow=True, since=1), [4, 5, 6, 7]),
    ],
)
def test_where_a_query_begins_and_ends(query, expected):
    assert drain(Reader(filled(4, 7), query)) == expected


def test_a_query_that_does_not_follow_ends_where_it_began():
    ring = filled(8, 3)
    reader = Reader(ring, Query())
    ring.append(flow(4))
    batch = reader.read()
    assert [item.number for item in batch.items] == [1, 2, 3]
    assert batch.done


def test_a_follower_that_is_too_slow_learns_how_many_it_missed():
    ring = filled(4, 2)
    reader = Reader(ring, Query(follow=True))
    for number in range(3, 13):
        ring.append(flow(number))
    assert drain(reader) == [Lost(LostSource.READER, 6, 0, 9), 9, 10, 11, 12]
    assert ring.lost_by_readers == 6
    assert not reader.read().items


def test_losses_in_the_kernel_stand_where_they_happened_whatever_the_filter():
    ring = filled(8, 1)
    ring.append(Lost(LostSource.KERNEL, 40, 0, 2))
    ring.append(flow(2))
    assert drain(Reader(ring, Query(matches=lambda f: f.number == 2))) == [Lost(LostSource.KERNEL, 40, 0, 2), 2]
    assert (ring.seen, ring.lost) == (2, 40)


def test_one_read_looks_at_a_bounded_number_of_items():
    ring = filled(READ_SIZE * 3, READ_SIZE * 3)
    reader = Reader(ring, Query(matches=lambda f: f.number == READ_SIZE * 3))
    assert reader.read() == ([], False)
    assert reader.read() == ([], False)
    assert [item.number for item in reader.read().items] == [READ_SIZE * 3]


def test_a_ring_of_records_tells_what_a_reader_missed():
    ring: Ring[bytes] = Ring(2)
    reader = Reader(ring, Query(follow=True))
    for number in range(5):
        ring.append(bytes([number]))
    assert reader.read().items == [Lost(LostSource.READER, 3, 0, 0), b"\3", b"\4"]
    assert Reader(ring, Query(number=1)).read() == ([b"\4"], True)


def test_a_ring_keeps_at_least_one():
    with pytest.raises(ValueError, match="capacity: expected 1 or more, got 0"):
        Ring(0)
    with pytest.raises(IndexError):
        filled(2, 1).at(1)


@given(
    capacity=st.integers(1, 9),
    steps=st.lists(st.one_of(st.integers(1, 12), st.just("read")), max_size=30),
    number=st.integers(0, 12),
    odd=st.booleans(),
)
def test_a_follower_sees_or_misses_every_flow_once_and_in_order(capacity, steps, number, odd):
    """Against a list that forgets nothing: what arrives, plus what is reported lost, is everything."""
    ring, sent = Ring(capacity), 0
    reader = Reader(ring, Query(follow=True, matches=(lambda f: f.number % 2 == 1) if odd else None))
    seen: list[int] = []
    missed = 0

    def read() -> None:
        nonlocal missed
        for item in reader.read().items:
            if isinstance(item, Lost):
                missed += item.flows
            else:
                seen.append(item.number)

    for step in steps:
        if step == "read":
            read()
            continue
        for _ in range(int(step)):
            sent += 1
            ring.append(flow(sent))
    read()
    assert seen == sorted(set(seen))
    if odd:
        assert all(n % 2 for n in seen)
    else:
        assert len(seen) + missed == sent
    assert SimpleNamespace(seen=ring.seen, length=len(ring)) == SimpleNamespace(seen=sent, length=min(sent, capacity))
