"""Events to flows: names from one NameTable, looked up at the moment of the event. A few microseconds each. Pure."""

from __future__ import annotations

from nodenet.abi import DropReason, Event
from nodenet.flow import decode
from nodenet.flow.types import RESERVED, Flow, NameTable, Party, PolicyName, ServiceName, Verdict
from nodenet.model import Direction, Identity, IPAddress

_UNKNOWN = RESERVED[Identity.UNKNOWN]
_WORLD = RESERVED[Identity.WORLD]


def enrich(event: Event, names: NameTable, clock_offset: int, number: int) -> Flow:
    """One event with names. `clock_offset` is ns from CLOCK_MONOTONIC to the epoch; `number` counts flows."""
    if decode.is_socket(event):
        source, event = _socket_source(event, names)
    else:
        source = _party(event.saddr, event.src_identity, event.time, names)
    destination = _party(event.daddr, event.dst_identity, event.time, names)
    verdict = decode.verdict(event)
    rule = names.rules.get(event.rule_id) if event.rule_id else None
    source_service, destination_service = _services(event, names)
    return Flow(
        event.time + clock_offset,
        number,
        event,
        verdict,
        source,
        destination,
        source_service,
        destination_service,
        (rule,) if rule is not None and verdict is not Verdict.DROPPED else (),
        _denied_by(event, source, destination, names) if event.reason else (),
    )


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


def _socket_source(event: Event, names: NameTable) -> tuple[Party, Event]:
    """The pod whose socket it was, and the event with its address: a socket call comes before there is a packet."""
    pod = names.netns_cookies.get(event.cookie) or names.endpoints.get(event.endpoint_id)
    if pod is None:
        # The endpoint is gone; a socket that was bound says its address.
        known = None if event.saddr.is_unspecified else _party(event.saddr, 0, event.time, names)
        return known or _UNKNOWN, event
    own = next((ip for ip in pod.ips if ip.version == event.ip_version), None)
    if own is None or not event.saddr.is_unspecified:
        return pod, event
    return pod, event._replace(saddr=own)


def _services(event: Event, names: NameTable) -> tuple[ServiceName | None, ServiceName | None]:
    """(source, destination). The Service that the client called, or whose address is in the packet itself."""
    source = destination = None
    if event.service_id:
        service = names.services.get(event.service_id)
        source, destination = (service, None) if event.is_reply else (None, service)
    frontends = names.frontends
    if destination is None:
        destination = frontends.get((event.daddr, event.dport, event.protocol))
    if destination is None and decode.drop_reason(event) == DropReason.IS_A_CLUSTERIP:
        destination = names.service_addresses.get(event.daddr)
    if source is None:
        source = frontends.get((event.saddr, event.sport, event.protocol))
    return source, destination


def _denied_by(event: Event, source: Party, destination: Party, names: NameTable) -> tuple[PolicyName, ...]:
    if decode.drop_reason(event) != DropReason.POLICY_DENIED:
        return ()
    subject = source if event.direction == Direction.EGRESS else destination
    return names.isolated_by.get((subject.identity, decode.traffic_direction(event)), ())
