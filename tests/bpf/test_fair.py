"""nn_ct is fair: a pod that opens flows without end evicts its own ones."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.compat import raw
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from nodenet import abi
from nodenet.abi import slots
from nodenet.bpf import build, loader
from nodenet.bpf.packet_run import run_packet
from nodenet.bpf.pins import Pins
from nodenet.bpf.rawtable import RawTable
from nodenet.bpf.tables import BpfTable
from nodenet.errors import TableFullError
from nodenet.model import Direction, Identity

from .conftest import POD_MAC, TC_OK, TC_REDIRECT, TEST_IFINDEX, Datapath
from .test_endpoint import monotonic

pytestmark = pytest.mark.kernel

# 51 buckets of 16 slots.
ENTRIES, SLOTS = 1024, 51 * 16
ATTACKER, VICTIM, OTHER = "10.0.1.1", "10.0.1.2", "10.0.1.3"
HELPER = "10.0.2.9"  # a pod of another node
OUTSIDE = "203.0.113.9"
IDENTITIES = {ATTACKER: 1000, VICTIM: 2000, OTHER: 3000}
HELPER_IDENTITY = 4000
# Of the victim, before the flood: about one in each bucket.
FLOWS = 60


@pytest.fixture(scope="module")
def small(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    sizes = {"nn_ct": ENTRIES, "nn_ct_slot": 51}
    made = Datapath(bpffs / "fair", bpf_cache, loader.DatapathConfig(trace_events=False, sizes=sizes))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def node(small: Datapath) -> Datapath:
    """Three pods of the node, which may call and be called, and one of another node."""
    small.reset()
    for number, (address, identity) in enumerate(IDENTITIES.items(), 1):
        small.endpoint(address, identity, number=number)
        entry = abi.always(abi.EndpointEntry(TEST_IFINDEX, identity, number, 0, POD_MAC))
        small.tables["nn_endpoint"].update(abi.AddressKey(ip_address(address)), entry)
    small.identity(HELPER, HELPER_IDENTITY)
    return small


def frames(source: str, target: str, count: int, *, sport: int = 0) -> Iterator[bytes]:
    """Datagrams of `count` flows, which differ in their ports."""
    template = bytearray(raw(Ether(src=POD_MAC, dst="02:00:00:00:00:bb") / IP(src=source, dst=target) / UDP(chksum=0)))
    for number in range(count):
        template[34:36] = (sport or 1024 + number % 60000).to_bytes(2, "big")
        template[36:38] = (1 + number // 60000 if not sport else 1 + number).to_bytes(2, "big")
        yield bytes(template)


def flood(node: Datapath, program: str, source: str, target: str, count: int = 6000) -> None:
    for frame in frames(source, target, count):
        assert run_packet(node.loaded.programs[program], frame).verdict in (TC_OK, TC_REDIRECT)


def established(node: Datapath, address: str = VICTIM, peer: str = "10.0.2.2", count: int = FLOWS) -> set[abi.CtKey]:
    """Datagrams of the pod to a peer, and their answers."""
    for number in range(count):
        there, back = UDP(sport=7000 + number, dport=443), UDP(sport=443, dport=7000 + number)
        assert node.sent(IP(src=address, dst=peer) / there) == TC_OK
        assert node.received(IP(src=peer, dst=address) / back) == TC_OK
    flows = {abi.CtKey(ip_address(address), ip_address(peer), 7000 + number, 443, 17) for number in range(count)}
    # By age alone they would be evicted first.
    table, now = node.tables["nn_ct"], monotonic()
    for key in flows:
        table.update(key, table.get(key)._replace(last_seen=now - 100))
    return flows


def kept(node: Datapath, flows: set[abi.CtKey]) -> int:
    return len(flows & {key for key, _ in node.tables["nn_ct"].items()})


def owners(node: Datapath) -> Counter[str]:
    return Counter(str(key.pod) for key, _ in node.tables["nn_ct"].items())


def test_a_flood_keeps_the_flows_of_another_pod(node: Datapath) -> None:
    """The control: the table is full, and only the attacker's own flows were evicted."""
    flows = established(node)
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    assert kept(node, flows) == FLOWS
    # A bucket loses up to four flows at once.
    assert SLOTS * 3 / 4 < owners(node)[ATTACKER] + FLOWS <= SLOTS


