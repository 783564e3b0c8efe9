"""Model objects in few words, for tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from netpolicy.types import ClusterPolicy, NetworkPolicy, Policy
from nodenet.compile.backends import Here
from nodenet.compile.ids import Ids
from nodenet.compile.lb import ServiceCompiler, ServiceTables
from nodenet.compile.policy import PolicyCompiler, PolicyTables
from nodenet.compile.policy_set import PolicySet
from nodenet.compile.slots import NO_SLOTS, Slots
from nodenet.kinds import KINDS
from nodenet.model import (
    Endpoint,
    EndpointSlice,
    Labels,
    Namespace,
    Node,
    ObjectRef,
    Pod,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
)
from nodenet.store import Op, Store

TCP, UDP = Protocol.TCP, Protocol.UDP
# nn_client is compiled from endpoints, not from Services.
NO_CLIENTS: Mapping[Any, Any] = {}


def service(
    name: str, *ips: str, ports: Iterable[tuple[str, Protocol, int]] = (("", TCP, 80),), **more: object
) -> Service:
    return Service(
        ObjectRef("default", name),
        ServiceType.CLUSTER_IP,
        tuple(map(ip_address, ips)),
        tuple(ServicePort(*port) for port in ports),
        **more,  # type: ignore[arg-type]
    )


def slice_(
    service_name: str,
    *endpoints: str | SliceEndpoint,
    name: str = "",
    ports: Iterable[tuple[str, Protocol, int]] = (("", TCP, 8080),),
) -> EndpointSlice:
    return EndpointSlice(
        ObjectRef("default", name or f"{service_name}-1"),
        ObjectRef("default", service_name),
        tuple(ServicePort(*port) for port in ports),
        tuple(e if isinstance(e, SliceEndpoint) else target(e) for e in endpoints),
    )


def target(ip: str, ready: bool = True, serving: bool | None = None, terminating: bool = False) -> SliceEndpoint:
    return SliceEndpoint((ip_address(ip),), ready, ready if serving is None else serving, terminating)


def pod(name: str, *ips: str, labels: Mapping[str, str] | None = None, **more: object) -> Pod:
    fields: dict[str, object] = {"uid": f"uid-{name}", "phase": "Running", **more}
    return Pod(ref=ObjectRef("default", name), labels=labels or {}, ips=tuple(map(ip_address, ips)), **fields)  # type: ignore[arg-type]


def endpoint(number: int, pod_name: str, *ips: str, uid: str = "") -> Endpoint:
    return Endpoint(
        number,
        f"container{number}",
        "eth0",
        "/run/netns/x",
        f"nn{number}",
        100 + number,
        f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}",
        tuple(map(ip_address, ips)),
        ObjectRef("default", pod_name),
        uid,
    )


def node(name: str, *ips: str, cidrs: Iterable[str] = ()) -> Node:
    return Node(name, tuple(map(ip_address, ips)), tuple(map(ip_network, cidrs)))


def store_of(*objects: object) -> Store:
    """A store that has every list."""
    store = Store()
    for kind in KINDS:
        store.replace(kind, ())
    for obj in (Namespace("default", {}), *objects):
        store.apply(Op.ADDED, obj)
    return store


def compile_services(
    services: Mapping[ObjectRef, Service],
    slices: Mapping[ObjectRef, EndpointSlice],
    ids: Ids,
    previous: Slots = NO_SLOTS,
    here: Here = Here(),  # noqa: B008 frozen
) -> ServiceTables:
    """Every frontend of the Services, from nothing."""
    return ServiceCompiler(ids, previous).compile(services, slices, here)


def as_tables(compiled: ServiceTables) -> dict[str, Any]:
    """By name."""
    return {
        "nn_frontend": compiled.frontends,
        "nn_service_addr": compiled.addresses,
        "nn_backend": compiled.backends,
        "nn_member": compiled.members,
        "nn_revnat": compiled.revnat,
        "nn_source_range": compiled.source_ranges,
        "nn_client": NO_CLIENTS,
        "nn_source_addr": NO_CLIENTS,
    }


def compile_policy(
    pods: Mapping[ObjectRef, Pod],
    namespaces: Mapping[str, Labels],
    policies: Collection[Policy],
    local: Collection[ObjectRef],
    ids: Ids,
    enforce: bool = True,
) -> PolicyTables:
    """The policies, from nothing."""
    own = {policy.ref: policy for policy in policies if isinstance(policy, NetworkPolicy)}
    wide = {policy.ref: policy for policy in policies if isinstance(policy, ClusterPolicy)}
    return PolicyCompiler(ids).compile(pods, namespaces, PolicySet(own, wide), local, enforce=enforce)
