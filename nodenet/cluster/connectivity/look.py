"""What the agents saw of a connection that failed: their last flows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodenet.cluster import agents
from nodenet.cluster.client import Cluster
from nodenet.cluster.connectivity.values import Ask, Stage
from nodenet.errors import NodenetError

_FLOWS = 4
# Failures that are looked at: the first ones tell as much as all.
MOST_FAILURES = 4


def flow_filter(stage: Stage, ask: Ask) -> list[str]:
    """The options of `nodenet observe` that select the flows of a connection."""
    port = ask.target.partition("?")[0].rpartition(":")[2]
    protocol = "udp" if ask.target.startswith("udp") else "tcp"
    more = ["--protocol", protocol, "--to-port", port] if port.isdigit() else []
    return ["--from-pod", f"{stage.namespace}/{ask.client}", *more]


def nodes_of(stage: Stage, ask: Ask) -> list[str]:
    """The nodes whose agents see the connection: the client's, and those of the servers."""
    nodes = {peer.name: peer.node for peer in (*stage.clients, *stage.servers, stage.friend)}
    return sorted({nodes[name] for name in (ask.client, *ask.servers)})


class Agents:
    """Asks the agents that are pods of the DaemonSet."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pods: Mapping[str, Any] | None = None

    async def flows(self, stage: Stage, ask: Ask) -> list[str]:
        """The last flows of a connection, a line each with its node in front. Empty for agents that are not pods."""
        try:
            if self._pods is None:
                self._pods = await agents.pods(self._cluster)
            found = []
            for node in nodes_of(stage, ask):
                if node in self._pods:
                    found += await self._of(node, self._pods[node], flow_filter(stage, ask))
        except NodenetError as error:
            return [f"the agents' flows cannot be read: {error}"]
        return found

    async def _of(self, node: str, pod: Mapping[str, Any], options: list[str]) -> list[str]:
        ran = await agents.run(self._cluster, pod, "observe", "--last", str(_FLOWS), *options)
        text = (ran.stdout or ran.stderr).decode(errors="replace").strip()
        return [f"{node}: {line}" for line in text.splitlines() or ["no flow of it"]]