def test_answered_floods_with_a_helper_keep_them_too(node: Datapath) -> None:
    """Answers make the attacker's flows as valuable as the victim's, and a helper opens as many to the attacker."""
    flows = established(node)
    for there, back in zip(frames(ATTACKER, HELPER, 3000), frames(HELPER, ATTACKER, 3000), strict=True):
        swapped = back[:34] + there[36:38] + there[34:36] + back[38:]
        assert run_packet(node.loaded.programs["endpoint_egress"], there).verdict == TC_OK
        assert run_packet(node.loaded.programs["endpoint_ingress"], swapped).verdict == TC_OK
    flood(node, "endpoint_ingress", HELPER, ATTACKER)
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    assert kept(node, flows) == FLOWS


@pytest.mark.parametrize("source", [HELPER, OUTSIDE])
def test_who_floods_a_pod_evicts_what_it_opened_there_itself(node: Datapath, source: str) -> None:
    """A server must take calls. Callers from outside are paid by the server, each apart."""
    flows = established(node)
    if source == OUTSIDE:
        node.tables["nn_ipcache"].update(
            abi.LpmKey.host(ip_address("198.51.100.7")), abi.always(abi.U32(int(Identity.WORLD)))
        )
        for frame in frames("198.51.100.7", VICTIM, 40):
            assert run_packet(node.loaded.programs["endpoint_ingress"], frame).verdict == TC_OK
    flood(node, "endpoint_ingress", source, VICTIM)
    assert kept(node, flows) == FLOWS
    remotes = Counter(str(key.remote) for key, _ in node.tables["nn_ct"].items())
    assert source != OUTSIDE or remotes["198.51.100.7"] == 40


@pytest.mark.parametrize("source", [HELPER, ATTACKER])
def test_calls_that_the_pod_answers_do_not_cost_it_its_own_flows(node: Datapath, source: str) -> None:
    """The flood's flows are answered and recent, the pod's own ones are idle."""
    flows = established(node)
    call = "endpoint_ingress" if source == HELPER else "endpoint_egress"
    for there, back in zip(frames(source, VICTIM, 3000), frames(VICTIM, source, 3000), strict=True):
        answer = back[:34] + there[36:38] + there[34:36] + back[38:]
        assert run_packet(node.loaded.programs[call], there).verdict in (TC_OK, TC_REDIRECT)
        assert run_packet(node.loaded.programs["endpoint_egress"], answer).verdict in (TC_OK, TC_REDIRECT)
    assert kept(node, flows) == FLOWS


def test_a_pod_of_the_node_that_calls_many_others_is_one_owner(node: Datapath) -> None:
    """Its flows are in its own entries and in the entries of the pods that it calls."""
    flows = established(node)
    flood(node, "endpoint_egress", ATTACKER, OTHER)
    flood(node, "endpoint_egress", ATTACKER, VICTIM)
    assert kept(node, flows) == FLOWS


def test_a_pod_opens_new_flows_during_a_flood(node: Datapath) -> None:
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    flows = established(node)
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.2")
    assert kept(node, flows) == FLOWS


def test_one_pod_may_use_the_whole_table(node: Datapath) -> None:
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    assert owners(node)[ATTACKER] > SLOTS * 3 / 4


def test_unanswered_flows_of_a_pod_are_evicted_before_answered_ones(node: Datapath) -> None:
    flows = established(node, ATTACKER)
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1", 2000)
    assert kept(node, flows) == FLOWS


def test_expired_flows_make_room_without_the_agent(node: Datapath) -> None:
    """Without an agent: expired flows of any owner go first, and flows that are idle for long stay."""
    flows = established(node)
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    table, now = node.tables["nn_ct"], monotonic()
    for key, entry in list(table.items()):
        idle = 170 if key in flows else 70
        table.update(key, entry._replace(last_seen=now - idle))
    # One pod for each flow: no owner has more than another.
    for number in range(400):
        address = f"10.0.3.{1 + number % 250}"
        entry = abi.always(abi.EndpointEntry(TEST_IFINDEX, 5000, 10 + number % 250, 0, POD_MAC))
        node.tables["nn_endpoint"].update(abi.AddressKey(ip_address(address)), entry)
        assert node.sent(IP(src=address, dst="10.0.2.2") / UDP(sport=9000 + number, dport=53)) == TC_OK
    assert kept(node, flows) == FLOWS
    assert node.tables["nn_ct"].count() < SLOTS


