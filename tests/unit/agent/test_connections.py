"""The agent's collection of expired connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet import abi
from nodenet.abi import NatHalf
from nodenet.abi.carried import ct_lifetime
from nodenet.abi.numbers import CtFlag
from nodenet.agent.connections import ConnectionKeeper, collect, collect_flows
from nodenet.model import Direction, Protocol

NOW = 10_000
Kept = tuple[int, int, int, int]  # endpoint, protocol, flags, idle seconds


class FakeTable:
    """`reading` is called after each slice was read."""

    def __init__(self, rows: Sequence[Kept], reading: Callable[[], None] = lambda: None) -> None:
        self.max_entries = 4096
        self.entries = {key(port, row[1]): entry(*row) for port, row in enumerate(rows)}
        self.reading = reading
        self.broken = False

    def chunks(self) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        if self.broken:
            raise OSError(5, "broken")
        slices = list(self.entries.items())
        for start in range(0, len(slices), 3):
            self.reading()
            yield slices[start : start + 3]

    def lookup(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def remove(self, key: bytes) -> bool:
        return self.entries.pop(key, None) is not None


def key(port: int, protocol: int) -> bytes:
    return abi.CtKey(ip_address("10.0.0.1"), ip_address("10.0.0.2"), port, 80, protocol).pack()


def entry(endpoint: int, _protocol: int, flags: int, idle: int) -> bytes:
    return abi.CtEntry(NOW - idle, 2, 0, 0, Direction.EGRESS, flags, endpoint, 1).pack()


def test_flows_are_counted_by_the_service_that_they_called() -> None:
    table = FakeTable([(1, Protocol.TCP, CtFlag.SEEN_REPLY, 0)] * 4)
    for (known, value), service_id in zip(list(table.entries.items()), (7, 7, 8, 0), strict=True):
        table.entries[known] = abi.CtEntry.unpack(value)._replace(service_id=service_id).pack()
    assert collect(table, NOW, lambda: None).services == {7: 2, 8: 1}


def test_flows_from_outside_are_counted_by_their_service() -> None:
    table = FakeTable([])
    a, b = ip_address("203.0.113.9"), ip_address("10.0.0.2")

    def add(port: int, half: NatHalf, service_id: int, endpoint_id: int, idle: int = 0) -> None:
        key = abi.NatKey(a, b, port, 80, Protocol.TCP, half)
        flags = int(abi.NatFlag.SEEN_REPLY | abi.NatFlag.OPENED)
        entry = abi.NatEntry(a, b, port, 8080, NOW - idle, service_id, 1, 1, endpoint_id, flags)
        table.entries[key.pack()] = entry.pack()

    add(1, NatHalf.CLIENT, 7, 0)
    add(2, NatHalf.CLIENT, 7, 0)
    # The other half; a pod's flow, which nn_ct has; one that has expired.
    add(1, NatHalf.REPLY, 7, 0)
    add(3, NatHalf.CLIENT, 8, 5)
    add(4, NatHalf.CLIENT, 9, 0, 9000)
    assert collect_flows(table, NOW, lambda: None).services == {7: 2}


ROWS = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.sampled_from([Protocol.TCP, Protocol.UDP, Protocol.ICMP]),
        st.integers(0, 255),
        st.sampled_from([-1, 0, 9, 10, 11, 59, 60, 61, 179, 180, 181, 7999, 8000, 8001, 9999]),
    ),
    max_size=20,
)


@given(ROWS)
def test_what_the_programs_take_for_absent_is_deleted_and_the_rest_counted(rows: list[Kept]) -> None:
    table, pauses = FakeTable(rows), []
    count = collect(table, NOW, lambda: pauses.append(1))
    live = [row for row in rows if row[3] <= ct_lifetime(row[1], row[2])]
    assert len(table.entries) == len(live) == count.entries.total() == len(rows) - count.expired
    assert count.entries == {number: sum(row[0] == number for row in live) for number in {row[0] for row in live}}
    assert count.unanswered.total() == sum(not row[2] & CtFlag.SEEN_REPLY for row in live)
    assert len(pauses) == (len(rows) + 2) // 3


def test_a_flow_that_opens_anew_meanwhile_stays() -> None:
    table = FakeTable([(1, Protocol.UDP, 0, 61)])
    renewed = entry(1, Protocol.UDP, 0, 0)
    table.reading = lambda: table.entries.update({key(0, Protocol.UDP): renewed})
    assert collect(table, NOW, lambda: None).expired == 0
    assert list(table.entries.values()) == [renewed]


@pytest.mark.parametrize(
    ("protocol", "flags", "seconds"),
    [
        (Protocol.UDP, 0, 60),
        (Protocol.UDP, CtFlag.SEEN_REPLY, 180),
        (Protocol.TCP, 0, 60),
        (Protocol.TCP, CtFlag.SEEN_REPLY, 8000),
        (Protocol.TCP, CtFlag.SEEN_REPLY | CtFlag.FIN_FORWARD, 8000),
        (Protocol.TCP, CtFlag.SEEN_REPLY | CtFlag.FIN_FORWARD | CtFlag.FIN_REPLY, 10),
        (Protocol.TCP, CtFlag.SEEN_REPLY | CtFlag.RST, 10),
    ],
)
def test_lifetimes_are_those_of_the_programs(protocol: int, flags: int, seconds: int) -> None:
    assert ct_lifetime(protocol, flags) == seconds


async def test_the_keeper_tells_pods_and_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodenet.agent.connections.time.monotonic", lambda: float(NOW))
    monkeypatch.setattr("nodenet.agent.connections.SLICE_PAUSE_SECONDS", 0)
    udp, answered = Protocol.UDP, CtFlag.SEEN_REPLY
    table = FakeTable([(1, udp, 0, 1), (1, udp, answered, 1), (2, udp, answered, 1), (9, udp, 0, 1), (1, udp, 0, 70)])
    keeper = ConnectionKeeper(table, FakeTable([]), lambda: {1: "shop/a", 2: "shop/b"}, 60)
    await keeper.collect()
    await keeper.collect()
    assert keeper.expired == 1
    assert keeper.by_pod() == {
        ("shop/a", "answered"): 1,
        ("shop/a", "unanswered"): 1,
        ("shop/b", "answered"): 1,
        ("shop/b", "unanswered"): 0,
        ("", "answered"): 0,
        ("", "unanswered"): 1,
    }
    status = keeper.status()
    assert (status["entries"], status["size"], status["expired"]) == (4, 4096, 1)
    assert status["largest"] == {
        "shop/a": "2 entries, 1 unanswered",
        "shop/b": "1 entries, 0 unanswered",
        "(deleted pods)": "1 entries, 1 unanswered",
    }


async def test_a_map_that_cannot_be_read_is_a_problem_until_it_can() -> None:
    table = FakeTable([])
    keeper = ConnectionKeeper(table, FakeTable([]), dict, 60)
    table.broken = True
    await keeper.collect()
    assert keeper.problems == ["expired connections are not collected: [Errno 5] broken"]
    table.broken = False
    await keeper.collect()
    assert keeper.problems == []


OPEN = abi.NatFlag.SEEN_REPLY | abi.NatFlag.OPENED


def nat_flow(sport: int, idle: int, flags: int) -> dict[bytes, bytes]:
    pod, service, backend = map(ip_address, ("10.0.0.1", "10.96.0.1", "10.0.0.2"))
    client = abi.NatKey(pod, service, sport, 80, Protocol.UDP, 0)
    there = abi.NatEntry(pod, backend, sport, 8080, NOW - idle, 1, 2, 1, 7, flags)
    # The half of replies may be older: the client's one carries the flow's age.
    back = abi.NatEntry(service, pod, 80, sport, NOW - 9999, 1, 0, 0, 7, 0)
    return {client.pack(): there.pack(), there.other(client).pack(): back.pack()}


def test_an_expired_flow_loses_both_halves_and_others_none() -> None:
    table = FakeTable([])
    kept = nat_flow(1, 59, 0) | nat_flow(2, 179, OPEN)
    table.entries = nat_flow(3, 61, 0) | kept | nat_flow(4, 181, OPEN) | nat_flow(5, 61, abi.NatFlag.SEEN_REPLY)
    assert collect_flows(table, NOW, lambda: None).expired == 3
    assert table.entries == kept


def test_a_flow_with_source_translation_loses_all_four() -> None:
    def both(sport: int, idle: int) -> dict[bytes, bytes]:
        found = nat_flow(sport, idle, abi.NatFlag.HAS_SOURCE)
        client, backend, node = map(ip_address, ("10.0.0.1", "10.0.0.2", "10.9.0.1"))
        key = abi.NatKey(client, backend, sport, 8080, Protocol.UDP, abi.NatHalf.SOURCE_CLIENT)
        there = abi.NatEntry(node, backend, 50000 + sport, 8080, NOW - idle, 1, 0, 0, 0, 0)
        back = abi.NatEntry(backend, client, 8080, sport, NOW - 9999, 1, 0, 0, 0, 0)
        return found | {key.pack(): there.pack(), there.other(key).pack(): back.pack()}

    table = FakeTable([])
    table.entries = both(1, 61) | both(2, 59)
    assert collect_flows(table, NOW, lambda: None).expired == 1
    assert table.entries == both(2, 59)


def test_a_flow_that_is_used_again_while_it_is_read_stays() -> None:
    table, fresh = FakeTable([]), nat_flow(1, 0, 0)

    def read() -> Iterator[Sequence[tuple[bytes, bytes]]]:
        yield list(nat_flow(1, 99, 0).items())

    table.chunks = read  # type: ignore[method-assign]
    table.entries = fresh
    assert collect_flows(table, NOW, lambda: None).expired == 0
    assert table.entries == fresh


def test_an_expired_half_for_replies_without_its_client_is_deleted() -> None:
    table = FakeTable([])
    (client, _), (reply, back) = nat_flow(1, 0, 0).items()
    used = nat_flow(2, 0, 0)
    fresh = {
        key: abi.NatEntry.unpack(value)._replace(last_seen=NOW - 1).pack() for key, value in nat_flow(3, 0, 0).items()
    }
    fresh.pop(next(iter(fresh)))
    table.entries = {reply: back, **used, **fresh}
    assert client not in table.entries
    assert collect_flows(table, NOW, lambda: None).expired == 1
    assert table.entries == used | fresh
