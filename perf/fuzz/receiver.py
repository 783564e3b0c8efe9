"""Sends frames into a network namespace and returns what the sockets there receive from the kernel.

A raw socket for each protocol receives packets after the kernel has checked lengths and reassembled fragments, but
before it looks for an open port. That is a superset of what applications get. There are also UDP sockets and TCP
listeners on all ports of the world, which count what they get.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import NamedTuple

from nodenet.errors import CannotRunError
from nodenet.link import netns
from perf import tools
from perf.fuzz import build
from perf.fuzz.world import (
    ACK,
    ALLOWED,
    B_MAC,
    BY_SOURCE,
    DENIED_PORTS,
    OTHER,
    REVERSE,
    SENTINEL,
    SYN,
    TCP,
    TRACKS,
    UDP,
    Frame,
)
from perf.node import set_sysctls

_DEVICE = "eth0"
# The MAC of B's gateway. B's answers go there and are ignored.
_FAR_MAC = "02:00:00:00:00:cc"
# Seconds to wait for the last frame of a batch.
_END_SECONDS = 20.0
_ROOM = 1 << 25
_MOST = 4096
# linux/if_packet.h
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_SO_RCVBUFFORCE = 33
# linux/virtio_net.h
_NEEDS_CSUM, _GSO_TCPV4, _GSO_TCPV6 = 1, 1, 4
_PLAIN = bytes(10)
# Headers that the kernel removes before the transport protocol. Raw sockets for their numbers get packets too.
_EXTENSIONS = (build.HOP, build.ROUTING, build.FRAGMENT, build.AUTH, build.DEST)
_SETTINGS = {
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv6.conf.all.accept_ra": 0,
    "net.ipv6.conf.default.accept_ra": 0,
    # Keep incomplete fragments only for 2 s, because identifications repeat after 65,536 packets.
    "net.ipv4.ipfrag_time": 2,
    "net.ipv6.ip6frag_time": 2,
    "net.ipv4.ipfrag_high_thresh": 1 << 26,
    "net.ipv6.ip6frag_high_thresh": 1 << 26,
    # SYN cookies: no state for a SYN, and one answer to each.
    "net.ipv4.tcp_syncookies": 2,
    "net.ipv4.icmp_ratelimit": 0,
}


class Delivery(NamedTuple):
    """What a raw socket received: the protocol behind all IP headers, and the bytes from its header on."""

    version: int
    protocol: int
    source: bytes
    data: bytes


class Receiver:
    """A namespace with B's addresses, connected by a veth pair to the current namespace."""

    def __init__(self, stack: ExitStack, name: str) -> None:
        self.sockets = 0  # datagrams that a UDP socket got
        self.answers = 0  # SYNs that a TCP listener answered
        self._stack = stack
        netns.create(name)
        stack.callback(netns.delete, name)
        self._wire(name)
        self._epoll = select.epoll()
        stack.callback(self._epoll.close)
        self._readers: dict[int, tuple[socket.socket, int, int]] = {}
        self._open_sockets(name)
        self._sender = packet_socket(stack, name, 0)
        self._back = packet_socket(stack, name, 3)
        self._sentinel = _PLAIN + build.ether(
            B_MAC,
            TRACKS[1].a_mac,
            build.IPV4_TYPE,
            build.ipv4(SENTINEL, TRACKS[1].b[4], UDP, build.udp(9, 9)),
        )

    def _wire(self, name: str) -> None:
        tools.run(
            ["ip", "-batch", "-"],
            f"link add {name} type veth peer name {_DEVICE} address {B_MAC.hex(':')} netns {name}\n",
        )
        set_sysctls("", {f"net.ipv6.conf.{name}.disable_ipv6": 1})
        tools.run(["ip", "link", "set", name, "up"])
        set_sysctls(name, _SETTINGS)
        # The interface must send nothing on its own: no duplicate address detection, and no link-local address.
        lines = [f"link set {_DEVICE} addrgenmode none", f"link set {_DEVICE} up"]
        for track in TRACKS:
            lines.append(f"addr add {ip_address(track.b[4])}/32 dev {_DEVICE}")
            lines.append(f"addr add {ip_address(track.b[6])}/128 dev {_DEVICE} nodad")
        lines += [f"route add {network} dev {_DEVICE}" for network in ("10.200.0.0/13", "fd01::/16")]
        far = [*BY_SOURCE, OTHER[4], OTHER[6], SENTINEL]
        lines += [f"neigh replace {ip_address(to)} lladdr {_FAR_MAC} dev {_DEVICE} nud permanent" for to in far]
        tools.run(["ip", "-batch", "-"], "\n".join([*lines, ""]), name)

    def _open_sockets(self, name: str) -> None:
        with netns.inside(name):
            for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
                for protocol in range(1, 255):
                    if version == 4 or protocol not in _EXTENSIONS:
                        self._read(socket.socket(family, socket.SOCK_RAW, protocol), version, protocol)
                for port in _ports(UDP):
                    self._read(_bound(family, socket.SOCK_DGRAM, port), version, 0)
                for port in _ports(TCP):
                    listener = _bound(family, socket.SOCK_STREAM, port)
                    self._stack.callback(listener.close)
                    listener.listen(4096)

    def _read(self, sock: socket.socket, version: int, protocol: int) -> None:
        sock.setblocking(False)
        with suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        self._stack.callback(sock.close)
        self._epoll.register(sock, select.EPOLLIN)
        self._readers[sock.fileno()] = (sock, version, protocol)

    def exchange(self, frames: Sequence[Frame]) -> list[Delivery]:
        """Send frames. Returns what the sockets received. Raises CannotRunError if the last frame does not arrive."""
        for frame in frames:
            # The kernel refuses frames that are not valid for any device (too short, too long, impossible offload).
            with suppress(OSError):
                self._sender.send((_offload(frame) if frame.gso_size else _PLAIN) + frame.data)
        self._sender.send(self._sentinel)
        return self.collect()

    def collect(self, end: bytes = b"") -> list[Delivery]:
        """What the sockets received up to the last frame: the one from SENTINEL, or one that contains `end`. Raises
        CannotRunError if it does not arrive."""
        found: list[Delivery] = []
        deadline = time.monotonic() + _END_SECONDS
        while not self._drain(found, _END_SECONDS, end):
            if time.monotonic() > deadline:
                raise CannotRunError("the last frame of a batch did not arrive", "the machine may be overloaded")
        # One CPU handles the frames in order, so everything before the last frame is in its socket now.
        self._drain(found, 0, end)
        self._count_answers()
        return found

    def _drain(self, found: list[Delivery], seconds: float, end: bytes) -> bool:
        """Read all sockets that have data, after waiting up to `seconds` for any. True if the last frame was read."""
        seen = False
        for fd, _ in self._epoll.poll(seconds):
            sock, version, protocol = self._readers[fd]
            while True:
                try:
                    data, address = sock.recvfrom(_MOST)
                except BlockingIOError:
                    break
                except OSError:  # an ICMP error that was about this socket
                    continue
                if not protocol:
                    self.sockets += 1
                    continue
                delivery = _delivery(version, protocol, data, address)
                if delivery.source == SENTINEL or (end and delivery.data.endswith(end)):
                    seen = True
                else:
                    found.append(delivery)
        return seen

    def _count_answers(self) -> None:
        while True:
            try:
                frame = self._back.recv(128)
            except BlockingIOError:
                return
            if len(frame) >= 74 and frame[12:14] == build.IPV6_TYPE:
                protocol, flags = frame[20], frame[67]
            elif len(frame) >= 54 and frame[12:14] == build.IPV4_TYPE:
                protocol, flags = frame[23], frame[47]
            else:
                continue
            self.answers += protocol == TCP and flags & (SYN | ACK) == SYN | ACK


