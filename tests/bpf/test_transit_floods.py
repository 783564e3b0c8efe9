"""Floods from outside: one client, any number of forged ones, half-open connections. What others have stays."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether

from nodenet import abi
from nodenet.abi import EntryEnd, FairTable, NatHalf, carried, slots

from .conftest import TC_OK, TC_SHOT, Datapath
from .outside import NODE_PORT, PROOF, UPLINK, Outside, ask, serving
from .test_service_packets import ends, monotonic

pytestmark = pytest.mark.kernel

# 25 buckets of 16 slots.
ENTRIES, BUCKETS = 1024, 25
FLOWS = 30


@pytest.fixture(scope="module")
def small(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    sizes = {"nn_nat": ENTRIES, "nn_nat_slot": BUCKETS}
    yield from serving(bpffs, bpf_cache, "floods", sizes=sizes, trace_events=False)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def outside(request: pytest.FixtureRequest, small: Datapath) -> Outside:
    return Outside(small, request.param)


def opened(outside: Outside, client: str, port: int, *, real: bool = True) -> bool:
    """Open a TCP connection up to the answer; a `real` client acknowledges it."""
    run = outside.run("netdev_ingress", outside.call(ask(TCP, port), client), UPLINK)
    if run.verdict != TC_OK:
        return False
    there, far = Ether(run.packet)[outside.ip], False
    if ends(there)[2] == outside.far:
        there, far = outside.leaves(there), True
    answer = outside.answer(TCP, ends(there), flags="SA")
    outside.leaves(outside.enters(answer) if far else answer)
    if real:
        there = outside.enters(outside.call(TCP(sport=port, dport=NODE_PORT, **PROOF), client))
        if far:
            outside.leaves(there)
    return True


def forged(outside: Outside, number: int) -> str:
    first = int(ip_address("198.18.0.0" if outside.version == 4 else "2001:db8:1000::1"))
    return str(ip_address(first + number * (1 if outside.version == 4 else 1 << 64)))


def flows(outside: Outside) -> Counter[str]:
    return Counter(str(key.saddr) for key, _ in outside.tables["nn_nat"].items() if key.reply == NatHalf.CLIENT)


def test_one_client_evicts_its_own(outside: Outside) -> None:
    outside.serve(outside.near)
    assert all(opened(outside, outside.other, port) for port in range(1000, 1000 + FLOWS))
    assert all(opened(outside, outside.client, port) for port in range(1000, 2200))
    assert flows(outside)[outside.other] == FLOWS
    # Any address of an IPv6 /64 is the same client.
    if outside.version == 6:
        base = int(ip_address(outside.client)) >> 64 << 64
        assert all(opened(outside, str(ip_address(base + n)), 1000) for n in range(900))
        assert flows(outside)[outside.other] == FLOWS
    evicted = outside.tables["nn_metrics"].get(abi.MetricsKey.ended(FairTable.NAT, EntryEnd.EVICTED))
    assert sum(cpu.packets for cpu in evicted) > 600


def test_half_open_connections_of_forged_clients(outside: Outside) -> None:
    """They are answered by the backend, but no client acknowledges that."""
    outside.serve(outside.near)
    assert all(opened(outside, outside.other, port) for port in range(1000, 1000 + FLOWS))
    for number in range(1200):
        assert opened(outside, forged(outside, number), 1000, real=False)
    assert flows(outside)[outside.other] == FLOWS


@pytest.mark.parametrize("flags", ["P", "A", "PA", "RA", "FA"])
def test_forged_clients_that_go_on(outside: Outside, flags: str) -> None:
    """They send a second packet, but do not know the number of the SYN-ACK."""
    outside.serve(outside.near)
    assert all(opened(outside, outside.other, port) for port in range(1000, 1000 + FLOWS))
    for number in range(1200):
        client = forged(outside, number)
        assert opened(outside, client, 1000, real=False)
        outside.enters(outside.call(TCP(sport=1000, dport=NODE_PORT, flags=flags, ack=number), client))
    assert flows(outside)[outside.other] == FLOWS


def test_forged_datagrams(outside: Outside) -> None:
    """Any number of them, with answers: connections stay, also those that pods of other nodes would have."""
    outside.serve(outside.near)
    assert all(opened(outside, outside.other, port) for port in range(1000, 1000 + FLOWS))
    for number in range(1200):
        client = outside.far if number % 2 else forged(outside, number)
        for _ in range(2):
            there = ends(outside.enters(outside.call(ask(UDP, number + 1), client)))
            outside.leaves(outside.answer(UDP, there))
    assert flows(outside)[outside.other] == FLOWS
    for key, entry in outside.tables["nn_nat"].items():
        if key.protocol == 17 and key.reply == NatHalf.CLIENT:
            assert carried.nat_expired(key.pack(), entry._replace(last_seen=entry.last_seen - 61).pack(), monotonic())


def test_a_full_table_of_flows_with_source_translation(outside: Outside) -> None:
    """The slots would allow more flows of four entries than the table has room for. Each flow stays complete."""
    outside.serve(outside.far)
    assert sum(opened(outside, outside.client, port) for port in range(1000, 2000)) > 950
    halves: Counter[int] = Counter(key.reply for key, _ in outside.tables["nn_nat"].items())
    assert halves[NatHalf.CLIENT] > 150
    assert set(halves) == set(NatHalf)
    assert max(halves.values()) - min(halves.values()) <= 1


@pytest.mark.parametrize("orphans", [1, 2, 3])
def test_a_full_table_with_entries_that_belong_to_no_flow(outside: Outside, orphans: int) -> None:
    """Whichever of the four entries does not fit, another flow gives way."""
    outside.serve(outside.far)
    leave_orphans(outside, orphans)
    results = [opened(outside, outside.client, port) for port in range(1000, 1600)]
    assert results.count(False) == 0


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """What a program leaves in its context, the next one on this CPU finds."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_cpu")
def test_room_is_made_in_the_bucket_of_the_flow(outside: Outside) -> None:
    """Its client's half was there, so it claimed no slot. Another bucket, of the flow before it, loses nothing."""
    outside.serve(outside.far)
    assert opened(outside, outside.client, 1000, real=False)
    first = {key: entry for key, entry in outside.tables["nn_nat"].items() if key.reply & 2}
    for key in first:
        outside.tables["nn_nat"].delete(key)
    (known,) = (key for key, _ in outside.tables["nn_nat"].items() if key.reply == NatHalf.CLIENT)
    bucket = slots.place_of(known.pack(), BUCKETS)[0]
    other = next(
        port for port in range(1001, 1100) if slots.place_of(known._replace(sport=port).pack(), BUCKETS)[0] != bucket
    )
    assert opened(outside, outside.client, other)
    expired = outside.tables["nn_nat"].get(known)
    outside.tables["nn_nat"].update(known, expired._replace(last_seen=monotonic() - 100))
    leave_orphans(outside, ENTRIES - 6)
    run = outside.run("netdev_ingress", outside.call(ask(TCP, 1000), outside.client), UPLINK)
    assert run.verdict == TC_SHOT, "its bucket has no other flow"
    halves = Counter(key.reply for key, _ in outside.tables["nn_nat"].items() if key.dport != 9 and key.sport != 9)
    assert set(halves) >= set(NatHalf)


def leave_orphans(outside: Outside, count: int) -> None:
    """Entries that have no slot."""
    for number in range(count):
        key = abi.NatKey(ip_address(outside.near), ip_address(outside.near), 9, number + 1, 6, NatHalf.SOURCE_CLIENT)
        entry = abi.NatEntry(key.saddr, key.daddr, 9, number + 1, monotonic(), 0, 0, 0, 0, 0)
        outside.tables["nn_nat"].update(key, entry)
