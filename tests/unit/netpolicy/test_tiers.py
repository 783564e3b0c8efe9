"""Three tiers together: the engine, the compiled entries and a second reading of the specification agree."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from netpolicy.cluster import Node
from netpolicy.evaluate import Evaluator
from netpolicy.explain import as_json, explain
from netpolicy.party import Traffic
from netpolicy.types import Action, Direction, Protocol, Tier
from tests.unit.netpolicy import spec
from tests.unit.netpolicy.datapath import Packet
from tests.unit.netpolicy.strategies import NODES, PORTS, PROTOCOLS, cluster_policies, namespaces, pods, policies
from tests.unit.netpolicy.test_properties import _SLOW, pairs, party
from tests.unit.netpolicy.world import compiled, datapath_of, parsed

Obj = dict[str, Any]


def engine_nodes() -> list[Node]:
    return [Node(node["name"], tuple(map(ip_address, node["ips"])), (), node["labels"]) for node in NODES]


@settings(max_examples=150, deadline=None, suppress_health_check=_SLOW)
@given(pods(), namespaces(), policies(), cluster_policies(), st.sampled_from(PORTS), st.sampled_from(PROTOCOLS))
def test_three_readings_agree(
    cluster: list[Obj],
    names: dict[str, dict[str, str]],
    own: list[Obj],
    wide: list[Obj],
    port: int,
    protocol: str,
) -> None:
    given_policies = own + wide
    evaluator = Evaluator(map(parsed, given_policies), names, engine_nodes())
    datapath = datapath_of(cluster, compiled(cluster, names, given_policies, nodes=engine_nodes()))
    for source, destination in pairs(cluster):
        wanted = spec.allowed(given_policies, names, source, destination, protocol, port, NODES)
        traffic = Traffic(Protocol(protocol), port)
        assert evaluator.verdict(party(source), party(destination), traffic).allowed is wanted
        packet = Packet(ip_address(source["ip"]), ip_address(destination["ip"]), protocol, port)
        assert datapath.allowed(packet) is wanted


@settings(max_examples=60, deadline=None, suppress_health_check=_SLOW)
@given(pods(), namespaces(), policies(), cluster_policies(), st.sampled_from(PORTS), st.sampled_from(PROTOCOLS))
def test_explanations_say_what_is_true(
    cluster: list[Obj],
    names: dict[str, dict[str, str]],
    own: list[Obj],
    wide: list[Obj],
    port: int,
    protocol: str,
) -> None:
    """A rule that is said to decide has the action of the verdict, and the tiers are asked in their order."""
    given_policies = [parsed(policy) for policy in own + wide]
    evaluator = Evaluator(given_policies, names, engine_nodes())
    actions = {
        policy.rule_ref(direction, index): rule.action
        for policy in given_policies
        for direction in Direction
        for index, rule in enumerate(policy.rules(direction))
    }
    for source, destination in pairs(cluster):
        answer = explain(evaluator, party(source), party(destination), Traffic(Protocol(protocol), port))
        assert answer.allowed == (answer.egress.allowed and answer.ingress.allowed)
        for side in (answer.egress, answer.ingress):
            assert bool(side.missing) is not side.allowed
            assert not (side.allowed_by and side.denied_by)
            assert all(actions[ref] is Action.DENY for ref in side.denied_by)
            assert all(actions[ref] is Action.ACCEPT for ref in side.allowed_by)
            assert all(actions[ref] is Action.PASS for ref in side.passed_by)
            tiers = [step.tier for step in side.steps]
            assert tiers == [Tier.ADMIN, Tier.NETWORK_POLICY, Tier.BASELINE][: len(tiers)]
            assert as_json(answer)["allowed"] is answer.allowed
