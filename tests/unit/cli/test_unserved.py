"""What a lab does not serve is named by object and field."""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.cli import unserved as module
from nodenet.cli.unserved import unserved


def service(**more: Any) -> dict[str, Any]:
    metadata = {"name": "web", "namespace": "shop", **more.pop("metadata", {})}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}], **more}}


def pod_template(port: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "c", "ports": [port]}], **spec}}


def workload(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "api", "namespace": "shop"}, "spec": spec}


@pytest.mark.parametrize(
    ("obj", "parts"),
    [
        (service(), []),
        (service(type="LoadBalancer"), ["Service shop/web: spec.type LoadBalancer: no controller of the lab"]),
        (service(trafficDistribution="PreferClose"), ["Service shop/web: spec.trafficDistribution PreferClose: "]),
        (
            service(metadata={"annotations": {"service.kubernetes.io/topology-mode": "Auto"}}),
            ["Service shop/web: metadata.annotations[service.kubernetes.io/topology-mode] Auto: "],
        ),
        # It has no address, so nothing of it is served or not.
        (service(clusterIP="None", trafficDistribution="PreferClose"), []),
        (service(type="ExternalName", trafficDistribution="PreferClose"), []),
        (
            workload("Deployment", {"template": pod_template({"containerPort": 80, "hostPort": 8080})}),
            [],
        ),
        (
            workload(
                "CronJob", {"jobTemplate": {"spec": {"template": pod_template({"hostPort": 1, "protocol": "SCTP"})}}}
            ),
            ["CronJob shop/api: container c: hostPort 1: SCTP is not served"],
        ),
        (
            workload("Pod", pod_template({"hostPort": 2, "protocol": "SCTP"})["spec"]),
            ["Pod shop/api: container c: hostPort 2: SCTP"],
        ),
        (workload("Pod", pod_template({"hostPort": 2, "protocol": "UDP"})["spec"]), []),
        (workload("DaemonSet", {"template": pod_template({"hostPort": 8, "protocol": "SCTP"}, hostNetwork=True)}), []),
        (workload("ConfigMap", {}), []),
    ],
)
def test_fields_without_effect(obj: dict[str, Any], parts: list[str]) -> None:
    found = unserved([obj])
    assert len(found) == len(parts)
    assert all(line.startswith(part) for line, part in zip(found, parts, strict=True))


def test_what_the_agent_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the API server has assigned an address."""
    monkeypatch.setattr(module, "not_served", lambda s: iter(["spec.x: has no effect"] if s.cluster_ips else []))
    assert unserved([service()]) == ["Service shop/web: spec.x: has no effect"]


def test_many_are_counted() -> None:
    found = unserved([service(type="LoadBalancer")] * 25)
    assert (len(found), found[-1]) == (21, "and 5 more")
