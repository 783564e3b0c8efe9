"""The values of a connectivity test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Obj = dict[str, Any]
# 4 and 6.
Family = int
# Addresses by family.
Addresses = Mapping[Family, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """A pod of the test."""

    name: str
    node: str
    ips: Addresses


@dataclass(frozen=True, slots=True)
class Stage:
    """What a test finds in the cluster once its pods run. The first client and the first server are on one node, the
    second ones on another; a cluster of one node has only the first ones. `friend` is a client with a label that a
    policy selects."""

    namespace: str
    image: str
    clients: tuple[Peer, ...]
    servers: tuple[Peer, ...]
    friend: Peer
    services: Mapping[str, Addresses]
    # Addresses of the nodes, and the node port.
    nodes: Mapping[str, Addresses]
    node_port: int
    # The Service `kubernetes`, and its port.
    api: Addresses
    api_port: int
    has_dns: bool
    # host:port outside of the cluster.
    egress_target: str = ""

    @property
    def families(self) -> tuple[Family, ...]:
        return tuple(sorted(self.clients[0].ips))


class Wanted(StrEnum):
    """The result that a connection must have."""

    OK = "ok"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Ask:
    """A connection from a pod to `target` (a URL of peer.py); `to` names it for people.

    `servers`: the pods of which one must answer. `source`: the address that the server must see. Both may be empty.
    """

    client: str
    target: str
    to: str
    wanted: Wanted = Wanted.OK
    servers: frozenset[str] = frozenset()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """A part of a check: connections while exactly these NetworkPolicies exist. `pods` are made first and must become
    ready. `refused_means`: if every connection is refused, the check is skipped for this reason."""

    asks: tuple[Ask, ...] = ()
    policies: tuple[Obj, ...] = ()
    pods: tuple[Obj, ...] = ()
    refused_means: str = ""


class Skipped(Exception):  # noqa: N818 - not an error
    """A check does not apply to this cluster. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Check:
    """`plan` returns the rounds of one family, or raises Skipped. With `per_family` False it is called once, with the
    first family."""

    name: str
    about: str
    plan: Callable[[Stage, Family], list[Round]]
    per_family: bool = True


class State(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Failure:
    """A connection with another result than the wanted one, or a pod that did not become ready."""

    what: str
    got: str
    # Commands that look further.
    commands: tuple[str, ...] = ()
    # What the agents' flows say about it.
    flows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a check. `connections` were tried; `settled` is the longest time in seconds until one of them had
    the wanted result, for example after a policy was written."""

    check: str
    family: Family | None
    state: State
    seconds: float
    connections: int = 0
    settled: float = 0.0
    reason: str = ""
    failures: tuple[Failure, ...] = ()

    @property
    def title(self) -> str:
        return self.check + (f" (IPv{self.family})" if self.family else "")
