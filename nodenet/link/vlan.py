"""The node's interface in a VLAN of a bridge (linux/if_link.h, linux/if_vlan.h)."""

from __future__ import annotations

import errno
import struct

from nodenet.link import bridge, netlink
from nodenet.link.handle import (
    IFF_UP,
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

_IFLA_LINK, _IFLA_VLAN_ID = 5, 1


def gateway_interface(link: Link, over: Interface, vid: int, mtu: int = 0) -> Interface:
    """Return `<bridge>.<vid>`; create it if it is missing. Packets that the node sends through it are in that VLAN.

    An existing interface is used unchanged: the reference plugin creates a veth pair with the same name.
    """
    name = f"{over.name}.{vid}"
    data = netlink.nested(INFO_DATA, netlink.attribute(_IFLA_VLAN_ID, struct.pack("=H", vid)))
    info = netlink.nested(IFLA_LINKINFO, netlink.text(INFO_KIND, "vlan"), data)
    body = link_header(0, IFF_UP, IFF_UP) + encode(ifname=name, mtu=mtu) + netlink.u32(_IFLA_LINK, over.index) + info
    try:
        with link_errors(f"cannot create interface {name}"):
            link.kernel.run(Request(NEWLINK, body, netlink.CREATE | netlink.EXCL))
        bridge.add_vlan(link, over.index, vid, on_bridge=True)
    except LinkError as error:
        if error.code != errno.EEXIST:
            raise
    return link.require(name)