def packet_socket(stack: ExitStack, device: str, protocol: int) -> socket.socket:
    """A packet socket for a device in the current namespace. Protocol 0: only for sending; each frame follows a struct
    virtio_net_hdr. Protocol 3 (ETH_P_ALL): reads all incoming packets, non-blocking."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    stack.callback(sock.close)
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
    if protocol == 0:
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    sock.bind((device, protocol))
    sock.setblocking(protocol == 0)
    return sock


def _delivery(version: int, protocol: int, data: bytes, address: tuple[str, int]) -> Delivery:
    if version == 4:
        return Delivery(4, protocol, data[12:16], data[(data[0] & 15) * 4 :])
    return Delivery(6, protocol, socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0]), data)


def _ports(protocol: int) -> list[int]:
    allowed = {port for number, port in ALLOWED if number == protocol}
    return sorted({*allowed, *DENIED_PORTS[protocol], REVERSE[protocol][1]})


def _bound(family: int, kind: int, port: int) -> socket.socket:
    sock = socket.socket(family, kind)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", port))
    return sock


def _offload(frame: Frame) -> bytes:
    """A struct virtio_net_hdr for a TCP frame of its IP version, to be cut into segments of `gso_size`."""
    is_v6 = frame.data[12:14] == build.IPV6_TYPE
    start = 14 + (40 if is_v6 else (int.from_bytes(frame.data[14:15], "big") & 15) * 4)
    return struct.pack(
        "<BBHHHH", _NEEDS_CSUM, _GSO_TCPV6 if is_v6 else _GSO_TCPV4, start + 20, frame.gso_size, start, 16
    )
