"""Any policies, any pods: the engine, the compiled entries and a second reading of the specification agree."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netpolicy.evaluate import Evaluator
from netpolicy.explain import explain
from netpolicy.parse import network_policy
from netpolicy.party import Party, Traffic
from netpolicy.types import Protocol
from nodenet.abi import Rule
from tests.unit.netpolicy import spec
from tests.unit.netpolicy.datapath import Packet
from tests.unit.netpolicy.strategies import OUTSIDE, PORTS, PROTOCOLS, namespaces, pods, policies
from tests.unit.netpolicy.world import compiled, datapath_of, policy_pod

Obj = dict[str, Any]
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def outsider(ip: str) -> Obj:
    return {"namespace": "", "name": ip, "labels": None, "ip": ip, "ports": []}


def pairs(cluster: list[Obj]) -> Iterator[tuple[Obj, Obj]]:
    """Every ordered pair of one family with at least one pod in it."""
    ends = cluster + [outsider(ip) for ip in OUTSIDE]
    for source in ends:
        for destination in ends:
            same_family = (":" in source["ip"]) == (":" in destination["ip"])
            inside = source["labels"] is not None or destination["labels"] is not None
            if source is not destination and same_family and inside:
                yield source, destination


def party(end: Obj) -> Party:
    if end["labels"] is None:
        return Party(end["name"], None, ip_address(end["ip"]))
    return Party.of(policy_pod(end), ip_address(end["ip"]))


@settings(max_examples=150, deadline=None, suppress_health_check=_SLOW)
@given(pods(), namespaces(), policies(), st.sampled_from(PORTS), st.sampled_from(PROTOCOLS))
def test_three_readings_agree(
    cluster: list[Obj], names: dict[str, dict[str, str]], given_policies: list[Obj], port: int, protocol: str
) -> None:
    evaluator = Evaluator([network_policy(policy) for policy in given_policies], names)
    datapath = datapath_of(cluster, compiled(cluster, names, given_policies))
    for source, destination in pairs(cluster):
        wanted = spec.allowed(given_policies, names, source, destination, protocol, port)
        traffic = Traffic(Protocol(protocol), port)
        assert evaluator.verdict(party(source), party(destination), traffic).allowed is wanted
        packet = Packet(ip_address(source["ip"]), ip_address(destination["ip"]), protocol, port)
        assert datapath.allowed(packet) is wanted


@settings(max_examples=60, deadline=None, suppress_health_check=_SLOW)
@given(pods(), namespaces(), policies(), st.sampled_from(PORTS), st.sampled_from(PROTOCOLS))
def test_explanations_say_what_is_true(
    cluster: list[Obj], names: dict[str, dict[str, str]], given_policies: list[Obj], port: int, protocol: str
) -> None:
    """Each rule said to allow does so alone; a denial names every isolating policy and a reason for each rule."""
    parsed = [network_policy(policy) for policy in given_policies]
    evaluator = Evaluator(parsed, names)
    for source, destination in pairs(cluster):
        answer = explain(evaluator, party(source), party(destination), Traffic(Protocol(protocol), port))
        assert answer.allowed == (answer.egress.allowed and answer.ingress.allowed)
        for side in (answer.egress, answer.ingress):
            assert bool(side.missing) is not side.allowed
            isolating = {policy.ref: policy for policy in parsed if policy.ref in side.isolated_by}
            if not side.allowed:
                rules = sum(max(1, len(policy.rules(side.direction))) for policy in isolating.values())
                assert len(side.misses) == rules
                assert all(miss.text and not (miss.peer_matches and miss.port_matches) for miss in side.misses)
            for ref in side.allowed_by:
                assert any(
                    (policy.namespace, policy.name) == (ref.namespace, ref.policy) for policy in isolating.values()
                )


@settings(max_examples=60, deadline=None, suppress_health_check=_SLOW)
@given(pods(), namespaces(), policies())
def test_a_further_pod_of_a_known_kind_changes_no_entry(
    cluster: list[Obj], names: dict[str, dict[str, str]], given_policies: list[Obj]
) -> None:
    """But for the rare egress rule that joins an ipBlock with a named port, which is about that pod's own address."""
    joined = any(
        "ipBlock" in peer and isinstance(entry.get("port"), str)
        for policy in given_policies
        for rule in policy["spec"].get("egress", [])
        for peer in rule.get("to", [])
        for entry in rule.get("ports", [])
    )
    if joined:
        return
    before = compiled(cluster, names, given_policies)
    after = compiled([*cluster, {**cluster[0], "name": "further", "ip": "10.0.0.77"}], names, given_policies)
    assert (after.policy, after.cidr) == (before.policy, before.cidr)
    assert {rule.verdict for rule in after.policy.values()} <= {Rule.allow(0).verdict}, "all are equally strong"
