"""Resolves names for the two ends of a connection to pods, workloads, Services or addresses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from netpolicy.addresses import parse_address
from netpolicy.cluster import Cluster, ContainerPort, Pod, Service, ServicePort
from netpolicy.holders import holders
from netpolicy.matrix import parse_port, parties
from netpolicy.party import Party, Traffic
from netpolicy.selectors import matches
from netpolicy.types import IPAddress


class UnknownEndError(ValueError):
    """The input has no object of that name. The text is a sentence."""


class NoBackendError(ValueError):
    """A Service without backends. The text is a sentence."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection to evaluate. `via` is the Service in its destination address, or empty."""

    source: Party
    destination: Party
    traffic: Traffic
    via: str = ""


def parse_traffic(text: str) -> Traffic:
    """Parse `PORT[/PROTOCOL]` or `icmp`. Raises ValueError with a sentence."""
    if text.lower() == "icmp":
        return Traffic(None, 0)
    port = parse_port(text)
    return Traffic(port.protocol, port.port)


def connections(
    cluster: Cluster, source: str, destination: str, traffic: Traffic, namespace: str = "default"
) -> list[Connection]:
    """All connections that the question covers: workloads and Services have several pods.

    An end is `NS/POD`, `NS/WORKLOAD` (`namespace` if NS is omitted) or an address; the destination may also be
    `svc/NAME.NS`. The address of a pod, Service or node means that object; any other address is outside the cluster.
    Raises UnknownEndError (also if a Service does not have the port), and NoBackendError for a Service without pods.
    """
    sources = _ends(cluster, source, "source", namespace)
    service = _service(cluster, destination, namespace)
    if service is None:
        return [
            Connection(own, other, traffic)
            for end in sources
            for target in _ends(cluster, destination, "destination", namespace)
            for own, other in _pairs(end, target)
        ]
    return [
        Connection(own, other, real, str(service))
        for end in sources
        for pod, real in _backends(cluster, service, traffic)
        for own, other in _pairs(end, pod)
    ]


def _pairs(source: Pod | Party, destination: Pod | Party) -> list[tuple[Party, Party]]:
    if isinstance(source, Pod) and isinstance(destination, Pod):
        if source == destination:
            itself = Party.of(source, next(iter(source.ips), None))
            return [(itself, itself)]
        return parties(source, destination)
    if isinstance(source, Pod) and isinstance(destination, Party):
        return [(_facing(source, destination), destination)]
    if isinstance(source, Party) and isinstance(destination, Pod):
        return [(source, _facing(destination, source))]
    assert isinstance(source, Party)
    assert isinstance(destination, Party)
    return [(source, destination)]


def _facing(pod: Pod, other: Party) -> Party:
    """The pod with an address of the other end's family, else with its first address."""
    same = [ip for ip in pod.ips if other.address is not None and ip.version == other.address.version]
    return Party.of(pod, next(iter(same or pod.ips), None))


def _ends(cluster: Cluster, text: str, which: str, default: str) -> list[Pod | Party]:
    address = _address(text)
    if address is not None:
        return [_at(cluster, address)]
    if text.startswith("svc/"):
        raise UnknownEndError(f"{which} {text!r}: a Service cannot be a source; expected NS/POD, NS/WORKLOAD or an IP")
    namespace, slash, name = text.rpartition("/")
    namespace = namespace if slash else default
    pods = [pod for pod in (*cluster.pods, *cluster.dormant) if pod.namespace == namespace]
    found = [pod for pod in pods if pod.name == name] or [pod for pod in pods if pod.workload == name]
    if not found:
        known = ", ".join(sorted({pod.workload for pod in pods})) or "no pods"
        raise UnknownEndError(f"{which} {text!r}: no pod or workload of that name; namespace {namespace} has: {known}")
    return list(found)


def _at(cluster: Cluster, address: IPAddress) -> Pod | Party:
    pod = holders(cluster.pods).get(address)
    if pod is not None:
        return pod
    for node in cluster.nodes:
        if address in node.addresses:
            return Party(f"node {node.name}", None, address, node.name, host=True)
    return Party(str(address), None, address)


def _service(cluster: Cluster, text: str, default: str) -> Service | None:
    """The Service that has the name or the address of a destination; None if it is neither. Raises UnknownEndError
    for an unknown name."""
    if text.startswith("svc/"):
        name, dot, namespace = text.removeprefix("svc/").partition(".")
        wanted = (namespace if dot else default, name)
        found = [s for s in cluster.services if (s.namespace, s.name) == wanted]
        if not found:
            known = ", ".join(sorted(str(s) for s in cluster.services)) or "none"
            raise UnknownEndError(f"destination {text!r}: no such Service; known: {known}")
        return found[0]
    address = _address(text)
    return next((s for s in cluster.services if address is not None and address in s.cluster_ips), None)


def _backends(cluster: Cluster, service: Service, traffic: Traffic) -> list[tuple[Pod, Traffic]]:
    """The backend pods of a Service's port, each with its own port, which is the one that policy sees."""
    ports = [p for p in service.ports if p.port == traffic.port and p.protocol is traffic.protocol]
    if not ports:
        known = ", ".join(f"{p.port}/{p.protocol}" for p in service.ports) or "none"
        raise UnknownEndError(f"{service} has no port {traffic}; it has: {known}")
    if service.selector is None:
        raise NoBackendError(f"{service} has no selector, so its backends are not known here")
    pods = [p for p in cluster.pods if p.namespace == service.namespace and matches(service.selector, p.labels.mapping)]
    found = [
        (pod, Traffic(port.protocol, number)) for pod in pods for port in ports for number in _targets(pod.ports, port)
    ]
    if not found:
        why = f"no pod with {service.selector}" if not pods else f"no pod with a port named {ports[0].target}"
        raise NoBackendError(f"{service} has no backend: {why} in namespace {service.namespace}")
    return found


def _targets(ports: Iterable[ContainerPort], wanted: ServicePort) -> list[int]:
    if isinstance(wanted.target, int):
        return [wanted.target]
    return [p.port for p in ports if p.name == wanted.target and p.protocol is wanted.protocol]


def _address(text: str) -> IPAddress | None:
    try:
        return parse_address(text)
    except ValueError:
        return None
