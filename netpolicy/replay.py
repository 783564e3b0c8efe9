"""Recorded connections in a cluster: which pods their ends are, and what policies say about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from netpolicy.cluster import Cluster, Pod
from netpolicy.evaluate import Evaluator, Verdict
from netpolicy.holders import holders
from netpolicy.party import Party
from netpolicy.recorded import End, Seen


class Directory:
    """Finds the pods of recorded ends in a cluster, which may have other pods by now, or may be manifests."""

    def __init__(self, cluster: Cluster) -> None:
        self._pods = {(pod.namespace, pod.name): pod for pod in cluster.pods}
        self._workloads: dict[tuple[str, str], Pod] = {}
        for pod in (*cluster.pods, *cluster.dormant):
            self._workloads.setdefault((pod.namespace, pod.workload), pod)
        self._addresses = holders(cluster.pods)
        self._nodes = {address: node.name for node in cluster.nodes for address in node.addresses}

    def pod(self, end: End) -> Pod | None:
        """The pod of an end: of its name, else one of the same workload, else one with the recorded labels. None if it
        is no pod, or one on the node's network."""
        if end.host:
            return None
        if not end.namespace:
            return self._addresses.get(end.address)
        found = self._pods.get((end.namespace, end.pod))
        if found is None:
            near = self._workloads.get((end.namespace, end.workload)) if end.workload else None
            name = end.pod or end.workload or str(end.address)
            if near is not None:
                found = replace(near, name=name)
            else:
                found = Pod.of(end.namespace, name, dict(end.labels), workload=end.workload)
        return None if found.host_network else found

    def parties(self, seen: Seen) -> tuple[Party, Party]:
        source, destination = self._party(seen.source), self._party(seen.destination)
        # The node of a pod is known by the flow, if its other end is this node.
        if seen.source.node:
            destination = replace(destination, node=seen.source.node)
        if seen.destination.node:
            source = replace(source, node=seen.destination.node)
        return source, destination

    def _party(self, end: End) -> Party:
        pod = self.pod(end)
        if pod is not None:
            return Party.of(pod, end.address)
        node = end.node or self._nodes.get(end.address, "")
        return Party(str(end), None, end.address, node, host=end.host or bool(node))

    def is_node(self, end: End) -> bool:
        """True for the address of a node, also of a pod on its network."""
        return self._party(end).host

    def is_own_node(self, seen: Seen) -> bool:
        """True for traffic between a pod and its node, which is always allowed."""
        source, destination = self.parties(seen)
        return (source.host or destination.host) and bool(source.node) and source.node == destination.node


def replayed(
    connections: Iterable[Seen], cluster: Cluster, directory: Directory | None = None
) -> Iterator[tuple[Seen, Verdict]]:
    """The verdicts of a cluster's policies about recorded connections. `directory`: where their pods are looked up, if
    not in this cluster."""
    found = directory or Directory(cluster)
    evaluator = Evaluator.of(cluster)
    for seen in connections:
        yield seen, evaluator.verdict(*found.parties(seen), seen.traffic)
