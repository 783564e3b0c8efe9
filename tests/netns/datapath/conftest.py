"""One pod behind the programs, a bridge, and a device without checksum offload, for which the kernel finishes them."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodenet import abi
from nodenet.bpf import build, loader, probe
from nodenet.bpf.pins import Pins
from nodenet.bpf.ringbuf import EventReader
from nodenet.bpf.tables import BpfTable
from nodenet.link import netns, tc
from nodenet.link.handle import Link

POD_MAC, FAR_MAC = "02:00:00:00:01:01", "02:00:00:00:02:02"
POD = {4: "10.201.0.1", 6: "fd01::1"}
FAR = {4: "10.201.0.2", 6: "fd01::2"}
POD_IDENTITY = 60001
# linux/if_packet.h
_PACKET_VNET_HDR = 15
_SOL_PACKET = 263
# linux/ethtool.h, linux/sockios.h
_ETHTOOL_STXCSUM = 0x17
_SIOCETHTOOL = 0x8946
# Seconds: frames take microseconds here; this ends a test that waits for one that never comes.
PATIENCE = 10.0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _no_tx_checksums(interface: str) -> None:
    value = array.array("B", struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP", interface.encode(), value.buffer_info()[0]).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)


@dataclass(slots=True)
class Wire:
    """The pod's raw socket, and the far end's: what came over the device."""

    pod: str
    far: str
    near: socket.socket
    sniffer: socket.socket
    reader: EventReader
    events: list[abi.Event] = field(default_factory=list)

    def send(self, frame: bytes, vnet: bytes = bytes(10)) -> None:
        """A frame from the pod, with a virtio header (VIRTIO_NET_HDR_F_NEEDS_CSUM and the like)."""
        self.near.send(vnet + frame)

    def receive_until(self, marker: bytes) -> list[bytes]:
        """The frames from the pod's MAC until the first one that holds `marker`, that one included."""
        found = []
        while True:
            frame = self.sniffer.recv(1 << 16)
            # To all routers, and multicast listener reports: the pod's kernel says them when it likes.
            if frame[6:12] == bytes.fromhex(POD_MAC.replace(":", "")) and frame[:5] != b"\x33\x33\0\0\0":
                found.append(frame)
                if marker in frame:
                    return found

    def drops(self) -> list[int]:
        """The reasons of the drop events since the last call, as Hubble's numbers."""
        self.events.clear()
        while self.reader.consume():
            pass
        return [-event.reason for event in self.events if event.type == abi.EventType.DROP]


@pytest.fixture(scope="module", params=[True, False], ids=["cast", "probe"])
def wire(bpffs: Path, bpf_cache: Path, request: pytest.FixtureRequest) -> Iterator[Wire]:
    """Once for each way to read the kernel's own packet."""
    if request.param and not probe.available(probe.features(), probe.CAST_CTX):
        pytest.skip("this kernel has no bpf_cast_to_kern_ctx (6.2 has it)")
    with ExitStack() as stack:
        # One CPU's queue keeps the order: what was sent before a marker has been judged when the marker arrives.
        cpus = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, cpus)
        os.sched_setaffinity(0, {min(cpus)})
        node, pod, far = (f"nntest-{os.getpid()}-{name}" for name in ("node", "pod", "far"))
        for name in (node, pod, far):
            netns.create(name)
            stack.callback(netns.delete, name)
        _ip("-n", node, "link", "add", "cni0", "type", "bridge")
        for port, inside, mac, where in (("pod0", pod, POD_MAC, POD), ("eth0", far, FAR_MAC, FAR)):
            _ip(
                "-n", node, "link", "add", port, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", inside
            )
            _ip("-n", node, "link", "set", port, "master", "cni0", "up")
            for version, size in ((4, 24), (6, 64)):
                nodad = ["nodad"] if version == 6 else []
                _ip("-n", inside, "addr", "add", f"{where[version]}/{size}", "dev", "eth0", *nodad)
            _ip("-n", inside, "link", "set", "eth0", "up")
        for inside, mac, where in ((pod, FAR_MAC, FAR), (far, POD_MAC, POD)):
            # So that neither kernel asks.
            for address in where.values():
                _ip("-n", inside, "neigh", "add", address, "lladdr", mac, "dev", "eth0")
        _ip("-n", node, "link", "set", "cni0", "up")
        netns.call(node, _no_tx_checksums, "eth0")
        pins = Pins(bpffs / "offload")
        config = loader.DatapathConfig(refuse_errno=False)
        loaded = loader.load(build.build_all(bpf_cache, request.param), config, pins)
        stack.callback(pins.remove)
        stack.callback(loader.close, loaded)
        with Link(node) as link:
            index = link.require("pod0").index
            tc.attach(link, index, tc.Hook.INGRESS, loaded.programs["endpoint_egress"], "endpoint_egress")
            tc.attach(link, index, tc.Hook.EGRESS, loaded.programs["endpoint_ingress"], "endpoint_ingress")
        endpoints = BpfTable("nn_endpoint", pins.map("nn_endpoint"))
        stack.callback(endpoints.close)
        for address in POD.values():
            entry = abi.always(abi.EndpointEntry(index, POD_IDENTITY, 1, 0, POD_MAC))
            endpoints.update(abi.AddressKey(ip_address(address)), entry)
        near = stack.enter_context(netns.open_socket(pod, socket.AF_PACKET, socket.SOCK_RAW))
        near.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        near.bind(("eth0", 0))
        sniffer = stack.enter_context(netns.open_socket(far, socket.AF_PACKET, socket.SOCK_RAW))
        sniffer.bind(("eth0", 3))
        sniffer.settimeout(PATIENCE)
        events: list[abi.Event] = []
        reader = EventReader(pins.map("nn_events"), lambda raw: events.append(abi.Event.unpack(raw)))
        stack.callback(reader.close)
        yield Wire(pod, far, near, sniffer, reader, events)
