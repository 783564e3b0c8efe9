"""Removes what the agents reported about their nodes, when they are gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nodenet.cluster.client import NODES, Cluster
from nodenet.errors import NodenetError

# What an agent writes (nodenet/agent/node_report.py). Another program's condition has another reason.
CONDITION, REASON = "NetworkUnavailable", "NodenetIsUp"
_DELETE: dict[str, Any] = {"status": {"conditions": [{"type": CONDITION, "$patch": "delete"}]}}


async def remove(cluster: Cluster, say: Callable[[str], None]) -> None:
    """Delete the condition "nodenet is running on this node" from every Node. The user may lack this right, or the
    right to list Nodes: then `say` names what stays."""
    try:
        nodes = await cluster.list(NODES)
    except NodenetError as error:
        say(f"Nodes: their condition {CONDITION} ({REASON}) stays: {error}")
        return
    for node in nodes:
        name = str(node["metadata"]["name"])
        found = node.get("status", {}).get("conditions") or ()
        if not any((one.get("type"), one.get("reason")) == (CONDITION, REASON) for one in found):
            continue
        try:
            await cluster.patch_status(NODES, name, _DELETE)
        except NodenetError as error:
            say(f"Node {name}: its condition {CONDITION} ({REASON}) stays: {error}")
        else:
            say(f"Node {name}: condition {CONDITION} deleted")