def test_flows_that_user_space_deleted_leave_no_slot_behind(node: Datapath) -> None:
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    table = node.tables["nn_ct"]
    for key, _ in list(table.items()):
        table.delete(key)
    flows = established(node, count=300)
    assert kept(node, flows) == 300
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    assert node.tables["nn_ct"].count() <= SLOTS


def test_a_flow_that_starts_again_uses_its_own_slot(node: Datapath) -> None:
    """A second slot of one flow would evict it while it is in use."""
    table = node.tables["nn_ct"]
    flows = established(node)
    for _ in range(20):
        for key in flows:
            table.delete(key)
        established(node)
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    assert kept(node, flows) == FLOWS


def test_a_flow_that_starts_again_uses_its_own_slot_though_another_one_is_free(node: Datapath) -> None:
    """The slots before it were freed while its entry existed. User space deleted the entry later, and left its slot."""
    table, now = node.tables["nn_ct"], monotonic()
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    with closing(RawTable("nn_ct_slot", node.pins.map("nn_ct_slot"))) as buckets:
        places = [[abi.CtKey.unpack(key) for key, _ in slots.keys_in(bucket)] for _, bucket in buckets.raw()]
    stays = [keys[-1] for keys in places]
    for key, entry in list(table.items()):
        if key not in stays:
            table.update(key, entry._replace(last_seen=now - 1000))
    # A full bucket frees all expired slots.
    established(node, count=200)
    for key in stays:
        table.delete(key)
        there = UDP(sport=key.pod_port, dport=key.remote_port)
        assert node.sent(IP(src=ATTACKER, dst=str(key.remote)) / there) == TC_OK
    assert max(Counter(keys_of(node)).values()) == 1


def test_entries_without_a_slot_do_not_keep_new_flows_out(node: Datapath) -> None:
    """Those that the second copy of a replaced map brings: here so many that not one more entry fits."""
    table, now = node.tables["nn_ct"], monotonic()
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    entry = abi.CtEntry(now, 0, 0, 0, Direction.EGRESS, 1, 3, now)
    keys = [abi.CtKey(ip_address(OTHER), ip_address("10.0.2.2"), 1 + number, 80, 6) for number in range(ENTRIES)]
    with pytest.raises(TableFullError):
        any(table.update(key, entry) for key in keys)
    flows = established(node)
    assert kept(node, flows) == FLOWS


def slots_of(path: Path) -> dict[bytes, int]:
    with closing(RawTable("nn_ct_slot", path)) as table:
        return {key: tag for _, bucket in table.raw() for key, tag in slots.keys_in(bucket)}


def test_user_space_computes_the_same_places(node: Datapath) -> None:
    established(node)
    found = slots_of(node.pins.map("nn_ct_slot"))
    flows = dict(node.tables["nn_ct"].items())
    for key in flows:
        assert found[key.pack()] == slots.place_of(key.pack(), 51)[1]
    with closing(RawTable("nn_ct_slot", node.pins.map("nn_ct_slot"))) as table:
        buckets = dict(table.raw())
    for key, entry in flows.items():
        index = slots.place_of(key.pack(), 51)[0]
        mine = slots.bucket_of([(key.pack(), entry.pack())], 51, slots.ct_owner)
        kernels = buckets[index.to_bytes(4, "little")]
        tags = struct.unpack_from("=16I", kernels, 8)
        keys = [kernels[136 + 40 * slot : 136 + 40 * (slot + 1)] for slot in range(16)]
        (place,) = [slot for slot in range(16) if tags[slot] and keys[slot] == key.pack()]
        owner = mine[8 + 64 : 8 + 64 + 4]
        assert kernels[8 + 64 + 4 * place : 8 + 64 + 4 * place + 4] == owner


@pytest.fixture
def root(bpffs: Path) -> Iterator[Path]:
    folder = bpffs / "adopted"
    try:
        yield folder
    finally:
        Pins(folder).remove()


