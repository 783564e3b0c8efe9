"""The interface by which a node itself is in one VLAN of a bridge (linux/if_link.h, linux/if_vlan.h)."""

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
    link_header,
    refusing,
)
from nodenet.link.netlink import Request

_IFLA_LINK, _IFLA_VLAN_ID = 5, 1


def gateway_interface(link: Link, over: Interface, vid: int, mtu: int = 0) -> Interface:
    """`<bridge>.<vid>`, made when it is missing: what the node sends by it is in that VLAN of the bridge.

    One that is there already is taken as it is: the reference plugin makes a veth pair of the same name.
    """
    name = f"{over.name}.{vid}"
    data = netlink.nested(INFO_DATA, netlink.attribute(_IFLA_VLAN_ID, struct.pack("=H", vid)))
    info = netlink.nested(IFLA_LINKINFO, netlink.text(INFO_KIND, "vlan"), data)
    body = link_header(0, IFF_UP, IFF_UP) + encode(ifname=name, mtu=mtu) + netlink.u32(_IFLA_LINK, over.index) + info
    try:
        with refusing(f"cannot create interface {name}"):
            link.kernel.run(Request(NEWLINK, body, netlink.CREATE | netlink.EXCL))
        bridge.add_vlan(link, over.index, vid, on_bridge=True)
    except LinkError as error:
        if error.code != errno.EEXIST:
            raise
    return link.require(name)
