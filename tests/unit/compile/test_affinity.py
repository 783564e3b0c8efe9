"""Session affinity in the maps: its number and timeout, the backends that keep it, and the clients."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from nodenet.abi import MEMBER_AFFINITY, ClientEntry, ClientKey, FrontendKey
from nodenet.compile.affinity import clients
from nodenet.compile.backends import Here
from nodenet.compile.ids import Ids
from nodenet.compile.lb import ServiceCompiler, ServiceTables
from nodenet.endpoint import AttachmentKey
from tests.unit.compile.build import TCP, UDP, endpoint, service, slice_, target
from tests.unit.compile.test_lb import VIP, VIP6

HERE = Here("node1", "", (ip_address("192.0.2.1"),))
PORTS = [("", TCP, 80, 30080), ("dns", UDP, 53)]


def held(tables: ServiceTables, address: str, port: int, protocol: int) -> set[str]:
    """The backends that a client keeps."""
    number = tables.frontends[FrontendKey(ip_address(address), port, protocol, 0)].service_id | MEMBER_AFFINITY
    return {str(backend.addr) for key, backend in tables.members.items() if key.service_id == number}


def test_all_addresses_of_a_port_share_it_and_ports_do_not() -> None:
    one = service("web", VIP, VIP6, ports=PORTS, affinity_seconds=60, external_ips=(ip_address("198.51.100.1"),))
    tables = ServiceCompiler(Ids()).compile({one.ref: one}, {}, HERE)
    masters = {key: entry for key, entry in tables.frontends.items() if not key.slot}
    assert {entry.affinity_seconds for entry in masters.values()} == {60}
    numbers: dict[int, set[int]] = {}
    for key, entry in masters.items():
        numbers.setdefault(key.protocol, set()).add(entry.affinity_id)
    assert len(masters) == 7
    assert [len(found) for found in numbers.values()] == [1, 1]
    assert numbers[TCP] != numbers[UDP]


def test_only_backends_that_take_new_flows_keep_it() -> None:
    """A terminating UDP backend keeps its flows, and loses its clients."""
    one = service("dns", VIP, ports=[("", UDP, 53)], affinity_seconds=60)
    slices = slice_("dns", "10.0.0.1", target("10.0.0.2", False, True, True), ports=[("", UDP, 53)])
    tables = ServiceCompiler(Ids()).compile({one.ref: one}, {slices.ref: slices}, HERE)
    assert held(tables, VIP, 53, UDP) == {"10.0.0.1"}
    assert len(tables.members) == 3


def test_it_follows_the_service() -> None:
    compiler, plain = ServiceCompiler(Ids()), service("web", VIP)
    sticky = replace(plain, affinity_seconds=60)
    steps: list[tuple[Any, tuple[str, ...], set[str], int]] = [
        (plain, ("10.0.0.1",), set(), 0),
        (sticky, ("10.0.0.1",), {"10.0.0.1"}, 60),
        (sticky, ("10.0.0.2", "10.0.0.3"), {"10.0.0.2", "10.0.0.3"}, 60),
        (replace(sticky, affinity_seconds=61), ("10.0.0.2",), {"10.0.0.2"}, 61),
        (plain, ("10.0.0.2",), set(), 0),
    ]
    for one, backends, expected, seconds in steps:
        slices = slice_("web", *backends)
        tables = compiler.compile({one.ref: one}, {slices.ref: slices}, HERE)
        assert held(tables, VIP, 80, TCP) == expected
        assert tables.frontends[FrontendKey(ip_address(VIP), 80, TCP, 0)].affinity_seconds == seconds
    assert not compiler.compile({}, {}, HERE).members


def test_clients_are_the_pods_of_the_node() -> None:
    one = replace(endpoint(1, "a", "10.0.0.1", "fd00::1"), netns_cookie=7)
    other = replace(endpoint(2, "a", "10.0.9.1"), netns_cookie=7)
    third = replace(endpoint(3, "b", "fd00::3"), netns_cookie=8)
    unknown = endpoint(4, "c", "10.0.0.4")
    nothing = ip_address("::")
    assert clients({AttachmentKey(e.container_id, e.ifname): e for e in (third, unknown, other, one)}) == {
        ClientKey(7): ClientEntry(ip_address("10.0.0.1"), ip_address("fd00::1")),
        ClientKey(8): ClientEntry(nothing, ip_address("fd00::3")),
    }
