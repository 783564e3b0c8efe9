"""What the datapath's events become."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from nodenet import abi
from nodenet.flow import kernel
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Ring
from nodenet.flow.types import (
    EventType,
    FlowType,
    Icmp,
    Lost,
    LostSource,
    NameTable,
    PolicyMatch,
    PolicyName,
    ServiceName,
    SocketPoint,
    TracePoint,
    TraceReason,
    Verdict,
)
from nodenet.model import Direction

SERVICE = ServiceName("shop", "database")


def test_an_allowed_new_connection_names_both_ends_and_the_rule(make_flow):
    flow = make_flow(direction=1, endpoint_id=2, rule_id=55)
    assert (flow.source.pod, flow.destination.pod) == ("web-1", "db-0")
    assert flow.verdict is Verdict.FORWARDED
    assert [policy.rule for policy in flow.allowed_by] == ["ingress[0]"]
    assert flow.denied_by == ()


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        (1, (PolicyName("shop", "let-web"), PolicyName("shop", "deny-all"))),
        (2, (PolicyName("shop", "web-out"),)),
    ],
)
def test_a_drop_by_policy_names_the_policies_that_isolate_the_pod(make_flow, direction, expected):
    flow = make_flow(type=1, reason=-133, direction=direction, endpoint_id=direction)
    assert flow.verdict is Verdict.DROPPED
    assert flow.denied_by == expected


def test_a_drop_by_a_rule_that_denies_names_this_rule(make_flow):
    flow = make_flow(type=1, reason=-133, direction=1, endpoint_id=2, rule_id=55)
    assert flow.verdict is Verdict.DROPPED
    assert flow.allowed_by == ()
    assert [policy.rule for policy in flow.denied_by] == ["ingress[0]"]


def test_a_dropped_answer_is_judged_in_the_direction_of_its_connection(make_flow):
    """db answers web after the rules changed: the packet leaves db, but db's ingress rules decide."""
    flow = make_flow(
        type=1, reason=-133, direction=2, endpoint_id=2, is_reply=1, saddr=ip_address("10.0.0.2"),
        daddr=ip_address("10.0.0.1"), src_identity=301, dst_identity=300,
    )  # fmt: skip
    assert flow.direction is Direction.INGRESS
    assert [policy.name for policy in flow.denied_by] == ["let-web", "deny-all"]


def test_other_drops_name_no_policy(make_flow):
    assert make_flow(type=1, reason=-132).denied_by == ()


def test_a_service_is_the_destination_of_what_is_asked_and_the_source_of_what_is_answered(make_flow):
    asked = make_flow(service_id=9)
    assert (asked.source_service, asked.destination_service) == (None, SERVICE)
    answered = make_flow(type=4, service_id=9, is_reply=1)
    assert (answered.source_service, answered.destination_service) == (SERVICE, None)


def test_a_service_address_in_the_packet_itself_is_named(make_flow):
    assert make_flow(daddr=ip_address("10.96.0.5")).destination_service == SERVICE
    assert make_flow(daddr=ip_address("10.96.0.5"), dport=1).destination_service is None


def test_an_answer_from_a_service_address_itself_is_named(make_flow):
    answer = make_flow(saddr=ip_address("10.96.0.5"), sport=5432, src_identity=2)
    assert (answer.source_service, answer.destination_service) == (SERVICE, None)


def test_a_pod_s_address_is_not_a_service_s(make_event, names):
    """No API server gives a Service the address of a pod; so one lookup is enough for most events."""
    twice = {(party.ips[0], port, 6): SERVICE for party in names.addresses.values() for port in (40000, 5432)}
    flow = kernel.to_flow(make_event(), replace(names, frontends=twice), 0, 1)
    assert (flow.source_service, flow.destination_service) == (None, None)


def test_a_translated_socket_is_its_pods(make_flow):
    flow = make_flow(
        type=7, ifindex=0, cookie=4242, saddr=ip_address("::"), sport=0, service_id=9, src_identity=0, dst_identity=0
    )
    assert flow.verdict is Verdict.TRANSLATED
    assert (flow.source.pod, str(flow.source_ip)) == ("web-1", "10.0.0.1")
    assert flow.destination.pod == "db-0"
    assert (flow.event_type, flow.sub_type) == (EventType.SOCK, SocketPoint.POST_FORWARD)
    assert flow.socket_point is SocketPoint.POST_FORWARD


