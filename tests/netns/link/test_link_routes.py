"""Routes to the other nodes' pod networks: ours are made so, everybody else's stay."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface

import pytest

from nodenet.link import addresses, netns, routes, veth
from nodenet.link.handle import Link, LinkError

pytestmark = pytest.mark.kernel

A4, B4 = IPv4Network("10.1.0.0/24"), IPv4Network("10.2.0.0/24")
A6 = IPv6Network("fd01::/64")
GATE4, OTHER4, GATE6 = IPv4Address("192.168.9.2"), IPv4Address("192.168.9.3"), IPv6Address("fd99::2")


@pytest.fixture
def node(two: tuple[str, str]) -> Iterator[Link]:
    """A namespace with an uplink of both families."""
    with Link(two[0]) as link, netns.opened(two[1]) as peer:
        up = veth.create(link, "up0", "up1", peer)
        link.set("up0", state="up")
        with Link(two[1]) as other:
            other.set("up1", state="up")
        addresses.add(link, up.index, ip_interface("192.168.9.1/24"))
        addresses.add(link, up.index, ip_interface("fd99::1/64"))
        yield link


def ours(link: Link) -> dict[str, str]:
    return {str(r.network): str(r.gateway) for r in routes.list_routes(link) if r.protocol == routes.PROTOCOL}


def test_sync_adds_changes_and_removes(node: Link) -> None:
    done = routes.sync_routes(node, {A4: GATE4, A6: GATE6}, "up0")
    assert (done.added, done.changed, done.removed, done.conflicts) == ([A4, A6], [], [], [])
    assert ours(node) == {"10.1.0.0/24": "192.168.9.2", "fd01::/64": "fd99::2"}
    assert routes.sync_routes(node, {A4: GATE4, A6: GATE6}, "up0") == routes.SyncResult()
    done = routes.sync_routes(node, {A4: OTHER4, B4: GATE4}, "up0")
    assert (done.added, done.changed, done.removed) == ([B4], [A4], [A6])
    assert ours(node) == {"10.1.0.0/24": "192.168.9.3", "10.2.0.0/24": "192.168.9.2"}
    routes.sync_routes(node, {}, "up0")
    assert ours(node) == {}


def test_sync_touches_nobody_elses(node: Link) -> None:
    uplink = node.require("up0").index
    routes.add(node, uplink, A4, OTHER4)
    routes.add(node, uplink, B4, OTHER4, priority=7)
    before = [route for route in routes.list_routes(node) if route.protocol != routes.PROTOCOL]
    done = routes.sync_routes(node, {A4: GATE4, B4: GATE4}, "up0")
    assert (done.added, done.conflicts) == ([B4], [A4])
    routes.sync_routes(node, {}, "up0")
    assert routes.list_routes(node) == before


def test_an_unreachable_gateway_is_told_and_holds_up_no_other_route(node: Link) -> None:
    far = IPv4Address("172.16.0.1")
    # What this kernel says of it, in whatever words.
    with pytest.raises(LinkError, match=r"^cannot add route to 10\.3\.0\.0/24 via 172\.16\.0\.1: ") as told:
        routes.add(node, node.require("up0").index, IPv4Network("10.3.0.0/24"), far)
    assert told.value.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)
    words = str(told.value).partition("172.16.0.1: ")[2]
    assert words.startswith(os.strerror(told.value.code))
    done = routes.sync_routes(node, {A4: far, B4: GATE4}, "up0")
    assert done.added == [B4]
    assert list(done.failed) == [A4]
    assert done.failed[A4] == f"cannot add route to 10.1.0.0/24 via 172.16.0.1: {words}"
    done = routes.sync_routes(node, {B4: far, A6: GATE6}, "up0")
    assert done.added == [A6]
    assert list(done.failed) == [B4]
    assert done.failed[B4] == f"cannot change route to 10.2.0.0/24 via 172.16.0.1: {words}"
    assert ours(node) == {"10.2.0.0/24": "192.168.9.2", "fd01::/64": "fd99::2"}


def test_a_missing_device_is_told(node: Link) -> None:
    with pytest.raises(LinkError, match="interface up7: No such device"):
        routes.sync_routes(node, {}, "up7")


def test_local_addresses(node: Link) -> None:
    found = {str(entry.interface) for entry in addresses.local(node)}
    assert {"127.0.0.1/8", "::1/128", "192.168.9.1/24", "fd99::1/64"} <= found
    uplink = node.require("up0").index
    assert not addresses.add(node, uplink, ip_interface("192.168.9.1/24"))
    addresses.remove(node, uplink, ip_interface("192.168.9.1/24"))
    addresses.remove(node, uplink, ip_interface("192.168.9.1/24"))
    assert all(entry.interface.version == 6 for entry in addresses.local(node, uplink))


def test_interfaces(node: Link) -> None:
    assert node.get("nope") is None
    assert node.get(4711) is None
    assert not node.delete("nope")
    assert {entry.name for entry in node.all()} == {"lo", "up0"}
    with pytest.raises(LinkError, match="cannot set mtu of interface up0: Invalid argument"):
        node.set("up0", mtu=7)
    assert node.delete("up0")
