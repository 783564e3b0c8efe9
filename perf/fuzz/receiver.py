"""A real kernel's answer: frames go into a network namespace, and what its sockets get comes back.

A raw socket of each protocol sees what the kernel delivers after it has checked lengths and reassembled fragments, and
before it asks whether a port is open: a superset of what an application gets. UDP sockets and TCP listeners on every
port of the world are there too, and what reaches them is counted.
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
# Nobody looks at what B answers.
_FAR_MAC = "02:00:00:00:00:cc"
_PATIENCE = 20.0
_ROOM = 1 << 25
_MOST = 4096
# linux/if_packet.h
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_SO_RCVBUFFORCE = 33
# linux/virtio_net.h
_NEEDS_CSUM, _GSO_TCPV4, _GSO_TCPV6 = 1, 1, 4
_PLAIN = bytes(10)
# Headers that the kernel takes off on the way to the protocol behind them: a raw socket sees them as well.
_EXTENSIONS = (build.HOP, build.ROUTING, build.FRAGMENT, build.AUTH, build.DEST)
_SETTINGS = {
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv6.conf.all.accept_ra": 0,
    "net.ipv6.conf.default.accept_ra": 0,
    # Fragments without the rest are kept for 2 s: an identification comes again after 65,536 packets.
    "net.ipv4.ipfrag_time": 2,
    "net.ipv6.ip6frag_time": 2,
    "net.ipv4.ipfrag_high_thresh": 1 << 26,
    "net.ipv6.ip6frag_high_thresh": 1 << 26,
    # No state for a SYN, and one answer to each.
    "net.ipv4.tcp_syncookies": 2,
    "net.ipv4.icmp_ratelimit": 0,
}


class Delivery(NamedTuple):
    """What a raw socket got: the protocol behind all IP headers, and the bytes from its header on."""

    version: int
    protocol: int
    source: bytes
    data: bytes


class Receiver:
    """A namespace with B's addresses behind a veth pair, whose other end is in the current namespace."""

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
        # Nothing of its own to say on this link: no address is probed for, and none is made up.
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
        """Send frames, and give what the sockets got of them. Raises CannotRunError when the end never comes."""
        for frame in frames:
            # The kernel refuses frames that no device would take (too short, too long, an impossible offload).
            with suppress(OSError):
                self._sender.send((_offload(frame) if frame.gso_size else _PLAIN) + frame.data)
        self._sender.send(self._sentinel)
        return self.collect()

    def collect(self, end: bytes = b"") -> list[Delivery]:
        """What the sockets got up to the last frame: the one from SENTINEL, or the one that carries `end`. Raises
        CannotRunError when it does not come."""
        found: list[Delivery] = []
        deadline = time.monotonic() + _PATIENCE
        while not self._drain(found, _PATIENCE, end):
            if time.monotonic() > deadline:
                raise CannotRunError("the last frame of a batch did not arrive", "the machine may be overloaded")
        # Handled in order by one CPU: what comes before the last frame is in its socket by now.
        self._drain(found, 0, end)
        self._count_answers()
        return found

    def _drain(self, found: list[Delivery], patience: float, end: bytes) -> bool:
        """Read every socket that has something. True when the last frame was among it."""
        seen = False
        for fd, _ in self._epoll.poll(patience):
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
    """Of a device in the current namespace. Protocol 0 sends alone, each frame behind a struct virtio_net_hdr; 3 reads
    everything that comes in, and does not wait."""
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
    """struct virtio_net_hdr: TCP of this frame's family, to be cut into segments of `gso_size`."""
    is_v6 = frame.data[12:14] == build.IPV6_TYPE
    start = 14 + (40 if is_v6 else (int.from_bytes(frame.data[14:15], "big") & 15) * 4)
    return struct.pack(
        "<BBHHHH", _NEEDS_CSUM, _GSO_TCPV6 if is_v6 else _GSO_TCPV4, start + 20, frame.gso_size, start, 16
    )
