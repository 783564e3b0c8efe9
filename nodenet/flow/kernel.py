"""Converts the datapath's events into flows, with names from one NameTable. Pure.

This is the only module that uses both `abi.Event` and `Flow`. It runs for every event, so speed counts.
"""

from __future__ import annotations

import struct

from nodenet import abi
from nodenet.abi import EVENT_SIZE, CtStatus, DropReason, Event, ObservationPoint
from nodenet.flow.types import (
    RESERVED,
    EventType,
    Flow,
    FlowType,
    Icmp,
    NameTable,
    Party,
    PolicyMatch,
    PolicyName,
    ServiceName,
    SocketPoint,
    TracePoint,
    TraceReason,
    Verdict,
)
from nodenet.model import Direction, Identity, IPAddress, Protocol

_UNKNOWN = RESERVED[Identity.UNKNOWN]
_WORLD = RESERVED[Identity.WORLD]
_TYPES = {
    int(abi.EventType.DROP): EventType.DROP,
    int(abi.EventType.TRACE): EventType.TRACE,
    int(abi.EventType.POLICY_VERDICT): EventType.POLICY_VERDICT,
    int(abi.EventType.SOCK): EventType.SOCK,
}
_POINTS = {
    int(ObservationPoint.TO_ENDPOINT): TracePoint.TO_ENDPOINT,
    int(ObservationPoint.TO_STACK): TracePoint.TO_STACK,
    int(ObservationPoint.FROM_ENDPOINT): TracePoint.FROM_ENDPOINT,
    int(ObservationPoint.FROM_NETWORK): TracePoint.FROM_NETWORK,
}
_REASONS = {
    int(CtStatus.NEW): TraceReason.NEW,
    int(CtStatus.ESTABLISHED): TraceReason.ESTABLISHED,
    int(CtStatus.REPLY): TraceReason.REPLY,
    int(CtStatus.RELATED): TraceReason.RELATED,
}
# Event types of socket programs: without an interface index the event comes from a socket call, not from a packet.
_OF_SOCKETS = frozenset({int(abi.EventType.SOCK), int(abi.EventType.DROP)})
_DIRECTIONS = {int(direction): direction for direction in Direction}
_WITH_PORTS = frozenset({int(Protocol.TCP), int(Protocol.UDP), int(Protocol.SCTP)})
_ICMP = frozenset({int(Protocol.ICMP), int(Protocol.ICMPV6)})
_TCP = int(Protocol.TCP)
# With these drop reasons the parser may have stopped before the end of the transport header; the event's fields are
# then 0.
_UNPARSED = frozenset(
    {
        DropReason.INVALID_PACKET_DROPPED,
        DropReason.INVALID_IPV6_EXTENSION_HEADER,
        DropReason.FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND,
    }
)
# The values as in events. They are module constants, because each access to an enum member costs 70 ns (Python 3.11).
_POLICY_DENIED = -int(DropReason.POLICY_DENIED)
_IS_A_CLUSTERIP = -int(DropReason.IS_A_CLUSTERIP)
_DROP, _TRACE, _POLICY_VERDICT = EventType.DROP, EventType.TRACE, EventType.POLICY_VERDICT
_L3_L4, _FORWARDED, _DROPPED = FlowType.L3_L4, Verdict.FORWARDED, Verdict.DROPPED
_INGRESS, _EGRESS = Direction.INGRESS, Direction.EGRESS
_Layers = tuple[IPAddress | None, IPAddress | None, int | None, int | None, int | None, int | None, Icmp | None]
_NOT_IP: _Layers = (None, None, None, None, None, None, None)
_Policies = tuple[tuple[PolicyName, ...], tuple[PolicyName, ...], PolicyMatch | None]
_NO_POLICY: _Policies = ((), (), None)
_ALLOWED_BY_DEFAULT: _Policies = ((), (), PolicyMatch.ALL)


class DecodeError(ValueError):
    """A record that is not an event of this ABI. The agent counts it as lost."""


