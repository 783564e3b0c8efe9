"""Model objects in few words, for tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from nodenet.kinds import KINDS
from nodenet.model import (
    Endpoint,
    EndpointSlice,
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