def test_a_refused_socket_is_a_drop_with_its_reason(make_flow):
    flow = make_flow(
        type=1, reason=-158, ifindex=0, cookie=4242, saddr=ip_address("::"), daddr=ip_address("10.96.0.5"),
        src_identity=0, dst_identity=0,
    )  # fmt: skip
    assert flow.type is FlowType.SOCK
    assert (flow.event_type, flow.sub_type, flow.drop_reason) == (EventType.DROP, 158, 158)
    assert (flow.source.pod, flow.destination_service) == ("web-1", SERVICE)


def test_a_socket_of_an_unknown_namespace_stays_unknown(make_flow):
    flow = make_flow(type=7, ifindex=0, cookie=1, saddr=ip_address("::"), endpoint_id=0)
    assert flow.source.labels == ("reserved:unknown",)


@pytest.mark.parametrize(
    ("address", "identity", "labels"),
    [
        ("192.0.2.1", 2, ("reserved:world",)),
        ("192.0.2.1", 0, ("reserved:world",)),
        ("192.0.2.1", 1, ("reserved:host",)),
        ("192.0.2.1", 6, ("reserved:remote-node",)),
        ("10.9.9.9", 301, ("k8s:app=db",)),
        ("10.9.9.9", 999, ()),
    ],
)
def test_an_address_without_a_name_is_known_by_its_identity(make_flow, address, identity, labels):
    assert make_flow(daddr=ip_address(address), dst_identity=identity).destination.labels == labels


def test_the_identity_is_the_one_that_the_datapath_judged_by(make_flow):
    flow = make_flow(dst_identity=777)
    assert (flow.destination.pod, flow.destination.identity) == ("db-0", 777)


def test_time_is_moved_to_the_epoch(make_event, names):
    assert kernel.to_flow(make_event(time=5), names, 1_000, 1).time == 1_005


def test_a_record_goes_through_whole_and_a_longer_one_too(make_event, names):
    event = make_event()
    assert kernel.decode(event.pack()) == event
    assert kernel.decode(event.pack() + b"newer fields") == event


@pytest.mark.parametrize("record", [b"", b"\x01" * 20, bytes(200)])
def test_what_is_not_an_event_is_counted_and_shown_as_lost(record, names):
    pipeline = Pipeline(Ring(4), 0, lambda: names)
    pipeline.receive(record)
    assert pipeline.undecoded == 1
    assert pipeline.last_error
    assert pipeline.ring.at(0) == Lost(LostSource.AGENT, 1)


def test_flows_are_numbered_from_one(make_event, names):
    pipeline = Pipeline(Ring(4), 7, lambda: names)
    for _ in range(3):
        pipeline.receive(make_event().pack())
    assert [item.number for _, item in pipeline.ring.newest_first()] == [3, 2, 1]


def test_an_empty_table_names_nothing_and_breaks_nothing(make_event):
    flow = kernel.to_flow(make_event(rule_id=5, service_id=6), NameTable(), 0, 1)
    assert (flow.source.identity, flow.source.labels, flow.destination_service, flow.allowed_by) == (300, (), None, ())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type": 4, "is_reply": 1}, True),
        ({"type": 4}, False),
        ({"type": 5}, False),
        ({"type": 1, "reason": -133}, None),
        ({"type": 1, "reason": -133, "is_reply": 1}, True),
        ({"type": 7, "ifindex": 0}, None),
    ],
)
def test_the_side_of_a_packet_is_told_only_where_it_is_known(make_flow, changes, expected):
    assert make_flow(**changes).is_reply is expected


@pytest.mark.parametrize(("point", "expected"), [(0, TracePoint.TO_ENDPOINT), (5, TracePoint.FROM_ENDPOINT)])
def test_a_trace_has_a_point_and_the_connection_s_state(make_flow, point, expected):
    flow = make_flow(type=4, point=point, ct_status=2)
    assert (flow.sub_type, flow.trace_point, flow.trace_reason) == (point, expected, TraceReason.REPLY)
    verdict = make_flow(type=5, point=point, ct_status=2)
    assert (verdict.sub_type, verdict.trace_point, verdict.trace_reason) == (0, None, None)


def test_every_event_type_of_the_abi_becomes_a_flow(make_flow):
    assert {make_flow(type=int(number), ifindex=0).event_type for number in abi.EventType} == set(EventType)


