"""The input of the engine: pods with addresses and ports, namespaces, Services, policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from netpolicy.holders import UNKNOWN, Standing
from netpolicy.types import (
    ClusterPolicy,
    IPAddress,
    IPNetwork,
    LabelSet,
    NamedPort,
    NetworkPolicy,
    Policy,
    Protocol,
    Selector,
)


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A declared containerPort; `name` is empty if it has none."""

    port: int
    protocol: Protocol = Protocol.TCP
    name: str = ""

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. `workload` is the name of its workload (of the Deployment, for example); `ips` is empty if none is
    known."""

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
        workload: str = "",
    ) -> Pod:
        """Build a Pod from plain labels; its named ports are taken from `ports`. Without one it is its own workload."""
        declared = tuple(ports)
        named = [NamedPort(p.name, p.protocol, p.port) for p in declared if p.name]
        own = LabelSet.of(namespace, labels, named)
        return cls(namespace, name, own, tuple(ips), declared, workload=workload or name)

    @property
    def holds_addresses(self) -> bool:
        """True if `ips` belong to this pod (see netpolicy.holders). A Cluster contains no finished pods."""
        return not self.host_network

    @property
    def claim(self) -> tuple[Standing, str, str]:
        """Orders pods that list the same address: the greatest has it."""
        return self.standing, self.namespace, self.name

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`target` is a number, or the name of a port of the backend pods."""

    port: int
    target: int | str
    protocol: Protocol = Protocol.TCP
    name: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a Service that policy needs: its backend pods and ports. `selector` None: it selects no pods."""

    namespace: str
    name: str
    selector: Selector | None
    ports: tuple[ServicePort, ...] = ()
    cluster_ips: tuple[IPAddress, ...] = ()

    def __str__(self) -> str:
        return f"svc/{self.name}.{self.namespace}"


@dataclass(frozen=True, slots=True)
class Node:
    """A node's own addresses, its pod networks and labels. `outer`: its addresses as seen from outside the cluster."""

    name: str
    addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    outer: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Cluster:
    """All objects that a policy question needs. `skipped` names the objects that do not affect policy.

    `dormant`: pods that a workload can create, but does not create now (replicas 0). `custom`: those of `skipped` whose
    kind is not one of Kubernetes' own; they may create pods in a way that we do not know. `foreign`: policies of other
    APIs (netpolicy.foreign). They are not evaluated, so verdicts may be wrong. `possible`: a pod for each of `custom`,
    with its labels: operators give pods the labels of the object that they are made for.
    """

    pods: tuple[Pod, ...] = ()
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    policies: tuple[NetworkPolicy, ...] = ()
    services: tuple[Service, ...] = ()
    nodes: tuple[Node, ...] = ()
    skipped: tuple[str, ...] = ()
    dormant: tuple[Pod, ...] = ()
    custom: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    possible: tuple[Pod, ...] = ()
    cluster_policies: tuple[ClusterPolicy, ...] = ()

    @property
    def every_policy(self) -> tuple[Policy, ...]:
        """The policies of both kinds."""
        return (*self.policies, *self.cluster_policies)
