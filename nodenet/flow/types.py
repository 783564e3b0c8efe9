"""The types of flows: the facts of one observation and the names of both ends. Pure.

Each producer (flow/kernel.py: the datapath's events) sets the fields that it knows. The others are None, and are absent
in messages and in output (docs/decisions/0032-flows-own-their-fields.md). They are named tuples because one is created
for every event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from nodenet.model import Direction, Identity, IPAddress


class Verdict(IntEnum):
    """Hubble's Verdict numbers, as far as this datapath uses them."""

    UNKNOWN = 0
    FORWARDED = 1
    DROPPED = 2
    TRANSLATED = 7


class FlowType(IntEnum):
    """Hubble's FlowType. L7 (2) has no producer yet."""

    L3_L4 = 1
    SOCK = 3


class EventType(IntEnum):
    """Cilium's monitor event types, as in Hubble's event_type. The sub-type is:

    the drop reason of DROP, the point of TRACE (0: to an endpoint), the SocketPoint of SOCK.
    """

    DROP = 1
    TRACE = 4
    POLICY_VERDICT = 5
    SOCK = 7


class TracePoint(IntEnum):
    """Hubble's TraceObservationPoint, as far as this datapath uses it."""

    TO_STACK = 3
    FROM_ENDPOINT = 5
    FROM_NETWORK = 10
    TO_ENDPOINT = 101


class TraceReason(IntEnum):
    """Hubble's TraceReason: the connection tracking state of the packet."""

    NEW = 1
    ESTABLISHED = 2
    REPLY = 3
    RELATED = 4


class SocketPoint(IntEnum):
    """Hubble's SocketTranslationPoint. Only the destination is translated, so there is one point."""

    POST_FORWARD = 2


class LostSource(IntEnum):
    """Hubble's LostEventSource: where flows were lost."""

    UNKNOWN = 0
    # The kernel's ring buffer had no room.
    KERNEL = 1
    # The agent could not decode or queue them.
    AGENT = 2
    # A reader was slower than the arrival of flows.
    READER = 3


class PolicyMatch(IntEnum):
    """The layers that a rule matches, in the numbers of Cilium's policy verdicts."""

    NONE = 0
    L3_ONLY = 1
    L3_L4 = 2
    L4_ONLY = 3
    ALL = 4


class Workload(NamedTuple):
    """The controller that owns a pod."""

    kind: str
    name: str


class Party(NamedTuple):
    """One end of a flow. `labels` contain their source, as in Cilium: k8s:app=web, reserved:world.

    `endpoint_id` is set for pods of this node. `ips` are used for events that lack the pod's own address.
    """

    identity: int
    namespace: str = ""
    pod: str = ""
    labels: tuple[str, ...] = ()
    workloads: tuple[Workload, ...] = ()
    endpoint_id: int = 0
    ips: tuple[IPAddress, ...] = ()


class Past(NamedTuple):
    """The pod that had an address until the time `gone`. Its name is used until `until`. Both are ns of
    CLOCK_MONOTONIC."""

    party: Party
    gone: int
    until: int

    def owns(self, known: Party | None, identity: int, time: int) -> bool:
        """Whether an event at `time` belongs to this pod and not to `known`, the current owner of the address.
        `identity` is the one that the datapath used: unknown or world if the pod was deleted from its maps too."""
        if time >= self.until:
            return False
        if known is None:
            return identity in (self.party.identity, Identity.UNKNOWN, Identity.WORLD)
        if time < self.gone:
            return True
        # The names may be newer than the maps, which for a short time still use the old identity.
        return identity == self.party.identity != known.identity and identity != Identity.UNKNOWN


class ServiceName(NamedTuple):
    """A Service."""

    namespace: str
    name: str


class PolicyName(NamedTuple):
    """A policy, or one rule of it: `rule` is for example "ingress[0]", with the name that its author gives it,
    or empty; `match` tells which layers the rule matches. A ClusterNetworkPolicy has no namespace."""

    namespace: str
    name: str
    rule: str = ""
    match: PolicyMatch = PolicyMatch.NONE


