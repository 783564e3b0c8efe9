"""Which interfaces of pods are put back into a bridge, and which are only named."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from nodenet.agent import ports
from nodenet.agent.ports import Synced
from nodenet.link import bridge
from nodenet.link.handle import Link
from nodenet.model import Endpoint, ObjectRef
from tests.netns.link.test_uplink import ip

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(two: tuple[str, str]) -> Iterator[Link]:
    """Two bridges, and three ports of the first one; port 3 is isolated."""
    name, pod = two
    for words in ("link add cni0 type bridge", "link add other type bridge"):
        ip(name, words)
    with Link(name) as link:
        for number in (1, 2, 3):
            ip(name, f"link add veth{number} type veth peer name eth{number} netns {pod}")
            ip(name, f"link set veth{number} master cni0 up")
            bridge.set_port(link, link.require(f"veth{number}").index, hairpin=number != 2)
        yield link


def endpoint(link: Link, number: int, *, bridge: str = "cni0", bridged: bool = False) -> Endpoint:
    return Endpoint(
        endpoint_id=number,
        container_id=f"c{number}",
        ifname="eth0",
        netns="/run/netns/none",
        host_ifname=f"veth{number}",
        host_ifindex=link.require(f"veth{number}").index,
        mac="0a:58:0a:01:00:02",
        ips=(ip_address(f"10.1.0.{number + 1}"),),
        pod=ObjectRef("shop", f"p{number}"),
        bridged=bridged,
        bridge=bridge,
        hairpin=number != 2,
    )


def place(link: Link, number: int) -> tuple[int, bool, bool]:
    found = link.require(f"veth{number}")
    return found.master, found.hairpin, found.up


def test_each_port_goes_back_with_its_own_options(node: Link) -> None:
    pods = [endpoint(node, number) for number in (1, 2)]
    assert ports.sync(node, pods) == Synced({})
    before = [place(node, number) for number in (1, 2)]
    assert before[0] != before[1]
    for number in (1, 2):
        node.set(f"veth{number}", master=0, state="down")
    found = ports.sync(node, pods)
    assert [place(node, number) for number in (1, 2)] == before
    assert found == Synced({pods[n - 1]: f"its interface veth{n} was removed from cni0" for n in (1, 2)})
    assert ports.sync(node, pods) == Synced({})


def test_a_bridge_that_the_record_does_not_say_is_that_of_the_others(node: Link) -> None:
    pods = [endpoint(node, number, bridge="") for number in (1, 3)]
    assert ports.sync(node, pods) == Synced({})
    node.set("veth1", master=0)
    found = ports.sync(node, pods)
    assert (list(found.restored), found.problems) == ([pods[0]], ())
    assert place(node, 1) == place(node, 3)

    node.set("veth1", master=0)
    [problem] = ports.sync(node, pods[:1]).problems
    assert problem == f"endpoint of shop/p1: its interface veth1 was removed from its bridge: {ports.HINT}"


def test_what_is_not_put_back_is_named(node: Link) -> None:
    """Another program's bridge: it would move the interface again. A port with options that a new one has not."""
    pods = [endpoint(node, 1), endpoint(node, 2), endpoint(node, 3, bridged=True)]
    other = node.require("other").index
    node.set("veth1", master=other)
    node.set("veth3", master=0)
    node.set("veth2", state="down")
    found = ports.sync(node, pods)
    assert dict(found.restored) == {pods[1]: "its interface veth2 is down"}
    assert found.problems == (
        f"endpoint of shop/p1: its interface veth1 was moved from cni0 to other: {ports.HINT}",
        f"endpoint of shop/p3: its interface veth3 was removed from cni0: {ports.HINT}",
    )
    assert (node.require("veth1").master, node.require("veth3").master) == (other, 0)


def test_an_interface_that_is_gone_is_no_problem(node: Link) -> None:
    pods = [endpoint(node, number) for number in (1, 2)]
    node.delete("veth1")
    assert ports.sync(node, pods) == Synced({})
