"""An rtnetlink socket in one namespace, and functions for the other modules of this package.

A `Link` is for one thread at a time. Its calls block while the kernel holds the RTNL lock (removing a namespace with
many interfaces can take tens of ms), so asyncio code must call it in a worker thread.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from nodenet.errors import CannotRunError
from nodenet.link import netlink, netns
from nodenet.link.netlink import Netlink, RefusedError, Request

NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
IFF_UP, IFF_PROMISC = 0x1, 0x100
# rtnetlink(7), linux/if_link.h
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, _LINK, IFLA_MASTER, _OPERSTATE = 1, 3, 4, 5, 10, 16
IFLA_LINKINFO, _AF_SPEC, IFLA_NET_NS_FD, _LINK_NETNSID = 18, 26, 28, 37
_INET6_ADDR_GEN_MODE = 8
INFO_KIND, INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
BRPORT_STATE, BRPORT_MODE = 1, 4
# asm-generic/socket.h
_SO_NETNS_COOKIE = 71
_OPER_UNKNOWN, _OPER_UP = 0, 6
# linux/if_arp.h
ARPHRD_ETHER = 1
_HEADER = struct.Struct("=BxHiII")


class LinkError(CannotRunError):
    """The kernel rejected a request; the message names the object. `code` is the errno."""

    def __init__(self, doing: str, code: int, words: str = "") -> None:
        super().__init__(f"{doing}: {netlink.RefusedError(code, words)}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as the kernel reports it. `kind` is "" for physical ones; `master` and `peer` are indexes or 0.
    `hardware` is an ARPHRD number (linux/if_arp.h).

    `peer_netns` is the id (nsid) that this namespace has for the peer's; None if the peer is in this namespace. The
    kernel assigns it at the first request and keeps it as long as the other namespace exists.
    """

    index: int
    name: str
    kind: str
    hardware: int
    mac: str
    mtu: int
    up: bool
    running: bool
    master: int
    peer: int
    port_state: int
    hairpin: bool
    peer_netns: int | None


