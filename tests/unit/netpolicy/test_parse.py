"""What the API server refuses is refused, with object, field and what was expected; what it accepts is understood."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from netpolicy.parse import network_policy, read
from netpolicy.types import Direction, Peer, PolicyError, PortRule, Protocol, Selector

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS


def policy(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": spec,
    }


def port(**fields: Any) -> dict[str, Any]:
    return policy(ingress=[{"ports": [fields]}])


def peer(**fields: Any) -> dict[str, Any]:
    return policy(egress=[{"to": [fields]}])


def expression(**fields: Any) -> dict[str, Any]:
    return policy(podSelector={"matchExpressions": [fields]})


PORT, PEER, TERM = "spec.ingress[0].ports[0]", "spec.egress[0].to[0]", "spec.podSelector.matchExpressions[0]"
LONG = "x" * 64


@pytest.mark.parametrize(
    ("obj", "field", "message"),
    [
        (port(port=0), f"{PORT}.port", "expected 1-65535, got 0"),
        (port(port=99999), f"{PORT}.port", "expected 1-65535, got 99999"),
        (port(port=True), f"{PORT}.port", "expected a whole number"),
        (port(port=80.5), f"{PORT}.port", "expected a whole number"),
        (port(port="80"), f"{PORT}.port", "expected a port number, or a port name"),
        (port(port="Http"), f"{PORT}.port", "expected a port number, or a port name"),
        (port(port="a--b"), f"{PORT}.port", "port name"),
        (port(port="-web"), f"{PORT}.port", "port name"),
        (port(port="sixteen-letters-x"), f"{PORT}.port", "port name"),
        (port(port=80, endPort=79), f"{PORT}.endPort", "expected port 80 or more, got 79"),
        (port(port=80, endPort=65536), f"{PORT}.endPort", "expected 1-65535, got 65536"),
        (port(port="http", endPort=90), f"{PORT}.endPort", "endPort needs a numeric port"),
        (port(endPort=90), f"{PORT}.endPort", "endPort needs a port"),
        (port(protocol="ICMP"), f"{PORT}.protocol", "expected one of TCP, UDP, SCTP, got 'ICMP'"),
        (port(protocol="tcp"), f"{PORT}.protocol", "expected one of TCP, UDP, SCTP"),
        (port(prot="TCP"), f"{PORT}.prot", "unknown field; expected one of protocol, port, endPort"),
        (peer(), PEER, "expected podSelector, namespaceSelector or ipBlock"),
        (peer(ipBlock={"cidr": "10.0.0.0/8"}, podSelector={}), f"{PEER}.ipBlock", "cannot be combined"),
        (peer(ipBlock={"cidr": "10.0.0.0/8"}, namespaceSelector={}), f"{PEER}.ipBlock", "cannot be combined"),
        (peer(ipBlock={}), f"{PEER}.ipBlock.cidr", "expected text, got nothing"),
        (peer(ipBlock={"cidr": "10.0.0.1"}), f"{PEER}.ipBlock.cidr", "expected a CIDR"),
        (peer(ipBlock={"cidr": "10.0.0.0/33"}), f"{PEER}.ipBlock.cidr", "expected a CIDR"),
        (peer(ipBlock={"cidr": "10.0.0.0/255.0.0.0"}), f"{PEER}.ipBlock.cidr", "expected a CIDR"),
        (peer(ipBlock={"cidr": "example.org/8"}), f"{PEER}.ipBlock.cidr", "expected a CIDR"),
        (peer(ipBlock={"cidr": "fe80::%eth0/64"}), f"{PEER}.ipBlock.cidr", "expected a CIDR"),
        (
            peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}),
            f"{PEER}.ipBlock.except[0]",
            "expected a part of 10.0.0.0/8",
        ),
        (
            peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16"]}),
            f"{PEER}.ipBlock.except[1]",
            "got '11.0.0.0/16'",
        ),
        (
            peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["2001:db8::/64"]}),
            f"{PEER}.ipBlock.except[0]",
            "expected a part",
        ),
        (peer(podSelektor={}), f"{PEER}.podSelektor", "unknown field"),
        (policy(egress=[{"to": [None]}]), PEER, "expected a mapping"),
        (policy(ingress=[None]), "spec.ingress[0]", "expected a mapping"),
        (policy(ingress=[{"to": []}]), "spec.ingress[0].to", "unknown field; expected one of ports, from"),
        (policy(ingress={}), "spec.ingress", "expected a list"),
        (policy(ingress=["all"]), "spec.ingress[0]", "expected a mapping, got 'all'"),
        (policy(podSelectors={}), "spec.podSelectors", "unknown field"),
        (policy(podSelector=[]), "spec.podSelector", "expected a mapping"),
        (policy(policyTypes=["ingress"]), "spec.policyTypes[0]", "expected one of Ingress, Egress, got 'ingress'"),
        (policy(policyTypes=["Ingress"] * 3), "spec.policyTypes", "at most two"),
        (
            policy(podSelector={"matchLabels": {"a": True}}),
            "spec.podSelector.matchLabels[a]",
            "expected text, got True",
        ),
        (policy(podSelector={"matchLabels": {"a b": "c"}}), "spec.podSelector.matchLabels", "got 'a b'"),
        (policy(podSelector={"matchLabels": {"a": "-b"}}), "spec.podSelector.matchLabels[a]", "expected a label value"),
        (policy(podSelector={"matchLabels": {LONG: "b"}}), "spec.podSelector.matchLabels", "at most 63"),
        (policy(podSelector={"matchLabels": {"A_B/c": "d"}}), "spec.podSelector.matchLabels", "before the /"),
        (policy(podSelector={"matchLabels": {"a": LONG}}), "spec.podSelector.matchLabels[a]", "at most 63"),
        (expression(key="a", operator="in", values=["b"]), f"{TERM}.operator", "expected one of In, NotIn, Exists"),
        (expression(key="a", operator="In"), f"{TERM}.values", "operator In needs at least one value"),
        (expression(key="a", operator="NotIn", values=[]), f"{TERM}.values", "operator NotIn needs"),
        (expression(key="a", operator="Exists", values=["b"]), f"{TERM}.values", "operator Exists must have no values"),
        (expression(key="a", operator="In", values=["b c"]), f"{TERM}.values[0]", "expected a label value"),
        (expression(operator="Exists"), f"{TERM}.key", "expected text, got nothing"),
        (expression(key="a", operator="Exists", value="b"), f"{TERM}.value", "unknown field"),
        ({**policy(), "kind": "Policy"}, "kind", "expected NetworkPolicy"),
        ({**policy(), "apiVersion": "extensions/v1beta1"}, "apiVersion", "expected networking.k8s.io/v1"),
    ],
)
def test_refused(obj: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        network_policy(obj)
    error = caught.value
    assert error.object == "NetworkPolicy shop/web"
    assert error.field == field
    assert message in error.message
    assert str(error) == f"{error.object}: {error.field}: {error.message}"


@pytest.mark.parametrize("name", [None, 3, "Web", "a_b", ""])
def test_a_name_that_is_none(name: object) -> None:
    with pytest.raises(PolicyError, match=r"metadata\.name"):
        network_policy({**policy(), "metadata": {"name": name}})


@pytest.mark.parametrize(
    ("spec", "directions"),
    [
        ({}, {INGRESS}),
        ({"policyTypes": []}, {INGRESS}),
        ({"ingress": [{}]}, {INGRESS}),
        ({"egress": []}, {INGRESS}),
        ({"egress": [{}]}, {INGRESS, EGRESS}),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, {EGRESS}),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, {INGRESS}),
        ({"policyTypes": ["Egress", "Ingress"]}, {INGRESS, EGRESS}),
    ],
)
def test_policy_types(spec: dict[str, Any], directions: set[Direction]) -> None:
    assert network_policy(policy(**spec)).directions == directions


def test_defaults_and_what_null_means() -> None:
    """null is the same as absent, empty is not: an absent `from` is everyone, an absent podSelector every pod."""
    found = network_policy(
        policy(
            podSelector=None, ingress=[{"from": None, "ports": [{"port": 80}, {"protocol": "UDP"}, {"port": "dns"}]}]
        )
    )
    assert found.selector == Selector()
    assert found.ingress[0].peers == ()
    assert found.ingress[0].ports == (PortRule(Protocol.TCP, 80), PortRule(Protocol.UDP), PortRule(Protocol.TCP, "dns"))
    assert found.namespace == "shop"
    assert network_policy({**policy(), "metadata": {"name": "web"}}).namespace == "default"


def test_cidrs_are_read_as_the_api_server_reads_them() -> None:
    """Bits beyond the length do not count, nor do leading zeros."""
    found = network_policy(peer(ipBlock={"cidr": "010.0.0.7/8", "except": ["10.1.2.3/16"]}))
    block = found.egress[0].peers[0].block
    assert block is not None
    assert (block.cidr, block.excepts) == (ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),))


def test_fields_of_a_newer_api_never_open_anything() -> None:
    newer = policy(ingress=[{"from": [{"serviceSelector": {}}]}])
    with pytest.raises(PolicyError, match="unknown field"):
        network_policy(newer)
    assert read(newer).policy.ingress[0].peers == (Peer(),)
