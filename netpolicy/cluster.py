"""A cluster as the engine looks at it from outside: pods with addresses and ports, namespaces, Services, policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from netpolicy.holders import UNKNOWN, Standing
from netpolicy.types import IPAddress, IPNetwork, LabelSet, NamedPort, NetworkPolicy, Protocol, Selector


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A declared containerPort; `name` is empty where it has none."""

    port: int
    protocol: Protocol = Protocol.TCP
    name: str = ""

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. `workload` is what people call it by (the Deployment's name, say); `ips` is empty where none is known."""

    namespace: str
    name: str
    labels: LabelSet
    ips: tuple[IPAddress, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    host_network: bool = False
    node: str = ""
    workload: str = ""
    standing: Standing = UNKNOWN

    @classmethod
    def of(
        cls,
        namespace: str,
        name: str,
        labels: Mapping[str, str],
        ips: Iterable[IPAddress] = (),
        ports: Iterable[ContainerPort] = (),
        host_network: bool = False,
        node: str = "",
        workload: str = "",
        standing: Standing = UNKNOWN,
    ) -> Pod:
        """Build a Pod from plain labels; named ports are found among `ports`."""
        declared = tuple(ports)
        named = [NamedPort(p.name, p.protocol, p.port) for p in declared if p.name]
        return cls(
            namespace,
            name,
            LabelSet.of(namespace, labels, named),
            tuple(ips),
            declared,
            host_network,
            node,
            workload or name,
            standing,
        )

    @property
    def holds_addresses(self) -> bool:
        """Whether `ips` are this pod's own (see netpolicy.holders). Finished pods are not in a Cluster."""
        return not self.host_network

    @property
    def claim(self) -> tuple[Standing, str, str]:
        """Compares pods that show one address: the greatest has it."""
        return self.standing, self.namespace, self.name

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`target` is a number or the name of the backend pods' port."""

    port: int
    target: int | str
    protocol: Protocol = Protocol.TCP
    name: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """A Service as far as policy cares: which pods stand behind which port. `selector` None: no pods of its own."""

    namespace: str
    name: str
    selector: Selector | None
    ports: tuple[ServicePort, ...] = ()
    cluster_ips: tuple[IPAddress, ...] = ()

    def __str__(self) -> str:
        return f"svc/{self.name}.{self.namespace}"


@dataclass(frozen=True, slots=True)
class Node:
    """A node's own addresses, and the networks its pods' addresses come from."""

    name: str
    addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything a question about policy needs. `skipped` names the objects that say nothing about policy.

    `dormant`: pods that a workload may make, and makes none of now (replicas 0). `custom`: those of `skipped` whose
    kind is not Kubernetes' own; they may make pods in a way that is not known here.
    """

    pods: tuple[Pod, ...] = ()
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    policies: tuple[NetworkPolicy, ...] = ()
    services: tuple[Service, ...] = ()
    nodes: tuple[Node, ...] = ()
    skipped: tuple[str, ...] = ()
    dormant: tuple[Pod, ...] = ()
    custom: tuple[str, ...] = ()
