"""Linux bridges and their ports."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from nodenet.link import netlink
from nodenet.link.handle import (
    BRPORT_MODE,
    IFF_PROMISC,
    IFLA_LINKINFO,
    INFO_DATA,
    INFO_KIND,
    NEWLINK,
    Interface,
    Link,
    LinkError,
    encode,
    link_errors,
    link_header,
)
from nodenet.link.netlink import Request

FORWARDING = 3  # BR_STATE_FORWARDING
# linux/if_link.h, linux/if_bridge.h
_DELLINK, _GETLINK, _SETLINK = 17, 18, 19
_IFLA_PROTINFO, _IFLA_AF_SPEC, _IFLA_EXT_MASK = 12, 26, 29
_BR_VLAN_FILTERING, _BRPORT_ISOLATED = 7, 33
_BRIDGE_FLAGS, _BRIDGE_VLAN_INFO, _BRIDGE_SELF = 0, 2, 2
_RTEXT_FILTER_BRVLAN = 2  # linux/rtnetlink.h
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 2, 4, 8, 16


def ensure(link: Link, name: str, mtu: int = 0, promiscuous: bool = False) -> Interface:
    """Return the bridge of that name; create it and bring it up if needed. Safe if two callers do this at the same
    time.

    A new bridge gets its own MAC, so that it does not change with its ports. Raises LinkError (EEXIST) if the interface
    is not a bridge.
    """
    found = link.get(name)
    if found is None:
        try:
            with link_errors(f"cannot create bridge {name}"):
                kind = netlink.nested(IFLA_LINKINFO, netlink.text(INFO_KIND, "bridge"))
                body = link_header(0) + encode(ifname=name, address=random_mac(), mtu=mtu) + kind
                link.kernel.run(Request(NEWLINK, body, netlink.CREATE | netlink.EXCL))
        except LinkError as error:
            # EEXIST: another caller has created it meanwhile.
            if error.code != errno.EEXIST:
                raise
        found = link.require(name)
    if found.kind != "bridge":
        raise LinkError(f"interface {name} is a {found.kind or 'physical interface'}, not a bridge", errno.EEXIST)
    if not found.up:
        link.set(found.index, state="up")
    if promiscuous:
        with link_errors(f"cannot make bridge {name} promiscuous"):
            link.kernel.run(Request(NEWLINK, link_header(found.index, IFF_PROMISC, IFF_PROMISC)))
    return found


def set_port(link: Link, port: int, *, hairpin: bool | None = None, isolated: bool | None = None) -> None:
    """Set options of a bridge port; None leaves an option unchanged. An isolated port sends nothing to other
    isolated ports."""
    wanted = ((BRPORT_MODE, hairpin), (_BRPORT_ISOLATED, isolated))
    parts = [netlink.u8(kind, value) for kind, value in wanted if value is not None]
    with link_errors(f"cannot set options of bridge port {port}"):
        header = link_header(port, family=socket.AF_BRIDGE)
        link.kernel.run(Request(_SETLINK, header + netlink.nested(_IFLA_PROTINFO, *parts)))


def is_isolated(link: Link, port: int) -> bool:
    """True if the bridge port is isolated. False if the interface is not a bridge port or does not exist."""
    with link_errors(f"cannot read bridge port {port}"):
        bodies = link.kernel.dump(_GETLINK, link_header(0, family=socket.AF_BRIDGE))
    for body in bodies:
        if struct.unpack_from("=i", body, 4)[0] == port:
            options = netlink.attributes(netlink.attributes(body, 16).get(_IFLA_PROTINFO, b""))
            return netlink.number(options, _BRPORT_ISOLATED) == 1
    return False


def set_vlan_filtering(link: Link, bridge: int, on: bool) -> None:
    """Enable or disable VLAN filtering on the bridge."""
    data = netlink.nested(INFO_DATA, netlink.u8(_BR_VLAN_FILTERING, on))
    info = netlink.nested(IFLA_LINKINFO, netlink.text(INFO_KIND, "bridge"), data)
    with link_errors(f"cannot set vlan_filtering of bridge {bridge}"):
        link.kernel.run(Request(NEWLINK, link_header(bridge) + info))


def add_vlan(
    link: Link, port: int, first: int, last: int = 0, *, untagged: bool = False, on_bridge: bool = False
) -> None:
    """Add the VLANs `first` to `last` to a port (`last` 0: only `first`). `untagged`: frames without a tag belong to
    the VLAN, in both directions. `on_bridge`: the port is the bridge itself."""
    _vlan(link, _SETLINK, port, (first, last or first), untagged, on_bridge)


def remove_vlan(link: Link, port: int, vid: int, *, on_bridge: bool = False) -> None:
    """Remove a VLAN from a port. LinkError (ENOENT) if the port is not in it."""
    _vlan(link, _DELLINK, port, (vid, vid), False, on_bridge)


def vlans(link: Link, port: int) -> dict[int, bool]:
    """The VLANs of a port or bridge. The value is True for the VLAN of incoming untagged frames (PVID)."""
    found: dict[int, bool] = {}
    with link_errors("cannot list VLANs"):
        wanted = netlink.u32(_IFLA_EXT_MASK, _RTEXT_FILTER_BRVLAN)
        bodies = link.kernel.dump(_GETLINK, link_header(0, family=socket.AF_BRIDGE) + wanted)
    for body in bodies:
        if struct.unpack_from("=i", body, 4)[0] != port:
            continue
        # VLAN_INFO is repeated, which `attributes` does not support. It is struct bridge_vlan_info: flags and number.
        data, offset = netlink.attributes(body, 16).get(_IFLA_AF_SPEC, b""), 0
        while offset + 8 <= len(data):
            length, kind, flags, vid = struct.unpack_from("=HHHH", data, offset)
            if kind & 0x3FFF == _BRIDGE_VLAN_INFO:
                found[vid] = bool(flags & _PVID)
            offset += (max(length, 4) + 3) & ~3
    return found


def _vlan(link: Link, kind: int, port: int, span: tuple[int, int], untagged: bool, on_bridge: bool) -> None:
    flags = _PVID | _UNTAGGED if untagged else 0
    first, last = span
    entries = [(flags, first)] if first == last else [(flags | _RANGE_BEGIN, first), (flags | _RANGE_END, last)]
    parts = [netlink.attribute(_BRIDGE_VLAN_INFO, struct.pack("=HH", *entry)) for entry in entries]
    if on_bridge:
        parts.insert(0, netlink.attribute(_BRIDGE_FLAGS, struct.pack("=H", _BRIDGE_SELF)))
    doing = "add" if kind == _SETLINK else "remove"
    with link_errors(f"cannot {doing} VLAN {first}{'' if first == last else f'-{last}'} of bridge port {port}"):
        header = link_header(port, family=socket.AF_BRIDGE)
        link.kernel.run(Request(kind, header + netlink.nested(_IFLA_AF_SPEC, *parts)))


def wait_forwarding(link: Link, port: int, timeout: float = 5.0) -> None:
    """Wait until the port forwards frames: the kernel enables it shortly after the carrier is up. LinkError on a
    timeout.

    Not every kernel version sends an event for a port's state, so poll it, at growing intervals from 0.2 ms.
    """
    deadline, pause = time.monotonic() + timeout, 0.0002
    while (found := link.require(port)).port_state != FORWARDING:
        if time.monotonic() > deadline:
            raise LinkError(f"bridge port {found.name} did not start to forward in {timeout:g} s", errno.ETIMEDOUT)
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def random_mac() -> str:
    """A locally administered unicast address."""
    return bytes([0x02, *os.urandom(5)]).hex(":")
