"""What an event's numbers become."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nodenet.abi import Event
from nodenet.flow import decode
from nodenet.flow.enrich import enrich
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Ring
from nodenet.flow.types import Lost, LostSource, NameTable, PolicyName, ServiceName, Verdict

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


def test_a_dropped_answer_is_judged_in_the_direction_of_its_connection(make_flow):
    """db answers web after the rules changed: the packet leaves db, but db's ingress rules decide."""
    flow = make_flow(
        type=1, reason=-133, direction=2, endpoint_id=2, is_reply=1, saddr=ip_address("10.0.0.2"),
        daddr=ip_address("10.0.0.1"), src_identity=301, dst_identity=300,
    )  # fmt: skip
    assert decode.traffic_direction(flow.event) == 1
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


def test_a_translated_socket_is_its_pods(make_flow):
    flow = make_flow(
        type=7, ifindex=0, cookie=4242, saddr=ip_address("::"), sport=0, service_id=9, src_identity=0, dst_identity=0
    )
    assert flow.verdict is Verdict.TRANSLATED
    assert (flow.source.pod, str(flow.event.saddr)) == ("web-1", "10.0.0.1")
    assert flow.destination.pod == "db-0"
    assert decode.event_type(flow.event) == (7, decode.XLATE_POST_FORWARD)


def test_a_refused_socket_is_a_drop_with_its_reason(make_flow):
    flow = make_flow(
        type=1, reason=-158, ifindex=0, cookie=4242, saddr=ip_address("::"), daddr=ip_address("10.96.0.5"),
        src_identity=0, dst_identity=0,
    )  # fmt: skip
    assert decode.is_socket(flow.event)
    assert decode.event_type(flow.event) == (1, 158)
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
    assert enrich(make_event(time=5), names, 1_000, 1).time == 1_005


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "TCP Flags: SYN"),
        ({"tcp_flags": 0x12}, "TCP Flags: SYN, ACK"),
        ({"tcp_flags": 0x11}, "TCP Flags: ACK, FIN"),
        ({"protocol": 17}, "UDP"),
        ({"protocol": 132}, "SCTP"),
        ({"protocol": 1, "icmp_type": 8}, "ICMPv4 EchoRequest"),
        ({"protocol": 58, "icmp_type": 129, "ip_version": 6}, "ICMPv6 EchoReply"),
        ({"protocol": 1, "icmp_type": 40, "icmp_code": 1}, "ICMPv4 type 40 code 1"),
        ({"protocol": 47}, "IP protocol 47"),
        ({"protocol": 0, "ip_version": 0}, "not IP"),
    ],
)
def test_summaries(make_event, changes, expected):
    assert decode.summary(make_event(**changes)) == expected


def test_a_record_goes_through_whole_and_a_longer_one_too(make_event, names):
    event = make_event()
    assert decode.decode(event.pack()) == event
    assert decode.decode(event.pack() + b"newer fields") == event


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
    flow = enrich(make_event(rule_id=5, service_id=6), NameTable(), 0, 1)
    assert (flow.source.identity, flow.source.labels, flow.destination_service, flow.allowed_by) == (300, (), None, ())


def test_every_event_type_of_the_abi_has_a_verdict(make_event):
    def said(**changes: object) -> Event:
        return make_event(**changes)

    assert decode.is_reply(said(type=4, is_reply=1)) is True
    assert decode.is_reply(said(type=4)) is False
    assert decode.is_reply(said(type=5)) is False
    assert decode.is_reply(said(type=1, reason=-133)) is None
    assert decode.is_reply(said(type=1, reason=-133, is_reply=1)) is True
    assert decode.observation_point(said(type=4, point=0)) == 101
    assert decode.observation_point(said(type=4, point=5)) == 5
