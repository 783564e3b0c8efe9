"""Mistakes in ClusterNetworkPolicies, and none in policies without them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from netpolicy.cluster import Cluster
from netpolicy.lint import lint
from netpolicy.objects import cluster

Obj = dict[str, Any]
PODS = """
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: other, labels: {team: other}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: other, labels: {app: c}}, status: {podIP: 10.0.0.3}}
---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {containers: [{name: c, ports: [{containerPort: 53, protocol: UDP}, {containerPort: 53}]}]}
status: {podIP: 10.0.0.53}
"""
SHOP = {"namespaces": {"matchLabels": {"team": "shop"}}}
ALL: Obj = {"namespaces": {}}
WEB = {"pods": {"namespaceSelector": {"matchLabels": {"team": "shop"}}, "podSelector": {"matchLabels": {"app": "web"}}}}


def wide(name: str, subject: Obj, priority: int = 5, tier: str = "Admin", **sections: Any) -> Obj:
    spec = {"tier": tier, "priority": priority, "subject": subject, **sections}
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def rule(action: str, side: str, *peers: Obj, **more: Any) -> Obj:
    return {"action": action, side: list(peers), **more}


def tcp(number: int) -> Obj:
    return {"tcp": {"destinationPort": {"number": number}}}


def given(*policies: Obj) -> Cluster:
    return cluster([*yaml.safe_load_all(PODS), *policies])


def found(*policies: Obj) -> set[tuple[str, str, str]]:
    return {(finding.check, finding.policy.name, finding.field) for finding in lint(given(*policies))}


def test_same_tier_and_priority_for_one_pod() -> None:
    deny, accept = rule("Deny", "from", ALL), rule("Accept", "from", ALL)
    both = wide("a", SHOP, ingress=[deny]), wide("b", WEB, ingress=[accept])
    assert found(*both) >= {("same-priority", "b", "spec.priority")}
    assert not any(check == "same-priority" for check, _, _ in found(both[0], wide("b", WEB, 6, ingress=[accept])))
    other = {"namespaces": {"matchLabels": {"team": "other"}}}
    assert found(both[0], wide("b", other, ingress=[accept])) == set(), "no pod in common"
    assert found(both[0], wide("b", WEB, tier="Baseline", ingress=[accept])) == set(), "another tier"


@pytest.mark.parametrize(
    ("stronger", "weaker", "never"),
    [
        (rule("Deny", "from", ALL), rule("Accept", "from", SHOP), True),
        (rule("Deny", "from", SHOP), rule("Accept", "from", ALL), False),
        (rule("Pass", "from", ALL, protocols=[tcp(80)]), rule("Accept", "from", SHOP, protocols=[tcp(80)]), True),
        (rule("Pass", "from", ALL, protocols=[tcp(80)]), rule("Accept", "from", SHOP, protocols=[tcp(81)]), False),
        (rule("Pass", "from", ALL, protocols=[tcp(80)]), rule("Accept", "from", SHOP), False),
        (
            rule("Deny", "from", ALL, protocols=[{"tcp": {"destinationPort": {"range": {"start": 1, "end": 99}}}}]),
            rule("Accept", "from", WEB, protocols=[tcp(80)]),
            True,
        ),
    ],
)
def test_a_rule_behind_a_stronger_one(stronger: Obj, weaker: Obj, never: bool) -> None:
    same = found(wide("a", SHOP, ingress=[stronger, weaker]))
    assert (("never-decides", "a", "spec.ingress[1]") in same) is never
    apart = found(wide("a", ALL, 1, ingress=[stronger]), wide("b", SHOP, 2, ingress=[weaker]))
    assert (("never-decides", "b", "spec.ingress[0]") in apart) is never
    assert found(wide("a", WEB, 1, ingress=[stronger]), wide("b", SHOP, 2, ingress=[weaker])) == set(), "db remains"


def test_networks_behind_wider_ones() -> None:
    egress = [rule("Deny", "to", {"networks": ["192.0.2.0/24"]}), rule("Accept", "to", {"networks": ["192.0.2.7/32"]})]
    assert found(wide("a", SHOP, egress=egress)) == {("never-decides", "a", "spec.egress[1]")}
    assert found(wide("a", SHOP, egress=egress[::-1])) == set()


def test_the_baseline_tier_is_not_asked_about_isolated_pods() -> None:
    isolating = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [{"podSelector": {}}]}]},
    }
    baseline = [rule("Deny", "from", ALL)]
    of_web = wide("a", WEB, tier="Baseline", ingress=baseline)
    assert found(isolating, of_web) == {("never-decides", "a", "spec.ingress")}
    assert found(isolating, wide("a", SHOP, tier="Baseline", ingress=baseline)) == set(), "db is not isolated"


def test_selectors_without_pods_and_what_is_not_enforced() -> None:
    nowhere = {"namespaces": {"matchLabels": {"team": "nobody"}}}
    assert found(wide("a", nowhere, ingress=[rule("Deny", "from", SHOP)])) == {
        ("selects-nothing", "a", "spec.subject"),
    }
    assert found(wide("a", SHOP, ingress=[rule("Deny", "from", nowhere)])) == {
        ("peer-selects-nothing", "a", "spec.ingress[0].from"),
    }
    domains = rule("Accept", "to", {"domainNames": ["example.com"]})
    assert found(wide("a", SHOP, egress=[domains])) == {("not-in-force", "a", "spec.egress[0].to[0].domainNames")}


def test_dns_that_a_tier_cuts() -> None:
    cut = found(wide("a", SHOP, egress=[rule("Deny", "to", {"networks": ["0.0.0.0/0"]})]))
    assert cut == {("egress-without-dns", "a", "spec.egress[0]")}
    server = {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}}
    assert found(wide("a", server, ingress=[rule("Deny", "from", SHOP)])) == {
        ("dns-server-isolated", "a", "spec.ingress")
    }
    passing = [rule("Accept", "to", server), rule("Deny", "to", {"networks": ["0.0.0.0/0"]})]
    assert found(wide("a", SHOP, egress=passing)) == set()
