"""ClusterNetworkPolicies: the parser refuses what the schema of the definition refuses, at the same field, and closes
what it cannot read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from netpolicy.parse_cluster import cluster_policy, read
from netpolicy.types import (
    Action,
    ClusterPolicy,
    Direction,
    Peer,
    PolicyError,
    PortRule,
    Protocol,
    Rule,
    Selector,
    Tier,
    UnreadableError,
)
from tests.unit.netpolicy import crd_schema

Obj = dict[str, Any]
SCHEMA = crd_schema.schema()
WHOLE = yaml.safe_load("""
tier: Admin
priority: 10
subject:
  pods:
    namespaceSelector: {matchLabels: {a: b}}
    podSelector: {matchExpressions: [{key: k, operator: In, values: [v]}]}
ingress:
- name: first
  action: Accept
  from: [{namespaces: {}}, {pods: {namespaceSelector: {}, podSelector: {}}}]
  protocols:
  - tcp: {destinationPort: {number: 80}}
  - udp: {destinationPort: {range: {start: 1, end: 9}}}
  - destinationNamedPort: http
egress:
- action: Deny
  to: [{networks: [10.0.0.0/8, "2001:db8::/64"]}, {nodes: {matchLabels: {role: worker}}}]
  protocols: [{sctp: {destinationPort: {number: 65535}}}]
- action: Accept
  to: [{domainNames: ["*.example.com", kubernetes.io.]}]
- action: Pass
  to: [{pods: {podSelector: {matchLabels: {a: b}}}}]
  protocols: [{destinationNamedPort: dns}]
