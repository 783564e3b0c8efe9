"""What cannot be read of a policy that an API server accepted isolates, and allows nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from netpolicy.evaluate import Evaluator
from netpolicy.explain import explain
from netpolicy.lint import lint
from netpolicy.objects import cluster
from netpolicy.parse import network_policy, read
from netpolicy.party import Traffic
from netpolicy.types import NOTHING, Direction, IPBlock, Peer, PolicyError, PortRule, Protocol, Rule, Selector
from netpolicy.types import NetworkPolicy as Policy
from tests.unit.netpolicy.strategies import PORTS, PROTOCOLS, namespaces, pods, policies
from tests.unit.netpolicy.test_properties import pairs, party

Obj = dict[str, Any]
BOTH = frozenset(Direction)
WEB = {"matchLabels": {"app": "web"}}


def policy(**spec: Any) -> Obj:
    return {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"podSelector": WEB, **spec}}


def found(**spec: Any) -> Policy:
    return read(policy(**spec)).policy


def rule(**fields: Any) -> Rule:
    return found(ingress=[{}, fields]).ingress[1]


@pytest.mark.parametrize(
    "port",
    [
        {"port": 0},
        {"port": 80, "endPort": 79},
        {"port": 80, "endPort": "90"},
        {"port": "80"},
        {"port": 80.0},
        {"endPort": 90},
        {"protocol": "QUIC"},
        {"port": 80, "protocol": ["TCP"]},
        {"port": 80, "sourcePort": 1000},  # a field of a newer API that narrows
        None,
        7,
    ],
)
def test_a_port_that_cannot_be_read_matches_nothing(port: Any) -> None:
    """It never becomes `no ports`, which would mean every port."""
    assert rule(ports=[port]) == NOTHING
    assert rule(ports=[port, {"port": 81}]) == Rule((), (PortRule(Protocol.TCP, 81),))


@pytest.mark.parametrize(
    "peer",
    [
        {},
        None,
        {"serviceSelector": {}},
        {"podSelector": {}, "serviceAccountSelector": {}},  # would narrow what podSelector says
        {"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}},
        {"podSelector": {"matchLabels": {"a": 7}}},
        {"podSelector": {"matchLabels": []}},
        {"podSelector": {"matchFields": {}}},
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}},
        {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn"}]}},
        {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "ignoreCase": True}]}},
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/33"]}},
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": "10.1.0.0/16"}},
        {"ipBlock": {"cidr": "10.0.0.0/8", "ports": [80]}},
        {"ipBlock": {"cidr": "ten"}},
    ],
)
def test_a_peer_that_cannot_be_read_matches_nobody(peer: Any) -> None:
    """It never leaves the list, for an empty list means everyone."""
    assert rule(**{"from": [peer]}) == Rule((Peer(),))
    assert rule(**{"from": [peer, {"podSelector": WEB}]}).peers[0] == Peer()
    evaluator = Evaluator([found(ingress=[{"from": [peer]}])], {})
    own = next(iter(cluster([pod("a", app="web")]).pods))
    other = next(iter(cluster([pod("b", app="x")]).pods))
    ends = (party_of(other), party_of(own))
    assert not evaluator.verdict(*ends, Traffic(Protocol.TCP, 80)).allowed


def pod(name: str, **labels: str) -> Obj:
    metadata = {"name": name, "namespace": "shop", "labels": labels}
    return {"kind": "Pod", "metadata": metadata, "spec": {}, "status": {"podIP": "10.0.0.9"}}


def party_of(read_pod: Any) -> Any:
    from netpolicy.party import Party

    return Party.of(read_pod, read_pod.ips[0])


@pytest.mark.parametrize(
    ("spec", "directions", "ingress"),
    [
        ({"ingress": [{"from": [], "when": "night"}]}, {Direction.INGRESS}, (NOTHING,)),
        ({"ingress": [{"from": {}}]}, {Direction.INGRESS}, (NOTHING,)),
        ({"ingress": [{"ports": 80}]}, {Direction.INGRESS}, (NOTHING,)),
        ({"ingress": "all"}, {Direction.INGRESS}, (NOTHING,)),
        ({"ingress": [None, {}]}, {Direction.INGRESS}, (NOTHING, Rule())),
        ({"ingress": [{}], "egress": {}}, BOTH, (Rule(),)),
        ({"ingress": [{}], "policyTypes": ["Ingress", "Forward"]}, BOTH, (Rule(),)),
        ({"ingress": [{}], "policyTypes": "Ingress"}, BOTH, (NOTHING,)),
        ({"ingress": [{}], "policyTypes": ["Egress", 1.5]}, BOTH, (NOTHING,)),
        ({"ingress": [{}], "policyTypes": ["Egress", "Ingress", "Egress"]}, BOTH, (Rule(),)),
        ({"ingress": [{}, {}], "action": "Deny", "policyTypes": ["Ingress"]}, {Direction.INGRESS}, (NOTHING, NOTHING)),
        ({"ingress": [{}, {}], "action": "Deny"}, BOTH, (NOTHING, NOTHING)),
        ({"x": 1.5, "podSelector": WEB}, BOTH, ()),
    ],
)
def test_directions_are_kept_and_rules_keep_their_place(spec: Any, directions: Any, ingress: Any) -> None:
    policy = found(**spec)
    assert (policy.directions, policy.ingress) == (directions, ingress)
    assert str(policy.selector) == "app=web"
    assert policy.problems


@pytest.mark.parametrize(
    "selector", [7, [], {"matchLabels": {"app": 1}}, {"matchExpressions": [{"key": "a", "operator": "Near"}]}, {"x": 1}]
)
def test_a_pod_selector_that_cannot_be_read_isolates_the_namespace_and_opens_nothing(selector: Any) -> None:
    """The pods that it does not mean must not get its rules, so nobody does."""
    policy = found(podSelector=selector, ingress=[{}], egress=[{}])
    assert (policy.selector, policy.directions) == (Selector(), BOTH)
    assert (policy.ingress, policy.egress) == ((NOTHING,), (NOTHING,))
    assert "isolates every pod of its namespace" in policy.problems[0].effect


@pytest.mark.parametrize("spec", [7, "x", []])
def test_a_spec_that_cannot_be_read_at_all(spec: Any) -> None:
    policy = read({"metadata": {"name": "a", "namespace": "b"}, "spec": spec}).policy
    assert (policy.selector, policy.directions, policy.ingress) == (Selector(), BOTH, ())


@pytest.mark.parametrize(
    ("cidr", "holes", "block"),
    [
        ("::ffff:192.168.0.0/112", [], ("192.168.0.0/16",)),
        ("::ffff:0:0/96", [], ("0.0.0.0/0",)),
        ("::/0", ["::ffff:10.0.0.0/104"], None),
        ("0.0.0.0/0", ["::ffff:10.0.0.0/104", "010.0.0.0/08"], ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/8")),
        ("010.000.0.0/8", ["10.08.0.0/16"], ("10.0.0.0/8", "10.8.0.0/16")),
        ("::ffff:1.2.3.4/64", [], ("::/64",)),
        ("2001:0db8:00000::/32", [], ("2001:db8::/32",)),
    ],
)
def test_cidrs_that_older_checks_accept_mean_what_go_means(cidr: str, holes: list[str], block: Any) -> None:
    (peer,) = rule(**{"from": [{"ipBlock": {"cidr": cidr, "except": holes}}]}).peers
    if block is None:
        assert peer == Peer()
        return
    assert isinstance(peer.block, IPBlock)
    assert (str(peer.block.cidr), *map(str, peer.block.excepts)) == block


def test_labels_that_no_pod_can_have_are_read_but_refused_in_manifests() -> None:
    """API servers keep such selectors in old objects. They select nothing, and that is what they say."""
    obj = policy(podSelector={"matchLabels": {"app": "not a label"}})
    assert read(obj).policy.problems == ()
    assert str(read(obj).policy.selector) == "app=not a label"
    with pytest.raises(PolicyError, match="expected a label value"):
        network_policy(obj)


def test_explain_and_lint_name_what_was_not_read() -> None:
    narrowed = policy(ingress=[{"ports": [{"port": 80, "sourcePort": 1}]}])
    objects = [pod("a", app="web"), narrowed | {"kind": "NetworkPolicy"}]
    given = cluster(objects, strict=False)
    (own,) = given.pods
    outside = party({"labels": None, "name": "8.8.8.8", "ip": "8.8.8.8"})
    answer = explain(Evaluator(given.policies, {}), outside, party_of(own), Traffic(Protocol.TCP, 80))
    (miss,) = answer.ingress.misses
    assert "could not be read: spec.ingress[0].ports[0].sourcePort: unknown field" in miss.text
    (finding,) = [f for f in lint(given) if f.check == "unreadable"]
    assert finding.field == "spec.ingress[0].ports[0].sourcePort"
    assert "this port matches nothing" in finding.message
    with pytest.raises(PolicyError):
        cluster(objects)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below `value`, itself included."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def broken(obj: Obj, path: tuple[Any, ...], junk: Any) -> Obj:
    """The object with the value at `path` in its spec replaced, or, in a mapping, joined by a field nobody knows."""
    changed = copy.deepcopy(obj)
    here: Any = changed["spec"]
    for key in path[:-1]:
        here = here[key]
    target = here[path[-1]] if path else here
    if isinstance(target, dict) and junk is None:
        target["aFieldOfANewerAPI"] = 1
    elif path:
        here[path[-1]] = 1.5 if junk is None else junk
    else:
        changed["spec"] = 1.5 if junk is None else junk
    return changed


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    st.data(),
    pods(),
    namespaces(),
    policies().filter(bool),
    st.sampled_from(PORTS),
    st.sampled_from(PROTOCOLS),
)
def test_no_unreadable_part_ever_allows_more(
    data: st.DataObject, own: list[Obj], names: Any, given_policies: list[Obj], port: int, protocol: str
) -> None:
    """Any place of any policy is broken: what was denied before is denied after, for every pair."""
    index = data.draw(st.integers(0, len(given_policies) - 1))
    path = data.draw(st.sampled_from(list(places(given_policies[index]["spec"]))))
    # matchLabels may have any key, so a further one is no unknown field: it narrows a peer, but also the podSelector.
    assume(not path or path[-1] != "matchLabels")
    junk = data.draw(st.sampled_from((None, 1.5, -1, True, {"x": 1.5}, [1.5])))
    changed = [*given_policies[:index], broken(given_policies[index], path, junk), *given_policies[index + 1 :]]
    before = Evaluator([network_policy(policy) for policy in given_policies], names)
    after = Evaluator([read(policy).policy for policy in changed], names)
    for source, destination in pairs(own):
        ends = party(source), party(destination), Traffic(Protocol(protocol), port)
        assert before.verdict(*ends).allowed or not after.verdict(*ends).allowed
