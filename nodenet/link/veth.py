"""Virtual Ethernet pairs with one end in another namespace."""

from __future__ import annotations

from nodenet.link.handle import Interface, Link, refusing


def create(
    link: Link, name: str, peer_name: str, peer_netns: int, *, mac: str = "", peer_mac: str = "", mtu: int = 0
) -> Interface:
    """Make a pair in one request: `name` here, `peer_name` directly in the namespace `peer_netns` (an open fd).

    Both ends are down. Raises LinkError with EEXIST when either name is taken; `mtu` 0 is the kernel's default.
    """
    peer: dict[str, object] = {"ifname": peer_name, "net_ns_fd": peer_netns}
    mine: dict[str, object] = {"ifname": name}
    for end, address in ((mine, mac), (peer, peer_mac)):
        if address:
            end["address"] = address
        if mtu:
            end["mtu"] = mtu
    with refusing(f"cannot create veth pair {name} - {peer_name}"):
        link.ip.link("add", kind="veth", peer=peer, **mine)
    return link.require(name)
