"""Selectors that select nothing, and labels that no object has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from netpolicy.cluster import Cluster
from netpolicy.lint.common import SIDE, Finding, peers, pods, subjects
from netpolicy.selectors import matches, peer_selects
from netpolicy.types import (
    NAMESPACE_NAME_LABEL,
    NetworkPolicy,
    Operator,
    Requirement,
    Selector,
    namespace_labels,
)

# Keys that people take for the name of a namespace.
_NAMES = ("name", "namespace", "ns", "metadata.name", "kubernetes.io/name", "kubernetes.io/namespace")


def selects_nothing(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    if not cluster.pods or subjects(policy, cluster):
        return
    elsewhere = sorted({p.namespace for p in pods(cluster) if matches(policy.selector, p.labels.mapping)})
    message = f"selects no pod in namespace {policy.namespace} (podSelector {policy.selector})"
    if elsewhere and policy.selector.keys:
        message += f"; pods with these labels are in {', '.join(elsewhere)}: set metadata.namespace"
    else:
        message += _values(policy.selector, cluster, policy.namespace)
    message += _may_be_custom(policy.namespace, cluster)
    yield Finding(policy.ref, "selects-nothing", "spec.podSelector", message)


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
    names = {policy.namespace, *cluster.namespaces, *(pod.namespace for pod in cluster.pods)}
    known = {name: namespace_labels(cluster.namespaces, name) for name in names}
    for direction, index, place, peer in peers(policy):
        for requirement in peer.namespaces.requirements if peer.namespaces else ():
            # NotIn and DoesNotExist also match namespaces without the label.
            if requirement.operator not in (Operator.IN, Operator.EXISTS):
                continue
            if any(_has(requirement, labels) for labels in known.values()):
                continue
            field = f"spec.{direction}[{index}].{SIDE[direction]}[{place}].namespaceSelector"
            hint = _namespace_hint(requirement, known, bool(cluster.namespaces))
            yield Finding(policy.ref, "namespace-label-missing", field, f"no namespace has {requirement}{hint}")


def _namespace_hint(requirement: Requirement, known: Mapping[str, object], labels_known: bool) -> str:
    wanted = [value for value in requirement.values if value in known]
    if requirement.key == NAMESPACE_NAME_LABEL:
        return f"; the namespaces are {', '.join(sorted(known))}: use one of these names"
    if wanted or (requirement.key in _NAMES and requirement.values):
        name = (wanted or requirement.values)[0]
        return (
            f"; Kubernetes sets only {NAMESPACE_NAME_LABEL} by itself: to name the namespace {name}, use "
            f"{NAMESPACE_NAME_LABEL}={name}"
        )
    if not labels_known:
        return "; the input has no Namespace objects: add them to the input, with their labels"
    return "; set the label on the namespaces that are meant, or use a label that they have"


def peer_selects_nothing(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    if not cluster.pods:
        return
    for direction, index, place, peer in peers(policy):
        if peer.pods is None or not peer.pods.requirements:
            continue
        if any(peer_selects(peer, policy.namespace, p.labels, cluster.namespaces) for p in pods(cluster)):
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
        elif not elsewhere:
            message = f"no pod anywhere has {peer.pods}{_values(peer.pods, cluster, '')}"
            yield Finding(policy.ref, "peer-selects-nothing", field, message)


def _has(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    return value is not None and (requirement.operator is Operator.EXISTS or value in requirement.values)