def decode(record: bytes) -> Event:
    """Decode one ring-buffer record (struct nn_event). Raises DecodeError if it is too short or its type is unknown."""
    try:
        event = Event.unpack(record)
    except struct.error as error:
        raise DecodeError(f"record of {len(record)} bytes, expected at least {EVENT_SIZE}") from error
    if event.type not in _TYPES:
        raise DecodeError(f"event type {event.type} is not known")
    return event


def to_flow(event: Event, names: NameTable, clock_offset: int, number: int) -> Flow:
    """Convert one event into a flow. `clock_offset` is ns from CLOCK_MONOTONIC to the epoch; `number` is the flow's
    number.

    Raises KeyError for an event type that `decode` would refuse.
    """
    if not event.ifindex and event.type in _OF_SOCKETS:
        return _socket_flow(event, names, clock_offset, number)
    return _packet_flow(event, names, clock_offset, number)


def denial(drop: Flow) -> Flow:
    """The policy verdict of a packet that policy denied, from the flow of its drop. The programs send one event for
    both."""
    return drop._replace(event_type=_POLICY_VERDICT, sub_type=0, policy_match=PolicyMatch.NONE)


def _packet_flow(event: Event, names: NameTable, clock_offset: int, number: int) -> Flow:
    """The flow of a packet event. Arguments are positional, in Flow's order: keyword arguments cost three times as
    much."""
    event_type, direction = _TYPES[event.type], _DIRECTIONS.get(event.direction)
    # The event has the packet's direction; a flow has that of the connection, which is the opposite for a reply.
    if event.is_reply and direction is not None:
        direction = _INGRESS if direction is _EGRESS else _EGRESS
    drop_reason = abs(event.reason) or None
    time = event.time
    source = _party(event.saddr, event.src_identity, time, names)
    destination = _party(event.daddr, event.dst_identity, time, names)
    subject = source if event.direction == _EGRESS else destination
    allowed_by, denied_by, policy_match = _policies(event, subject, direction, names)
    trace = event_type is _TRACE
    return Flow(
        time + clock_offset,
        number,
        _L3_L4,
        event_type,
        event.point if trace else drop_reason or 0,
        _DROPPED if drop_reason else _FORWARDED,
        source,
        destination,
        *_layers(event),
        direction,
        # A drop may happen before it is known whether the packet is a reply: then None, and Hubble's clients print
        # `<>`.
        True if event.is_reply else None if drop_reason else False,
        drop_reason,
        *_services(event, source, destination, names),
        allowed_by,
        denied_by,
        policy_match,
        _POINTS.get(event.point) if trace else None,
        _REASONS.get(event.ct_status) if trace else None,
        None,
        event.src_mac,
        event.dst_mac,
        event.ifindex or None,
        event.cookie or None,
    )


def _socket_flow(event: Event, names: NameTable, clock_offset: int, number: int) -> Flow:
    """The flow of a socket event. There is no packet yet, so there are no MAC addresses, TCP flags or reply flag. The
    event's cookie is that of the network namespace."""
    drop_reason = abs(event.reason) or None
    source, source_ip = _socket_owner(event, names)
    destination = _party(event.daddr, event.dst_identity, event.time, names)
    return Flow(
        event.time + clock_offset,
        number,
        FlowType.SOCK,
        _TYPES[event.type],
        drop_reason or SocketPoint.POST_FORWARD,
        Verdict.DROPPED if drop_reason else Verdict.TRANSLATED,
        source,
        destination,
        source_ip,
        event.daddr,
        event.protocol,
        event.sport or None,
        event.dport if event.protocol in _WITH_PORTS else None,
        direction=_DIRECTIONS.get(event.direction),
        drop_reason=drop_reason,
        destination_service=_services(event, source, destination, names)[1],
        socket_point=None if drop_reason else SocketPoint.POST_FORWARD,
    )


