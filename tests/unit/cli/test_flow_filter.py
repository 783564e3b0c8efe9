"""Filter flags, as hubble sends them."""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from nodenet.cli.flow_filter import FLAGS, Choice, build, split_not
from nodenet.errors import BadInputError


def plain(messages):
    return [json_format.MessageToDict(one, preserving_proto_field_name=True) for one in messages]


def white(*pairs):
    return plain(build(Choice(flag, value) for flag, value in pairs)[0])


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (
            [("verdict", "DROPPED"), ("from-pod", "default/a"), ("to-port", "80")],
            [{"source_pod": ["default/a"], "verdict": ["DROPPED"], "destination_port": ["80"]}],
        ),
        ([("pod", "a")], [{"source_pod": ["a"]}, {"destination_pod": ["a"]}]),
        (
            [("pod", "a"), ("verdict", "dropped")],
            [{"source_pod": ["a"], "verdict": ["DROPPED"]}, {"destination_pod": ["a"], "verdict": ["DROPPED"]}],
        ),
        ([("from-ip", "10.0.0.1"), ("from-ip", "10.0.1.0/24")], [{"source_ip": ["10.0.0.1", "10.0.1.0/24"]}]),
        ([("namespace", "shop")], [{"source_pod": ["shop/"]}, {"destination_pod": ["shop/"]}]),
        (
            [("namespace", "shop"), ("pod", "web"), ("pod", "other/x")],
            [{"source_pod": ["shop/web", "other/x"]}, {"destination_pod": ["shop/web", "other/x"]}],
        ),
        ([("from-namespace", "shop"), ("from-pod", "web")], [{"source_pod": ["shop/web"]}]),
        (
            [("to-namespace", "a"), ("to-namespace", "b"), ("to-service", "db")],
            [{"destination_service": ["a/db", "b/db"]}],
        ),
        ([("all-namespaces", "*")], [{"source_pod": ["/"]}, {"destination_pod": ["/"]}]),
        ([("identity", "world")], [{"source_identity": [2]}, {"destination_identity": [2]}]),
        ([("to-identity", "reserved:host"), ("to-identity", "300")], [{"destination_identity": [1, 300]}]),
        ([("workload", "deployment/web")], [
            {"source_workload": [{"name": "web", "kind": "Deployment"}]},
            {"destination_workload": [{"name": "web", "kind": "Deployment"}]},
        ]),
        ([("from-workload", "web")], [{"source_workload": [{"name": "web"}]}]),
        ([("from-workload", "DaemonSet")], [{"source_workload": [{"kind": "DaemonSet"}]}]),
        ([("type", "trace:to-endpoint")], [{"event_type": [{"type": 4, "match_sub_type": True}]}]),
        ([("type", "drop"), ("type", "7")], [{"event_type": [{"type": 1}, {"type": 7}]}]),
        ([("tcp-flags", "syn,ACK"), ("tcp-flags", "rst")],
         [{"tcp_flags": [{"SYN": True, "ACK": True}, {"RST": True}]}]),
        ([("drop-reason-desc", "policy_denied")], [{"drop_reason_desc": ["POLICY_DENIED"]}]),
        ([("traffic-direction", "Ingress")], [{"traffic_direction": ["INGRESS"]}]),
        ([("ipv6", "v6"), ("ip-version", "v4")], [{"ip_version": ["IPv6", "IPv4"]}]),
        ([("reply", "true")], [{"reply": [True]}]),
        ([("label", "app=web")], [{"source_label": ["app=web"]}, {"destination_label": ["app=web"]}]),
        ([("uuid", "x"), ("node-name", "n*"), ("protocol", "udp")],
         [{"uuid": ["x"], "node_name": ["n*"], "protocol": ["udp"]}]),
        ([], []),
    ],
)  # fmt: skip
def test_flags_become_the_filters_that_hubble_sends(pairs, expected):
    assert white(*pairs) == expected


def test_not_fills_the_blacklist():
    wanted, unwanted = build(
        [Choice("protocol", "tcp"), Choice("to-port", "80", True), Choice("verdict", "DROPPED", True)]
    )
    assert plain(wanted) == [{"protocol": ["tcp"]}]
    assert plain(unwanted) == [{"destination_port": ["80"], "verdict": ["DROPPED"]}]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("verdict", "MAYBE")], "--verdict 'MAYBE': expected one of VERDICT_UNKNOWN, FORWARDED"),
        ([("drop-reason-desc", "NO")], "--drop-reason-desc 'NO'"),
        ([("port", "http")], "--port 'http': expected a port 0-65535"),
        ([("from-ip", "999.1.1.1")], "--from-ip '999.1.1.1': expected an address or a CIDR"),
        ([("to-port", "65536")], "--to-port '65536'"),
        ([("identity", "nobody")], "--identity 'nobody': expected a number or one of"),
        ([("type", "dream")], "--type 'dream'"),
        ([("type", "trace:moon")], "--type 'trace:moon'"),
        ([("tcp-flags", "syn,xyz")], "--tcp-flags 'syn,xyz'"),
        ([("workload", "Widget/web")], "--workload 'Widget/web'"),
        ([("ip-version", "v5")], "--ip-version 'v5'"),
        ([("reply", "perhaps")], "--reply 'perhaps'"),
        ([("pod", "a"), ("from-pod", "b")], "--pod and --from-pod cannot be combined"),
        ([("namespace", "a"), ("to-namespace", "b")], "--namespace and --to-namespace cannot be combined"),
        ([("to-pod", "a"), ("namespace", "b")], "--to-pod and --namespace cannot be combined"),
    ],
)
def test_bad_flags_are_named(pairs, message):
    with pytest.raises(BadInputError, match=message):
        build(Choice(flag, value) for flag, value in pairs)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--not", "--from-ip", "1.2.3.4"], ["--not-from-ip", "1.2.3.4"]),
        (["--not", "--from-ip=1.2.3.4", "-f"], ["--not-from-ip=1.2.3.4", "-f"]),
        (["--not", "-t", "drop"], ["--not-type", "drop"]),
        (["--not", "-tdrop"], ["--not-type=drop"]),
        (["--not", "-n", "a", "--not", "-4"], ["--not-namespace", "a", "--not-ipv4"]),
        (["--last", "5"], ["--last", "5"]),
    ],
)
def test_not_sticks_to_the_next_flag(arguments, expected):
    assert split_not(arguments) == expected


@pytest.mark.parametrize(
    "arguments", [["--not"], ["--not", "--not", "--port", "1"], ["--not", "--follow"], ["--not", "x"]]
)
def test_not_before_anything_else_is_refused(arguments):
    with pytest.raises(BadInputError, match="--not"):
        split_not(arguments)


@given(st.lists(st.tuples(st.sampled_from(sorted(FLAGS)), st.booleans()), max_size=8))
def test_every_flag_can_be_negated(flags):
    arguments = [word for name, negated in flags for word in (["--not"] if negated else []) + [f"--{name}=x"]]
    assert split_not(arguments) == [f"--not-{name}=x" if negated else f"--{name}=x" for name, negated in flags]
