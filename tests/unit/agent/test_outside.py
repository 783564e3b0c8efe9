"""Which addresses and ports of the node are served, as the keepers of uplinks and reserved ports see them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from nodenet.agent import outside
from nodenet.compile import LocalNode, compile_once
from nodenet.compile.state import NodePorts
from nodenet.engine import Compiled
from tests.unit.compile.build import TCP, node, service, slice_, store_of

OWN, SECOND, GATEWAY = (ip_address(text) for text in ("192.0.2.1", "198.51.100.1", "10.1.0.1"))
NODE = node("node1", str(OWN), cidrs=["10.1.0.0/24"])


def compiled(ports: NodePorts, **more: Any) -> Compiled:
    one = service("web", "10.96.0.1", ports=[("", TCP, 80, 40080)], **more)
    local = LocalNode("node1", frozenset({OWN, SECOND, GATEWAY}), node_ports=ports)
    return Compiled(desired=compile_once(store_of(NODE, one, slice_("web", "10.1.0.5")).snapshot(), local)[0])


def test_served_addresses_are_ends_but_for_the_gateway_of_the_pods() -> None:
    found = outside.ends(compiled(NodePorts.of(["all"])), NODE, "")
    assert (found.name, found.own) == ("", frozenset({OWN}))
    assert [address for address in (OWN, SECOND, GATEWAY) if found.is_served(address)] == [OWN, SECOND]
    primary = outside.ends(compiled(NodePorts.of(["primary"])), NODE, "eth0")
    assert primary.name == "eth0"
    assert [address for address in (OWN, SECOND, GATEWAY) if primary.is_served(address)] == [OWN]
    external = outside.ends(compiled(NodePorts.of(["primary"]), external_ips=(SECOND,)), NODE, "")
    assert external.is_served(SECOND)


def test_without_the_node_its_addresses_are_not_known() -> None:
    assert outside.ends(Compiled(), None, "").own is None
    assert outside.ends(Compiled(), NODE, "").own == frozenset({OWN})


def test_ports_of_the_nodes_own_addresses_are_served_ports() -> None:
    """Not those of ClusterIPs."""
    assert outside.served_ports(Compiled(), {OWN}) is None, "not compiled yet"
    assert outside.served_ports(compiled(NodePorts.of(["primary"])), {OWN, SECOND}) == {40080}
    assert outside.served_ports(compiled(NodePorts.of(["primary"])), {SECOND}) == frozenset()