class Icmp(NamedTuple):
    """Type and code of an ICMP message (RFC 792, RFC 4443)."""

    type: int
    code: int


class Flow(NamedTuple):
    """One observation on this node. A field is None if the producer does not know it or the packet does not have it.

    `time` is ns since the epoch. `number` counts this agent's flows; the UUID is made from it. Names are those at the
    time of the observation. Node and cluster are the same for all flows of an agent: see filter.Origin.
    """

    time: int
    number: int
    type: FlowType
    event_type: EventType
    sub_type: int
    verdict: Verdict
    source: Party
    destination: Party
    # Layers 3 and 4. `protocol` is IANA's number; ports are those of TCP, UDP and SCTP; TCP flags are the bits of the
    # header.
    source_ip: IPAddress | None = None
    destination_ip: IPAddress | None = None
    protocol: int | None = None
    source_port: int | None = None
    destination_port: int | None = None
    tcp_flags: int | None = None
    icmp: Icmp | None = None
    # The direction of the connection, as seen by the endpoint: replies of a pod to an incoming connection are ingress.
    # It is also the direction whose policy applies.
    direction: Direction | None = None
    is_reply: bool | None = None
    # Hubble's DropReason number.
    drop_reason: int | None = None
    # The Service that the client connected to, or whose address is in the packet.
    source_service: ServiceName | None = None
    destination_service: ServiceName | None = None
    # Policies in `direction`.
    allowed_by: tuple[PolicyName, ...] = ()
    denied_by: tuple[PolicyName, ...] = ()
    policy_match: PolicyMatch | None = None
    trace_point: TracePoint | None = None
    trace_reason: TraceReason | None = None
    socket_point: SocketPoint | None = None
    # Link addresses of the frame, as aa:bb:cc:dd:ee:ff.
    source_mac: str | None = None
    destination_mac: str | None = None
    ifindex: int | None = None
    socket_cookie: int | None = None

    @property
    def ip_version(self) -> int | None:
        """4 or 6."""
        address = self.destination_ip or self.source_ip
        return address.version if address is not None else None


class Lost(NamedTuple):
    """Flows that are missing at this place of a stream. `first` and `last` are ns since the epoch, 0 if unknown."""

    source: LostSource
    flows: int
    first: int = 0
    last: int = 0


# Cilium's names of the reserved identities.
RESERVED_NAMES: Mapping[int, str] = {
    Identity.UNKNOWN: "unknown",
    Identity.HOST: "host",
    Identity.WORLD: "world",
    Identity.UNMANAGED: "unmanaged",
    Identity.REMOTE_NODE: "remote-node",
    Identity.KUBE_APISERVER: "kube-apiserver",
}
RESERVED: Mapping[int, Party] = {
    number: Party(number, labels=(f"reserved:{name}",)) for number, name in RESERVED_NAMES.items()
}


@dataclass(frozen=True, slots=True)
class NameTable:
    """The meaning of numbers and addresses in events at one moment. Built by `flow.names`, replaced as a whole."""

    addresses: Mapping[IPAddress, Party] = field(default_factory=dict)
    # The previous owners of addresses, for a short time (see flow.past).
    past: Mapping[IPAddress, Past] = field(default_factory=dict)
    # Names by identity, for addresses that are not in `addresses`.
    identities: Mapping[int, Party] = field(default_factory=dict)
    # This node's endpoints: by their number, and by the cookie of their network namespace (socket events carry it).
    endpoints: Mapping[int, Party] = field(default_factory=dict)
    netns_cookies: Mapping[int, Party] = field(default_factory=dict)
    services: Mapping[int, ServiceName] = field(default_factory=dict)
    # (address, port, protocol) of every frontend.
    frontends: Mapping[tuple[IPAddress, int, int], ServiceName] = field(default_factory=dict)
    # Services by address only, for connections to a port that the Service does not have.
    service_addresses: Mapping[IPAddress, ServiceName] = field(default_factory=dict)
    rules: Mapping[int, PolicyName] = field(default_factory=dict)
    # (identity of the endpoint, direction) -> the policies that isolate it.
    isolated_by: Mapping[tuple[int, int], tuple[PolicyName, ...]] = field(default_factory=dict)
