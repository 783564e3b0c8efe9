"""Where a packet to a pod came in decides what its source address is worth: the node's own, a local pod's, anyone's.

The programs run over single packets (BPF_PROG_TEST_RUN) in a namespace that has a node's interfaces and routes.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from nodenet import abi, tables
from nodenet.bpf import build, loader
from nodenet.bpf.packet_run import TC_ACT_SHOT, run_packet
from nodenet.bpf.pins import Pins
from nodenet.bpf.ringbuf import EventReader
from nodenet.bpf.tables import BpfTable
from nodenet.link import netns as namespaces
from nodenet.link.handle import Link
from nodenet.model import Direction, Identity

pytestmark = pytest.mark.kernel

# BPF_PROG_TEST_RUN's device is the namespace's loopback.
LOOPBACK = 1
SERVER, NEIGHBOUR = 60001, 60002
SERVER_MAC, NEIGHBOUR_MAC = "02:00:00:00:01:01", "02:00:00:00:01:02"
ADDRESSES = {
    4: {"node": "10.201.0.254", "server": "10.201.0.1", "neighbour": "10.201.0.2", "far": "10.202.0.9"},
    6: {"node": "fd01::fe", "server": "fd01::1", "neighbour": "fd01::2", "far": "fd02::9"},
}
PROGRAMS = {"in": "endpoint_ingress", "out": "endpoint_egress"}


@dataclass(slots=True)
class Node:
    """A namespace with a bridge (the pods' network), an uplink, and two pods' veths of which one is the loopback."""

    name: str
    version: int
    ports: dict[str, int]
    loaded: loader.Loaded
    tables: dict[str, BpfTable]
    reader: EventReader
    events: list[abi.Event]

    def address(self, who: str) -> str:
        return ADDRESSES[self.version][who]

    def _run(self, program: str, packet: Packet, ingress: int) -> int:
        """0 if the packet passes, else the drop reason."""
        self.events.clear()
        frame = bytes(Ether(src=SERVER_MAC, dst=SERVER_MAC) / packet)
        fd = self.loaded.programs[program]
        verdict = namespaces.call(self.name, lambda: run_packet(fd, frame, ingress_ifindex=ingress)).verdict
        while self.reader.consume():
            pass
        reasons = [-event.reason for event in self.events if event.type == abi.EventType.DROP]
        assert (verdict == TC_ACT_SHOT) == bool(reasons)
        return reasons[0] if reasons else 0

    def _ip(self, source: str, target: str) -> Packet:
        layer = IP if self.version == 4 else IPv6
        return layer(src=self.address(source), dst=self.address(target))

    def received(self, source: str, ingress: str, transport: Packet | None = None) -> int:
        """What becomes of a packet to the server that came in by `ingress`."""
        segment = transport or TCP(sport=5, dport=80)
        return self._run("endpoint_ingress", self._ip(source, "server") / segment, self.ports[ingress])

    def answered(self, target: str, transport: Packet) -> int:
        """What becomes of a packet that the server sends."""
        return self._run("endpoint_egress", self._ip("server", target) / transport, LOOPBACK)

    def allow(self, peer: int) -> None:
        key = abi.PolicyKey(abi.POLICY_BITS_DIRECTION, SERVER, peer, Direction.INGRESS, 0, 0)
        self.tables["nn_policy"].update(key, abi.always(abi.Rule.allow(7)))

    def forbid(self, peer: int) -> None:
        self.tables["nn_policy"].delete(abi.PolicyKey(abi.POLICY_BITS_DIRECTION, SERVER, peer, Direction.INGRESS, 0, 0))

    def revision(self, number: int) -> None:
        self.tables["nn_state"].update(abi.U32(0), abi.State(number, number))


@pytest.fixture(scope="module")
def programs(bpffs: Path, bpf_cache: Path) -> Iterator[tuple[loader.Loaded, Pins]]:
    pins = Pins(bpffs / "origin")
    loaded = loader.load(build.build_all(bpf_cache), loader.DatapathConfig(refuse_errno=False), pins)
    yield loaded, pins
    loader.close(loaded)
    pins.remove()


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def node(programs: tuple[loader.Loaded, Pins], request: pytest.FixtureRequest) -> Iterator[Node]:
    loaded, pins = programs
    with ExitStack() as stack:
        name = f"nntest-{uuid.uuid4().hex[:8]}"
        namespaces.create(name)
        stack.callback(namespaces.delete, name)
        run = ["ip", "-n", name, "link", "add"]
        subprocess.run([*run, "cni0", "type", "bridge"], check=True)
        subprocess.run([*run, "eth0", "type", "veth", "peer", "name", "wire"], check=True)
        subprocess.run([*run, "pod1", "type", "veth", "peer", "name", "inside"], check=True)
        for address in ([ADDRESSES[4]["node"] + "/24"], [ADDRESSES[6]["node"] + "/64", "nodad"]):
            subprocess.run(["ip", "-n", name, "address", "add", "dev", "cni0", *address], check=True)
        for interface in ("cni0", "eth0", "wire", "pod1", "inside"):
            subprocess.run(["ip", "-n", name, "link", "set", interface, "up"], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "pod1", "master", "cni0"], check=True)
        for sysctl in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            namespaces.run(name, ["sysctl", "-qw", f"{sysctl}=1"], check=True)
        with Link(name) as link:
            ports = {port: link.require(port).index for port in ("cni0", "eth0", "pod1")}
        ports |= {"nowhere": 0, "lo": LOOPBACK, "gone": 4242, "other pod": ports["eth0"] + 1}
        opened = {table: BpfTable(table, pins.map(table)) for table in tables.KEYED}
        for table in opened.values():
            stack.callback(table.close)
        events: list[abi.Event] = []
        reader = EventReader(pins.map("nn_events"), lambda raw: events.append(abi.Event.unpack(raw)))
        stack.callback(reader.close)
        made = Node(name, request.param, ports, loaded, opened, reader, events)
        _fill(made)
        yield made
        for table_name in ("nn_ct", "nn_policy", "nn_endpoint", "nn_ipcache", "nn_cidr"):
            for key, _ in list(opened[table_name].items()):
                opened[table_name].delete(key)
        made.revision(0)


def _fill(node: Node) -> None:
    endpoints, identities = node.tables["nn_endpoint"], node.tables["nn_ipcache"]
    isolated = int(abi.EndpointFlag.ISOLATED_INGRESS)
    for who, identity, number, ifindex, flags, mac in (
        ("server", SERVER, 1, LOOPBACK, isolated, SERVER_MAC),
        ("neighbour", NEIGHBOUR, 2, node.ports["pod1"], 0, NEIGHBOUR_MAC),
    ):
        key = abi.AddressKey(ip_address(node.address(who)))
        endpoints.update(key, abi.always(abi.EndpointEntry(ifindex, identity, number, flags, mac)))
        identities.update(abi.LpmKey.host(ip_address(node.address(who))), abi.always(abi.U32(identity)))
    identities.update(abi.LpmKey.host(ip_address(node.address("node"))), abi.always(abi.U32(int(Identity.HOST))))


@pytest.mark.parametrize("ingress", ["nowhere", "lo"])
def test_the_node_itself_reaches_an_isolated_pod(node: Node, ingress: str) -> None:
    assert node.received("node", ingress) == 0


@pytest.mark.parametrize("ingress", ["eth0", "cni0", "pod1", "gone"])
@pytest.mark.parametrize("transport", [TCP(dport=80), UDP(dport=53)], ids=["tcp", "udp"])
def test_the_nodes_address_from_elsewhere_is_the_world(node: Node, ingress: str, transport: Packet) -> None:
    assert node.received("node", ingress, transport) == abi.DropReason.POLICY_DENIED


def test_an_ipblock_around_the_nodes_address_lets_masqueraded_traffic_in(node: Node) -> None:
    region = (1 << 24) | 5
    block = ip_network(f"{node.address('node')}/{32 if node.version == 4 else 128}")
    node.tables["nn_cidr"].update(abi.LpmKey.of(block), abi.always(abi.U32(region)))
    node.allow(region)
    assert node.received("node", "eth0") == 0


def test_a_masqueraded_flow_stays_the_worlds(node: Node) -> None:
    """Its packets in the other direction go to the node's address: that does not make it the node's flow."""
    node.allow(int(Identity.WORLD))
    assert node.received("node", "eth0", UDP(sport=5, dport=53)) == 0
    node.forbid(int(Identity.WORLD))
    node.revision(2)
    assert node.answered("node", UDP(sport=53, dport=5)) == abi.DropReason.POLICY_DENIED
    assert node.received("node", "eth0", UDP(sport=5, dport=53)) == abi.DropReason.POLICY_DENIED


def test_the_nodes_own_flow_stays_the_nodes(node: Node) -> None:
    assert node.received("node", "nowhere", UDP(sport=5, dport=53)) == 0
    node.revision(2)
    assert node.answered("node", UDP(sport=53, dport=5)) == 0


@pytest.mark.parametrize("ingress", ["nowhere", "lo", "pod1", "cni0"])
def test_a_local_pod_is_known_on_its_own_ways(node: Node, ingress: str) -> None:
    """A process of the node that speaks for it (a proxy), its own veth, and the bridge that routes for it."""
    assert node.received("neighbour", ingress) == abi.DropReason.POLICY_DENIED
    node.allow(NEIGHBOUR)
    assert node.received("neighbour", ingress) == 0


@pytest.mark.parametrize("ingress", ["eth0", "gone", "other pod"])
def test_a_local_pods_address_from_elsewhere_is_a_forgery(node: Node, ingress: str) -> None:
    node.allow(NEIGHBOUR)
    assert node.received("neighbour", ingress) == abi.DropReason.INVALID_SOURCE_IP


def test_the_pods_own_address_from_the_network_is_a_forgery(node: Node) -> None:
    node.allow(0)
    assert node.received("server", "eth0") == abi.DropReason.INVALID_SOURCE_IP


@pytest.mark.parametrize("ingress", ["eth0", "cni0"])
def test_other_addresses_are_judged_by_policy_alone(node: Node, ingress: str) -> None:
    assert node.received("far", ingress) == abi.DropReason.POLICY_DENIED
    node.allow(int(Identity.WORLD))
    assert node.received("far", ingress) == 0