def _layers(event: Event) -> _Layers:
    """The fields of a Flow from `source_ip` to `icmp`. None for headers that the packet lacks or that were not
    parsed."""
    if not event.ip_version:
        return _NOT_IP
    protocol = event.protocol
    if not event.reason or _transport_was_read(event):
        if protocol in _WITH_PORTS:
            flags = event.tcp_flags if protocol == _TCP else None
            return event.saddr, event.daddr, protocol, event.sport, event.dport, flags, None
        if protocol in _ICMP:
            icmp = Icmp(event.icmp_type, event.icmp_code)
            return event.saddr, event.daddr, protocol, None, None, None, icmp
    return event.saddr, event.daddr, protocol, None, None, None, None


def _transport_was_read(event: Event) -> bool:
    """False if the parser stopped before the transport header: the zeros in the event are then not values of the
    packet."""
    if -event.reason not in _UNPARSED:
        return True
    return bool(event.sport or event.dport or event.tcp_flags or event.icmp_type)


def _policies(event: Event, subject: Party, direction: Direction | None, names: NameTable) -> _Policies:
    """`allowed_by`, `denied_by` and `policy_match` of a flow. `subject`: the endpoint whose policy was evaluated."""
    if event.reason:
        # Policies explain only drops by policy.
        if event.reason != _POLICY_DENIED or direction is None:
            return _NO_POLICY
        rule = names.rules.get(event.rule_id) if event.rule_id else None
        # A rule that denies, or the policies that isolate the endpoint and none of whose rules allows.
        return (), (rule,) if rule else names.isolated_by.get((subject.identity, direction), ()), None
    verdict = event.type == _POLICY_VERDICT
    if not event.rule_id:
        # No rule: the endpoint is not isolated, so everything is allowed.
        return _ALLOWED_BY_DEFAULT if verdict else _NO_POLICY
    rule = names.rules.get(event.rule_id)
    if rule is None:
        # The policy was deleted, or the names are older than the map entry.
        return _NO_POLICY
    return (rule,), (), rule.match if verdict else None


def _party(address: IPAddress, identity: int, time: int, names: NameTable) -> Party:
    """The owner of an address at the time of the event. The event's identity has precedence, because the datapath
    decided with it."""
    known = names.addresses.get(address)
    past = names.past.get(address) if names.past else None
    if past is not None and past.owns(known, identity, time):
        known = past.party
    if known is not None:
        return known if not identity or known.identity == identity else known._replace(identity=identity)
    if not identity:
        return _UNKNOWN if address.is_unspecified else _WORLD
    return names.identities.get(identity) or RESERVED.get(identity) or Party(identity)


def _socket_owner(event: Event, names: NameTable) -> tuple[Party, IPAddress | None]:
    """The pod of a socket, and the source address that the socket will use."""
    bound = None if event.saddr.is_unspecified else event.saddr
    pod = names.netns_cookies.get(event.cookie) or names.endpoints.get(event.endpoint_id)
    if pod is None:
        # The endpoint was deleted: only the address of a bound socket is known.
        return _UNKNOWN if bound is None else _party(bound, 0, event.time, names), bound
    return pod, bound or next((ip for ip in pod.ips if ip.version == event.ip_version), None)


def _services(
    event: Event, source: Party, destination: Party, names: NameTable
) -> tuple[ServiceName | None, ServiceName | None]:
    """(source, destination): the Service that the client connected to, or the Service whose address is in the
    packet."""
    of_source = of_destination = None
    if event.service_id:
        service = names.services.get(event.service_id)
        of_source, of_destination = (service, None) if event.is_reply else (None, service)
    # A pod's address is never a Service's. Skip these look-ups for pods: each hashes an address, which is expensive.
    if of_destination is None and not destination.pod:
        of_destination = names.frontends.get((event.daddr, event.dport, event.protocol))
        if of_destination is None and event.reason == _IS_A_CLUSTERIP:
            of_destination = names.service_addresses.get(event.daddr)
    if of_source is None and not source.pod:
        of_source = names.frontends.get((event.saddr, event.sport, event.protocol))
    return of_source, of_destination
