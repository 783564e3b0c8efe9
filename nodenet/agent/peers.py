"""The nodes that have an Observer, from the Nodes of the API: for Hubble relay."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import IPv6Address

from nodenet import kinds
from nodenet.config import Config
from nodenet.engine import Engine
from nodenet.flow.filter import full_name


class NodePeers:
    """Implements nodenet.rpc.peer.PeerSource. All agents of a cluster have the same port (`hubble_address`). Without a
    port only this agent can be reached, by its unix socket."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self._config = config
        self._engine = engine

    def peers(self) -> Mapping[str, str]:
        config = self._config
        port = config.hubble_address.rpartition(":")[2]
        if not port:
            return {full_name(config.node_name, config.cluster_name): f"unix://{config.agent_socket}"}
        found = {}
        for node in self._engine.snapshot().nodes.values():
            if node.addresses:
                address = node.addresses[0]
                host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
                found[full_name(node.name, config.cluster_name)] = f"{host}:{port}"
        return dict(sorted(found.items()))

    def next_change(self) -> asyncio.Event:
        return self._engine.next_change(kinds.NODE)
