"""What another set of policies changes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from netpolicy.cluster import Cluster, ContainerPort, Node, Pod
from netpolicy.diff import _representative, compare, effect, together
from netpolicy.objects import cluster as read
from netpolicy.parse import network_policy
from netpolicy.party import Traffic
from netpolicy.recorded import End, Seen
from netpolicy.types import Protocol
from tests.unit.netpolicy import spec
from tests.unit.netpolicy.strategies import namespaces, pods, policies
from tests.unit.netpolicy.world import policy_pod

Obj = dict[str, Any]


def pod(name: str, ip: str, *ports: int) -> Pod:
    return Pod.of("shop", name, {"app": name}, [ip_address(ip)], [ContainerPort(port) for port in ports], workload=name)


WEB, DB = pod("web", "10.0.0.1", 8080), pod("db", "10.0.0.2", 5432)
BASE = Cluster((WEB, DB), nodes=(Node("n1", (ip_address("172.30.0.1"),)),))


def policy(name: str, **spec: Any) -> Obj:
    metadata = {"name": name, "namespace": "shop"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def with_policies(*given: Obj) -> Cluster:
    return replace(BASE, policies=read(given).policies)


DENY = policy("deny", podSelector={})
FROM_WEB = policy(
    "db",
    podSelector={"matchLabels": {"app": "db"}},
    ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}],
)


def shown(before: Cluster, after: Cluster) -> set[tuple[str, str, int, bool]]:
    return {(c.source, c.destination, c.port, c.after) for c in compare(before, after).changes}


def test_pods_and_outside() -> None:
    assert shown(BASE, with_policies(DENY, FROM_WEB)) == {
        ("shop/db", "shop/web", 8080, False),
        ("192.0.2.1", "shop/web", 8080, False),
        ("192.0.2.1", "shop/db", 5432, False),
    }
    assert shown(with_policies(DENY), with_policies(DENY, FROM_WEB)) == {("shop/web", "shop/db", 5432, True)}
    assert shown(with_policies(DENY, FROM_WEB), with_policies(FROM_WEB, DENY)) == set()
    found = compare(BASE, with_policies(DENY, FROM_WEB))
    # Two pairs, each pod from outside, and each pod to two usual ports outside.
    assert found.compared == 2 + 2 + 2 * 2
    assert {c.source_group for c in found.changes} == {"shop/db", "outside (192.0.2.1)"}


def test_each_range_of_addresses_is_asked() -> None:
    block = {"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.0/25"]}}
    narrow = policy("out", podSelector={}, policyTypes=["Egress"], egress=[{"to": [block], "ports": [{"port": 6443}]}])
    changed = shown(with_policies(policy("out", podSelector={}, policyTypes=["Egress"])), with_policies(narrow))
    assert changed == {(str(each), "198.51.100.128", 6443, True) for each in (WEB, DB)}


def test_ports_that_are_asked_for() -> None:
    found = compare(BASE, with_policies(DENY), [ContainerPort(9999)])
    assert {(c.port, c.source) for c in found.changes} == {
        (9999, "shop/web"),
        (9999, "shop/db"),
        (9999, "192.0.2.1"),
    }


def test_pods_and_namespaces_of_both_sets_are_compared() -> None:
    labelled = policy("ns", podSelector={}, ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]}])
    before = replace(with_policies(labelled), namespaces={"shop": {"team": "a"}})
    new = pod("new", "10.0.0.3", 80)
    after = replace(with_policies(labelled), pods=(new,), namespaces={"shop": {"team": "b"}})
    one, two = together(before, after)
    assert [str(each) for each in one.pods] == [str(each) for each in two.pods] == ["shop/db", "shop/new", "shop/web"]
    assert ("shop/web", "shop/new", 80, False) in shown(one, two)


@pytest.mark.parametrize(
    ("network", "taken", "address"),
    [
        ("0.0.0.0/0", ["0.0.0.0/0"], "192.0.2.1"),
        ("0.0.0.0/0", ["192.0.0.0/8"], "0.0.0.0"),
        ("10.0.0.0/8", ["10.0.0.0/16", "10.1.0.0/16"], "10.2.0.0"),
        ("10.0.0.0/8", ["10.0.0.0/16", "10.0.0.0/24"], "10.1.0.0"),
        ("10.0.0.0/30", ["10.0.0.0/31", "10.0.0.2/31"], None),
        ("10.0.0.1/32", ["10.0.0.1/32", "10.0.0.0/8"], "10.0.0.1"),
        ("2001:db8::/32", ["10.0.0.0/8"], "2001:db8::1"),
    ],
)
def test_an_address_of_a_range(network: str, taken: list[str], address: str | None) -> None:
    found = _representative(ip_network(network), [ip_network(each) for each in taken])
    assert found == (ip_address(address) if address else None)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(pods(), namespaces(), policies(), policies())
def test_every_change_is_one_by_another_reading(
    given_pods: list[Obj], names: dict[str, dict[str, str]], first: list[Obj], second: list[Obj]
) -> None:
    """Also that nothing between pods is missed: the second reading computes every pair."""
    sets = [
        Cluster(tuple(map(policy_pod, given_pods)), names, tuple(network_policy(each) for each in given))
        for given in (first, second)
    ]
    changes = {(c.source, c.destination, c.port, c.protocol): (c.before, c.after) for c in compare(*sets).changes}
    ends = {f"{each['namespace']}/{each['name']}": each for each in given_pods}

    def read_again(source: str, destination: str, port: int, protocol: str) -> tuple[bool, ...]:
        outside = {"namespace": "", "labels": None, "ports": []}
        one, two = (ends.get(name) or {**outside, "ip": name} for name in (source, destination))
        return tuple(spec.allowed(given, names, one, two, protocol, port) for given in (first, second))

    for key, verdicts in changes.items():
        assert read_again(*key) == verdicts
    for source, one in ends.items():
        for destination, two in ends.items():
            for port, protocol, _ in two["ports"]:
                key = (source, destination, port, protocol)
                if one is not two and (":" in one["ip"]) == (":" in two["ip"]) and key not in changes:
                    assert len(set(read_again(*key))) == 1


def seen(source: Pod, destination: Pod, port: int, protocol: Protocol | None = Protocol.TCP) -> Seen:
    ends = [End(each.ips[0], each.namespace, each.name, each.labels.labels) for each in (source, destination)]
    return Seen(ends[0], ends[1], Traffic(protocol, port))


def test_recorded_connections() -> None:
    allowed, other, ping = seen(WEB, DB, 5432), seen(DB, WEB, 8080), seen(WEB, DB, 0, None)
    found = effect([allowed, other, ping], [], BASE, with_policies(DENY, FROM_WEB))
    assert (found.cut, found.opened, found.denied) == ((other,), (), ())
    found = effect([other], [allowed], with_policies(DENY), with_policies(DENY, FROM_WEB))
    assert (found.cut, found.opened, found.denied) == ((), (allowed,), (other,))