def test_every_point_and_state_of_the_abi_has_hubble_s_number(make_flow):
    assert {make_flow(type=4, point=int(point)).trace_point for point in abi.ObservationPoint} == set(TracePoint)
    assert {make_flow(type=4, ct_status=int(status)).trace_reason for status in abi.CtStatus} == set(TraceReason)


def test_a_socket_call_has_no_packet(make_flow):
    """No frame, no flags, no socket cookie (the event's is a namespace's), no address of a socket of nobody."""
    flow = make_flow(type=7, ifindex=0, cookie=1, saddr=ip_address("::"), sport=0, endpoint_id=0, tcp_flags=0)
    absent = ("source_ip", "source_port", "tcp_flags", "source_mac", "destination_mac", "socket_cookie", "ifindex")
    assert [getattr(flow, name) for name in absent] == [None] * len(absent)
    assert (str(flow.destination_ip), flow.destination_port) == ("10.0.0.2", 5432)


def test_what_is_not_ip_has_no_addresses(make_flow):
    flow = make_flow(
        type=1, reason=-166, ip_version=0, protocol=0, saddr=ip_address("::"), daddr=ip_address("::"), sport=0, dport=0
    )
    absent = ("source_ip", "destination_ip", "ip_version", "protocol", "source_port", "destination_port", "tcp_flags")
    assert [getattr(flow, name) for name in absent] == [None] * len(absent)
    assert flow.source_mac == "02:00:00:00:00:01"


@pytest.mark.parametrize("reason", [-134, -156, -175])
@pytest.mark.parametrize("protocol", [6, 17, 1])
def test_headers_that_the_parser_did_not_reach_are_not_known(make_flow, reason, protocol):
    flow = make_flow(type=1, reason=reason, protocol=protocol, sport=0, dport=0, tcp_flags=0)
    assert flow.protocol == protocol
    assert (flow.source_port, flow.destination_port, flow.tcp_flags, flow.icmp) == (None, None, None, None)
    read = make_flow(type=1, reason=reason, protocol=6, sport=0, dport=80, tcp_flags=0)
    assert (read.source_port, read.destination_port, read.tcp_flags) == (0, 80, 0)
    # The packet that an ICMP error quotes is what could not be parsed.
    assert make_flow(type=1, reason=reason, protocol=1, sport=0, dport=0, tcp_flags=0, icmp_type=3).icmp == Icmp(3, 0)


def test_each_protocol_has_its_own_facts(make_flow):
    def facts(**changes: object) -> tuple[object, ...]:
        flow = make_flow(**changes)
        return flow.source_port, flow.destination_port, flow.tcp_flags, flow.icmp

    assert facts() == (40000, 5432, 2, None)
    assert facts(protocol=17) == (40000, 5432, None, None)
    # An echo's identifier stands in for the ports of the kernel's tuple.
    assert facts(protocol=1, icmp_type=8, icmp_code=1) == (None, None, None, Icmp(8, 1))
    assert facts(protocol=47) == (None, None, None, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rule_id": 0}, PolicyMatch.ALL),
        ({"rule_id": 55}, PolicyMatch.L3_L4),
        ({"rule_id": 56}, None),
        ({"rule_id": 55, "type": 4}, None),
    ],
)
def test_a_policy_verdict_says_what_its_rule_looks_at(make_flow, changes, expected):
    assert make_flow(**changes).policy_match is expected


def test_records_are_kept_as_they_came(make_event, names):
    """`nodenet monitor` shows what a newer datapath adds, and no address that was found out here."""
    pipeline = Pipeline(Ring(4), 0, lambda: names)
    record = make_event(type=7, ifindex=0, saddr=ip_address("::")).pack() + b"newer fields"
    pipeline.receive(record)
    pipeline.receive(b"")
    assert [item for _, item in pipeline.records.newest_first()] == [Lost(LostSource.AGENT, 1), record]


def test_names_are_those_at_the_time_of_the_event(make_event, names):
    tables = iter([names, NameTable()])
    pipeline = Pipeline(Ring(4), 0, lambda: next(tables))
    pipeline.receive(make_event().pack())
    pipeline.receive(make_event().pack())
    assert [item.source.pod for _, item in pipeline.ring.newest_first()] == ["", "web-1"]
