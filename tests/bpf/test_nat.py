"""nn_nat: both halves of a flow exist or neither, no pod evicts the flows of another one, and an upgrade keeps them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from nodenet import abi
from nodenet.abi import slots
from nodenet.bpf import loader
from nodenet.bpf.packet_run import run_packet
from nodenet.bpf.pins import Pins
from nodenet.bpf.rawtable import RawTable

from .conftest import POD_MAC, TC_OK, TC_REDIRECT, TEST_IFINDEX, Datapath
from .test_carry import Edits, variant  # noqa: F401
from .test_endpoint import monotonic
from .test_service_packets import (
    CLIENT,
    OTHER_SERVICE_ID,
    PORT,
    SERVICE_ID,
    SPORT,
    TARGET,
    World,
    ack,
    ends,
    syn,
)

pytestmark = pytest.mark.kernel

# 3 buckets of 16 slots: a few dozen flows fill them.
ENTRIES, BUCKETS = 120, 3
HELPER = "10.0.2.9"


@pytest.fixture(scope="module")
def small(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    sizes = {"nn_nat": ENTRIES, "nn_nat_slot": BUCKETS}
    made = Datapath(bpffs / "nat", bpf_cache, loader.DatapathConfig(trace_events=False, sizes=sizes))
    try:
        yield made
    finally:
        made.close()


def halves(datapath: Datapath) -> dict[abi.NatKey, abi.NatEntry]:
    return dict(datapath.tables["nn_nat"].items())


def assert_pairs(datapath: Datapath) -> int:
    """Each half names the other one, and both name the same Service and pod. Returns the number of flows."""
    found = halves(datapath)
    for key, entry in found.items():
        other = found.get(entry.other(key))
        assert other is not None, f"{key} has no other half"
        assert other.other(entry.other(key)) == key
        assert (other.service_id, other.endpoint_id) == (entry.service_id, entry.endpoint_id)
    return len(found) // 2


def slotted(datapath: Datapath) -> set[bytes]:
    """The keys that have a slot."""
    with closing(RawTable("nn_nat_slot", datapath.pins.map("nn_nat_slot"))) as table:
        return {key for chunk in table.chunks() for _, value in chunk for key, _ in slots.keys_in(value)}


def second_pod(world: World, number: int = 2, address: str = "10.0.1.2") -> str:
    entry = abi.always(abi.EndpointEntry(TEST_IFINDEX, CLIENT + number, number, 0, POD_MAC))
    world.datapath.tables["nn_endpoint"].update(abi.AddressKey(ip_address(address)), entry)
    world.datapath.identity(address, CLIENT + number)
    return address


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["tcp", "udp", "fin", "rst", "answer", "direct", "change", "leave", "itself"]),
        st.integers(0, 59),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_both_halves_are_made_and_deleted_together(small: Datapath, steps: list[tuple[str, int, bool]]) -> None:
    """Whatever is sent, and whatever becomes of the Services meanwhile."""
    small.reset()
    world = World(small, 4)
    world.serve(world.other, OTHER_SERVICE_ID, world.far, world.farther)
    for step, number, other in steps:
        service = world.other if other else world.service
        # The same few backends and ports over and over: flows clash and evict each other.
        sport = 20000 + number
        for packet in packets(world, step, sport, service, other):
            program = "endpoint_ingress" if packet.dst == world.pod else "endpoint_egress"
            small.run(program, packet)
        assert assert_pairs(small) <= BUCKETS * 16
        clients = {key.pack() for key in halves(small) if not key.reply}
        assert clients <= slotted(small), "an entry without a slot would never be evicted"


def packets(world: World, step: str, sport: int, service: str, other: bool) -> Iterator[Packet]:
    number = OTHER_SERVICE_ID if other else SERVICE_ID
    if step == "change":
        world.serve(service, number, world.farther, world.far)
    elif step == "leave":
        world.leave(world.far, number)
    elif step == "itself":
        world.serve(service, number, world.pod)
        yield world.call(syn(sport), service)
        yield world.call(UDP(sport=sport, dport=PORT), service)
    elif step == "direct":
        yield world.ip(src=world.pod, dst=world.far) / UDP(sport=sport, dport=TARGET)
        yield world.ip(src=world.pod, dst=world.far) / syn(sport, TARGET)
    elif step == "answer":
        yield world.answer(TCP(sport=TARGET, dport=sport, flags="SA"))
        yield world.answer(UDP(sport=TARGET, dport=sport))
    elif step == "udp":
        # Eight ports at once: more flows than slots after a few steps.
        for at in range(8):
            yield world.call(UDP(sport=sport + at * 64, dport=PORT), service)
    else:
        yield world.call(
            {"tcp": syn(sport), "fin": ack(sport, flags="FA"), "rst": ack(sport, flags="R")}[step], service
        )


def test_a_pods_flood_keeps_the_flows_of_another_pod(small: Datapath) -> None:
    small.reset()
    world = World(small, 4)
    victim = second_pod(world)
    for at in range(6):
        small.run("endpoint_egress", world.ip(src=victim, dst=world.service) / UDP(sport=7000 + at, dport=PORT))
        small.run("endpoint_ingress", world.ip(src=world.far, dst=victim) / UDP(sport=TARGET, dport=7000 + at))
    mine = {key: entry for key, entry in halves(small).items() if victim in (str(key.saddr), str(entry.daddr))}
    assert len(mine) == 12
    for key, entry in mine.items():
        # By age alone they would be evicted first.
        small.tables["nn_nat"].update(key, entry._replace(last_seen=monotonic() - 100))
    flood(world, small, 4000)
    # With a peer that answers, which makes the flows as valuable as the victim's.
    flood(world, small, 1000, answered=True)
    assert mine.keys() <= halves(small).keys()
    assert BUCKETS * 16 * 3 / 4 < assert_pairs(small) <= BUCKETS * 16
    # A new flow of the victim finds room too.
    call = world.ip(src=victim, dst=world.service) / UDP(sport=8000, dport=PORT)
    assert ends(world.out(call)) == (victim, 8000, world.far, TARGET)


def flood(world: World, datapath: Datapath, count: int, *, answered: bool = False) -> None:
    there = bytearray(raw(Ether(src=POD_MAC, dst=POD_MAC) / world.call(UDP(chksum=0, dport=PORT))))
    back = bytearray(raw(Ether(src=POD_MAC, dst=POD_MAC) / world.answer(UDP(chksum=0, sport=TARGET))))
    for number in range(count):
        port = (1024 + number).to_bytes(2, "big")
        there[34:36], back[36:38] = port, port
        assert run_packet(datapath.loaded.programs["endpoint_egress"], bytes(there)).verdict == TC_OK
        if answered:
            assert run_packet(datapath.loaded.programs["endpoint_ingress"], bytes(back)).verdict == TC_OK


def test_expired_flows_go_first(small: Datapath) -> None:
    small.reset()
    world = World(small, 4)
    flood(world, small, 500)
    old = {key: entry for key, entry in halves(small).items() if not key.reply}
    for key, entry in old.items():
        small.tables["nn_nat"].update(key, entry._replace(last_seen=monotonic() - 100))
    victim = second_pod(world)
    for at in range(3):
        small.run("endpoint_egress", world.ip(src=victim, dst=world.service) / UDP(sport=7000 + at, dport=PORT))
    assert sum(str(key.saddr) == victim for key in halves(small)) == 3
    assert_pairs(small)


def test_a_reply_keeps_the_flow_young(datapath: Datapath) -> None:
    datapath.reset()
    world = World(datapath, 4)
    world.out(world.call(UDP(sport=SPORT, dport=PORT)))
    table = datapath.tables["nn_nat"]
    for key, entry in halves(datapath).items():
        table.update(key, entry._replace(last_seen=monotonic() - 100))
    world.into(world.answer(UDP(sport=TARGET, dport=SPORT)))
    for entry in halves(datapath).values():
        assert abs(entry.last_seen - monotonic()) <= 1
    (client,) = [entry for key, entry in halves(datapath).items() if not key.reply]
    assert client.flags & abi.NatFlag.SEEN_REPLY


# nn_lb_flow as earlier versions had it.
EARLIER: Edits = (
    (
        "endpoint.bpf.c",
        '#include "lib/offload.h"\n',
        """#include "lib/offload.h"

