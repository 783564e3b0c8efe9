"""Filters as hubble's users know them."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.flow import field_tests, selector
from nodenet.flow.filter import EventTypeMatch, FilterError, FlowFilter, InterfaceMatch, Origin
from nodenet.flow.matcher import compile_filters
from nodenet.flow.types import Workload

ORIGIN = Origin("node-1", "blue", ("zone=a", "disk"), "0123456789abcdef0123")


def matches(flow, *whitelist, blacklist=()):
    test = compile_filters(whitelist, blacklist, ORIGIN)
    return test is None or test(flow)


def test_every_field_has_a_meaning():
    assert set(field_tests.BUILDERS) == {spec.name for spec in fields(FlowFilter)}


@pytest.mark.parametrize(
    ("field", "yes", "no"),
    [
        ("source_ip", "10.0.0.1", "10.0.0.2"),
        ("source_ip", "10.0.0.0/31", "fd00::/8"),
        ("destination_ip", "10.0.0.2", "10.0.1.0/24"),
        ("source_pod", "shop/web", "web"),
        ("source_pod", "shop/", "other/"),
        ("source_pod", "/web", "/db"),
        ("source_pod", "shop/web-1", "shop/web-12"),
        ("destination_pod", "shop/db", "shop/web"),
        ("source_label", "app=web", "app=db"),
        ("source_label", "k8s:app", "reserved:app"),
        ("destination_label", "tier in (data, cache),app!=web", "!tier"),
        ("source_workload", Workload("", "web"), Workload("StatefulSet", "web")),
        ("destination_workload", Workload("StatefulSet", ""), Workload("", "web")),
        ("destination_service", "shop/data", "data"),
        ("source_cluster_name", "blue", "bl*"),
        ("destination_cluster_name", "blue", "b"),
        ("traffic_direction", 2, 1),
        ("verdict", 1, 2),
        ("protocol", "TCP", "udp"),
        ("protocol", "tcp", "http"),
        ("protocol", "TCP", "igmp"),
        ("protocol", "TCP", "VRRP"),
        ("source_label", "", "app=other"),
        ("source_port", "40000", "40001"),
        ("destination_port", "5432", "80"),
        ("reply", False, True),
        ("source_identity", 300, 301),
        ("destination_identity", 301, 300),
        ("tcp_flags", 2, 18),
        ("node_name", "node-*", "node"),
        ("node_name", "blue/node-1", "green/node-1"),
        ("node_name", "blue/", "green/"),
        ("node_labels", "zone=a", "zone=b"),
        ("ip_version", 1, 2),
        ("interface", InterfaceMatch(5), InterfaceMatch(6)),
        ("event_type", EventTypeMatch(5), EventTypeMatch(1)),
        ("event_type", EventTypeMatch(0), EventTypeMatch(5, True, 3)),
        ("uuid", "01234567-89ab-cdef-0123-000000000001", "01234567-89ab-cdef-0123-000000000002"),
        ("encrypted", False, True),
    ],
)
def test_one_field(make_flow, field, yes, no):
    flow = make_flow(service_id=9)
    assert matches(flow, FlowFilter(**{field: (yes,)}))
    assert not matches(flow, FlowFilter(**{field: (no,)}))
    assert matches(flow, FlowFilter(**{field: (no, yes)})), "values of one field are alternatives"
    assert not matches(flow, blacklist=[FlowFilter(**{field: (yes,)})])


@pytest.mark.parametrize(
    "field",
    [
        "source_fqdn", "destination_fqdn", "http_status_code", "http_method", "http_path", "http_url", "dns_query",
        "trace_id", "source_ip_xlated",
    ],
)  # fmt: skip
def test_what_is_not_recorded_matches_nothing(make_flow, field):
    assert not matches(make_flow(), FlowFilter(**{field: ("x",)}))


def test_drops(make_flow):
    dropped = make_flow(type=1, reason=-133)
    assert matches(dropped, FlowFilter(drop_reason_desc=(133,), verdict=(2,)))
    assert not matches(dropped, FlowFilter(drop_reason_desc=(132,)))
    assert matches(dropped, FlowFilter(reply=(False,))), "a drop whose side is not known counts as no reply"
    assert not matches(dropped, FlowFilter(reply=(True,)))
    assert matches(dropped, FlowFilter(event_type=(EventTypeMatch(1, True, 133),)))


def test_a_translated_socket_is_neither_reply_nor_not(make_flow):
    flow = make_flow(type=7, ifindex=0)
    assert not matches(flow, FlowFilter(reply=(True, False)))


def test_ports_belong_to_protocols_that_have_them(make_flow):
    ping = make_flow(protocol=1, icmp_type=8)
    assert matches(make_flow(protocol=2), FlowFilter(protocol=("igmp",)))
    assert matches(make_flow(protocol=112), FlowFilter(protocol=("vrrp",)))
    assert not matches(ping, FlowFilter(destination_port=("5432",)))
    assert matches(ping, FlowFilter(protocol=("icmp",)))
    assert matches(ping, FlowFilter(protocol=("icmpv4",)))
    assert not matches(ping, FlowFilter(protocol=("icmpv6",)))
    assert not matches(ping, FlowFilter(tcp_flags=(2,)))


def test_fields_of_a_filter_are_and_filters_of_a_list_are_or(make_flow):
    flow = make_flow()
    web, to_80 = FlowFilter(source_pod=("shop/web",)), FlowFilter(destination_port=("80",))
    both = FlowFilter(source_pod=("shop/web",), destination_port=("80",))
    assert matches(flow, web, to_80)
    assert not matches(flow, both)
    assert not matches(flow, web, blacklist=[web])
    assert matches(flow, web, blacklist=[both])
    assert matches(flow)
    assert matches(flow, FlowFilter()), "an empty filter wants everything"


def test_reserved_ends_have_labels_but_no_pod(make_flow):
    flow = make_flow(daddr=ip_address("192.0.2.1"), dst_identity=2)
    assert matches(flow, FlowFilter(destination_label=("reserved:world",)))
    assert not matches(flow, FlowFilter(destination_pod=("/",)))
    assert not matches(flow, FlowFilter(destination_cluster_name=("*",)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("source_ip", "10.0.0.300", "source_ip: '10.0.0.300' does not appear to be"),
        ("destination_ip", "10.0.0.0/40", "destination_ip: .*10.0.0.0/40"),
        ("source_pod", "", r"source_pod: expected \[namespace/\]name, got ''"),
        ("source_pod", "a/b/c", "got 'a/b/c'"),
        ("destination_port", "http", "destination_port: expected a port 0-65535, got 'http'"),
        ("source_port", "70000", "got '70000'"),
        ("protocol", "quic", "protocol: unknown protocol 'quic'"),
        ("source_label", "app in web", "source_label: label selector: cannot read 'app in web'"),
        ("node_name", "a/b/c", r"node_name: expected \[cluster/\]node"),
        ("node_name", "a b", "node_name: expected a name"),
    ],
)
def test_a_filter_that_cannot_be_read_names_its_field(field, value, message):
    with pytest.raises(FilterError, match=message):
        compile_filters([FlowFilter(**{field: (value,)})], [], ORIGIN)


def test_uuids_differ_and_have_their_shape():
    assert ORIGIN.uuid(1) == "01234567-89ab-cdef-0123-000000000001"
    assert ORIGIN.uuid(2) != ORIGIN.uuid(1)


_KEYS = st.sampled_from(["app", "tier", "io.kubernetes.pod.namespace"])
_VALUES = st.sampled_from(["a", "b", "web-1", ""])
_LABELS = st.dictionaries(_KEYS, _VALUES, max_size=3)


@given(
    labels=_LABELS, key=_KEYS, values=st.lists(_VALUES, min_size=1, max_size=3), source=st.sampled_from(["", "k8s:"])
)
def test_selectors_follow_kubernetes(labels, key, values, source):
    party = tuple(f"k8s:{k}={v}" for k, v in labels.items())
    joined = ", ".join(values)
    has = labels.get(key) in values if key in labels else False
    assert selector.parse(f"{source}{key} in ({joined})")(party) is has
    assert selector.parse(f"{source}{key} notin ({joined})")(party) is not has
    assert selector.parse(f"{source}{key}={values[0]}")(party) is (labels.get(key) == values[0])
    assert selector.parse(f"{source}{key} != {values[0]}")(party) is (labels.get(key) != values[0])
    assert selector.parse(f"{source}{key}")(party) is (key in labels)
    assert selector.parse(f"!{source}{key}")(party) is (key not in labels)
    assert selector.parse(f"{key},!{key}")(party) is False
