"""nn_frag is fair: a pod that sends first fragments without end makes only its own later fragments fail."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.compat import raw
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nodenet import abi
from nodenet.bpf import loader
from nodenet.bpf.packet_run import run_packet
from nodenet.bpf.rawtable import RawTable
from nodenet.model import Direction, Identity

from .conftest import POD_MAC, TC_OK, TC_SHOT, TEST_IFINDEX, Datapath

pytestmark = pytest.mark.kernel

# 12 buckets of 16 slots.
ENTRIES, BUCKETS = 240, 12
SLOTS = BUCKETS * 16
ATTACKER, VICTIM = "10.0.1.1", "10.0.1.2"
PEER, HELPER = "10.0.2.2", "10.0.2.9"  # pods of other nodes
OUTSIDE, CLIENT = "203.0.113.9", "198.51.100.7"
ISOLATED = abi.EndpointFlag.ISOLATED_INGRESS | abi.EndpointFlag.ISOLATED_EGRESS
MINE, PEERS, HELPERS = 2000, 3000, 4000
LIFETIME = (30 * 10**9 >> 20) + 2
# 26 and 52 days: half of the clock of the table, and almost all of it.
STALE = (2**31 + 2000, 2**32 - 20000)
COUNT = 12


@pytest.fixture(scope="module")
def small(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    sizes = {"nn_frag": ENTRIES, "nn_frag_slot": BUCKETS}
    made = Datapath(bpffs / "fairfrag", bpf_cache, loader.DatapathConfig(trace_events=False, sizes=sizes))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def node(small: Datapath) -> Datapath:
    """The victim is isolated: a later fragment passes only if its first one is known."""
    small.reset()
    with closing(RawTable("nn_frag", small.pins.map("nn_frag"))) as table:
        for key, _ in list(table.raw()):
            table.remove(key)
    for address, identity, number, flags in ((ATTACKER, 1000, 1, 0), (VICTIM, MINE, 2, ISOLATED)):
        entry = abi.always(abi.EndpointEntry(TEST_IFINDEX, identity, number, flags, POD_MAC))
        small.tables["nn_endpoint"].update(abi.AddressKey(ip_address(address)), entry)
    for address, identity in ((PEER, PEERS), (HELPER, HELPERS), (CLIENT, int(Identity.WORLD))):
        small.identity(address, identity)
    for direction in (Direction.EGRESS, Direction.INGRESS):
        for identity in (PEERS, HELPERS, int(Identity.WORLD)):
            small.allow(MINE, identity, direction, 17, 53)
    return small


def piece(source: str, target: str, number: int, at: int, *, more: bool = True) -> bytes:
    """A fragment of a datagram to port 53."""
    body = struct.pack("!HHHH", 4000, 53, 64, 0) + bytes(24) if at == 0 else bytes(32)
    flags = "MF" if more else 0
    packet = IP(src=source, dst=target, id=number, flags=flags, frag=at // 8, proto=17) / Raw(body)
    return raw(Ether(src=POD_MAC, dst="02:00:00:00:00:bb") / packet)


def verdict(node: Datapath, frame: bytes, *, inwards: bool = False) -> int:
    return run_packet(node.loaded.programs["endpoint_ingress" if inwards else "endpoint_egress"], frame).verdict


def begin(
    node: Datapath, count: int = COUNT, source: str = VICTIM, target: str = PEER, *, inwards: bool = False
) -> None:
    for number in range(count):
        assert verdict(node, piece(source, target, 1 + number, 0), inwards=inwards) == TC_OK


def finished(
    node: Datapath, count: int = COUNT, source: str = VICTIM, target: str = PEER, *, inwards: bool = False
) -> int:
    """How many of the datagrams that `begin` began can be completed."""
    frames = (piece(source, target, 1 + number, 32, more=False) for number in range(count))
    return sum(verdict(node, frame, inwards=inwards) == TC_OK for frame in frames)


def flood(node: Datapath, source: str, target: str, count: int = 2000, *, inwards: bool = False) -> None:
    template = bytearray(piece(source, target, 0, 0))
    for number in range(count):
        template[18:20] = (number % 65536).to_bytes(2, "big")  # IPv4's identification
        template[24:26] = bytes(2)
        template[24:26] = checksum(template[14:34])
        assert verdict(node, bytes(template), inwards=inwards) == TC_OK


def checksum(header: bytes | bytearray) -> bytes:
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")


def entries(node: Datapath) -> int:
    with closing(RawTable("nn_frag", node.pins.map("nn_frag"))) as table:
        return len(list(table.raw()))


def ended(node: Datapath) -> tuple[int, int]:
    """Entries of nn_frag that expired, and that were evicted, by the programs' count."""
    table = node.tables["nn_metrics"]
    keys = (abi.MetricsKey.ended(abi.FairTable.FRAG, end) for end in abi.EntryEnd)
    expired, evicted, refused = (sum(cpu.packets for cpu in table.get(key)) for key in keys)
    assert refused == 0
    return expired, evicted


