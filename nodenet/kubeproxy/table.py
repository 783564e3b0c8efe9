"""Makes the renderers' Services from the objects of the API, for one IP family and one node. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from nodenet.compile.backends import Candidates, Here, Target, candidates_of, choose
from nodenet.compile.services import has_frontends
from nodenet.kubeproxy.model import Backend, Service, Services
from nodenet.model import EndpointSlice, IPAddress, IPNetwork, ObjectRef, Protocol, ServicePort
from nodenet.model import Service as ApiService

_PROTOCOLS = {Protocol.TCP: "tcp", Protocol.UDP: "udp"}
_NO_CANDIDATES: Candidates = {}


class _Claim(NamedTuple):
    address: str
    port: int
    protocol: str


def services(
    objects: Mapping[ObjectRef, ApiService], slices: Iterable[EndpointSlice], here: Here, version: int
) -> Services:
    """The Services of one IP family, by name and port. Protocols other than TCP and UDP are left out.

    If two Services have the same address and port, the address is given to one, as with eBPF: a ClusterIP comes before
    a load balancer's address, that before an external IP, and then the first by name.
    """
    by_service: dict[ObjectRef, list[EndpointSlice]] = {}
    for one in slices:
        by_service.setdefault(one.service, []).append(one)
    found = [
        port
        for ref, service in sorted(objects.items())
        for port in _ports(service, by_service.get(ref, ()), here, version)
    ]
    return _without_contested(found)


def _ports(service: ApiService, slices: Iterable[EndpointSlice], here: Here, version: int) -> Iterator[Service]:
    addresses = _of_family(service.cluster_ips, version)
    if not has_frontends(service) or not addresses:
        return
    candidates = candidates_of(slices, service.publish_not_ready_addresses)
    for port in service.ports:
        if port.protocol not in _PROTOCOLS:
            continue
        ends = candidates.get((port.name, port.protocol), _NO_CANDIDATES)
        yield Service(
            name=service.ref.name,
            namespace=service.ref.namespace,
            cluster_ip=addresses[0],
            backends=_backends(ends, here, version, local=False),
            local_backends=_backends(ends, here, version, local=True),
            port=port.port,
            port_name=port.name,
            protocol=_PROTOCOLS[port.protocol],
            external_ips=_of_family(service.external_ips, version),
            load_balancer_ips=_of_family(service.load_balancer_ips, version),
            source_ranges=_ranges(service.source_ranges, version),
            node_port=port.node_port,
            affinity_seconds=service.affinity_seconds,
            internal_local=service.internal_local,
            external_local=service.external_local,
            health_check_node_port=_health_port(service, port),
        )


def _health_port(service: ApiService, port: ServicePort) -> int:
    """A Service has one for all its ports: it is written with the first."""
    return service.health_check_node_port if service.external_local and port is service.ports[0] else 0


def _of_family(addresses: Iterable[IPAddress], version: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(address) for address in addresses if address.version == version))


def _ranges(ranges: Iterable[IPNetwork] | None, version: int) -> tuple[str, ...]:
    """A range with the prefix 0 means no restriction."""
    found = [network for network in ranges or () if network.version == version]
    return () if any(network.prefixlen == 0 for network in found) else tuple(dict.fromkeys(map(str, found)))


def _backends(candidates: Candidates, here: Here, version: int, *, local: bool) -> tuple[Backend, ...]:
    used: list[Target] = choose(candidates, version, here, local=local).used
    return tuple(
        Backend(str(address), number, candidates[address, number].node == here.node) for address, number in used
    )


def _without_contested(found: list[Service]) -> Services:
    """The same Services, each without the addresses that another one owns."""
    taken = {_Claim(service.cluster_ip, service.port, service.protocol) for service in found}
    for index, service in enumerate(found):
        found[index] = replace(service, load_balancer_ips=_free(service, service.load_balancer_ips, taken))
    for index, service in enumerate(found):
        found[index] = replace(service, external_ips=_free(service, service.external_ips, taken))
    return tuple(found)


def _free(service: Service, addresses: Iterable[str], taken: set[_Claim]) -> tuple[str, ...]:
    """The addresses whose port nothing has claimed. Adds them to `taken`."""
    claims = [_Claim(address, service.port, service.protocol) for address in addresses]
    free = [claim for claim in claims if claim not in taken]
    taken.update(free)
    return tuple(claim.address for claim in free)
