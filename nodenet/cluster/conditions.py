"""Removes what the agents reported about their nodes, when they are gone."""

from __future__ import annotations

from collections.abc import Callable

from nodenet.cluster.client import NODES, Cluster, Obj, RefusedError
from nodenet.errors import NodenetError

# What an agent writes (nodenet/agent/node_report.py). Another program's condition has another reason.
CONDITION, REASON = "NetworkUnavailable", "NodenetIsUp"
_DELETED: Obj = {"conditions": [{"type": CONDITION, "$patch": "delete"}]}
# How often a Node is read again because another writer changed it (HTTP 409).
_RETRIES = 5


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
        try:
            deleted = await _remove(cluster, name, node)
        except NodenetError as error:
            say(f"Node {name}: its condition {CONDITION} ({REASON}) stays: {error}")
        else:
            if deleted:
                say(f"Node {name}: condition {CONDITION} deleted")


async def _remove(cluster: Cluster, name: str, listed: Obj) -> bool:
    """Returns whether the Node had the condition."""
    node: Obj | None = listed
    attempts = 0
    while node is not None and _has(node):
        # The next CNI may set its own condition between our read and this write: delete only what was read.
        version = {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}}
        try:
            await cluster.patch_status(NODES, name, {**version, "status": _DELETED})
        except RefusedError as error:
            attempts += 1
            if error.code != 409 or attempts > _RETRIES:
                raise
            node = await cluster.find(NODES, "", name)
        else:
            return True
    return False


def _has(node: Obj) -> bool:
    found = (node.get("status") or {}).get("conditions") or ()
    return any((one.get("type"), one.get("reason")) == (CONDITION, REASON) for one in found)
