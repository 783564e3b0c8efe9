"""Explains a verdict with its reasons, from the Snapshot that the agent has compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netpolicy import explain as engine
from netpolicy.addresses import parse_address
from netpolicy.evaluate import Evaluator
from netpolicy.holders import holders
from netpolicy.party import Party, Traffic
from netpolicy.types import Policy
from netpolicy.types import Protocol as PolicyProtocol
from nodenet.compile.identities import label_set
from nodenet.compile.unread import reason_unread
from nodenet.errors import BadInputError
from nodenet.model import ObjectRef, Pod
from nodenet.store import Snapshot


def explain(snapshot: Snapshot, source: str, destination: str, port: int, protocol: str) -> Mapping[str, Any]:
    """`source` and `destination` are "namespace/pod" or addresses. Raises BadInputError for unknown pods and invalid
    arguments."""
    if protocol.upper() not in PolicyProtocol.__members__:
        raise BadInputError(f"protocol: expected TCP, UDP or SCTP, got {protocol!r}")
    if not 1 <= port <= 65535:
        raise BadInputError(f"port: expected 1-65535, got {port}")
    namespaces = {namespace.name: namespace.labels for namespace in snapshot.namespaces.values()}
    policies: tuple[Policy, ...] = (*snapshot.policies.values(), *snapshot.cluster_policies.values())
    evaluator = Evaluator(policies, namespaces, snapshot.nodes.values())
    traffic = Traffic(PolicyProtocol[protocol.upper()], port)
    found = engine.explain(evaluator, _party(snapshot, source), _party(snapshot, destination), traffic)
    return engine.as_json(found)


def _party(snapshot: Snapshot, text: str) -> Party:
    namespace, separator, name = text.partition("/")
    if separator:
        pod = snapshot.pods.get(ObjectRef(namespace, name))
        if pod is None:
            raise BadInputError(f"pod {text}: the agent knows no such pod", "kubectl get pods -A")
        return _of_pod(pod, snapshot)
    try:
        address = parse_address(text)
    except ValueError as error:
        raise BadInputError(f"{text!r}: expected namespace/pod or an address") from error
    holder = holders(snapshot.pods.values()).get(address)
    if holder is not None:
        return _of_pod(holder, snapshot)
    for node in snapshot.nodes.values():
        if address in node.addresses:
            return Party(node.name, address=address, node=node.name, host=True)
    return Party(text, address=address)


def _of_pod(pod: Pod, snapshot: Snapshot) -> Party:
    reason = reason_unread(pod, snapshot.namespaces)
    if reason and not pod.host_network:
        raise BadInputError(f"pod {pod.ref}: {reason}, so it is isolated", "see nodenet status")
    labels = None if pod.host_network else label_set(pod, ())
    return Party(str(pod.ref), labels, pod.ips[0] if pod.ips else None, pod.node_name, pod.host_network)
