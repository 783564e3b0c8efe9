"""Addresses of interfaces."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from nodenet.endpoint import IPAddress
from nodenet.link import netlink
from nodenet.link.handle import Link, LinkError, link_errors
from nodenet.link.netlink import Listener, Request

IPInterface = IPv4Interface | IPv6Interface
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_HEADER = struct.Struct("=BBBBI")
# linux/rtnetlink.h
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_CLASSES: dict[int, type[IPv4Interface] | type[IPv6Interface]] = {
    socket.AF_INET: IPv4Interface,
    socket.AF_INET6: IPv6Interface,
}
# linux/if_addr.h: skip duplicate address detection, so that an IPv6 address works at once.
_IFA_F_NODAD = 0x02


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of this namespace and the index of its interface."""

    ifindex: int
    interface: IPInterface
    scope: int

    @property
    def ip(self) -> IPAddress:
        return self.interface.ip


def local(link: Link, ifindex: int = 0) -> list[LocalAddress]:
    """All addresses of the namespace or of one interface, including loopback and link-local ones."""
    with link_errors("cannot list addresses"):
        bodies = link.kernel.dump(_GETADDR, _HEADER.pack(0, 0, 0, 0, ifindex))
    found = []
    for body in bodies:
        family, prefixlen, _, scope, index = _HEADER.unpack_from(body)
        attributes = netlink.attributes(body, _HEADER.size)
        # On a point-to-point interface IFA_ADDRESS is the remote address, and IFA_LOCAL is ours.
        packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if packed and family in _CLASSES and ifindex in (0, index):
            found.append(LocalAddress(index, _CLASSES[family]((packed, prefixlen)), scope))
    return found


def changes() -> Listener:
    """Notifies of address changes in the current namespace: `fd` becomes readable, and `drain` reads the
    notifications."""
    return Listener(_RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR)


def add(link: Link, ifindex: int, address: IPInterface, detect: bool = False) -> bool:
    """Add an address to an interface; False if it has it already. An IPv6 address skips duplicate detection unless
    `detect`."""
    try:
        with link_errors(f"cannot add address {address} to interface {ifindex}"):
            link.kernel.run(add_request(ifindex, address, detect))
    except LinkError as error:
        if error.code == errno.EEXIST:
            return False
        raise
    return True


def add_request(ifindex: int, address: IPInterface, detect: bool = False) -> Request:
    """The request of `add`, for a batch."""
    return Request(_NEWADDR, _body(ifindex, address, detect), netlink.CREATE | netlink.EXCL)


def remove(link: Link, ifindex: int, address: IPInterface) -> None:
    """Remove an address from an interface; no error if it is not there."""
    try:
        with link_errors(f"cannot remove address {address} from interface {ifindex}"):
            link.kernel.run(Request(_DELADDR, _body(ifindex, address)))
    except LinkError as error:
        if error.code != errno.EADDRNOTAVAIL:
            raise


def _body(ifindex: int, address: IPInterface, detect: bool = False) -> bytes:
    packed, family = address.ip.packed, socket.AF_INET6 if address.version == 6 else socket.AF_INET
    flags = _IFA_F_NODAD if address.version == 6 and not detect else 0
    header = _HEADER.pack(family, address.network.prefixlen, flags, 0, ifindex)
    body = header + netlink.attribute(_IFA_LOCAL, packed) + netlink.attribute(_IFA_ADDRESS, packed)
    if isinstance(address, IPv4Interface) and address.network.prefixlen < 31:
        body += netlink.attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return body
