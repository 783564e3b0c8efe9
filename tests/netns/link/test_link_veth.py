"""What a veth says of the namespace that its other end is in."""

from __future__ import annotations

import pytest

from nodenet.link import netns, sysctl, veth
from nodenet.link.handle import Link

pytestmark = pytest.mark.kernel


def test_the_peers_namespace_has_a_number_that_stays(two: tuple[str, str]) -> None:
    here, there = two
    with Link(here) as link, netns.opened(there) as fd, netns.opened(here) as own:
        first = veth.create(link, "v0", "v1", fd)
        again = veth.create(link, "v2", "v3", fd)
        inside = veth.create(link, "v4", "v5", own)
        assert first.peer_netns is not None
        assert again.peer_netns == first.peer_netns == link.require("v0").peer_netns
        # No other namespace, no number.
        assert inside.peer_netns is None
        assert link.require("lo").peer_netns is None
        assert {entry.name: entry.peer_netns for entry in link.all() if entry.name in ("v0", "v4")} == {
            "v0": first.peer_netns,
            "v4": None,
        }


def test_the_mode_of_link_local_addresses_is_set_by_netlink(two: tuple[str, str]) -> None:
    """In a container /proc/sys is read-only, so `ip link set v0 addrgenmode none` is done by netlink."""
    here, there = two
    with Link(here) as link, netns.opened(there) as fd:
        made = veth.create(link, "v0", "v1", fd)
        assert sysctl.read("ipv6/conf/v0/addr_gen_mode", here) == "0"
        link.set(made.index, addr_gen_mode=1)
        assert sysctl.read("ipv6/conf/v0/addr_gen_mode", here) == "1"