struct nn_lb_flow_entry {
	struct nn_addr backend;
	__be16 port;
	__u16 endpoint_id;
	__u32 backend_id;
	__u32 rev_nat_index;
	__u32 last_seen;
	__u8 opening;
	__u8 pad;
	__u16 slot;
	__be16 source_port;
	__u8 pad2[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct nn_ct_key);
	__type(value, struct nn_lb_flow_entry);
} nn_lb_flow SEC(".maps");
""",
    ),
)


def lb_flow(world: World, protocol: int, sport: int, backend: str, source_port: int = 0) -> tuple[bytes, bytes]:
    """An entry of an earlier version: an open flow of the pod to the Service."""
    key = abi.CtKey(ip_address(world.pod), ip_address(world.service), sport, PORT, protocol)
    value = struct.pack(
        "=16s2sHIIIBxH2s2x",
        abi.pack_addr(ip_address(backend)),
        TARGET.to_bytes(2, "big"),
        1,
        world.backend_id(backend, protocol),
        SERVICE_ID,
        monotonic() - 5,
        0,
        1,
        source_port.to_bytes(2, "big"),
    )
    return key.pack(), value


@pytest.mark.parametrize("version", [4, 6])
def test_an_upgrade_keeps_the_flows_of_earlier_versions(
    bpffs: Path,
    bpf_cache: Path,
    variant: object,  # noqa: F811
    version: int,
) -> None:
    root = bpffs / "earlier"
    with ExitStack() as stack:
        stack.callback(Pins(root).remove)
        old = Datapath(root, bpf_cache, loader.DatapathConfig(), variant(EARLIER))  # type: ignore[operator]
        stack.callback(old.close)
        for name in ("nn_nat", "nn_nat_slot"):
            old.pins.map(name).unlink()
        world = World(old, version)
        flows = stack.enter_context(closing(RawTable("nn_lb_flow", old.pins.map("nn_lb_flow"))))
        # A connection whose backend has left, a flow with a replaced port, and a pod that called itself.
        flows.add(*lb_flow(world, 6, 1000, world.farther))
        flows.add(*lb_flow(world, 17, 2000, world.far, 50000))
        flows.add(*lb_flow(world, 6, 3000, world.pod))
        new = Datapath(root, bpf_cache, loader.DatapathConfig())
        stack.callback(new.close)
        assert new.loaded.carrying.copied == {"nn_nat": 6}
        assert not new.pins.map("nn_lb_flow").exists()
        # The old programs go on until they are replaced.
        flows.add(*lb_flow(world, 17, 4000, world.far, 50001))
        assert new.loaded.carrying.finish() == {"nn_nat": 2}
        assert not list(new.pins.replaced())
        assert assert_pairs(new) == 4
        assert len(slotted(new)) == 3
        world.datapath = new
        assert ends(world.out(world.call(ack(1000)))) == (world.pod, 1000, world.farther, TARGET)
        assert ends(world.out(world.call(UDP(sport=2000, dport=PORT)))) == (world.pod, 50000, world.far, TARGET)
        assert ends(world.out(world.call(UDP(sport=4000, dport=PORT)))) == (world.pod, 50001, world.far, TARGET)
        back = world.answer(UDP(sport=TARGET, dport=50000))
        assert ends(world.into(back)) == (world.service, PORT, world.pod, 2000)
        assert ends(world.out(world.call(ack(3000)), TC_REDIRECT)) == (world.nobody, 3000, world.pod, TARGET)
        itself = world.ip(src=world.pod, dst=world.nobody) / TCP(sport=TARGET, dport=3000, flags="A")
        assert ends(world.out(itself, TC_REDIRECT)) == (world.service, PORT, world.pod, 3000)
