"""The uplink, its notifications, and forwarding that keeps router advertisements, with real interfaces."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from nodenet.link import forwarding, sysctl, uplink
from nodenet.link import netns as namespaces
from nodenet.link.handle import Link
from nodenet.link.routes import PROTOCOL

pytestmark = pytest.mark.kernel

OWN = ip_address("10.9.0.1")


def ip(namespace: str, words: str) -> None:
    subprocess.run(["ip", "-n", namespace, *words.split()], check=True)


@pytest.fixture
def node(two: tuple[str, str]) -> str:
    """A node with eth0 (10.9.0.1) to a router, and an interface without addresses."""
    name, router = two
    ip(name, f"link add eth0 mtu 1400 type veth peer name eth0 netns {router}")
    ip(name, "link add other type bridge")
    ip(router, "link set eth0 up")
    for link in ("eth0", "other"):
        ip(name, f"link set {link} up")
    ip(name, "address add 10.9.0.1/24 dev eth0")
    return name


def found(node: str, name: str = "", own: str = "10.9.0.1") -> str | None:
    with Link(node) as link:
        interface = uplink.find(link, name, [ip_address(own)])
        return interface and f"{interface.name} {interface.mtu}"


def test_it_is_named_or_has_the_nodes_address_or_the_default_route(node: str) -> None:
    assert found(node) == "eth0 1400"
    assert found(node, name="other") == "other 1500"
    assert found(node, name="none") is None
    # A node behind NAT: no interface has the address that the API knows.
    assert found(node, own="192.0.2.1") is None
    ip(node, "route add default via 10.9.0.2 metric 200")
    ip(node, "address add 10.10.0.1/24 dev other")
    assert found(node, own="192.0.2.1") == "eth0 1400"
    ip(node, "route add default via 10.10.0.2 metric 100")
    assert found(node, own="192.0.2.1") == "other 1500"


def test_a_node_address_on_the_loopback_means_the_default_route(node: str) -> None:
    """As on nodes that announce their address with BGP."""
    ip(node, "address add 192.0.2.1/32 dev lo")
    ip(node, "route add default via 10.9.0.2")
    assert found(node, own="192.0.2.1") == "eth0 1400"
    with Link(node) as link:
        assert [one.name for one in uplink.find_all(link, "", [ip_address("192.0.2.1")])] == ["eth0"]
        assert [one.name for one in uplink.find_all(link, "", [ip_address("192.0.2.1"), OWN])] == ["eth0"]


@pytest.fixture
def noted(node: str) -> Iterator[Callable[[], bool]]:
    """Whether a change that concerns eth0 is notified within 0.3 s."""
    listener = namespaces.call(node, uplink.changes)
    with Link(node) as link:
        index = link.require("eth0").index

    def wait() -> bool:
        end = time.monotonic() + 0.3
        while (left := end - time.monotonic()) > 0:
            if not select.select([listener.fd], [], [], left)[0]:
                return False
            messages = listener.read()
            if messages is None or any(uplink.concerns(kind, body, index) for kind, body in messages):
                return True
        return False

    wait()
    yield wait
    listener.close()


@pytest.mark.parametrize(
    ("before", "change", "concerns"),
    [
        ("", "link set eth0 mtu 1300", True),
        ("", "link set eth0 down", True),
        ("", "address add 10.9.0.9/24 dev eth0", True),
        ("", "route add default via 10.9.0.2", True),
        (f"route add 10.2.0.0/24 via 10.9.0.2 proto {PROTOCOL}", "route del 10.2.0.0/24", True),
        ("", f"route add 10.2.0.0/24 via 10.9.0.2 proto {PROTOCOL}", False),
        ("route add 10.2.0.0/24 via 10.9.0.2", "route del 10.2.0.0/24", False),
        ("", "link set other mtu 1300", False),
        ("", "link add veth1 type veth peer name veth2", False),
    ],
)
def test_only_what_concerns_it_is_noted(
    node: str, noted: Callable[[], bool], before: str, change: str, concerns: bool
) -> None:
    if before:
        ip(node, before)
        noted()
    ip(node, change)
    assert noted() is concerns


def routes(node: str) -> str:
    return subprocess.run(["ip", "-6", "-n", node, "route"], check=True, capture_output=True, text=True).stdout


def test_an_uplink_with_router_advertisements_keeps_its_default_route(node: str, two: tuple[str, str]) -> None:
    """With a real advertisement, and what happens without the care."""
    scapy = pytest.importorskip("scapy.all")
    namespaces.call(node, sysctl.write, "ipv6/conf/all/forwarding", 0)

    def advertise() -> None:
        router = scapy.IPv6(src="fe80::2", dst="ff02::1", hlim=255) / scapy.ICMPv6ND_RA(routerlifetime=1800)
        prefix = scapy.ICMPv6NDOptPrefixInfo(prefix="fd77::", prefixlen=64)
        frame = scapy.Ether(dst="33:33:00:00:00:01") / router / prefix
        with namespaces.open_socket(two[1], socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind(("eth0", 0))
            sender.send(bytes(frame))

    def learned() -> bool:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            advertise()
            if "default via fe80::2" in routes(node):
                return True
            time.sleep(0.1)
        return False

    # Without the care, the kernel drops the route.
    assert learned()
    namespaces.call(node, sysctl.write, "ipv6/conf/all/forwarding", 1)
    assert "default via fe80::2" not in routes(node)
    namespaces.call(node, sysctl.write, "ipv6/conf/all/forwarding", 0)
    assert learned()
    with Link(node) as link:
        namespaces.call(node, forwarding.enable, link, 6)
        namespaces.call(node, forwarding.enable, link, 4)
    assert namespaces.call(node, sysctl.read, "ipv6/conf/all/forwarding") == "1"
    assert namespaces.call(node, sysctl.read, "ipv4/ip_forward") == "1"
    assert namespaces.call(node, sysctl.read, "ipv6/conf/eth0/accept_ra") == "2"
    assert namespaces.call(node, sysctl.read, "ipv6/conf/other/accept_ra") == "1"
    assert "default via fe80::2" in routes(node)
