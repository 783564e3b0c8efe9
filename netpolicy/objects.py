"""Kubernetes objects (decoded JSON or YAML) -> Cluster. A workload represents the pods that its controller would
create (see workloads.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from netpolicy import foreign, parse_cluster
from netpolicy.addresses import parse_address, parse_network
from netpolicy.cluster import Cluster, Node, Pod, Service, ServicePort
from netpolicy.fields import Field, labels, port_number
from netpolicy.holders import Standing
from netpolicy.owners import TOP, Owners, Ref, ref_of
from netpolicy.parse import network_policy, read
from netpolicy.types import (
    ClusterPolicy,
    IPAddress,
    IPNetwork,
    NetworkPolicy,
    Operator,
    PolicyError,
    Protocol,
    Requirement,
    Selector,
)
from netpolicy.workloads import Made, container_ports, made_by

Object = Mapping[str, Any]

_FINISHED = ("Succeeded", "Failed")


def cluster(
    objects: Iterable[Object], namespace: str = "default", strict: bool = True, *, live: bool = False
) -> Cluster:
    """Read all objects; `namespace` is the default for objects without one. Raises PolicyError for the first invalid
    one. `strict` False, for objects from an API server: NetworkPolicies are read as far as possible (`parse.read`).

    `live`: the real pods are among the objects, so workloads add none. Without it, a workload adds none if the input
    has a pod of it.

    Kinds that do not affect policy are listed in `skipped`, policies of other APIs in `foreign`. Of two objects with
    the same name the later one counts.
    """
    reader = _Reader([_with_namespace(obj, namespace) for obj in _unpacked(objects)], strict)
    for obj in reader.objects:
        reader.read(obj, _root(obj))
    dormant = reader.add_workloads(live)
    return Cluster(
        tuple(reader.pods.values()),
        reader.namespaces,
        tuple(reader.policies.values()),
        tuple(reader.services.values()),
        reader.nodes,
        tuple(reader.skipped),
        dormant,
        tuple(reader.custom),
        tuple(reader.foreign),
        tuple(reader.possible),
        tuple(reader.cluster_policies.values()),
    )


class _Reader:
    """Collects the parts of a Cluster, object by object."""

    def __init__(self, objects: list[Object], strict: bool) -> None:
        self.objects = objects
        self._strict = strict
        self._owners = Owners(_root(obj) for obj in objects)
        self.nodes = tuple(node(obj) for obj in objects if obj.get("kind") == "Node")
        self.pods: dict[tuple[str, str], Pod] = {}
        self.policies: dict[tuple[str, str], NetworkPolicy] = {}
        self.cluster_policies: dict[str, ClusterPolicy] = {}
        self.services: dict[tuple[str, str], Service] = {}
        self.namespaces: dict[str, Mapping[str, str]] = {}
        self.skipped: list[str] = []
        self.custom: list[str] = []
        self.foreign: list[str] = []
        self.possible: list[Pod] = []
        # Objects with a pod template, and the workloads of which the input has a pod, perhaps a finished one.
        self._made: dict[Ref, tuple[Field, Made]] = {}
        self._running: set[Ref] = set()
        self._finished: set[Ref] = set()

    def read(self, obj: Object, root: Field) -> None:
        """Add one object. Raises PolicyError if it is invalid."""
        # A custom resource may have the same kind name as a built-in one (Knative's Service). But a NetworkPolicy of an
        # unknown group is rejected, or its author would assume that it was checked.
        kind = "" if _is_custom(obj) and obj.get("kind") != "NetworkPolicy" else obj.get("kind")
        if foreign.is_policy(obj):
            self.foreign.append(root.object)
        elif kind == "NetworkPolicy":
            policy = network_policy(obj) if self._strict else read(obj).policy
            self.policies[policy.ref] = policy
        elif parse_cluster.is_cluster_policy(obj):
            found = parse_cluster.cluster_policy(obj) if self._strict else parse_cluster.read(obj).policy
            self.cluster_policies[found.name] = found
        elif kind == "Namespace":
            own = labels(root.child("metadata").child("labels"))
            self.namespaces[str(root.child("metadata").child("name").value)] = own
        elif kind == "Service":
            served = service(obj)
            self.services[served.namespace, served.name] = served
        elif kind == "Pod":
            self._pod(root)
        elif kind != "Node":
            self._workload(obj, root)

    def _pod(self, root: Field) -> None:
        workload = self._owners.workload(root)
        if root.child("status").child("phase").value in _FINISHED:
            self._finished.add(workload)
            return
        pod = _pod(root, root.child("spec"), workload.name)
        self.pods[pod.namespace, pod.name] = pod
        self._running.add(workload)

    def _workload(self, obj: Object, root: Field) -> None:
        made = made_by(root, _namespace(root.child("metadata")), len(self.nodes))
        if made is not None:
            self._made[ref_of(root)] = root, made
        else:
            self.skipped.append(root.object)
            if _is_custom(obj):
                self.custom.append(root.object)
                self.possible += _possible(root)

    def add_workloads(self, live: bool) -> tuple[Pod, ...]:
        """Add the pods that workloads represent, and return the dormant ones: those that no workload creates now."""
        above = {ref for own, (root, _) in self._made.items() if own.kind in TOP for ref in self._owners.above(root)}
        dormant: list[Pod] = []
        for own, (root, made) in self._made.items():
            workload = self._owners.workload(root)
            # Its owner represents it, or what it owns has the labels of its pods.
            if own in above or (workload != own and workload in self._made):
                continue
            running = workload in self._running
            pods = [replace(pod, workload=workload.name) for pod in made.pods]
            # An old ReplicaSet of a workload that runs is no template for further pods.
            if own == workload or not running:
                dormant += [replace(pod, workload=workload.name) for pod in made.dormant]
            if running:
                continue
            if live or workload in self._finished:
                dormant += pods[:1]
            else:
                self.pods |= {(pod.namespace, pod.name): pod for pod in pods}
        return tuple(dormant)


def _unpacked(objects: Iterable[Object]) -> Iterator[Object]:
    """Replace a List by its items."""
    for obj in objects:
        items = obj.get("items")
        if str(obj.get("kind")).endswith("List") and isinstance(items, list):
            yield from _unpacked(item for item in items if isinstance(item, Mapping))
        else:
            yield obj


def _is_custom(obj: Object) -> bool:
    """True if the kind is not one of Kubernetes' own: it may create pods in a way that we do not know."""
    group, slash, _ = str(obj.get("apiVersion") or "").rpartition("/")
    return bool(slash) and "." in group and not group.endswith(".k8s.io")


