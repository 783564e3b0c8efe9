"""Raw ring-buffer records to events, and what an event's numbers say in Hubble's words. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable

from nodenet.abi import EVENT_SIZE, Event, EventType, ObservationPoint
from nodenet.flow.types import Verdict
from nodenet.model import Direction, Protocol

# SocketTranslationPoint: the destination was replaced on the way out.
XLATE_POST_FORWARD = 2
# In the order in which clients print them.
TCP_FLAGS = (("SYN", 2), ("ACK", 16), ("RST", 4), ("FIN", 1), ("PSH", 8), ("URG", 32), ("ECE", 64), ("CWR", 128))
_KNOWN_TYPES = frozenset(EventType)
# RFC 792 and RFC 4443; the names that packet printers use.
_ICMP4 = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    5: "Redirect",
    8: "EchoRequest",
    11: "TimeExceeded",
    12: "ParameterProblem",
}
_ICMP6 = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    4: "ParameterProblem",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
}


class DecodeError(ValueError):
    """A record that is not an event of this ABI: the agent counts it as lost."""


def decode(record: bytes) -> Event:
    """One ring-buffer record (struct nn_event). Raises DecodeError when it is too short or of an unknown type."""
    try:
        event = Event.unpack(record)
    except struct.error as error:
        raise DecodeError(f"record of {len(record)} bytes, expected at least {EVENT_SIZE}") from error
    if event.type not in _KNOWN_TYPES:
        raise DecodeError(f"event type {event.type} is not known")
    return event


def verdict(event: Event) -> Verdict:
    """What became of the packet or the socket call."""
    if event.reason:
        return Verdict.DROPPED
    return Verdict.TRANSLATED if event.type == EventType.SOCK else Verdict.FORWARDED


def drop_reason(event: Event) -> int:
    """Hubble's DropReason number; the kernel reports it negated. 0: not dropped."""
    return abs(event.reason)


def is_socket(event: Event) -> bool:
    """From a socket call, not from a packet: there is no interface, and the cookie is the network namespace's."""
    return event.type == EventType.SOCK or (event.type == EventType.DROP and event.ifindex == 0)


def event_type(event: Event) -> tuple[int, int]:
    """Hubble's (type, sub-type): the drop reason, the point of a trace, the point of a socket translation."""
    if event.type == EventType.DROP:
        return EventType.DROP, drop_reason(event)
    if event.type == EventType.SOCK:
        return EventType.SOCK, XLATE_POST_FORWARD
    return event.type, event.point if event.type == EventType.TRACE else 0


def is_reply(event: Event) -> bool | None:
    """None where Hubble does not say either: drops (but of a known reply) and socket calls; it prints `<>` for them."""
    if event.is_reply:
        return True
    return False if event.type in (EventType.TRACE, EventType.POLICY_VERDICT) else None


def traffic_direction(event: Event) -> int:
    """The direction of the connection for the endpoint, as Hubble tells it: what a pod answers is part of ingress.

    Policy is asked in this direction too. The event's own direction is the packet's.
    """
    if event.is_reply and event.direction:
        return Direction.INGRESS if event.direction == Direction.EGRESS else Direction.EGRESS
    return event.direction


def observation_point(event: Event) -> int:
    """Hubble's TraceObservationPoint, where to-endpoint is 101; 0 for anything but a trace."""
    if event.type != EventType.TRACE:
        return 0
    return 101 if event.point == ObservationPoint.TO_ENDPOINT else event.point


def _tcp(event: Event) -> str:
    flags = ", ".join(name for name, bit in TCP_FLAGS if event.tcp_flags & bit)
    return f"TCP Flags: {flags}" if flags else "TCP"


def _icmp(event: Event) -> str:
    six = event.protocol == Protocol.ICMPV6
    name = (_ICMP6 if six else _ICMP4).get(event.icmp_type, f"type {event.icmp_type} code {event.icmp_code}")
    return f"{'ICMPv6' if six else 'ICMPv4'} {name}"


_SUMMARIES: dict[int, Callable[[Event], str]] = {
    Protocol.TCP: _tcp,
    Protocol.UDP: lambda _event: "UDP",
    Protocol.SCTP: lambda _event: "SCTP",
    Protocol.ICMP: _icmp,
    Protocol.ICMPV6: _icmp,
}


def summary(event: Event) -> str:
    """The words in parentheses at the end of hubble's compact line."""
    known = _SUMMARIES.get(event.protocol)
    if known is not None:
        return known(event)
    return f"IP protocol {event.protocol}" if event.ip_version else "not IP"