@pytest.mark.parametrize("count", [300, 3000])
def test_carried_flows_get_slots_and_leave_room(root: Path, bpf_cache: Path, count: int) -> None:
    """Also all of a full map: what is left out is the oldest."""
    pins, now = Pins(root), monotonic()
    objects = build.build_all(bpf_cache)
    loader.close(loader.load(objects, loader.DatapathConfig(sizes={"nn_ct": 4096, "nn_ct_slot": 204}), pins))
    with closing(BpfTable("nn_ct", pins.map("nn_ct"))) as old:
        for number in range(count):
            key = abi.CtKey(ip_address(VICTIM), ip_address(HELPER), 1000 + number, 443, 17)
            idle = 900 if number < 100 else 1
            old.update(key, abi.CtEntry(now - idle, 0, 0, 0, Direction.EGRESS, 1, 2, now - 950))
    made = Datapath(root, bpf_cache, loader.DatapathConfig(sizes={"nn_ct": ENTRIES, "nn_ct_slot": 51}))
    try:
        flows = {key for key, _ in made.tables["nn_ct"].items()}
        assert set(map(abi.CtKey.unpack, slots_of(made.pins.map("nn_ct_slot")))) == flows
        assert count < SLOTS or all(key.pod_port >= 1100 for key in flows)
        assert 0.8 * min(count, SLOTS) < len(flows) <= SLOTS
        made.endpoint(OTHER, 3000, number=1)
        assert kept(made, established(made, OTHER)) == FLOWS
    finally:
        made.close()


def colliding(buckets: int) -> tuple[abi.CtKey, abi.CtKey]:
    """Two flows of one pod with the same hash. The last word of the hash's input is the remote address, so two flows
    collide in all bits if they agree in the upper half before it: among 2 ** 18 ports about eight pairs do."""
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    pod = int.from_bytes(ip_address(ATTACKER).packed, "little")
    seen: dict[int, tuple[int, int]] = {}
    for port in range(1 << 18):
        ports = (1024 + port % 50000, 1 + port // 50000)
        number = int.from_bytes(ports[0].to_bytes(2, "big"), "little") << 32
        number |= int.from_bytes(ports[1].to_bytes(2, "big"), "little") << 16 | 17
        for word in (0, 0, 0xFFFF0000):
            number = (number ^ word) * golden & mask
            number = (number ^ number >> 32 ^ word) * golden & mask
            number ^= number >> 32
        number = (number ^ pod) * golden & mask
        number ^= number >> 32
        if number >> 32 in seen:
            break
        seen[number >> 32] = ports
    other = seen[number >> 32]
    first = abi.CtKey(ip_address(ATTACKER), ip_address("198.51.100.1"), *ports, 17)
    wanted = slots.flow_number(first.pack())
    # The address of the other one, by what differs in the lower halves.
    second = first._replace(pod_port=other[0], remote_port=other[1])
    low = [half(key) for key in (first, second)]
    address = int.from_bytes(first.remote.packed, "little") ^ low[0] ^ low[1]
    second = second._replace(remote=ip_address(address.to_bytes(4, "little")))
    assert slots.flow_number(second.pack()) == wanted
    assert slots.place_of(first.pack(), buckets) == slots.place_of(second.pack(), buckets)
    return first, second


def half(key: abi.CtKey) -> int:
    """The lower half of the hash before its last word."""
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    ports = [int.from_bytes(port.to_bytes(2, "big"), "little") for port in (key.pod_port, key.remote_port)]
    number = ports[0] << 32 | ports[1] << 16 | key.protocol
    for word in (0, 0, 0xFFFF0000):
        number = (number ^ word) * golden & mask
        number = (number ^ number >> 32 ^ word) * golden & mask
        number ^= number >> 32
    number = (number ^ int.from_bytes(key.pod.packed, "little")) * golden & mask
    return (number ^ number >> 32) & 0xFFFFFFFF


def test_flows_with_equal_hashes_have_a_slot_each(node: Datapath) -> None:
    """An entry without a slot is never evicted: a pod that knows many such flows would fill the table for good."""
    flows = colliding(51)
    for key in flows:
        there = UDP(sport=key.pod_port, dport=key.remote_port)
        assert node.sent(IP(src=ATTACKER, dst=str(key.remote)) / there) == TC_OK
    assert {key for key, _ in node.tables["nn_ct"].items()} == set(flows)
    assert len({abi.CtKey.unpack(key) for key in keys_of(node)} & set(flows)) == 2
    flood(node, "endpoint_egress", ATTACKER, "198.51.100.1")
    assert node.tables["nn_ct"].count() <= SLOTS


def keys_of(node: Datapath) -> list[bytes]:
    with closing(RawTable("nn_ct_slot", node.pins.map("nn_ct_slot"))) as table:
        return [key for _, bucket in table.raw() for key, _ in slots.keys_in(bucket)]