""")
# What any value may become.
_OTHERS: tuple[Any, ...] = (
    *(None, "", "x", "Admin", "a" * 101, -1, 0, 5, 1001, 65536, True, 1.5),
    *("10.0.0.1", "10.0.0.0/33", "010.0.0.0/8", "10.0.0.0/08", "::ffff:10.0.0.0/104", "::/0", "fe80::%1/64"),
    *([], {}, [None], [{}], ["x", "x"], {"x": 1}, {"x": "y"}, {"number": 1, "range": {"start": 1, "end": 2}}),
)


def obj(spec: Any) -> Obj:
    meta = {
        "metadata": {"name": "p"},
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
    }
    return {**meta, "spec": spec}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def mutants() -> Iterator[Any]:
    """Each place of WHOLE replaced, deleted, doubled, given an unknown field, or made too long."""
    for path in places(WHOLE):
        if not path:
            yield from _OTHERS
            continue
        *way, last = path
        for other in (*_OTHERS, "DELETE", "UNKNOWN", "DOUBLE", "LONG"):
            found = copy.deepcopy(WHOLE)
            parent = found
            for key in way:
                parent = parent[key]
            own = parent[last]
            if other == "DELETE":
                del parent[last]
            elif other == "UNKNOWN" and isinstance(own, dict):
                own["novelty"] = 1
            elif other == "DOUBLE" and isinstance(own, list):
                own.append(copy.deepcopy(own[0]))
            elif other == "LONG" and isinstance(own, list):
                parent[last] = [copy.deepcopy(own[0]) for _ in range(26)]
            else:
                parent[last] = other
            yield found


def test_the_whole_object_is_accepted() -> None:
    assert crd_schema.refused(WHOLE, SCHEMA) == set()
    assert read(obj(WHOLE)).errors == ()


def test_what_the_schema_refuses_is_refused_at_the_same_field() -> None:
    checked = refusals = 0
    for spec in mutants():
        wanted = crd_schema.refused(spec, SCHEMA)
        errors = [error for error in read(obj(spec)).errors if not isinstance(error, UnreadableError)]
        found = {error.field for error in errors}
        assert bool(found) is bool(wanted), (spec, found, wanted)
        # One problem may hide another one beside it.
        assert found <= wanted, (spec, found, wanted)
        assert all(error.object == "ClusterNetworkPolicy p" and error.message for error in errors)
        checked += 1
        refusals += bool(wanted)
    assert checked > 2200
    assert checked - 100 > refusals > 1500


def found(**change: Any) -> ClusterPolicy:
    return read(obj({**WHOLE, **change})).policy


def test_a_whole_policy() -> None:
    policy = cluster_policy(obj(WHOLE))
    assert (policy.tier, policy.priority, policy.directions) == (Tier.ADMIN, 10, frozenset(Direction))
    first = policy.ingress[0]
    assert (first.action, first.name) == (Action.ACCEPT, "first")
    assert first.ports[:2] == (PortRule(Protocol.TCP, 80), PortRule(Protocol.UDP, 1, 9))
    # A name has no protocol.
    assert first.ports[2:] == tuple(PortRule(protocol, "http") for protocol in Protocol)
    assert [str(peer) for peer in policy.egress[0].peers] == [
        "ipBlock 10.0.0.0/8",
        "ipBlock 2001:db8::/64",
        "nodes role=worker",
    ]
    assert policy.egress[1] == NOTHING, "domainNames"
    assert [(p.field, p.message) for p in policy.problems] == [
        ("spec.egress[1].to[0].domainNames", "domainNames are not enforced")
    ]
    assert policy.egress[2].peers[0].namespaces == Selector(), "all namespaces"


NOTHING = Rule((Peer(),), (), Action.ACCEPT)
EVERYTHING = Rule((), (), Action.DENY)


@pytest.mark.parametrize(
    "part",
    [
        {"from": [{"namespaces": {}}, {"novelty": {}}]},
        {"from": [{"namespaces": {}}, {}]},
        {"from": [{"namespaces": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}]},
        {"from": []},
        {"from": None},
        {"protocols": [{"novelty": {}}]},
        {"protocols": [{"tcp": {"destinationPort": {"number": 80}}}, {"tcp": {}}]},
        {"protocols": []},
        {"novelty": 1},
    ],
)
def test_a_rule_with_a_part_that_cannot_be_read_closes(part: Obj) -> None:
    for action, wanted in (("Accept", NOTHING), ("Deny", EVERYTHING), ("Pass", EVERYTHING)):
        policy = found(ingress=[{"action": action, "from": [{"namespaces": {}}], **part}])
        assert policy.ingress == (wanted,)
        assert policy.problems[0].concerns(Direction.INGRESS, 0)


@pytest.mark.parametrize("action", ["Allow", None, 5])
def test_a_rule_of_an_unknown_action_denies_everything(action: Any) -> None:
    assert found(ingress=[{"action": action, "from": [{"namespaces": {}}]}]).ingress == (EVERYTHING,)


@pytest.mark.parametrize(
    "part", [{"tier": "Middle"}, {"priority": 1001}, {"subject": {}}, {"subject": {"novelty": {}}}, {"novelty": 1}]
)
def test_a_policy_whose_place_cannot_be_read_closes(part: Obj) -> None:
    policy = found(**part)
    assert [rule.action for rule in policy.ingress] == [Action.ACCEPT]
    assert policy.ingress[0].peers == (Peer(),)
    assert policy.egress == (EVERYTHING, NOTHING, EVERYTHING)
    if "tier" in part or "priority" in part:
        assert (policy.tier, policy.priority) == (Tier.ADMIN, 0 if "priority" in part else 10)
    if "subject" in part:
        assert policy.subject == Peer(namespaces=Selector())


@pytest.mark.parametrize("section", [5, "x", {}, [{"action": "Accept", "from": [{"namespaces": {}}]}] * 26])
def test_rules_that_are_no_list_or_too_many_deny_the_direction(section: Any) -> None:
    policy = found(ingress=section)
    assert policy.ingress == (EVERYTHING,)
    assert policy.egress == found().egress


def test_a_spec_that_cannot_be_read_denies_everything_for_every_pod() -> None:
    policy = read(obj(None)).policy
    assert (policy.subject, policy.tier, policy.priority) == (Peer(namespaces=Selector()), Tier.ADMIN, 0)
    assert policy.ingress == policy.egress == (EVERYTHING,)


def test_a_manifest_is_refused_with_its_field() -> None:
    with pytest.raises(PolicyError, match=r"ClusterNetworkPolicy p: spec.tier: expected one of Admin, Basel"):
        cluster_policy(obj({**WHOLE, "tier": "x"}))
    with pytest.raises(PolicyError, match=r"apiVersion: expected policy\.networking"):
        cluster_policy({**obj(WHOLE), "apiVersion": "policy.networking.k8s.io/v1"})
