"""Sends the same cases over real devices with offloads: what a device writes after the verdict must not change a
packet's destination.

    A's pod ── veth ── node with our programs ──┬── veth ── B of the track "local", a pod beside A
                                                └── uplink without offloads ── B of the track "egress"

A sends each frame behind a struct virtio_net_hdr (PACKET_VNET_HDR): its checksum may be unfinished, at any offset, and
it may be a packet of any kind that is cut into segments later. The node routes. Its uplink finishes checksums in
software after the programs' verdict, as a NIC would in hardware.
"""

from __future__ import annotations

import array
import fcntl
import random
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path

from nodenet.link import netns, tc
from nodenet.link.handle import Link
from perf import tools
from perf.fuzz import build
from perf.fuzz.cases import Maker
from perf.fuzz.datapath import Datapath, plain
from perf.fuzz.model import reached, trespass
from perf.fuzz.parts import TAG
from perf.fuzz.receiver import Delivery, Receiver, packet_socket
from perf.fuzz.world import B_MAC, BY_NAME, TCP, UDP, Case, Frame
from perf.node import set_sysctls

TRACKS = ("egress", "local")
_DEVICE = "eth0"
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17
# linux/virtio_net.h
_HEADER = struct.Struct("<BBHHHH")  # flags, kind of segments, headers' length, segment size, checksum start, its offset
_NEEDS_CSUM = 1
_KINDS = (1, 3, 4, 5, 0x81, 0x84)  # TCPv4, UDP, TCPv6, UDP_L4, TCP with ECN
_BATCH, _MOST = 150, 5
_CHECKSUMS = {TCP: 16, UDP: 6}