def test_a_flood_of_first_fragments_keeps_those_of_another_pod(node: Datapath) -> None:
    begin(node)
    flood(node, ATTACKER, "198.51.100.1")
    assert finished(node) == COUNT
    assert SLOTS * 3 / 4 < entries(node) <= SLOTS
    assert ended(node)[1] >= 2000 + COUNT - SLOTS


def test_a_flood_with_fragmented_answers_of_a_helper_keeps_them_too(node: Datapath) -> None:
    begin(node)
    flood(node, ATTACKER, OUTSIDE)
    flood(node, OUTSIDE, ATTACKER, inwards=True)
    flood(node, HELPER, ATTACKER, inwards=True)
    assert finished(node) == COUNT


@pytest.mark.parametrize("source", [HELPER, OUTSIDE])
def test_a_flood_to_the_pod_itself_keeps_its_own_and_those_of_other_callers(node: Datapath, source: str) -> None:
    begin(node)
    begin(node, 4, CLIENT, VICTIM, inwards=True)
    flood(node, source, VICTIM, inwards=True)
    assert finished(node) == COUNT
    assert finished(node, 4, CLIENT, VICTIM, inwards=True) == 4


def test_a_pod_sends_new_datagrams_during_a_flood(node: Datapath) -> None:
    flood(node, ATTACKER, "198.51.100.1", 1000)
    begin(node)
    flood(node, ATTACKER, "198.51.100.2", 1000)
    assert finished(node) == COUNT


def test_a_busy_sender_loses_its_oldest_datagrams(node: Datapath) -> None:
    """Within its own part: the last ones can be completed."""
    begin(node, 400)
    assert finished(node, 400) < 400
    last = (piece(VICTIM, PEER, number, 32, more=False) for number in range(391, 401))
    assert sum(verdict(node, frame) == TC_OK for frame in last) == 10


def test_a_datagram_that_is_not_complete_after_30_seconds_is_forgotten(node: Datapath) -> None:
    begin(node, 1)
    assert verdict(node, piece(VICTIM, PEER, 1, 32, more=False)) == TC_OK
    for lifetime in (LIFETIME, *STALE):
        age(node, lifetime)
        assert verdict(node, piece(VICTIM, PEER, 1, 32, more=False)) == TC_SHOT
        begin(node, 1)
        assert verdict(node, piece(VICTIM, PEER, 1, 32, more=False)) == TC_OK


def test_a_datagram_that_another_cpu_has_just_begun_is_new(node: Datapath) -> None:
    begin(node, 1)
    age(node, -1000)
    assert verdict(node, piece(VICTIM, PEER, 1, 32, more=False)) == TC_OK


def test_expired_datagrams_make_room_without_the_agent(node: Datapath) -> None:
    flood(node, ATTACKER, "198.51.100.1")
    age(node)
    before = ended(node)
    for number in range(250):
        address = f"10.0.3.{1 + number}"
        entry = abi.always(abi.EndpointEntry(TEST_IFINDEX, 5000, 10 + number, 0, POD_MAC))
        node.tables["nn_endpoint"].update(abi.AddressKey(ip_address(address)), entry)
        assert verdict(node, piece(address, PEER, 1, 0)) == TC_OK
        if number == 100:
            assert ended(node)[1] == before[1]
    assert ended(node)[0] > before[0] + SLOTS / 2


def age(node: Datapath, lifetime: int = LIFETIME) -> None:
    """Make all datagrams so much older: by default, let them expire."""
    with closing(RawTable("nn_frag", node.pins.map("nn_frag"))) as table:
        for key, value in list(table.raw()):
            created = int.from_bytes(value[-4:], "little") - lifetime
            assert table.replace(key, value[:-4] + (created & 0xFFFFFFFF).to_bytes(4, "little"))
