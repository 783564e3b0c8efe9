"""Flows of any producer become messages: what is known is in them, what is not known is not."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.cli.format_flow import Options, Output, Printer
from nodenet.flow import field_tests
from nodenet.flow.filter import FlowFilter, Origin
from nodenet.flow.types import (
    EventType,
    Flow,
    FlowType,
    Icmp,
    Party,
    PolicyMatch,
    PolicyName,
    ServiceName,
    SocketPoint,
    TracePoint,
    TraceReason,
    Verdict,
)
from nodenet.model import Direction
from nodenet.rpc import convert

ORIGIN = Origin("node-1")
# One value for each field that a producer may leave out, and the message's field that shows it.
FACTS = {
    "source_ip": (ip_address("10.0.0.1"), "IP.source"),
    "destination_ip": (ip_address("10.0.0.2"), "IP.destination"),
    "protocol": (6, "l4.TCP"),
    "source_port": (40000, "l4.TCP.source_port"),
    "destination_port": (80, "l4.TCP.destination_port"),
    "tcp_flags": (2, "l4.TCP.flags.SYN"),
    "icmp": (Icmp(3, 4), ""),
    "direction": (Direction.INGRESS, "traffic_direction"),
    "is_reply": (False, "is_reply"),
    "drop_reason": (133, "drop_reason_desc"),
    "source_service": (ServiceName("shop", "web"), "source_service.name"),
    "destination_service": (ServiceName("shop", "db"), "destination_service.name"),
    "allowed_by": ((PolicyName("shop", "let"),), "ingress_allowed_by"),
    "denied_by": ((PolicyName("shop", "deny"),), "ingress_denied_by"),
    "policy_match": (PolicyMatch.L3_L4, "policy_match_type"),
    "trace_point": (TracePoint.TO_STACK, "trace_observation_point"),
    "trace_reason": (TraceReason.ESTABLISHED, "trace_reason"),
    "socket_point": (SocketPoint.POST_FORWARD, "sock_xlate_point"),
    "source_mac": ("02:00:00:00:00:01", "ethernet.source"),
    "destination_mac": ("02:00:00:00:00:02", "ethernet.destination"),
    "ifindex": (5, "interface.index"),
    "socket_cookie": (77, "socket_cookie"),
}
# What an L4 fact can only stand in: the message has no place for ports without a protocol.
NEEDS = {
    "source_port": "protocol", "destination_port": "protocol", "tcp_flags": "protocol", "allowed_by": "direction",
    "denied_by": "direction",
}  # fmt: skip


def flow_of(names: set[str]) -> Flow:
    facts = {name: FACTS[name][0] for name in names}
    web, db = Party(300, "shop", "web-1"), Party(301, "shop", "db-0")
    return Flow(1, 1, FlowType.L3_L4, EventType.TRACE, 0, Verdict.FORWARDED, web, db)._replace(**facts)


def is_set(message: object, path: str) -> bool:
    for part in path.split("."):
        if part not in {field.name for field, _ in message.ListFields()}:
            return False
        message = getattr(message, part)
    return True


def test_every_field_with_a_default_is_tried():
    assert set(FACTS) == set(Flow._field_defaults)


@given(names=st.sets(st.sampled_from(sorted(FACTS))))
def test_a_message_has_what_the_flow_knows_and_nothing_else(names):
    message = convert.response(flow_of(names), ORIGIN).flow
    for name, (_, path) in FACTS.items():
        if path:
            known = name in names and NEEDS.get(name, name) in names
            if name == "is_reply":
                assert message.HasField("is_reply") is known
            else:
                assert is_set(message, path) is known, name


@given(
    names=st.sets(st.sampled_from(sorted(FACTS))), output=st.sampled_from([Output.COMPACT, Output.DICT, Output.TABLE])
)
def test_a_flow_of_which_little_is_known_is_printed(names, output):
    printer = Printer(Options(output, explain=True))
    text = "\n".join([*printer.lines(convert.response(flow_of(names), ORIGIN)), *printer.close()])
    assert "shop/web-1" in text or not names & {"source_ip", "destination_ip"}
    assert "None" not in text


@pytest.mark.parametrize(
    ("field", "value", "fact"),
    [
        ("source_ip", "10.0.0.0/8", "source_ip"),
        ("destination_ip", "10.0.0.2", "destination_ip"),
        ("source_port", "40000", "source_port"),
        ("destination_port", "80", "destination_port"),
        ("protocol", "tcp", "protocol"),
        ("tcp_flags", 2, "tcp_flags"),
        ("traffic_direction", 1, "direction"),
        ("drop_reason_desc", 133, "drop_reason"),
        ("reply", False, "is_reply"),
        ("ip_version", 1, "destination_ip"),
        ("source_service", "shop/web", "source_service"),
    ],
)
def test_a_filter_matches_only_what_is_known(field, value, fact):
    assert field in {spec.name for spec in fields(FlowFilter)}
    test = field_tests.BUILDERS[field]((value,), ORIGIN).test
    assert test(flow_of({fact}))
    assert not test(flow_of(set()))


def test_icmp_without_its_type():
    ping = flow_of(set())._replace(protocol=1)
    assert convert.response(ping, ORIGIN).flow.l4.HasField("ICMPv4")
    known = convert.response(ping._replace(icmp=Icmp(3, 4)), ORIGIN).flow.l4.ICMPv4
    assert (known.type, known.code) == (3, 4)
