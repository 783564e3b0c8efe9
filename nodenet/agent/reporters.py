"""Chooses the node that reports about an object whose state is the same on every node: all nodes choose the same one
from what the API shows. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from functools import cached_property
from hashlib import blake2b

from nodenet.agent.node_report import REASON
from nodenet.kube.correlate import About
from nodenet.model import Node

# Points of one node: more of them spread the objects more evenly.
_POINTS = 8
_BYTES = 8

# A Node of a virtual kubelet: https://github.com/virtual-kubelet/virtual-kubelet
_VIRTUAL = ("type", "virtual-kubelet")


def reporting_nodes(nodes: Iterable[Node]) -> frozenset[str]:
    """The names of the nodes that can report: those that are ready and have an agent. An object whose reporter has no
    agent would never be reported.

    An agent sets the condition NetworkUnavailable of its Node. Where it may not, or a cloud provider has set it on
    every Node, each Node that is ready and can have an agent counts.
    """
    ready = [node for node in nodes if node.ready == "True"]
    ours = frozenset(node.name for node in ready if node.network_reason == REASON)
    return ours or frozenset(node.name for node in ready if _can_have_an_agent(node))


def _can_have_an_agent(node: Node) -> bool:
    key, value = _VIRTUAL
    return node.labels.get("kubernetes.io/os", "linux") == "linux" and node.labels.get(key) != value


class Reporters:
    """Nodes as points on a ring (consistent hashing): an object belongs to the node of the next point. So objects are
    spread over the nodes, and when a node leaves, only its objects get another reporter.

    The ring is built once for a set of nodes, and each object then costs one hash and one search, because an agent asks
    for every object with a problem: with one hash for each pair, 1,000 objects and 5,000 nodes took 3 s.
    """

    def __init__(self, nodes: Collection[str] = ()) -> None:
        self.nodes = frozenset(nodes)

    @cached_property
    def _owners(self) -> dict[bytes, str]:
        """The node of each point, sorted by points. Built when it is needed: most clusters have no such object, and the
        set of nodes of a large one changes often (24 ms for 5,000 nodes)."""
        found: dict[bytes, str] = {}
        # In order, so that of two nodes with one point every agent chooses the same.
        for name in sorted(self.nodes):
            points = blake2b(name.encode(), digest_size=_POINTS * _BYTES).digest()
            for start in range(0, len(points), _BYTES):
                found.setdefault(points[start : start + _BYTES], name)
        return dict(sorted(found.items()))

    @cached_property
    def _points(self) -> tuple[bytes, ...]:
        return tuple(self._owners)

    def of(self, about: About) -> str:
        """The node that reports about an object. "" without nodes."""
        if not self.nodes:
            return ""
        text = f"{about.kind}\0{about.namespace}\0{about.name}"
        index = bisect_left(self._points, blake2b(text.encode(), digest_size=_BYTES).digest())
        return self._owners[self._points[index % len(self._points)]]

    def among(self, nodes: Collection[str]) -> Reporters:
        """The same object if the nodes are the same."""
        return self if self.nodes == frozenset(nodes) else Reporters(nodes)