def _pod(root: Field, spec: Field, workload: str) -> Pod:
    metadata, status = root.child("metadata"), root.child("status")
    own = labels(metadata.child("labels"))
    addresses = [item.child("ip") for item in status.child("podIPs").items()] or [status.child("podIP")]
    pod = Pod.of(
        _namespace(metadata),
        metadata.child("name").text(),
        own,
        tuple(_address(field) for field in addresses if field.value),
        tuple(container_ports(spec)),
        workload,
    )
    return replace(
        pod,
        host_network=spec.child("hostNetwork").value is True,
        node=str(spec.child("nodeName").value or ""),
        standing=_standing(metadata, status),
    )


def _standing(metadata: Field, status: Field) -> Standing:
    ready = [item for item in status.child("conditions").items() if item.child("type").value == "Ready"]
    return Standing.of(
        metadata.child("deletionTimestamp").value,
        ready[0].child("status").value if ready else None,
        status.child("startTime").value,
        metadata.child("creationTimestamp").value,
    )


def _possible(root: Field) -> Iterator[Pod]:
    """A pod with the labels of a custom resource, and with those of its `spec.podMetadata` (Prometheus and others)."""
    metadata = root.child("metadata")
    try:
        own = {**labels(metadata.child("labels"))}
        own |= labels(root.child("spec").child("podMetadata").child("labels"))
        yield Pod.of(_namespace(metadata), metadata.child("name").text(), own)
    except PolicyError:
        return


def service(obj: Object) -> Service:
    """Read one Service. The default of targetPort is the port itself."""
    root = _root(obj)
    metadata, spec = root.child("metadata"), root.child("spec")
    wanted = spec.child("selector")
    selector = None
    if wanted.mapping() and spec.child("type").value != "ExternalName":
        selector = Selector(tuple(Requirement(k, Operator.IN, (v,)) for k, v in sorted(labels(wanted).items())))
    addresses = list(spec.child("clusterIPs").items()) or [spec.child("clusterIP")]
    return Service(
        _namespace(metadata),
        metadata.child("name").text(),
        selector,
        tuple(_service_port(item) for item in spec.child("ports").items()),
        tuple(_address(field) for field in addresses if field.value not in (None, "", "None")),
    )


def _service_port(item: Field) -> ServicePort:
    port, target, protocol = (item.child(key) for key in ("port", "targetPort", "protocol"))
    number = port_number(port)
    return ServicePort(
        number,
        number if target.absent else target.value if isinstance(target.value, str) else port_number(target),
        Protocol.TCP if protocol.absent else Protocol(protocol.one_of(tuple(Protocol))),
        str(item.child("name").value or ""),
    )


def node(obj: Object) -> Node:
    """Read one Node: its addresses, pod networks and labels."""
    root = _root(obj)
    spec = root.child("spec")
    cidrs = list(spec.child("podCIDRs").items()) or [spec.child("podCIDR")]
    addresses: dict[object, list[IPAddress]] = {"InternalIP": [], "ExternalIP": []}
    for item in root.child("status").child("addresses").items():
        if item.child("type").value in addresses:
            addresses[item.child("type").value].append(_address(item.child("address")))
    return Node(
        root.child("metadata").child("name").text(),
        tuple(addresses["InternalIP"]),
        tuple(_network(field) for field in cidrs if field.value),
        labels(root.child("metadata").child("labels")),
        tuple(addresses["ExternalIP"]),
    )


def _root(obj: Object) -> Field:
    kind = str(obj.get("kind") or "object")
    metadata = Field(kind, "metadata", obj.get("metadata"))
    name, namespace = metadata.child("name").value, metadata.child("namespace").value
    return Field(f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}", "", obj)


def _with_namespace(obj: Object, namespace: str) -> Object:
    metadata = Field(str(obj.get("kind") or "object"), "metadata", obj.get("metadata")).mapping()
    if obj.get("kind") in ("Namespace", "Node", parse_cluster.KIND) or metadata.get("namespace"):
        return obj
    return {**obj, "metadata": {**metadata, "namespace": namespace}}


def _namespace(metadata: Field) -> str:
    field = metadata.child("namespace")
    return "default" if field.absent else field.text()


def _address(field: Field) -> IPAddress:
    try:
        return parse_address(field.text())
    except ValueError:
        raise field.expected("an IP address") from None


def _network(field: Field) -> IPNetwork:
    try:
        return parse_network(field.text())
    except ValueError:
        raise field.expected("a CIDR") from None
