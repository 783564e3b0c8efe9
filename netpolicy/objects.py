"""Kubernetes objects (decoded JSON or YAML) -> Cluster. A workload stands for the pods that its controller would make.

Pods of a workload are named `<workload>-<number>` from 0: one for each replica, for a DaemonSet one for each Node among
the objects (at least one). They have the labels that the controller adds and a policy could name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from netpolicy.addresses import parse_address, parse_network
from netpolicy.cluster import Cluster, ContainerPort, Node, Pod, Service, ServicePort
from netpolicy.fields import Field, labels, port_number
from netpolicy.holders import Standing
from netpolicy.parse import network_policy, read
from netpolicy.types import IPAddress, IPNetwork, NetworkPolicy, Operator, Protocol, Requirement, Selector

Object = Mapping[str, Any]

_WORKLOADS = {"Deployment": "replicas", "StatefulSet": "replicas", "ReplicaSet": "replicas", "Job": "parallelism"}
_FINISHED = ("Succeeded", "Failed")


def cluster(objects: Iterable[Object], namespace: str = "default", strict: bool = True) -> Cluster:
    """Read every object; `namespace` is for those that name none. Raises PolicyError for the first that is wrong.
    Not `strict`, for objects of an API server: NetworkPolicies are read as far as they can be (`parse.read`).

    Kinds that say nothing about policy are listed in `skipped`. Of two objects with the same name the later counts.
    """
    pods: dict[tuple[str, str], Pod] = {}
    policies: dict[tuple[str, str], NetworkPolicy] = {}
    services: dict[tuple[str, str], Service] = {}
    namespaces: dict[str, Mapping[str, str]] = {}
    skipped = []
    everything = [_with_namespace(obj, namespace) for obj in objects]
    nodes = tuple(node(obj) for obj in everything if obj.get("kind") == "Node")
    for obj in everything:
        kind = obj.get("kind")
        if kind == "NetworkPolicy":
            policy = network_policy(obj) if strict else read(obj).policy
            policies[policy.ref] = policy
        elif kind == "Namespace":
            root = _root(obj)
            namespaces[str(root.child("metadata").child("name").value)] = labels(root.child("metadata").child("labels"))
        elif kind == "Service":
            found = service(obj)
            services[found.namespace, found.name] = found
        elif kind == "Pod" or kind == "DaemonSet" or kind in _WORKLOADS:
            pods |= {(p.namespace, p.name): p for p in pods_of(obj, nodes)}
        elif kind != "Node":
            skipped.append(_root(obj).object)
    return Cluster(
        tuple(pods.values()), namespaces, tuple(policies.values()), tuple(services.values()), nodes, tuple(skipped)
    )


def pods_of(obj: Object, nodes: Iterable[Node] = ()) -> list[Pod]:
    """The pods that an object of kind Pod or of a workload kind stands for; none for a finished Pod."""
    root = _root(obj)
    spec, kind = root.child("spec"), obj.get("kind")
    if kind == "Pod":
        found = _pod(root, spec)
        return [] if root.child("status").child("phase").value in _FINISHED else [found]
    count = max(1, len(list(nodes)))
    if kind != "DaemonSet":
        field = spec.child(_WORKLOADS[str(kind)])
        count = 1 if field.absent else field.number()
    return [_replica(root, spec.child("template"), index) for index in range(count)]


def _pod(root: Field, spec: Field) -> Pod:
    metadata, status = root.child("metadata"), root.child("status")
    own = labels(metadata.child("labels"))
    addresses = [item.child("ip") for item in status.child("podIPs").items()] or [status.child("podIP")]
    return Pod.of(
        _namespace(metadata),
        metadata.child("name").text(),
        own,
        tuple(_address(field) for field in addresses if field.value),
        tuple(_container_ports(spec)),
        spec.child("hostNetwork").value is True,
        str(spec.child("nodeName").value or ""),
        _owner(metadata, own),
        _standing(metadata, status),
    )


def _standing(metadata: Field, status: Field) -> Standing:
    ready = [item for item in status.child("conditions").items() if item.child("type").value == "Ready"]
    return Standing.of(
        metadata.child("deletionTimestamp").value,
        ready[0].child("status").value if ready else None,
        status.child("startTime").value,
        metadata.child("creationTimestamp").value,
    )


def _owner(metadata: Field, own: Mapping[str, str]) -> str:
    """The workload a person would name: a ReplicaSet's name without the hash that its Deployment added."""
    for item in metadata.child("ownerReferences").items():
        kind, name = item.child("kind").value, str(item.child("name").value)
        if kind == "ReplicaSet":
            return name.removesuffix("-" + own.get("pod-template-hash", " "))
        return name
    return ""


def _replica(root: Field, template: Field, index: int) -> Pod:
    metadata, spec = root.child("metadata"), template.child("spec")
    workload, kind = metadata.child("name").text(), root.mapping().get("kind")
    own = labels(template.child("metadata").child("labels"))
    name = f"{workload}-{index}"
    if kind == "StatefulSet":
        own |= {"statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": str(index)}
    if kind == "Job":
        own |= {"batch.kubernetes.io/job-name": workload, "job-name": workload}
    return Pod.of(
        _namespace(metadata),
        name,
        own,
        ports=tuple(_container_ports(spec)),
        host_network=spec.child("hostNetwork").value is True,
        workload=workload,
    )


def _container_ports(spec: Field) -> Iterator[ContainerPort]:
    """Declared ports of the containers, and of init containers that keep running beside them (KEP-753)."""
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


def service(obj: Object) -> Service:
    """Read one Service. A targetPort that is absent is the port itself."""
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
    """Read one Node: its InternalIPs and pod networks."""
    root = _root(obj)
    spec = root.child("spec")
    cidrs = list(spec.child("podCIDRs").items()) or [spec.child("podCIDR")]
    addresses = [
        _address(item.child("address"))
        for item in root.child("status").child("addresses").items()
        if item.child("type").value == "InternalIP"
    ]
    name = root.child("metadata").child("name").text()
    return Node(name, tuple(addresses), tuple(_network(field) for field in cidrs if field.value))


def _root(obj: Object) -> Field:
    kind = str(obj.get("kind") or "object")
    metadata = Field(kind, "metadata", obj.get("metadata"))
    name, namespace = metadata.child("name").value, metadata.child("namespace").value
    return Field(f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}", "", obj)


def _with_namespace(obj: Object, namespace: str) -> Object:
    metadata = Field(str(obj.get("kind") or "object"), "metadata", obj.get("metadata")).mapping()
    if obj.get("kind") in ("Namespace", "Node") or metadata.get("namespace"):
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