class Link:
    """An open rtnetlink socket. `target` is a namespace's name, path or file descriptor; None: the current one."""

    def __init__(self, target: netns.Target | None = None) -> None:
        self._socket = netns.open_socket(target, socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)
        self.kernel = Netlink(self._socket)

    def close(self) -> None:
        self.kernel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def netns_cookie(self) -> int:
        """The kernel's cookie of the socket's namespace; 0 if the kernel does not report it (before Linux 5.14)."""
        try:
            return int.from_bytes(self._socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            return 0

    def get(self, which: str | int) -> Interface | None:
        """An interface by name or index; None if it does not exist."""
        index, name = (which, b"") if isinstance(which, int) else (0, netlink.text(IFLA_IFNAME, which))
        try:
            return _interface(self.kernel.get(_GETLINK, link_header(index) + name))
        except RefusedError as error:
            # EINVAL and ERANGE: no interface can have such a name.
            if error.code in (errno.ENODEV, errno.EINVAL, errno.ERANGE):
                return None
            raise LinkError(f"cannot read interface {which}", error.code, error.text) from error

    def require(self, which: str | int) -> Interface:
        """Like `get`, but raises LinkError if it does not exist."""
        if (found := self.get(which)) is None:
            raise LinkError(f"interface {which}", errno.ENODEV)
        return found

    def all(self) -> list[Interface]:
        """All interfaces of the namespace, sorted by index."""
        with link_errors("cannot list interfaces"):
            found = [_interface(body) for body in self.kernel.dump(_GETLINK, link_header(0))]
        return sorted(found, key=lambda interface: interface.index)

    def set(self, which: int | str, **attributes: Any) -> None:
        """Change attributes of an interface: state ("up", "down"), mtu, address, master (an index, 0 for none),
        ifname, net_ns_fd, addr_gen_mode (of IPv6, ip-link(8); the kernel ignores it when it creates an interface)."""
        index = which if isinstance(which, int) else self.require(which).index
        with link_errors(f"cannot set {', '.join(attributes)} of interface {which}"):
            self.kernel.run(change_request(index, **attributes))

    def batch(self, *steps: tuple[str, Request]) -> None:
        """Send several requests in one system call. LinkError contains the description of the first step that
        failed. Later steps are executed too, so use this only for steps that are undone together."""
        if not steps:
            return
        try:
            self.kernel.run(*[request for _, request in steps])
        except RefusedError as error:
            raise LinkError(steps[error.index][0], error.code, error.text) from error

    def delete(self, which: int | str) -> bool:
        """Delete an interface; False if it does not exist. Deleting a veth also deletes its peer."""
        index, name = (which, b"") if isinstance(which, int) else (0, netlink.text(IFLA_IFNAME, which))
        try:
            with link_errors(f"cannot delete interface {which}"):
                self.kernel.run(Request(_DELLINK, link_header(index) + name))
        except LinkError as error:
            if error.code == errno.ENODEV:
                return False
            raise
        return True


def link_header(index: int, flags: int = 0, mask: int = 0, family: int = socket.AF_UNSPEC) -> bytes:
    """struct ifinfomsg. `mask` selects the flags that are set to the value in `flags`."""
    return _HEADER.pack(family, 0, index, flags, mask)


def change_request(index: int, *, state: str = "", **attributes: Any) -> Request:
    """The request of Link.set, for a batch. Raises KeyError for an unknown attribute."""
    flags = IFF_UP if state == "up" else 0
    body = link_header(index, flags, IFF_UP if state else 0)
    return Request(NEWLINK, body + b"".join(_ATTRIBUTES[name](value) for name, value in attributes.items()))


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


_ATTRIBUTES: dict[str, Callable[[Any], bytes]] = {
    "ifname": lambda value: netlink.text(IFLA_IFNAME, value),
    "mtu": lambda value: netlink.u32(IFLA_MTU, value),
    "address": lambda value: netlink.attribute(IFLA_ADDRESS, mac_bytes(value)),
    "master": lambda value: netlink.u32(IFLA_MASTER, value),
    "net_ns_fd": lambda value: netlink.u32(IFLA_NET_NS_FD, value),
    "addr_gen_mode": lambda value: netlink.nested(
        _AF_SPEC, netlink.nested(socket.AF_INET6, netlink.u8(_INET6_ADDR_GEN_MODE, value))
    ),
}


def encode(**attributes: Any) -> bytes:
    """Encode attributes of an interface, with the names of `Link.set`; empty values are omitted."""
    return b"".join(_ATTRIBUTES[name](value) for name, value in attributes.items() if value)


@contextmanager
def link_errors(doing: str) -> Iterator[None]:
    """Convert an error of the kernel into a LinkError that begins with `doing`."""
    try:
        yield
    except RefusedError as error:
        raise LinkError(doing, error.code, error.text) from error


def _interface(body: bytes) -> Interface:
    _, hardware, index, flags, _ = _HEADER.unpack_from(body)
    found = netlink.attributes(body, 16)
    info = netlink.attributes(found.get(IFLA_LINKINFO, b""))
    is_port = netlink.string(info, _INFO_SLAVE_KIND) == "bridge"
    port = netlink.attributes(info[_INFO_SLAVE_DATA]) if is_port and _INFO_SLAVE_DATA in info else {}
    return Interface(
        index=index,
        name=netlink.string(found, IFLA_IFNAME),
        kind=netlink.string(info, INFO_KIND),
        hardware=hardware,
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=netlink.number(found, IFLA_MTU),
        up=bool(flags & IFF_UP),
        running=netlink.number(found, _OPERSTATE) in (_OPER_UNKNOWN, _OPER_UP),
        master=netlink.number(found, IFLA_MASTER),
        peer=netlink.number(found, _LINK),
        port_state=netlink.number(port, BRPORT_STATE),
        hairpin=netlink.number(port, BRPORT_MODE) != 0,
        peer_netns=_netns_id(found),
    )


def _netns_id(found: Mapping[int, bytes]) -> int | None:
    """None if the attribute is missing (same namespace) or negative (the kernel has no id)."""
    number = int.from_bytes(found.get(_LINK_NETNSID, b"\xff"), sys.byteorder, signed=True)
    return number if number >= 0 else None
