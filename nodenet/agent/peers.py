"""The nodes that have an Observer, from the Nodes of the API: for Hubble relay."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address

from nodenet import kinds
from nodenet.config import Config
from nodenet.engine import Engine
from nodenet.flow.filter import full_name
from nodenet.model import IPAddress


class NodePeers:
    """Implements nodenet.rpc.peer.PeerSource. All agents of a cluster have the same port (`hubble_address`). Without a
    port, or with one on the loopback, only this agent can be reached, by its unix socket."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self._config = config
        self._engine = engine

    def peers(self) -> Mapping[str, str]:
        config = self._config
        host, _, port = config.hubble_address.rpartition(":")
        if not port or _is_loopback(host):
            return {full_name(config.node_name, config.cluster_name): f"unix://{config.agent_socket}"}
        found = {}
        for node in self._engine.snapshot().nodes.values():
            # An agent that is ready reports the network of its node. A node without an agent has no Observer.
            if node.addresses and (node.network_unavailable == "False" or node.name == config.node_name):
                found[full_name(node.name, config.cluster_name)] = _target(node.addresses[0], port)
        return dict(sorted(found.items()))

    def next_change(self) -> asyncio.Event:
        return self._engine.next_change(kinds.NODE)


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _target(address: IPAddress, port: str) -> str:
    return f"[{address}]:{port}" if isinstance(address, IPv6Address) else f"{address}:{port}"
