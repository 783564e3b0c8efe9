"""The programs on the interfaces that lead out of the node: real interfaces, real programs."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

import pytest

from nodenet.agent import attachment, uplink_programs
from nodenet.agent.attachment import UPLINK_HOOKS, Mechanism
from nodenet.agent.uplink_programs import Ends, Synced, UplinkPrograms
from nodenet.bpf import tcx
from nodenet.link import netns, tc
from nodenet.link.handle import Link
from nodenet.model import IPAddress

from .programs import NEXT, load

pytestmark = pytest.mark.kernel

OWN = frozenset({ip_address("192.0.2.1"), ip_address("2001:db8::1")})


class Node:
    """A namespace with the interfaces u0 (192.0.2.1), u1 (2001:db8::1) and other0."""

    def __init__(self, name: str, link: Link, programs: dict[str, int]) -> None:
        self.name = name
        self.link = link
        self.programs = programs
        for interface in ("u0", "u1", "other0"):
            self.ip("link", "add", interface, "type", "bridge")
            self.ip("link", "set", interface, "up")
        self.ip("addr", "add", "192.0.2.1/24", "dev", "u0")
        self.ip("addr", "add", "2001:db8::1/64", "dev", "u1", "nodad")

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name, *arguments], check=True)

    def sync(
        self,
        name: str | None = "",
        before: Iterable[str] | None = None,
        served: Iterable[str] = (),
        own: frozenset[IPAddress] | None = OWN,
    ) -> Synced:
        addresses = {*(own or ()), *map(ip_address, served)}
        ends = None if name is None else Ends(name, own, addresses.__contains__)
        return netns.call(self.name, uplink_programs.sync, self.link, ends, self.programs, before)

    def having(self) -> list[str]:
        found = netns.call(self.name, uplink_programs.attached_to, self.link)
        return sorted(interface.name for interface in found)

    def index(self, name: str) -> int:
        found = self.link.get(name)
        assert found is not None
        return found.index


@pytest.fixture(params=list(Mechanism))
def node(request: pytest.FixtureRequest, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    if request.param is Mechanism.TCX and not tcx.available():
        pytest.skip("this kernel has no tcx (6.6 has it)")
    monkeypatch.setattr(attachment, "mechanism", lambda: request.param)
    programs = {name: load(name, NEXT) for name in UPLINK_HOOKS}
    with Link(two[0]) as link:
        yield Node(two[0], link, programs)
    for fd in programs.values():
        os.close(fd)


def test_interfaces_with_the_nodes_addresses_get_both_programs(node: Node) -> None:
    assert node.sync() == Synced(("u0", "u1"), ("u0", "u1"))
    assert node.having() == ["u0", "u1"]
    for name in ("u0", "u1"):
        missing = netns.call(
            node.name, attachment.missing, node.link, node.index(name), node.programs, None, UPLINK_HOOKS
        )
        assert missing == []
    assert node.sync() == Synced(("u0", "u1")), "nothing is attached twice"


@pytest.mark.parametrize("lost", list(UPLINK_HOOKS))
def test_what_another_program_removes_is_put_back(node: Node, lost: str) -> None:
    node.sync()
    hook, index = UPLINK_HOOKS[lost], node.index("u0")
    if attachment.mechanism() is Mechanism.TCX:
        assert netns.call(node.name, tcx.detach, index, hook.tcx, lost)
    else:
        assert netns.call(node.name, tc.detach, node.link, index, hook.clsact, lost)
    assert node.sync(before=("u0", "u1")) == Synced(("u0", "u1"), ("u0",))


def test_an_interface_that_loses_the_address_loses_the_programs(node: Node) -> None:
    node.sync()
    node.ip("addr", "del", "192.0.2.1/24", "dev", "u0")
    node.ip("addr", "add", "192.0.2.1/24", "dev", "other0")
    found = node.sync(before=("u0", "u1"))
    assert sorted(found.interfaces) == ["other0", "u1"]
    assert (found.attached, found.removed) == (("other0",), ("u0",))
    assert node.having() == ["other0", "u1"]


def test_a_name_stands_for_itself(node: Node) -> None:
    found = node.sync("other0")
    assert (found.interfaces, found.attached, found.failed) == (("other0",), ("other0",), ())
    words = "has no programs for traffic from outside, so"
    assert sorted(found.unserved) == [
        f"interface u0 {words} 192.0.2.1 is served for this node only",
        f"interface u1 {words} 2001:db8::1 is served for this node only",
    ]
    assert node.having() == ["other0"]
    assert node.sync("eth7").failed == ("uplink: no interface has the name eth7",)
    assert node.having() == []


def test_interfaces_where_answers_leave_get_them_too(node: Node) -> None:
    """A default route through another interface than that of the node's address, with two next hops."""
    for name in ("hop0", "hop1"):
        node.ip("link", "add", name, "type", "bridge")
        node.ip("link", "set", name, "up")
    node.ip("addr", "add", "198.51.100.1/24", "dev", "hop0")
    node.ip("addr", "add", "203.0.113.1/24", "dev", "hop1")
    hops = (("198.51.100.9", "hop0"), ("203.0.113.9", "hop1"))
    node.ip("route", "add", "default", *(word for via, dev in hops for word in ("nexthop", "via", via, "dev", dev)))
    assert sorted(node.sync().interfaces) == ["hop0", "hop1", "u0", "u1"]


