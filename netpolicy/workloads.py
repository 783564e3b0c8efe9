"""Workloads -> the pods that they represent: all kinds with a pod template, also unknown kinds.

Pods of a workload are named `<workload>-<number>` from 0: one per replica, for a DaemonSet one per node (at least one).
They have the labels that the controller adds and that a policy could select by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from netpolicy.cluster import ContainerPort, Pod
from netpolicy.fields import Field, labels, port_number
from netpolicy.types import PolicyError, Protocol

# Kind -> the paths of its pod template and its number of pods; for a DaemonSet this is the number of nodes.
_KNOWN: Mapping[str, tuple[str, str]] = {
    "Deployment": ("spec.template", "spec.replicas"),
    "StatefulSet": ("spec.template", "spec.replicas"),
    "ReplicaSet": ("spec.template", "spec.replicas"),
    "ReplicationController": ("spec.template", "spec.replicas"),
    "DaemonSet": ("spec.template", ""),
    "Job": ("spec.template", "spec.parallelism"),
    "CronJob": ("spec.jobTemplate.spec.template", "spec.jobTemplate.spec.parallelism"),
}
# Maximum depth of a pod template, also in custom kinds: spec.template, spec.tfReplicaSpecs.Worker.template.
_DEPTH = 8


class Made(NamedTuple):
    """`pods`: those that the workload creates now. `dormant`: one for each template with no replicas."""

    pods: tuple[Pod, ...]
    dormant: tuple[Pod, ...] = ()


class _Template(NamedTuple):
    template: Field
    replicas: int


def made_by(root: Field, namespace: str, nodes: int = 1) -> Made | None:
    """The pods that an object of any kind except Pod represents; None if it has no pod template.

    Raises PolicyError for a workload of a known kind that the API server would reject. In objects of unknown kinds,
    parts that cannot be read are ignored.
    """
    kind = str(root.mapping().get("kind"))
    if kind in _KNOWN:
        return _made(root, namespace, [_known(root, kind, nodes)])
    try:
        found = list(_search(root.child("spec"), _DEPTH))
        return _made(root, namespace, found) if found else None
    except PolicyError:
        return None


def _known(root: Field, kind: str, nodes: int) -> _Template:
    template, count = (_at(root, path) for path in _KNOWN[kind])
    if kind == "DaemonSet":
        return _Template(template, max(1, nodes))
    return _Template(template, 1 if count.absent else count.number())


def _at(root: Field, path: str) -> Field:
    field = root
    for key in path.split(".") if path else ():
        field = field.child(key)
    return field


def _search(field: Field, depth: int) -> Iterator[_Template]:
    """All pod templates below a field: mappings whose `spec` has a list of containers."""
    value = field.value
    if depth == 0 or not isinstance(value, Mapping):
        return
    for key in value:
        child = field.child(key)
        if _is_template(child.value):
            count = value.get("replicas")
            yield _Template(child, count if isinstance(count, int) and not isinstance(count, bool) else 1)
        else:
            yield from _search(child, depth - 1)


def _is_template(value: Any) -> bool:
    spec = value.get("spec") if isinstance(value, Mapping) else None
    containers = spec.get("containers") if isinstance(spec, Mapping) else None
    return isinstance(containers, list) and all(isinstance(item, Mapping) for item in containers)


def _made(root: Field, namespace: str, templates: Iterable[_Template]) -> Made:
    pods: list[Pod] = []
    dormant: list[Pod] = []
    for template, count in templates:
        first = len(pods)
        pods += [_replica(root, namespace, template, first + index) for index in range(count)]
        if count <= 0:
            dormant.append(_replica(root, namespace, template, first + len(dormant)))
    return Made(tuple(pods), tuple(dormant))


def _replica(root: Field, namespace: str, template: Field, index: int) -> Pod:
    spec = template.child("spec")
    workload, kind = root.child("metadata").child("name").text(), root.mapping().get("kind")
    own = labels(template.child("metadata").child("labels"))
    name = f"{workload}-{index}"
    if kind == "StatefulSet":
        own |= {"statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": str(index)}
    if kind in ("Job", "CronJob"):
        # The Jobs of a CronJob have its name and a time in their names: this value represents all of them.
        own |= {"batch.kubernetes.io/job-name": workload, "job-name": workload}
    pod = Pod.of(namespace, name, own, ports=tuple(container_ports(spec)), workload=workload)
    return replace(pod, host_network=spec.child("hostNetwork").value is True)


def container_ports(spec: Field) -> Iterator[ContainerPort]:
    """The declared ports of the containers, and of init containers that keep running (KEP-753)."""
    containers = list(spec.child("containers").items())
    containers += [c for c in spec.child("initContainers").items() if c.child("restartPolicy").value == "Always"]
    seen = set()
    for container in containers:
        for item in container.child("ports").items():
            protocol = item.child("protocol")
            port = ContainerPort(
                port_number(item.child("containerPort")),
                Protocol.TCP if protocol.absent else Protocol(protocol.one_of(tuple(Protocol))),
                "" if item.child("name").absent else item.child("name").text(),
            )
            if port not in seen:
                seen.add(port)
                yield port