class Wire:
    """A node with its devices. Namespaces and programs belong to `stack`. The node is the current namespace."""

    def __init__(self, stack: ExitStack, pins: Path, objects: Mapping[str, Path], name: str) -> None:
        self.delivered = 0
        self.arrived = 0  # allowed cases without offloads
        self.frames = 0
        self._batches = 0
        set_sysctls("", {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1, "net.ipv4.conf.all.rp_filter": 0})
        set_sysctls("", {"net.ipv4.conf.default.rp_filter": 0})
        self._receivers = {"egress": Receiver(stack, f"{name}up"), "local": Receiver(stack, f"{name}b")}
        pod = f"{name}a"
        netns.create(pod)
        stack.callback(netns.delete, pod)
        line = f"link add {pod} address {B_MAC.hex(':')} type veth peer name {_DEVICE} netns {pod}\n"
        tools.run(["ip", "-batch", "-"], line)
        tools.run(["ip", "link", "set", pod, "up"])
        tools.run(["ip", "link", "set", _DEVICE, "up"], netns=pod)
        self._uplink(f"{name}up")
        with netns.inside(pod):
            self._sender = packet_socket(stack, _DEVICE, 0)
        indexes = {device: socket.if_nametoindex(device) for device in (pod, f"{name}b")}
        places = {"egress a": indexes[pod], "local a": indexes[pod], "local b": indexes[f"{name}b"]}
        self.datapath = Datapath(pins, objects, places)
        stack.callback(self.datapath.close)
        with Link() as link:
            for index in indexes.values():
                programs = self.datapath.programs
                tc.attach_all(
                    link,
                    index,
                    [
                        tc.Program(tc.Hook.INGRESS, programs["endpoint_egress"], "endpoint_egress"),
                        tc.Program(tc.Hook.EGRESS, programs["endpoint_ingress"], "endpoint_ingress"),
                    ],
                )

    def _uplink(self, device: str) -> None:
        """Make the path to B of the egress track. It finishes checksums in software."""
        set_sysctls("", {f"net.ipv6.conf.{device}.disable_ipv6": 0})
        track = BY_NAME["egress"]
        lines = []
        for version in (4, 6):
            to = ip_address(track.b[version])
            lines += [
                f"route replace {to} dev {device}",
                f"neigh replace {to} lladdr {B_MAC.hex(':')} dev {device} nud permanent",
            ]
        tools.run(["ip", "-batch", "-"], "\n".join([*lines, ""]))
        value = array.array("B", struct.pack("II", _ETHTOOL_STXCSUM, 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
            fcntl.ioctl(sock, _SIOCETHTOOL, request.ljust(40, b"\0"))

    def send(self, cases: Sequence[tuple[Case, Sequence[bytes]]]) -> list[Delivery]:
        """Send the frames of each case behind their headers. Returns what arrived at both ends."""
        for case, headers in cases:
            for frame, header in zip(case.frames, headers, strict=True):
                self.frames += 1
                with suppress(OSError):
                    self._sender.send(header + frame.data)
        self._batches += 1
        end = b"NNEND" + struct.pack("!I", self._batches)
        found: list[Delivery] = []
        for name in TRACKS:
            self._sender.send(bytes(_HEADER.size) + _last(name, end))
            found += self._receivers[name].collect(end)
        self.delivered += len(found)
        return found

    def hunt(self, maker: Maker, rng: random.Random, frames: int) -> list[str]:
        """Send so many frames. Returns texts about deliveries against policy and lost allowed cases without
        offloads."""
        found: list[str] = []
        while self.frames < frames and len(found) < _MOST:
            cases = [
                (case, headers(rng, case)) for case in (maker.case() for _ in range(_BATCH)) if case.track in TRACKS
            ]
            arrived = self.send(cases)
            if any(map(trespass, arrived)):
                found += [line for case in cases if (line := self._past(*case))]
            tags = {d.data[at : at + 8] for d in arrived if (at := d.data.find(TAG)) >= 0}
            plain_ones = [case for case, heads in cases if case.tag and not any(map(any, heads))]
            self.arrived += sum(case.tag in tags for case in plain_ones)
            found += [_line("lost", case, []) for case in plain_ones if case.tag not in tags]
        return found[:_MOST]

    def _past(self, case: Case, heads: Sequence[bytes]) -> str:
        """Send the case again by itself. Returns a text, or "" if nothing passes against policy."""
        past = [delivery for delivery in self.send([(case, heads)]) if trespass(delivery)]
        return _line(f"{trespass(past[0])}, {reached(past[0])}", case, heads) if past else ""


def _line(what: str, case: Case, heads: Sequence[bytes]) -> str:
    frames = [frame.data.hex() for frame in case.frames]
    shown = [f"{head.hex()} {frame}" for head, frame in zip(heads, frames, strict=True)] if heads else frames
    return "\n  ".join([f"over devices, {case.kind} ({case.track}): {what}", *shown])


def _last(name: str, end: bytes) -> bytes:
    """An allowed datagram of a track, sent after everything else."""
    track = BY_NAME[name]
    src, dst = track.a[4], track.b[4]
    return plain(4, track.a_mac, src, dst, UDP, build.finished(src, dst, UDP, build.udp(9, 53, end)))


def headers(rng: random.Random, case: Case) -> list[bytes]:
    """A struct virtio_net_hdr for each frame: an empty one, the correct one, or a random one."""
    return [_header(rng, frame) for frame in case.frames]


def _header(rng: random.Random, frame: Frame) -> bytes:
    choice = rng.random()
    if choice < 0.3:
        return bytes(_HEADER.size)
    start, protocol = _transport(frame.data)
    offset = _CHECKSUMS.get(protocol, 6)
    if choice < 0.7:
        # Put the checksum anywhere within the headers: into addresses, ports or options.
        start = rng.choice((start, rng.randrange(0, 70), start + rng.randrange(-8, 9)))
        offset = rng.choice((offset, rng.randrange(0, 24), 0, 2))
    kind = size = length = 0
    if rng.random() < 0.3:
        kind, size = rng.choice(_KINDS), rng.choice((1, 8, 20, 500))
        length = rng.choice((start + 8, start + 20, rng.randrange(80)))
    return _HEADER.pack(_NEEDS_CSUM, kind, length, size, max(start, 0), offset)


def _transport(data: bytes) -> tuple[int, int]:
    """The offset of the transport header in a simple packet, and its protocol."""
    if data[12:14] == build.IPV6_TYPE:
        return 54, data[20] if len(data) > 20 else 0
    return 14 + (int.from_bytes(data[14:15], "big") & 15) * 4, data[23] if len(data) > 23 else 0
