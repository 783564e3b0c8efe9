"""What a compilation says of the node's own addresses for traffic from outside. Pure."""

from __future__ import annotations

from collections.abc import Collection

from nodenet.abi import AddressKey
from nodenet.agent.uplink_programs import Ends
from nodenet.engine import Compiled
from nodenet.model import IPAddress, Node


def ends(current: Compiled, node: Node | None, name: str) -> Ends:
    """Where traffic from outside enters and leaves. `node`: this node's object. `name`: of the configured uplink."""
    if node is None:
        return Ends(name, None)
    served = current.desired.tables.get("nn_service_addr", {})

    def is_served(address: IPAddress) -> bool:
        # Pods' gateways are addresses of the node too. No traffic from outside comes there.
        return AddressKey(address) in served and not any(address in network for network in node.pod_cidrs)

    return Ends(name, frozenset(node.addresses), is_served)


def served_ports(current: Compiled, own: Collection[IPAddress]) -> frozenset[int] | None:
    """The ports that are served on the node's `own` addresses. None before the first compilation."""
    frontends = current.desired.tables.get("nn_revnat")
    return None if frontends is None else frozenset(at.port for at in frontends.values() if at.addr in own)
