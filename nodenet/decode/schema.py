"""The fields of the Kubernetes API that the agent uses, as msgspec structs. Almost every field may be absent or null,
because API servers leave out empty fields; build.py checks the fields that it requires."""

from __future__ import annotations

import msgspec


class Struct(msgspec.Struct, rename="camel", gc=False):
    """Unknown fields are ignored; names are camelCase in JSON."""


class Owner(Struct):
    kind: str | None = None
    name: str | None = None
    controller: bool | None = None


class ObjectName(Struct):
    name: str = ""
    namespace: str | None = None
    resource_version: str | None = None
    uid: str | None = None


class Metadata(ObjectName):
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[Owner] | None = None


class ContainerPort(Struct):
    name: str | None = None
    container_port: int = 0
    protocol: str | None = None
    host_port: int | None = None
    host_ip: str | None = msgspec.field(default=None, name="hostIP")


class Container(Struct):
    ports: list[ContainerPort] | None = None
    restart_policy: str | None = None


class PodSpec(Struct):
    node_name: str | None = None
    host_network: bool | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodIP(Struct):
    ip: str | None = None


class PodCondition(Struct):
    type: str | None = None
    status: str | None = None


class PodStatus(Struct):
    phase: str | None = None
    start_time: str | None = None
    conditions: list[PodCondition] | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[PodIP] | None = msgspec.field(default=None, name="podIPs")


class Pod(Struct):
    metadata: Metadata
    spec: PodSpec | None = None
    status: PodStatus | None = None


class Namespace(Struct):
    metadata: Metadata


class Taint(Struct):
    key: str | None = None


class NodeSpec(Struct):
    taints: list[Taint] | None = None
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")


class NodeAddress(Struct):
    type: str | None = None
    address: str | None = None


class NodeCondition(Struct):
    """Without the heartbeat's time: a Node whose heartbeat came has not changed."""

    type: str | None = None
    status: str | None = None
    reason: str | None = None


class NodeStatus(Struct):
    conditions: list[NodeCondition] | None = None
    addresses: list[NodeAddress] | None = None


class Node(Struct):
    metadata: Metadata
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class Port(Struct):
    """A port of a Service or of an EndpointSlice."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    node_port: int | None = None


class ClientIPConfig(Struct):
    timeout_seconds: int | None = None


class AffinityConfig(Struct):
    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Struct):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    ports: list[Port] | None = None
    publish_not_ready_addresses: bool | None = None
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    load_balancer_source_ranges: list[str] | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    health_check_node_port: int | None = None


class LoadBalancerIngress(Struct):
    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(Struct):
    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(Struct):
    load_balancer: LoadBalancerStatus | None = None


class Service(Struct):
    metadata: Metadata
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class Conditions(Struct):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Target(Struct):
    kind: str | None = None
    namespace: str | None = None
    name: str | None = None


class Hint(Struct):
    name: str | None = None


class Hints(Struct):
    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class SliceEndpoint(Struct):
    addresses: list[str] | None = None
    conditions: Conditions | None = None
    node_name: str | None = None
    target_ref: Target | None = None
    hints: Hints | None = None


class EndpointSlice(Struct):
    metadata: Metadata
    address_type: str | None = None
    endpoints: list[SliceEndpoint] | None = None
    ports: list[Port] | None = None
