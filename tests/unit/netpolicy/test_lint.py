"""Each mistake is found, and the same policy without it is not complained about."""

from __future__ import annotations

from typing import Any

import pytest

from netpolicy.lint import lint
from netpolicy.objects import cluster

Obj = dict[str, Any]


def named(kind: str, name: str, namespace: str = "shop", **more: Any) -> Obj:
    metadata = {"name": name, "namespace": namespace, **more.pop("metadata", {})}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **more}


def pod(app: str, ip: str, namespace: str = "shop", **port: Any) -> Obj:
    return named(
        "Pod",
        app,
        namespace,
        metadata={"labels": {"app": app}},
        spec={"containers": [{"ports": [{"containerPort": 8080, **port}]}]},
        status={"podIP": ip},
    )


PODS = [pod("web", "10.0.0.1", name="http"), pod("db", "10.0.0.2"), pod("probe", "10.0.0.3", "ops")]
DNS = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]}
WEB = {"matchLabels": {"app": "web"}}
DB = {"matchLabels": {"app": "db"}}
PROBE = {"matchLabels": {"app": "probe"}}


def policy(**spec: Any) -> Obj:
    return named("NetworkPolicy", "p") | {"apiVersion": "networking.k8s.io/v1", "spec": spec}


def ingress(peer: Obj | None = None, **rule: Any) -> Obj:
    return policy(podSelector=WEB, ingress=[{**({"from": [peer]} if peer else {}), **rule}])


@pytest.mark.parametrize(
    ("wrong", "check", "field", "words", "right"),
    [
        (
            policy(podSelector=PROBE),
            "selects-nothing",
            "spec.podSelector",
            "selects no pod in namespace shop (podSelector app=probe); pods with these labels are in ops",
            policy(podSelector=WEB),
        ),
        (
            policy(
                podSelector=WEB, egress=[{"to": [{"podSelector": DB}]}, {"ports": [{"port": 53, "protocol": "UDP"}]}]
            ),
            "egress-without-dns",
            "spec.egress",
            "shop/web is isolated for egress and no rule allows 53/TCP",
            policy(podSelector=WEB, egress=[{"to": [{"podSelector": DB}], "ports": [{"port": 8080}]}, DNS]),
        ),
        (
            ingress(ports=[{"port": "https"}]),
            "named-port-missing",
            "spec.ingress[0].ports[0].port",
            "no pod that the policy selects has a TCP port named https",
            ingress(ports=[{"port": "http"}]),
        ),
        (
            ingress(ports=[{"port": "http", "protocol": "UDP"}]),
            "named-port-missing",
            "spec.ingress[0].ports[0].port",
            "has a UDP port named http (there is one for TCP: set protocol)",
            ingress(ports=[{"port": "http"}]),
        ),
        (
            ingress({"namespaceSelector": {"matchLabels": {"name": "ops"}}}),
            "namespace-label-missing",
            "spec.ingress[0].from[0].namespaceSelector",
            "to name the namespace ops, use kubernetes.io/metadata.name=ops",
            ingress({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ops"}}}),
        ),
        (
            ingress({"podSelector": PROBE}),
            "peer-in-other-namespace",
            "spec.ingress[0].from[0].podSelector",
            "pods of ops do: a podSelector without namespaceSelector means the policy's own namespace",
            ingress({"podSelector": PROBE, "namespaceSelector": {}}),
        ),
        (
            ingress({"podSelector": {"matchLabels": {"app": "nobody"}}}),
            "peer-selects-nothing",
            "spec.ingress[0].from[0].podSelector",
            "no pod anywhere has app=nobody",
            ingress({"podSelector": DB}),
        ),
        (
            ingress({"ipBlock": {"cidr": "10.0.0.0/8"}}),
            "block-covers-pods",
            "spec.ingress[0].from[0].ipBlock",
            "covers the address of pod shop/web and 2 more",
            ingress({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24"]}}),
        ),
        (
            policy(podSelector={}, ingress=[{}]),
            "wide-rule",
            "spec.ingress[0]",
            "for all pods of namespace shop this rule allows all traffic from everywhere",
            policy(podSelector=WEB, ingress=[{}]),
        ),
        (
            policy(podSelector={}, ingress=[{"from": [{"namespaceSelector": {}}]}]),
            "wide-rule",
            "spec.ingress[0].from[0]",
            "every port from every pod of every namespace",
            policy(podSelector={}, ingress=[{"from": [{"podSelector": {}}]}]),
        ),
        (
            policy(podSelector=WEB, policyTypes=["Ingress"], egress=[DNS]),
            "ignored-rules",
            "spec.egress",
            "has no effect: policyTypes does not name Egress",
            policy(podSelector=WEB, policyTypes=["Ingress", "Egress"], egress=[DNS]),
        ),
    ],
)
def test_finding(wrong: Obj, check: str, field: str, words: str, right: Obj) -> None:
    (found,) = lint(cluster([*PODS, wrong]))
    assert (found.check, found.field, str(found.policy)) == (check, field, "shop/p")
    assert words in found.message
    assert lint(cluster([*PODS, right])) == []


def test_dns_servers_that_the_input_shows_must_be_reachable() -> None:
    """Port 53 of anybody is not enough when it is known who answers there."""
    dns = named(
        "Deployment",
        "coredns",
        "kube-system",
        spec={
            "template": {
                "metadata": {"labels": {"k8s-app": "kube-dns"}},
                "spec": {
                    "containers": [{"ports": [{"containerPort": 53, "protocol": p} for p in ("UDP", "TCP")]}],
                },
            }
        },
    )
    near = policy(podSelector=WEB, egress=[{**DNS, "to": [{"podSelector": {}}]}])
    far = policy(podSelector=WEB, egress=[{**DNS, "to": [{"namespaceSelector": {}}]}])
    assert [f.check for f in lint(cluster([*PODS, dns, near]))] == ["egress-without-dns"]
    assert lint(cluster([*PODS, dns, far])) == []


def test_another_policy_may_allow_dns() -> None:
    isolating = policy(podSelector={}, policyTypes=["Egress"])
    (found,) = lint(cluster([pod("web", "10.0.0.1"), isolating]))
    assert found.check == "egress-without-dns"
    allowing = policy(podSelector={}, egress=[DNS])
    allowing["metadata"] = {"name": "dns", "namespace": "shop"}
    assert lint(cluster([pod("web", "10.0.0.1"), isolating, allowing])) == []


def test_policies_without_their_pods() -> None:
    """Nothing is said about pods that the input does not have, but DNS is still looked at."""
    assert lint(cluster([ingress({"podSelector": DB}, ports=[{"port": "http"}])])) == []
    (found,) = lint(cluster([policy(podSelector=WEB, egress=[{"ports": [{"port": 443}]}])]))
    assert found.check == "egress-without-dns"
    assert "a pod with app=web" in found.message
