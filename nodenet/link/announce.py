"""Tell the neighbours at once where an address lives now: gratuitous ARP (RFC 5227) and an unsolicited neighbour
advertisement (RFC 4861 section 7.2.6). It matters when an address is given to another pod with another MAC."""

from __future__ import annotations

import socket
import struct

from nodenet.link import netns
from nodenet.model import IPAddress

_ETH_ARP, _ETH_IPV6 = 0x0806, 0x86DD
_ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
_OVERRIDE = 0x20000000


def announce(target: netns.Target | None, ifname: str, mac: str, addresses: list[IPAddress]) -> None:
    """Send one frame per address from the interface. Raises OSError when the interface is down or gone."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    with netns.open_socket(target, socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((ifname, 0))
        for address in addresses:
            sock.send(frame(hardware, address))


def frame(mac: bytes, address: IPAddress) -> bytes:
    """The Ethernet frame that announces `address` at `mac`."""
    if address.version == 4:
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address.packed + bytes(6) + address.packed
        return b"\xff" * 6 + mac + struct.pack("!H", _ETH_ARP) + body
    # Type 136, code 0, checksum, override flag, target, option 2 (target link-layer address) of 8 bytes.
    message = struct.pack("!BBHI", 136, 0, 0, _OVERRIDE) + address.packed + b"\x02\x01" + mac
    pseudo = address.packed + _ALL_NODES + struct.pack("!II", len(message), socket.IPPROTO_ICMPV6)
    message = message[:2] + struct.pack("!H", _checksum(pseudo + message)) + message[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), socket.IPPROTO_ICMPV6, 255)
    ethernet = bytes.fromhex("333300000001") + mac + struct.pack("!H", _ETH_IPV6)
    return ethernet + header + address.packed + _ALL_NODES + message


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
