"""Recorded flows (Hubble's JSON, one object each) -> the connections that were seen.

A connection gives many flows: each direction's verdict, packets in both directions, both nodes. Only flows that show
who opened the connection count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from netpolicy.addresses import parse_address
from netpolicy.fields import Field
from netpolicy.party import Traffic
from netpolicy.types import IPAddress, Protocol

_SIDES = ("source", "destination")
_PASSED = ("FORWARDED", "REDIRECTED", "AUDIT")
_DENIED = ("POLICY_DENIED", "POLICY_DENY", 133, 181)
_ICMP = ("ICMPv4", "ICMPv6")
# Labels that Cilium adds to those of the pod.
_ADDED = ("io.cilium.k8s.", "io.kubernetes.pod.")
# Reserved identities, by number and by label: the pod's own node, other nodes and the API server.
_OWN_NODE, _NODES = 1, (6, 7)
_NODE_LABELS = ("reserved:remote-node", "reserved:kube-apiserver")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection. `namespace` is empty if it is not a pod. `node`: it is the node of the other end, with
    this name. `host`: it is a node, this one or another."""

    address: IPAddress
    namespace: str = ""
    pod: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    workload: str = ""
    host: bool = False
    node: str = ""

    def __str__(self) -> str:
        if self.namespace:
            return f"{self.namespace}/{self.pod or self.workload or self.address}"
        return str(self.address)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a policy can tell apart of a connection."""

    source: End
    destination: End
    traffic: Traffic

    def __str__(self) -> str:
        return f"{self.source} -> {self.destination} {self.traffic}"


@dataclass(slots=True)
class _Fate:
    """What the flows of one connection show."""

    seen: Seen
    passed: bool = False
    arrived: bool = False
    denied: bool = False

    @property
    def allowed(self) -> bool:
        """False if the last policy that was asked denied it: the source's may have allowed it before."""
        return self.passed and (self.arrived or not self.denied)


@dataclass(slots=True)
class Record:
    """Collects flows.

    `lost`: flows that the recorder lost. `ignored`: flows that are no packets or do not show who opened the connection.
    """

    lost: int = 0
    ignored: int = 0
    _fates: dict[tuple[IPAddress, int, IPAddress, Traffic], _Fate] = field(default_factory=dict)

    def passed(self) -> Counter[Seen]:
        """The allowed connections, with their number: those with different source ports."""
        return Counter(fate.seen for fate in self._fates.values() if fate.allowed)

    def denied(self) -> Counter[Seen]:
        """The connections that policy denied."""
        return Counter(fate.seen for fate in self._fates.values() if fate.denied and not fate.allowed)

    def add(self, obj: Mapping[str, Any], name: str) -> None:
        """Add one line: a flow, or an answer of the observer with one. Raises PolicyError, with `name` for the line, if
        a field has another type than the API's."""
        root = Field(name, "", obj)
        lost = root.child("lost_events")
        if not lost.absent:
            number = str(lost.child("num_events_lost").value)
            self.lost += int(number) if number.isdecimal() else 1
            return
        flow = root.child("flow") if "flow" in root.mapping() else root
        if not self._flow(flow):
            self.ignored += 1

    def _flow(self, flow: Field) -> bool:
        verdict, policy = flow.child("verdict").value, flow.child("drop_reason_desc").value
        passed = verdict in _PASSED
        if not passed and (verdict != "DROPPED" or policy not in _DENIED):
            return False
        traffic, source_port = _traffic(flow.child("l4"))
        addresses = [flow.child("IP").child(side) for side in _SIDES]
        if (
            traffic is None
            or not _is_packet(flow)
            or _is_before_policy(flow)
            or not _opens(flow, traffic)
            or any(a.absent for a in addresses)
        ):
            return False
        source, destination = (_end(flow, side, address) for side, address in zip(_SIDES, addresses, strict=True))
        key = (source.address, source_port, destination.address, traffic)
        fate = self._fates.setdefault(key, _Fate(Seen(source, destination, traffic)))
        fate.passed |= passed
        fate.arrived |= passed and flow.child("traffic_direction").value == "INGRESS"
        fate.denied |= not passed
        return True


def record(flows: Iterable[Mapping[str, Any]], name: str = "flow") -> Record:
    """All flows; messages name them by their number, from 1."""
    found = Record()
    for number, flow in enumerate(flows, 1):
        found.add(flow, f"{name} {number}")
    return found


def _is_packet(flow: Field) -> bool:
    """False for requests at sockets, whose destination is a Service, and for requests of protocols above."""
    return flow.child("Type").value in (None, "L3_L4", "UNKNOWN_TYPE")


def _is_before_policy(flow: Field) -> bool:
    """True if the packet was seen where it came from: policy may still deny it."""
    point = flow.child("trace_observation_point").value
    return isinstance(point, str) and point.startswith("FROM_")


def _opens(flow: Field, traffic: Traffic) -> bool:
    """True if the source of the flow is the one that opened the connection."""
    reply = flow.child("is_reply")
    if not reply.absent:
        return not (reply.child("value").value if isinstance(reply.value, Mapping) else reply.value)
    if traffic.protocol is Protocol.TCP:
        flags = flow.child("l4").child("TCP").child("flags")
        return flags.child("SYN").value is True and flags.child("ACK").value is not True
    # A dropped packet has no connection yet.
    return bool(flow.child("verdict").value == "DROPPED")


def _traffic(layer: Field) -> tuple[Traffic | None, int]:
    """Protocol and destination port, and the source port; None if a rule could not be about them."""
    for protocol in Protocol:
        found = layer.child(protocol)
        if not found.absent:
            port = found.child("destination_port")
            own = found.child("source_port")
            number = 0 if port.absent else port.number()
            if not 1 <= number <= 65535:
                return None, 0
            return Traffic(protocol, number), 0 if own.absent else own.number()
    if any(not layer.child(name).absent for name in _ICMP):
        return Traffic(None, 0), 0
    return None, 0


def _end(flow: Field, side: str, address: Field) -> End:
    end = flow.child(side)
    try:
        ip = parse_address(address.text())
    except ValueError:
        raise address.expected("an IP address") from None
    labels = [item.text() for item in end.child("labels").items()]
    identity = end.child("identity").value
    own = identity == _OWN_NODE or "reserved:host" in labels
    if own or identity in _NODES or any(label in labels for label in _NODE_LABELS):
        return End(ip, host=True, node=_text(flow.child("node_name")) if own else "")
    namespace = _text(end.child("namespace"))
    if not namespace:
        return End(ip)
    workloads = [_text(item.child("name")) for item in end.child("workloads").items()]
    return End(ip, namespace, _text(end.child("pod_name")), _labels(labels), next(iter(workloads), ""))


def _text(field: Field) -> str:
    return "" if field.absent else field.text()


def _labels(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The labels of the pod: those of the source k8s, without the ones that the recorder added."""
    found = {}
    for text in texts:
        source, colon, rest = text.partition(":")
        key, _, value = rest.partition("=")
        if colon and source == "k8s" and not key.startswith(_ADDED):
            found[key] = value
    return tuple(sorted(found.items()))
