"""Wire structs (schema.py) -> model, one function per kind; those of Services are in services.py. Pure.

Absent fields get their defaults. An invalid element is left out and added to `unread`; the rest of the object is used.
Where an omission could allow more traffic, the model says so: an invalid NetworkPolicy isolates and allows less (see
netpolicy.parse), and a Pod or Namespace has `labels_unread`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from netpolicy import parse, parse_cluster
from netpolicy.holders import Standing
from netpolicy.types import ClusterPolicy, NetworkPolicy
from netpolicy.types import Protocol as PolicyProtocol
from nodenet import model
from nodenet.decode import schema, values
from nodenet.decode.salvage import Unread
from nodenet.decode.values import Unreads
from nodenet.interned import shared
from nodenet.model import ObjectRef

# Annotation of a static pod's mirror: the UID that the kubelet, and therefore the CNI plugin, uses for the pod.
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
TEMPLATE_HASH_LABEL = "pod-template-hash"

# The name of a CronJob's Job ends with the scheduled time in minutes since the epoch.
_CRON_JOB = re.compile(r"(.+)-\d{8,10}")


def _labels_unread(unread: Unreads) -> bool:
    return any(entry.path.startswith("metadata.labels") for entry in unread)


def pod(ref: ObjectRef, obj: schema.Pod, unread: Unreads) -> model.Pod:
    spec = obj.spec or schema.PodSpec()
    status = obj.status or schema.PodStatus()
    texts = [entry.ip for entry in status.pod_ips or () if entry.ip] or ([status.pod_ip] if status.pod_ip else [])
    ips = [values.address(f"status.podIPs[{index}].ip", text, unread) for index, text in enumerate(texts)]
    annotations = obj.metadata.annotations or {}
    return model.Pod(
        ref=ref,
        uid=annotations.get(MIRROR_ANNOTATION) or obj.metadata.uid or "",
        labels=values.labels(obj.metadata.labels),
        node_name=shared(spec.node_name or ""),
        ips=tuple(ip for ip in ips if ip is not None),
        host_network=bool(spec.host_network),
        phase=shared(status.phase or "Pending"),
        named_ports=tuple(_named_ports(spec, unread)),
        workload=_workload(obj.metadata),
        host_ports=_host_ports(spec, unread),
        labels_unread=_labels_unread(unread),
        standing=Standing.of(
            obj.metadata.deletion_timestamp,
            next((entry.status for entry in status.conditions or () if entry.type == "Ready"), None),
            status.start_time,
            obj.metadata.creation_timestamp,
        ),
    )


def _ports(spec: schema.PodSpec) -> Iterable[tuple[str, schema.ContainerPort]]:
    """The ports of the containers and of the sidecars, with their paths. Sidecars are init containers with
    restartPolicy Always (KEP-753)."""
    for index, container in enumerate(spec.containers or ()):
        for number, port in enumerate(container.ports or ()):
            yield f"spec.containers[{index}].ports[{number}]", port
    for index, container in enumerate(spec.init_containers or ()):
        for number, port in enumerate((container.ports or ()) if container.restart_policy == "Always" else ()):
            yield f"spec.initContainers[{index}].ports[{number}]", port


def _named_ports(spec: schema.PodSpec, unread: Unreads) -> Iterable[model.NamedPort]:
    for path, port in _ports(spec):
        if port.name:
            found = values.port(f"{path}.containerPort", port.container_port, unread)
            protocol = values.protocol(f"{path}.protocol", port.protocol, unread)
            if found is not None and protocol is not None:
                yield model.NamedPort(port.name, PolicyProtocol[protocol.name], found)


def _host_ports(spec: schema.PodSpec, unread: Unreads) -> tuple[model.HostPort, ...]:
    """An invalid hostPort is left out, with its hostIP: without that it would be open on more addresses."""
    found = [(path, port) for path, port in _ports(spec) if port.host_port] if not spec.host_network else []
    return _shared(tuple(filter(None, (_host_port(path, port, unread) for path, port in found)))) if found else ()


def _host_port(path: str, port: schema.ContainerPort, unread: Unreads) -> model.HostPort | None:
    number = values.port(f"{path}.hostPort", port.host_port or 0, unread)
    # A container port that is named too was reported with its name.
    target = values.port(f"{path}.containerPort", port.container_port, [] if port.name else unread)
    protocol = values.protocol(f"{path}.protocol", port.protocol, [] if port.name else unread)
    address = values.address(f"{path}.hostIP", port.host_ip, unread) if port.host_ip else None
    if number is None or target is None or protocol is None or (port.host_ip and address is None):
        return None
    return model.HostPort(number, target, protocol, address)


@lru_cache(maxsize=1 << 10)
def _shared(ports: tuple[model.HostPort, ...]) -> tuple[model.HostPort, ...]:
    """One object for all pods of a DaemonSet: every node holds those of the whole cluster."""
    return ports


def _workload(metadata: schema.Metadata) -> tuple[str, str] | None:
    """(kind, name) of the pod's controller. For a ReplicaSet or Job whose name shows that a Deployment or CronJob
    created it: that Deployment or CronJob."""
    owner = next((o for o in metadata.owner_references or () if o.controller and o.kind and o.name), None)
    if owner is None:
        return None
    kind, name = owner.kind or "", owner.name or ""
    # A ReplicaSet of a Deployment is named DEPLOYMENT-HASH, and its pods have the hash as a label.
    suffix = f"-{(metadata.labels or {}).get(TEMPLATE_HASH_LABEL, '')}"
    if kind == "ReplicaSet" and len(suffix) > 1 and name.endswith(suffix):
        return "Deployment", name.removesuffix(suffix)
    cron = _CRON_JOB.fullmatch(name) if kind == "Job" else None
    return ("CronJob", cron[1]) if cron else (kind, name)


def namespace(ref: ObjectRef, obj: schema.Namespace, unread: Unreads) -> model.Namespace:
    return model.Namespace(ref.name, obj.metadata.labels or {}, _labels_unread(unread))


# The Node condition that a network plugin sets to False.
_NETWORK = "NetworkUnavailable"
_READY = "Ready"


def node(ref: ObjectRef, obj: schema.Node, unread: Unreads) -> model.Node:
    spec = obj.spec or schema.NodeSpec()
    texts = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])
    cidrs = [values.network(f"spec.podCIDRs[{index}]", text, unread) for index, text in enumerate(texts)]
    addresses: dict[str | None, list[model.IPAddress]] = {"InternalIP": [], "ExternalIP": []}
    for index, entry in enumerate((obj.status.addresses if obj.status else None) or ()):
        if entry.type in addresses and entry.address:
            found = values.address(f"status.addresses[{index}].address", entry.address, unread)
            addresses[entry.type] += [found] if found is not None else []
    conditions = {one.type: one for one in reversed((obj.status.conditions if obj.status else None) or ())}
    network = conditions.get(_NETWORK) or schema.NodeCondition()
    return model.Node(
        ref.name,
        tuple(addresses["InternalIP"]),
        tuple(cidr for cidr in cidrs if cidr is not None),
        obj.metadata.labels or {},
        frozenset(taint.key for taint in spec.taints or () if taint.key),
        network.status or "",
        obj.metadata.deletion_timestamp is not None,
        tuple(addresses["ExternalIP"]),
        network.reason or "",
        (conditions.get(_READY) or schema.NodeCondition()).status or "",
    )


def network_policy(ref: ObjectRef, obj: Any, unread: Unreads) -> NetworkPolicy:
    """Adds apiVersion and kind before parsing: the API leaves them out of the items of a list."""
    policy = parse.read({"apiVersion": parse.API_VERSION, "kind": "NetworkPolicy", **obj}).policy
    unread += [Unread(problem.field, f"{problem.message}: {problem.effect}") for problem in policy.problems]
    return policy


def cluster_policy(ref: ObjectRef, obj: Any, unread: Unreads) -> ClusterPolicy:
    """As `network_policy`. The cluster may serve a newer version of the schema: what is not known closes."""
    policy = parse_cluster.read(obj).policy
    unread += [Unread(problem.field, f"{problem.message}: {problem.effect}") for problem in policy.problems]
    return policy
