"""Selectors that select nothing, and labels that no object has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from netpolicy.cluster import Cluster, Pod
from netpolicy.lint.common import SIDE, Finding, peers, pods, subjects
from netpolicy.selectors import matches, peer_selects
from netpolicy.types import (
    NAMESPACE_NAME_LABEL,
    NetworkPolicy,
    Operator,
    Peer,
    Requirement,
    Selector,
    namespace_labels,
)

# Keys that people take for the name of a namespace.
_NAMES = ("name", "namespace", "ns", "metadata.name", "kubernetes.io/name", "kubernetes.io/namespace")


# Namespaces that every cluster has.
_ALWAYS = ("default", "kube-system", "kube-public", "kube-node-lease")


def selects_nothing(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    if not cluster.pods or subjects(policy, cluster):
        return
    matching = _matching(policy, cluster.pods)
    if matching:
        message = (
            f"selects only pods on the node's network, such as {matching[0]}, and no NetworkPolicy applies to them: "
            "remove the policy, or hostNetwork"
        )
        yield Finding(policy.ref, "selects-nothing", "spec.podSelector", message)
        return
    if _matching(policy, cluster.possible):
        return
    elsewhere = sorted({p.namespace for p in pods(cluster) if matches(policy.selector, p.labels.mapping)})
    message = f"selects no pod in namespace {policy.namespace} (podSelector {policy.selector})"
    if elsewhere and policy.selector.keys:
        message += f"; pods with these labels are in {', '.join(elsewhere)}: set metadata.namespace"
    else:
        message += _values(policy.selector, cluster, policy.namespace)
    message += _may_be_custom(policy.namespace, cluster)
    yield Finding(policy.ref, "selects-nothing", "spec.podSelector", message)


def _matching(policy: NetworkPolicy, given: Iterable[Pod]) -> list[Pod]:
    return [p for p in given if p.namespace == policy.namespace and matches(policy.selector, p.labels.mapping)]


def _values(selector: Selector, cluster: Cluster, namespace: str) -> str:
    """The values that pods really have, for the first label of a selector that no pod has."""
    near = [pod.labels.mapping for pod in pods(cluster) if not namespace or pod.namespace == namespace]
    for requirement in selector.requirements:
        if requirement.operator is not Operator.IN or any(matches(Selector((requirement,)), own) for own in near):
            continue
        found = sorted({own[requirement.key] for own in near if requirement.key in own})
        if found:
            return f"; the values of {requirement.key} there are {', '.join(found[:10])}: use one of them"
        return f"; no pod has the label {requirement.key}: use a label of the pods"
    return ""


def _may_be_custom(namespace: str, cluster: Cluster) -> str:
    """A custom resource without a pod template may still create pods."""
    near = [name for name in cluster.custom if name.partition(" ")[2].startswith(f"{namespace}/")]
    return f"; it is not known here whether {near[0]} creates such pods" if near else ""


def namespace_label_missing(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    names = {policy.namespace, *_ALWAYS, *cluster.namespaces, *(pod.namespace for pod in cluster.pods)}
    known = {name: namespace_labels(cluster.namespaces, name) for name in names}
    for direction, index, place, peer in peers(policy):
        for requirement in peer.namespaces.requirements if peer.namespaces else ():
            # NotIn and DoesNotExist also match namespaces without the label.
            if requirement.operator not in (Operator.IN, Operator.EXISTS):
                continue
            if any(_has(requirement, labels) for labels in known.values()):
                continue
            hint = _namespace_hint(requirement, names, cluster)
            if hint:
                field = f"spec.{direction}[{index}].{SIDE[direction]}[{place}].namespaceSelector"
                yield Finding(policy.ref, "namespace-label-missing", field, f"no namespace has {requirement}; {hint}")


def _namespace_hint(requirement: Requirement, names: Collection[str], cluster: Cluster) -> str:
    """What to do; empty if the input does not show enough: without Namespace objects their labels are not known."""
    wanted = [value for value in requirement.values if value in names]
    if requirement.key == NAMESPACE_NAME_LABEL:
        shown = ", ".join(sorted({*cluster.namespaces, *(pod.namespace for pod in cluster.pods)}))
        return f"the namespaces are {shown}: use one of these names" if shown else ""
    if wanted or (requirement.key in _NAMES and requirement.values):
        name = (wanted or requirement.values)[0]
        return (
            f"Kubernetes sets only {NAMESPACE_NAME_LABEL} by itself: to name the namespace {name}, use "
            f"{NAMESPACE_NAME_LABEL}={name}"
        )
    if not cluster.namespaces:
        return ""
    return "set the label on the namespaces that are meant, or use a label that they have"


def peer_selects_nothing(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    if not cluster.pods:
        return
    for direction, index, place, peer in peers(policy):
        if peer.pods is None or not peer.pods.requirements:
            continue
        near = (*pods(cluster), *cluster.possible)
        if any(peer_selects(peer, policy.namespace, p.labels, cluster.namespaces) for p in near):
            continue
        field = f"spec.{direction}[{index}].{SIDE[direction]}[{place}].podSelector"
        elsewhere = sorted({p.namespace for p in pods(cluster) if matches(peer.pods, p.labels.mapping)})
        if peer.namespaces is None and elsewhere:
            message = (
                f"no pod of namespace {policy.namespace} has {peer.pods}, but pods of {', '.join(elsewhere)} do: a "
                "podSelector without namespaceSelector means the policy's own namespace; add to the same peer "
                f"namespaceSelector: {{matchLabels: {{{NAMESPACE_NAME_LABEL}: {elsewhere[0]}}}}}"
            )
            yield Finding(policy.ref, "peer-in-other-namespace", field, message)
        elif not elsewhere and not _may_be_elsewhere(peer, cluster):
            message = f"no pod anywhere has {peer.pods}{_values(peer.pods, cluster, '')}"
            yield Finding(policy.ref, "peer-selects-nothing", field, message)


def _may_be_elsewhere(peer: Peer, cluster: Cluster) -> bool:
    """True if the peer selects a namespace of which the input has no pods, such as kube-system in manifests of an
    application."""
    shown = {pod.namespace for pod in cluster.pods}
    others = {*_ALWAYS, *cluster.namespaces} - shown
    return peer.namespaces is not None and any(
        matches(peer.namespaces, namespace_labels(cluster.namespaces, name)) for name in others
    )


def _has(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    return value is not None and (requirement.operator is Operator.EXISTS or value in requirement.values)
