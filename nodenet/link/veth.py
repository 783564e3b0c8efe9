"""Virtual Ethernet pairs with one end in another namespace."""

from __future__ import annotations

from nodenet.link import netlink
from nodenet.link.handle import (
    IFLA_LINKINFO,
    INFO_DATA,
    INFO_KIND,
    NEWLINK,
    Interface,
    Link,
    encode,
    link_errors,
    link_header,
)
from nodenet.link.netlink import Request

# linux/veth.h: contains the header and attributes of the other end.
_VETH_INFO_PEER = 1


def create(
    link: Link, name: str, peer_name: str, peer_netns: int, *, mac: str = "", peer_mac: str = "", mtu: int = 0
) -> Interface:
    """Create a pair with one request: `name` here, `peer_name` in the namespace `peer_netns` (an open fd).

    Both ends are down. Raises LinkError with EEXIST if either name exists; `mtu` 0 is the kernel's default.
    """
    peer = link_header(0) + encode(ifname=peer_name, net_ns_fd=peer_netns, address=peer_mac, mtu=mtu)
    info = netlink.nested(
        IFLA_LINKINFO,
        netlink.text(INFO_KIND, "veth"),
        netlink.nested(INFO_DATA, netlink.attribute(_VETH_INFO_PEER | netlink.NESTED, peer)),
    )
    with link_errors(f"cannot create veth pair {name} - {peer_name}"):
        body = link_header(0) + encode(ifname=name, address=mac, mtu=mtu) + info
        link.kernel.run(Request(NEWLINK, body, netlink.CREATE | netlink.EXCL))
    return link.require(name)
