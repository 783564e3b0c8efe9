"""A loaded datapath per module, its maps as typed tables, and a packet runner."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from nodenet import abi, tables
from nodenet.agent.sockets import Peers
from nodenet.bpf import build, libbpf, loader
from nodenet.bpf.packet_run import TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, PacketRun, run_packet
from nodenet.bpf.pins import Pins
from nodenet.bpf.ringbuf import EventReader
from nodenet.bpf.tables import BpfTable
from nodenet.model import Direction
from tests.sockclient import SocketProcess

from .sockworld import World

# BPF_PROG_TEST_RUN runs on the loopback device.
TEST_IFINDEX = 1
OTHER_IFINDEX = 4242
# Of endpoint number 1, the one that sends in these tests.
POD_MAC = "02:00:00:00:00:01"

# Let through, to the programs and filters behind ours.
TC_OK = TC_ACT_UNSPEC
TC_SHOT = TC_ACT_SHOT
TC_REDIRECT = TC_ACT_REDIRECT


class Datapath:
    """The programs of one load with helpers to fill maps and to read what they tell."""

    def __init__(
        self, root: Path, cache: Path, config: loader.DatapathConfig, objects: Mapping[str, Path] | None = None
    ) -> None:
        self.pins = Pins(root)
        self.loaded = loader.load(objects or build.build_all(cache), config, self.pins)
        self.tables = {name: BpfTable(name, self.pins.map(name)) for name in tables.KEYED}
        self.peers = Peers(self.loaded.programs[loader.SOCK_SERVICE], self.tables["nn_sock_revnat"])
        self._port = libbpf.obj_get(str(self.pins.map("nn_port")))
        self._events: list[abi.Event] = []
        self._reader = EventReader(self.pins.map("nn_events"), lambda raw: self._events.append(abi.Event.unpack(raw)))

    def close(self) -> None:
        self._reader.close()
        os.close(self._port)
        for table in self.tables.values():
            table.close()
        loader.close(self.loaded)
        self.pins.remove()

    def reset(self) -> None:
        for name in self.tables.keys() - {"nn_state", "nn_metrics", "nn_sock_choice"}:
            table = self.tables[name]
            for key, _ in list(table.items()):
                table.delete(key)
        libbpf.lib().bpf_map_delete_elem(self._port, TEST_IFINDEX.to_bytes(4, "little"))  # where there is one
        metrics = self.tables["nn_metrics"]
        for key, cpus in list(metrics.items()):
            zeros = bytes(len(cpus) * ctypes.sizeof(ctypes.c_uint64 * 2))
            libbpf.check(libbpf.lib().bpf_map_update_elem(metrics.fd, key.pack(), zeros, 0), "counters to 0")
        self.revision(0)
        self.events()

    def events(self) -> list[abi.Event]:
        """What the programs told since the last call."""
        while self._reader.consume():
            pass
        taken = list(self._events)
        self._events.clear()
        return taken

    def revision(self, number: int) -> None:
        self.tables["nn_state"].update(abi.U32(0), abi.State(number, number))

    def endpoint(
        self, address: str, identity: int, *, number: int, ifindex: int = TEST_IFINDEX, flags: int = 0
    ) -> None:
        """A local pod, known to the ipcache too."""
        mac = f"02:00:00:00:00:{number:02x}"
        entry = abi.always(abi.EndpointEntry(ifindex, identity, number, flags, mac))
        self.tables["nn_endpoint"].update(abi.AddressKey(ip_address(address)), entry)
        self.identity(address, identity)

    def identity(self, address: str, identity: int) -> None:
        self.tables["nn_ipcache"].update(abi.LpmKey.host(ip_address(address)), abi.always(abi.U32(identity)))

    def region(self, network: str, region: int) -> None:
        self.tables["nn_cidr"].update(abi.LpmKey.of(ip_network(network)), abi.always(abi.U32(region)))

    def allow(
        self,
        subject: int,
        peer: int,
        direction: Direction,
        protocol: int = 0,
        port: int = 0,
        bits: int = 16,
        rule: int = 7,
    ) -> abi.PolicyKey:
        prefixlen = abi.POLICY_BITS_DIRECTION
        if protocol:
            prefixlen = abi.POLICY_BITS_PROTOCOL + (bits if port else 0)
        key = abi.PolicyKey(prefixlen, subject, peer, direction, protocol, port)
        self.tables["nn_policy"].update(key, abi.always(abi.Rule.allow(rule)))
        return key

    def run(self, program: str, packet: Packet, mac: str = POD_MAC) -> PacketRun:
        return run_packet(self.loaded.programs[program], bytes(Ether(src=mac, dst="02:00:00:00:00:bb") / packet))

    def sent(self, packet: Packet) -> int:
        """The verdict on a packet that a pod sends (its egress)."""
        return self.run("endpoint_egress", packet).verdict

    def received(self, packet: Packet) -> int:
        """The verdict on a packet that a pod would receive (its ingress)."""
        return self.run("endpoint_ingress", packet).verdict


@pytest.fixture(scope="module")
def loaded_datapath(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    datapath = Datapath(bpffs / "nodenet", bpf_cache, loader.DatapathConfig())
    try:
        yield datapath
    finally:
        datapath.close()


@pytest.fixture
def datapath(loaded_datapath: Datapath) -> Datapath:
    """Empty maps, no events."""
    loaded_datapath.reset()
    return loaded_datapath


@contextmanager
def sock_world(datapath: Datapath, cgroup: Path, netns: str, version: int, mapped: bool = False) -> Iterator[World]:
    """The socket programs on a cgroup with one process in it."""
    loader.attach_cgroup(datapath.loaded, cgroup, datapath.pins)
    try:
        with SocketProcess.inside(netns, cgroup) as process:
            yield World(datapath, process, version, mapped)
    finally:
        for link in datapath.pins.links.iterdir():
            link.unlink()


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest, datapath: Datapath, cgroup: Path, netns: str) -> Iterator[World]:
    with sock_world(datapath, cgroup, netns, request.param) as found:
        yield found


@pytest.fixture
def mapped(datapath: Datapath, cgroup: Path, netns: str) -> Iterator[World]:
    """IPv4 Services and clients that are AF_INET6 sockets."""
    with sock_world(datapath, cgroup, netns, 4, mapped=True) as found:
        yield found


@pytest.fixture(params=["ipv4", "ipv6", "mapped"])
def any_world(request: pytest.FixtureRequest, datapath: Datapath, cgroup: Path, netns: str) -> Iterator[World]:
    version = 6 if request.param == "ipv6" else 4
    with sock_world(datapath, cgroup, netns, version, mapped=request.param == "mapped") as found:
        yield found
