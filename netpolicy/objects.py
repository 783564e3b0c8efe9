"""Kubernetes objects (decoded JSON or YAML) -> Cluster. A workload represents the pods that its controller would
create (see workloads.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from netpolicy.addresses import parse_address, parse_network
from netpolicy.cluster import Cluster, Node, Pod, Service, ServicePort
from netpolicy.fields import Field, labels, port_number
from netpolicy.holders import Standing
from netpolicy.parse import network_policy, read
from netpolicy.types import IPAddress, IPNetwork, NetworkPolicy, Operator, Protocol, Requirement, Selector
from netpolicy.workloads import Made, container_ports, made_by

Object = Mapping[str, Any]

_FINISHED = ("Succeeded", "Failed")


def cluster(
    objects: Iterable[Object], namespace: str = "default", strict: bool = True, *, live: bool = False
) -> Cluster:
    """Read all objects; `namespace` is the default for objects without one. Raises PolicyError for the first invalid
    one. `strict` False, for objects from an API server: NetworkPolicies are read as far as possible (`parse.read`).

    `live`: the real pods are among the objects, so workloads add none.

    Kinds that do not affect policy are listed in `skipped`. Of two objects with the same name the later one counts.
    """
    pods: dict[tuple[str, str], Pod] = {}
    policies: dict[tuple[str, str], NetworkPolicy] = {}
    services: dict[tuple[str, str], Service] = {}
    namespaces: dict[str, Mapping[str, str]] = {}
    skipped, custom, workloads = [], [], []
    everything = [_with_namespace(obj, namespace) for obj in _unpacked(objects)]
    nodes = tuple(node(obj) for obj in everything if obj.get("kind") == "Node")
    for obj in everything:
        root = _root(obj)
        # A custom resource may have the same kind name as a built-in one (Knative's Service). But a NetworkPolicy of
        # another group is rejected, or its author would assume that it was checked.
        kind = "" if _is_custom(obj) and obj.get("kind") != "NetworkPolicy" else obj.get("kind")
        if kind == "NetworkPolicy":
            policy = network_policy(obj) if strict else read(obj).policy
            policies[policy.ref] = policy
        elif kind == "Namespace":
            namespaces[str(root.child("metadata").child("name").value)] = labels(root.child("metadata").child("labels"))
        elif kind == "Service":
            found = service(obj)
            services[found.namespace, found.name] = found
        elif kind == "Pod":
            if root.child("status").child("phase").value not in _FINISHED:
                pod = _pod(root, root.child("spec"))
                pods[pod.namespace, pod.name] = pod
        elif kind != "Node":
            made = made_by(root, _namespace(root.child("metadata")), len(nodes))
            if made is not None:
                workloads.append(made)
            else:
                skipped.append(root.object)
                custom += [root.object] if _is_custom(obj) else []
    dormant = _add_workloads(pods, workloads, live)
    return Cluster(
        tuple(pods.values()),
        namespaces,
        tuple(policies.values()),
        tuple(services.values()),
        nodes,
        tuple(skipped),
        dormant,
        tuple(custom),
    )


def _add_workloads(pods: dict[tuple[str, str], Pod], workloads: Iterable[Made], live: bool) -> tuple[Pod, ...]:
    """Add the pods that workloads represent, and return the dormant ones: those that no workload creates now.

    `live`: the input has the real pods, so a workload without any gives one dormant pod.
    """
    real = {(pod.namespace, pod.workload) for pod in pods.values()}
    dormant: list[Pod] = []
    for made in workloads:
        dormant += made.dormant
        if not live:
            pods |= {(pod.namespace, pod.name): pod for pod in made.pods}
        else:
            dormant += [pod for pod in made.pods[:1] if (pod.namespace, pod.workload) not in real]
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


def _pod(root: Field, spec: Field) -> Pod:
    metadata, status = root.child("metadata"), root.child("status")
    own = labels(metadata.child("labels"))
    addresses = [item.child("ip") for item in status.child("podIPs").items()] or [status.child("podIP")]
    return Pod.of(
        _namespace(metadata),
        metadata.child("name").text(),
        own,
        tuple(_address(field) for field in addresses if field.value),
        tuple(container_ports(spec)),
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
    """The name of the pod's workload: for a ReplicaSet its name without the hash that the Deployment added."""
    for item in metadata.child("ownerReferences").items():
        kind, name = item.child("kind").value, str(item.child("name").value)
        if kind == "ReplicaSet":
            # The default matches no suffix: a pod without the label has no Deployment.
            return name.removesuffix("-" + own.get("pod-template-hash", " "))
        return name
    return ""


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
