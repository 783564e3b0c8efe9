"""Resolves the argument of `lab probe --to` to an address, a port and the pod behind them, if there is one. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from nodenet.errors import BadInputError, CannotRunError
from nodenet.lab import find, pods, ready
from nodenet.lab.pods import Port

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """The probe connects to `address` and `port`. Policy is evaluated for `backend`, `backend_port` and `pod`.

    For a Service these are its first ready endpoint; `pod` is None if that is not a pod. `note`: why there is none.
    """

    name: str
    address: str
    port: Port
    backend: str
    backend_port: Port
    pod: Object | None = None
    note: str = ""


def resolve(objects: Sequence[Object], start: Object, target: str, port: Port | None, namespace: str) -> Goal:
    """`target` is an address, a pod in any form that find.pod takes, or svc/NAME.NS. `namespace` applies to names
    without one. `port` None: the first declared port. Raises BadInputError if the target does not exist,
    CannotRunError if the source has no address yet.
    """
    if not pods.addresses(start):
        reason = pods.waiting_message(start) or "it does not run yet"
        raise CannotRunError(f"pod {find.full_name(start)}: status.podIPs: it has no address to call from: {reason}")
    families: set[int] = {ip_address(address).version for address in pods.addresses(start)}
    if "svc/" in target:
        space = find.split(target.replace("svc/", "", 1), namespace)[0]
        return _service(objects, find.service(of_kind(objects, "Service"), target, space), port, families)
    try:
        address = str(ip_address(target))
    except ValueError:
        return _pod(find.pod(of_kind(objects, "Pod"), target, namespace), port, families)
    if port is None:
        raise BadInputError(f"{target}: expected a port for an address", "give one with --port")
    return Goal(target, address, port, address, port)


def answered(objects: Sequence[Object], service_goal: Goal, name: str | None) -> Goal:
    """The goal of a Service, changed to the pod `name`, which has answered in place of the first endpoint."""
    here = service_goal.pod["metadata"]["namespace"] if service_goal.pod else ""
    for pod in of_kind(objects, "Pod"):
        if (pod["metadata"]["namespace"], pod["metadata"]["name"]) == (here, name):
            version = ip_address(service_goal.backend).version
            own = next((a for a in pods.addresses(pod) if ip_address(a).version == version), service_goal.backend)
            return replace(service_goal, pod=pod, backend=own)
    return service_goal


def of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    return [obj for obj in objects if obj["kind"] == kind]


def _pod(pod: Object, port: Port | None, families: set[int]) -> Goal:
    name = find.full_name(pod)
    wanted = port or next(iter(pods.ports(pod)), None)
    if wanted is None:
        raise BadInputError(f"pod {name}: spec.containers: no containerPort is declared", "give one with --port")
    addresses = [a for a in pods.addresses(pod) if ip_address(a).version in families]
    if not addresses:
        raise BadInputError(f"pod {name}: status.podIPs: it has no address that the source can call")
    return Goal(name, addresses[0], wanted, addresses[0], wanted, pod)


def _service(objects: Sequence[Object], service: Object, port: Port | None, families: set[int]) -> Goal:
    metadata = service["metadata"]
    name = f"svc/{metadata['name']}.{metadata['namespace']}"
    addresses = [a for a in pods.cluster_ips(service) if ip_address(a).version in families]
    if not addresses:
        raise BadInputError(f"{name}: spec.clusterIP: it has none that the source can call", "probe one of its pods")
    declared = {Port(p["port"], p.get("protocol", "TCP")): p for p in service["spec"].get("ports") or ()}
    wanted = port or next(iter(declared))
    if wanted not in declared:
        note = f"Service {find.full_name(service)}: spec.ports: no {wanted}, it has {', '.join(map(str, declared))}"
        return Goal(name, addresses[0], wanted, addresses[0], wanted, note=note)
    slices = of_kind(objects, "EndpointSlice")
    family = ip_address(addresses[0]).version
    for backend, number in _endpoints(slices, service, declared[wanted].get("name", "")):
        if ip_address(backend).version == family:
            pod = next((p for p in of_kind(objects, "Pod") if backend in pods.addresses(p)), None)
            return Goal(name, addresses[0], wanted, backend, Port(number, wanted.protocol), pod)
    sentences = ready.without_endpoints([service], slices) or [f"Service {find.full_name(service)}: no ready endpoint"]
    return Goal(name, addresses[0], wanted, addresses[0], wanted, note=sentences[0])


def _endpoints(slices: Sequence[Object], service: Object, port_name: str) -> Iterator[tuple[str, int]]:
    """(address, port number) of the ready endpoints of a Service port."""
    metadata = service["metadata"]
    for found in slices:
        label = (found["metadata"].get("labels") or {}).get("kubernetes.io/service-name")
        if (found["metadata"]["namespace"], label) != (metadata["namespace"], metadata["name"]):
            continue
        numbers = [p["port"] for p in found.get("ports") or () if (p.get("name") or "") == port_name]
        for endpoint in found.get("endpoints") or ():
            if numbers and (endpoint.get("conditions") or {}).get("ready", True):
                yield from ((address, numbers[0]) for address in endpoint["addresses"])
