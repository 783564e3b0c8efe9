"""What a compilation is told beside the Snapshot, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from netpolicy.types import LabelSet, PolicyRef, RuleRef
from nodenet.endpoint import AttachmentKey
from nodenet.model import Direction, IPAddress, IPNetwork, ObjectRef, Protocol

# Keys and values are the records that nodenet.tables declares for the map.
Table = Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class LocalNode:
    """This node: its name in the API and every address of its own (InternalIPs, bridge gateways: all are HOST)."""

    name: str
    addresses: frozenset[IPAddress] = frozenset()
    enforce_policy: bool = True


class ServicePortName(NamedTuple):
    """What a service_id stands for, to a person. `name` is the port's name in spec.ports, often empty."""

    ref: ObjectRef
    name: str
    port: int
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Name of each map that the compiler fills (nodenet.tables) -> every entry that it must hold.

    The order of entries follows from the Snapshots compiled so far and from nothing else.
    """

    tables: Mapping[str, Table] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Names:
    """What the numbers in events mean. `isolated_by`: subject identity -> direction -> the policies that isolate it."""

    services: Mapping[int, ServicePortName] = field(default_factory=dict)
    rules: Mapping[int, RuleRef] = field(default_factory=dict)
    identities: Mapping[int, LabelSet] = field(default_factory=dict)
    regions: Mapping[int, IPNetwork] = field(default_factory=dict)
    isolated_by: Mapping[int, Mapping[Direction, tuple[PolicyRef, ...]]] = field(default_factory=dict)
    # Endpoints whose pod the API does not show (yet, or any more): isolated in both directions until it does.
    unknown_endpoints: frozenset[AttachmentKey] = frozenset()
    # Sentences about input that could not be followed to the letter, each naming its object.
    warnings: tuple[str, ...] = ()