def test_interfaces_with_another_served_address_get_them_too(node: Node) -> None:
    """As with node_port_addresses: all. A bridge may be that of the pods."""
    node.ip("link", "add", "nic0", "type", "veth")
    served = ("198.51.100.1", "198.51.100.3")
    for address, name in zip(served, ("nic0", "other0"), strict=True):
        node.ip("addr", "add", f"{address}/32", "dev", name)
    found = node.sync(served=served)
    assert sorted(found.interfaces) == ["nic0", "u0", "u1"]
    assert found.unserved == (
        "interface other0 has no programs for traffic from outside, so 198.51.100.3 is served for this node only",
    )
    assert not found.failed


def test_without_the_node_object_the_programs_stay_where_they_are(node: Node) -> None:
    node.sync()
    for before in (None, ("u0", "u1")):
        found = node.sync(own=None, before=before)
        assert (sorted(found.interfaces), found.removed) == (["u0", "u1"], ())
    assert node.having() == ["u0", "u1"]


def test_an_interface_without_ethernet_header_gets_none(node: Node) -> None:
    node.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    node.ip("link", "set", "tun0", "up")
    node.ip("addr", "add", "198.51.100.1/32", "dev", "tun0")
    found = node.sync(served=["198.51.100.1"])
    assert (found.interfaces, found.failed) == (("u0", "u1"), ())
    assert found.unserved == ("uplink tun0: its packets have no Ethernet header, so Services are not served on it",)
    assert node.having() == ["u0", "u1"]
    assert node.sync("tun0").interfaces == ()


def test_switched_off_nothing_of_an_earlier_agent_remains(node: Node) -> None:
    node.sync()
    foreign = load("foreign", NEXT)
    try:
        if attachment.mechanism() is Mechanism.TCX:
            netns.call(node.name, tcx.attach, node.index("u0"), tcx.Side.INGRESS, foreign)
        assert node.sync(None) == Synced(removed=("u0", "u1"))
        assert node.having() == []
        if attachment.mechanism() is Mechanism.TCX:
            left = netns.call(node.name, tcx.attached, node.index("u0"))
            assert [entry.name for entry in left] == ["foreign"], "programs of others stay"
    finally:
        os.close(foreign)


async def test_the_keeper_follows_and_says_what_fails(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[Iterable[str] | None] = []

    async def check(before: Iterable[str] | None) -> Synced:
        asked.append(before)
        return node.sync("", before)

    keeper = UplinkPrograms(check, enabled=True)
    await keeper.refresh()
    assert (keeper.interfaces, keeper.problems) == (("u0", "u1"), [])
    netns.call(node.name, uplink_programs.detach, node.link, node.index("u1"))
    await keeper.refresh()
    assert "uplink u1 had lost its programs: put back" in caplog.text
    assert asked == [None, ("u0", "u1")], "all interfaces are searched once"
    node.link.close()
    await keeper.refresh()
    assert len(keeper.problems) == 1
    assert keeper.problems[0].startswith("uplinks: their programs could not be checked")


async def test_a_keeper_that_is_switched_off_cleans_up_and_ends(node: Node) -> None:
    node.sync()

    async def check(before: Iterable[str] | None) -> Synced:
        return node.sync(None, before)

    ready = asyncio.Event()
    ready.set()
    await asyncio.wait_for(UplinkPrograms(check, enabled=False).keep(ready), 10)
    assert node.having() == []
