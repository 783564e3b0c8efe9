"""Summaries, as hubble's clients print them."""

from __future__ import annotations

import pytest

from nodenet.flow import words


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "TCP Flags: SYN"),
        ({"tcp_flags": 0x12}, "TCP Flags: SYN, ACK"),
        ({"tcp_flags": 0x11}, "TCP Flags: ACK, FIN"),
        ({"tcp_flags": 0}, "TCP"),
        ({"type": 7, "ifindex": 0}, "TCP"),
        ({"protocol": 17}, "UDP"),
        ({"protocol": 132}, "SCTP"),
        ({"protocol": 1, "icmp_type": 8}, "ICMPv4 EchoRequest"),
        ({"protocol": 58, "icmp_type": 129, "ip_version": 6}, "ICMPv6 EchoReply"),
        ({"protocol": 1, "icmp_type": 40, "icmp_code": 1}, "ICMPv4 type 40 code 1"),
        ({"protocol": 1, "type": 1, "reason": -134, "sport": 0, "dport": 0, "tcp_flags": 0}, "ICMPv4"),
        ({"protocol": 47}, "IP protocol 47"),
        ({"protocol": 0, "ip_version": 0}, "not IP"),
    ],
)
def test_summaries(make_flow, changes, expected):
    assert words.summary(make_flow(**changes)) == expected


def test_a_flow_whose_protocol_is_not_known_has_no_summary(make_flow):
    unknown = make_flow()._replace(protocol=None, source_ip=None, destination_ip=None, source_mac=None)
    assert words.summary(unknown) == ""
