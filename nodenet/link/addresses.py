"""Addresses of interfaces."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from nodenet.link.handle import Link, LinkError, refusing
from nodenet.model import IPAddress

IPInterface = IPv4Interface | IPv6Interface
# linux/if_addr.h: no duplicate address detection, so that an IPv6 address works at once.
_IFA_F_NODAD = 0x02


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of this namespace and the index of the interface that has it."""

    ifindex: int
    interface: IPInterface
    scope: int

    @property
    def ip(self) -> IPAddress:
        return self.interface.ip


def local(link: Link, ifindex: int = 0) -> list[LocalAddress]:
    """Every address of the namespace, or of one interface, including loopback's and link-local ones."""
    with refusing("cannot list addresses"):
        messages = link.ip.get_addr(index=ifindex) if ifindex else link.ip.get_addr()
    found = []
    for message in messages:
        # On a point-to-point interface IFA_ADDRESS is the other end; IFA_LOCAL, where there is one, is ours.
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        found.append(LocalAddress(message["index"], ip_interface(f"{text}/{message['prefixlen']}"), message["scope"]))
    return found


def add(link: Link, ifindex: int, address: IPInterface) -> bool:
    """Give an interface an address; False when it had it. An IPv6 one skips duplicate detection: we allocated it."""
    extra = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
    try:
        with refusing(f"cannot add address {address} to interface {ifindex}"):
            link.ip.addr(
                "add",
                index=ifindex,
                family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **extra,
            )
    except LinkError as error:
        if error.code == errno.EEXIST:
            return False
        raise
    return True


def remove(link: Link, ifindex: int, address: IPInterface) -> None:
    """Take an address from an interface; no error when it had it not."""
    try:
        with refusing(f"cannot remove address {address} from interface {ifindex}"):
            link.ip.addr(
                "del",
                index=ifindex,
                family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
            )
    except LinkError as error:
        if error.code != errno.EADDRNOTAVAIL:
            raise
