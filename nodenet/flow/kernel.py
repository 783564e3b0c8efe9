"""The datapath's events as flows: names from one NameTable, looked up at the time of the event. Pure.

The only place that knows both `abi.Event` and `Flow`. A few microseconds for each event.
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
}
_REASONS = {
    int(CtStatus.NEW): TraceReason.NEW,
    int(CtStatus.ESTABLISHED): TraceReason.ESTABLISHED,
    int(CtStatus.REPLY): TraceReason.REPLY,
    int(CtStatus.RELATED): TraceReason.RELATED,
}
# With no interface: from a socket call, not from a packet.
_OF_SOCKETS = frozenset({int(abi.EventType.SOCK), int(abi.EventType.DROP)})
_DIRECTIONS = {int(direction): direction for direction in Direction}
_WITH_PORTS = frozenset({int(Protocol.TCP), int(Protocol.UDP), int(Protocol.SCTP)})
_ICMP = frozenset({int(Protocol.ICMP), int(Protocol.ICMPV6)})
_TCP = int(Protocol.TCP)
# The parser can end with these before or within the transport header, which the event then shows as zeros.
_UNPARSED = frozenset(
    {
        DropReason.INVALID_PACKET_DROPPED,
        DropReason.INVALID_IPV6_EXTENSION_HEADER,
        DropReason.FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND,
    }
)
# As events tell them. Constants of the module, because each access to a member of an enum costs 70 ns (Python 3.11).
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
    """A record that is not an event of this ABI: the agent counts it as lost."""


def decode(record: bytes) -> Event:
    """One ring-buffer record (struct nn_event). Raises DecodeError when it is too short or of an unknown type."""
    try:
        event = Event.unpack(record)
    except struct.error as error:
        raise DecodeError(f"record of {len(record)} bytes, expected at least {EVENT_SIZE}") from error
    if event.type not in _TYPES:
        raise DecodeError(f"event type {event.type} is not known")
    return event


def to_flow(event: Event, names: NameTable, clock_offset: int, number: int) -> Flow:
    """One event with names. `clock_offset` is ns from CLOCK_MONOTONIC to the epoch; `number` counts flows.

    Raises KeyError for a type that `decode` refuses.
    """
    if not event.ifindex and event.type in _OF_SOCKETS:
        return _socket_flow(event, names, clock_offset, number)
    return _packet_flow(event, names, clock_offset, number)


def _packet_flow(event: Event, names: NameTable, clock_offset: int, number: int) -> Flow:
    """What a program saw of a frame. The arguments stand in Flow's order: by name they cost three times as much."""
    event_type, direction = _TYPES[event.type], _DIRECTIONS.get(event.direction)
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
        # A drop comes before the side is known, unless it is known to be a reply: Hubble's clients print `<>` then.
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
    """What a program did to a socket's call. There is no packet yet: no frame, no TCP flags, no side of a connection.
    The cookie is the network namespace's."""
    drop_reason = abs(event.reason) or None
    source, source_ip = _caller(event, names)
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
    """From `source_ip` to `icmp`: what of the packet's headers was there, and was read."""
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
    """False for a drop at which the parser ended before the transport header: zeros are not what the packet said."""
    if -event.reason not in _UNPARSED:
        return True
    return bool(event.sport or event.dport or event.tcp_flags or event.icmp_type)


def _policies(event: Event, subject: Party, direction: Direction | None, names: NameTable) -> _Policies:
    """`allowed_by`, `denied_by` and `policy_match`. `subject`: the endpoint whose rules were asked."""
    if event.reason:
        if event.reason != _POLICY_DENIED or direction is None:
            return _NO_POLICY
        return (), names.isolated_by.get((subject.identity, direction), ()), None
    verdict = event.type == _POLICY_VERDICT
    if not event.rule_id:
        # Not isolated: everything is allowed.
        return _ALLOWED_BY_DEFAULT if verdict else _NO_POLICY
    rule = names.rules.get(event.rule_id)
    if rule is None:
        # The policy is gone, or was compiled a moment ago.
        return _NO_POLICY
    return (rule,), (), rule.match if verdict else None


def _party(address: IPAddress, identity: int, time: int, names: NameTable) -> Party:
    """Who had this address at that time. The identity is the event's: it is what the datapath judged by."""
    known = names.addresses.get(address)
    past = names.past.get(address) if names.past else None
    if past is not None and past.fits(known, identity, time):
        known = past.party
    if known is not None:
        return known if not identity or known.identity == identity else known._replace(identity=identity)
    if not identity:
        return _UNKNOWN if address.is_unspecified else _WORLD
    return names.identities.get(identity) or RESERVED.get(identity) or Party(identity)


def _caller(event: Event, names: NameTable) -> tuple[Party, IPAddress | None]:
    """The pod whose socket it was, and the address that it will use."""
    bound = None if event.saddr.is_unspecified else event.saddr
    pod = names.netns_cookies.get(event.cookie) or names.endpoints.get(event.endpoint_id)
    if pod is None:
        # The endpoint is gone; a socket that was bound says its address.
        return _UNKNOWN if bound is None else _party(bound, 0, event.time, names), bound
    return pod, bound or next((ip for ip in pod.ips if ip.version == event.ip_version), None)


def _services(
    event: Event, source: Party, destination: Party, names: NameTable
) -> tuple[ServiceName | None, ServiceName | None]:
    """(source, destination). The Service that the client called, or whose address is in the packet itself."""
    of_source = of_destination = None
    if event.service_id:
        service = names.services.get(event.service_id)
        of_source, of_destination = (service, None) if event.is_reply else (None, service)
    # A pod's address is not a Service's: most events are done without these lookups, which hash an address each.
    if of_destination is None and not destination.pod:
        of_destination = names.frontends.get((event.daddr, event.dport, event.protocol))
        if of_destination is None and event.reason == _IS_A_CLUSTERIP:
            of_destination = names.service_addresses.get(event.daddr)
    if of_source is None and not source.pod:
        of_source = names.frontends.get((event.saddr, event.sport, event.protocol))
    return of_source, of_destination
