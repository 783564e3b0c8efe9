"""The model of the cluster's Services. All modes program the same model, each in its own way. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from nodenet.kubeproxy.model import Backend, Network, Service

NAMESPACE = "bench"
SERVICE_PORT = 80
# The port of the test server.
TARGET_PORT = 9000
# The first Service address; each Service gets the next one. A cluster reserves such a network (10.96.0.0/12).
FIRST_CLUSTER_IP = int(IPv4Address("10.96.0.10"))
# The first address of backends without traffic, which represent pods on other nodes.
FIRST_FILLER_IP = int(IPv4Address("10.128.0.1"))
# The network of all pod addresses, kube-proxy's clusterCIDR.
CLUSTER_CIDR = "10.128.0.0/9"
SERVICE_CIDR = "10.96.0.0/12"
# What kube-proxy's rules depend on beside the Services.
NETWORK = Network(4, CLUSTER_CIDR, SERVICE_CIDR, localhost_node_ports=True)


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """Services in the order in which modes with a list of rules (KUBE-SERVICES) program them.

    `places`: name of a position in that order ("first", "middle", "last") -> index of the measured Service.
    """

    services: tuple[Service, ...] = ()
    places: tuple[tuple[str, int], ...] = ()

    @property
    def size(self) -> int:
        """The number of Services. A Service with a TCP and a UDP port counts once."""
        return len({service.cluster_ip for service in self.services})

    def at(self, place: str, protocol: str = "tcp") -> Service:
        """The measured Service at a position. Raises KeyError if there is none."""
        found = self.services[dict(self.places)[place]]
        if protocol == found.protocol:
            return found
        return next(s for s in self.services if s.cluster_ip == found.cluster_ip and s.protocol == protocol)

    def with_backends(self, place: str, backends: tuple[Backend, ...]) -> ServiceModel:
        """The same model with the backends of one TCP Service replaced."""
        index = dict(self.places)[place]
        changed = replace(self.services[index], backends=backends)
        return replace(self, services=(*self.services[:index], changed, *self.services[index + 1 :]))


def build(count: int, per_service: int, real: tuple[Backend, ...], udp: bool = False) -> ServiceModel:
    """`count` Services with `per_service` backends each. The measured ones have the `real` backends.

    The measured ones are the first, the middle and the last one: in a list of rules the position decides the cost, and
    kube-proxy's order is random. `udp` also gives them a UDP port of the same number.
    """
    if count < 1 or per_service < 1 or len(real) < per_service:
        raise ValueError(f"{count} Services of {per_service} backends, with {len(real)} real ones")
    indexes = {"first": 0, "middle": count // 2, "last": count - 1} if count > 2 else {"middle": 0}
    measured = set(indexes.values())
    services: list[Service] = []
    places: dict[int, int] = {}
    for number in range(count):
        address = str(IPv4Address(FIRST_CLUSTER_IP + number))
        if number in measured:
            backends = real[:per_service]
        else:
            start = FIRST_FILLER_IP + number * per_service
            backends = tuple(Backend(str(IPv4Address(start + offset)), TARGET_PORT) for offset in range(per_service))
        places[number] = len(services)
        services.append(Service(f"svc{number}", address, backends, NAMESPACE, SERVICE_PORT, "http"))
        if udp and number in measured:
            services.append(Service(f"svc{number}", address, backends, NAMESPACE, SERVICE_PORT, "dns", "udp"))
    return ServiceModel(tuple(services), tuple((name, places[number]) for name, number in indexes.items()))
