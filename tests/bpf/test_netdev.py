"""The programs on uplinks: they change nothing, unless Services are served there: then they follow the node's flows."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.bpf import loader
from nodenet.bpf.packet_run import run_packet

from .conftest import TC_OK, Datapath
from .test_endpoint import monotonic
from .test_service_packets import PORT, TARGET, World, ends, recomputed

pytestmark = pytest.mark.kernel

PROGRAMS = list(loader.UPLINK_PROGRAMS)
CLIENT_PORT, NODE_PORT = 40000, 30080


@pytest.fixture(scope="module")
def serving(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    made = Datapath(bpffs / "netdev", bpf_cache, loader.DatapathConfig(serve_uplinks=True))
    try:
        yield made
    finally:
        made.close()


class Outside:
    """A client outside, a node's address, and a backend; the flow as the node would translate it."""

    def __init__(self, datapath: Datapath, version: int, *, endpoint_id: int = 0) -> None:
        self.datapath = datapath
        self.ip = IP if version == 4 else IPv6
        self.client, self.node, self.backend = (
            ("203.0.113.9", "192.0.2.1", "10.0.2.2") if version == 4 else ("2001:db8:9::9", "2001:db8::1", "fd00:2::2")
        )
        datapath.reset()
        client, node, backend = map(ip_address, (self.client, self.node, self.backend))
        for protocol in (6, 17):
            there = abi.NatKey(client, node, CLIENT_PORT, NODE_PORT, protocol, 0)
            entry = abi.NatEntry(client, backend, CLIENT_PORT, TARGET, monotonic() - 9, 1, 0, 0, endpoint_id, 0)
            back = abi.NatEntry(node, client, NODE_PORT, CLIENT_PORT, monotonic() - 9, 1, 0, 0, endpoint_id, 0)
            datapath.tables["nn_nat"].update(there, entry)
            datapath.tables["nn_nat"].update(entry.other(there), back)

    def through(self, program: str, packet: Packet) -> Packet:
        run = self.datapath.run(program, packet)
        assert run.verdict == TC_OK
        result = Ether(run.packet)[self.ip]
        assert bytes(result) == recomputed(result)
        return result


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_both_directions_of_the_nodes_flow_are_translated(
    serving: Datapath, program: str, version: int, layer: type[Packet]
) -> None:
    outside = Outside(serving, version)
    call = outside.ip(src=outside.client, dst=outside.node) / layer(sport=CLIENT_PORT, dport=NODE_PORT) / Raw(b"ask")
    assert ends(outside.through(program, call)) == (outside.client, CLIENT_PORT, outside.backend, TARGET)
    answer = outside.ip(src=outside.backend, dst=outside.client) / layer(sport=TARGET, dport=CLIENT_PORT) / Raw(b"told")
    assert ends(outside.through(program, answer)) == (outside.node, NODE_PORT, outside.client, CLIENT_PORT)
    protocol = 6 if layer is TCP else 17
    used = [entry for key, entry in serving.tables["nn_nat"].items() if key.protocol == protocol]
    assert all(abs(entry.last_seen - monotonic()) <= 1 for entry in used)


@pytest.mark.parametrize("program", PROGRAMS)
def test_flows_of_pods_are_not_the_nodes(serving: Datapath, program: str) -> None:
    outside = Outside(serving, 4, endpoint_id=3)
    call = outside.ip(src=outside.client, dst=outside.node) / TCP(sport=CLIENT_PORT, dport=NODE_PORT)
    assert ends(outside.through(program, call))[2:] == (outside.node, NODE_PORT)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_service_is_served_there_yet(serving: Datapath, program: str) -> None:
    world = World(serving, 4)
    call = world.ip(src="203.0.113.9", dst=world.service) / TCP(sport=5, dport=PORT)
    assert ends(Outside(serving, 4).through(program, call))[2:] == (world.service, PORT)


FRAMES = st.one_of(
    st.binary(min_size=0, max_size=80).map(lambda data: bytes(Ether(type=0x0800) / Raw(data))),
    st.binary(min_size=0, max_size=80).map(lambda data: bytes(Ether(type=0x86DD) / Raw(data))),
    st.just(bytes(Ether() / ARP())),
    st.binary(min_size=20, max_size=60).map(lambda data: bytes(Ether(type=0x0800) / Raw(b"E" + data))),
)


@pytest.mark.parametrize("program", PROGRAMS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FRAMES)
def test_whatever_comes_goes_on_unchanged(datapath: Datapath, serving: Datapath, program: str, frame: bytes) -> None:
    """With and without Services there. No event, and no packet is counted."""
    for one in (datapath, serving):
        run = run_packet(one.loaded.programs[program], frame.ljust(60, b"\0"))
        assert (run.verdict, run.packet) == (TC_OK, frame.ljust(60, b"\0"))
        assert one.events() == []


def test_without_services_the_programs_do_not_touch_the_flows(datapath: Datapath) -> None:
    outside = Outside(datapath, 4)
    call = outside.ip(src=outside.client, dst=outside.node) / TCP(sport=CLIENT_PORT, dport=NODE_PORT)
    for program in PROGRAMS:
        assert ends(outside.through(program, call))[2:] == (outside.node, NODE_PORT)
