"""Announces the new MAC of an address to the neighbours: gratuitous ARP (RFC 5227) and an unsolicited neighbour
advertisement (RFC 4861 section 7.2.6). Needed if an address moves to a pod with another MAC."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from nodenet.link import netns

_ALL_NODES = "ff02::1"
_OVERRIDE = 0x20000000


def announce_v4(target: netns.Target | None, ifname: str, mac: str, address: IPv4Address) -> None:
    """Send one gratuitous ARP. Raises OSError if the interface is down or gone.

    Takes about 13 ms: the kernel waits for a grace period when a packet socket is closed.
    """
    hardware = bytes.fromhex(mac.replace(":", ""))
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + hardware + address.packed + bytes(6) + address.packed
    with netns.open_socket(target, socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((ifname, 0))
        sock.send(b"\xff" * 6 + hardware + b"\x08\x06" + body)


def announce_v6(target: netns.Target | None, ifindex: int, mac: str, address: IPv6Address) -> None:
    """Send one unsolicited neighbour advertisement. Raises OSError if the interface is down or gone."""
    # Type 136, code 0, checksum (the kernel's), override flag, target, option 2 (link-layer address) of 8 bytes.
    message = struct.pack("!BBHI", 136, 0, 0, _OVERRIDE) + address.packed + b"\x02\x01"
    with netns.open_socket(target, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, ifindex)
        sock.bind((str(address), 0, 0, ifindex))
        sock.sendto(message + bytes.fromhex(mac.replace(":", "")), (_ALL_NODES, 0, 0, ifindex))
