"""Every object with a pod template stands for its pods, whatever its kind."""

from __future__ import annotations

from typing import Any

import pytest

from netpolicy.ends import connections, parse_traffic
from netpolicy.lint import lint
from netpolicy.objects import cluster

Obj = dict[str, Any]
TEMPLATE = {
    "metadata": {"labels": {"app": "backup"}},
    "spec": {"containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80, "name": "web"}]}]},
}
DB = {
    "kind": "Pod",
    "metadata": {"name": "db", "namespace": "ops", "labels": {"app": "db"}},
    "spec": {"containers": [{"ports": [{"containerPort": 5432}]}]},
    "status": {"podIP": "10.0.0.9"},
}
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "backup", "namespace": "ops"},
    "spec": {"podSelector": {"matchLabels": {"app": "backup"}}, "ingress": [{"ports": [{"port": "web"}]}]},
}


def workload(kind: str, version: str = "apps/v1", **spec: Any) -> Obj:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "backup", "namespace": "ops"}, "spec": spec}


@pytest.mark.parametrize(
    ("obj", "pods"),
    [
        (workload("Deployment", template=TEMPLATE, replicas=2), 2),
        (workload("StatefulSet", template=TEMPLATE), 1),
        (workload("ReplicaSet", template=TEMPLATE), 1),
        (workload("ReplicationController", "v1", template=TEMPLATE, replicas=3), 3),
        (workload("DaemonSet", template=TEMPLATE), 1),
        (workload("Job", "batch/v1", template=TEMPLATE, parallelism=2), 2),
        (workload("CronJob", "batch/v1", schedule="@daily", jobTemplate={"spec": {"template": TEMPLATE}}), 1),
        (
            workload("CronJob", "batch/v1", jobTemplate={"spec": {"template": TEMPLATE, "parallelism": 2}}),
            2,
        ),
        # Kinds that are not known here.
        (workload("Rollout", "argoproj.io/v1alpha1", template=TEMPLATE, replicas=2), 2),
        (workload("Service", "serving.knative.dev/v1", template=TEMPLATE), 1),
        (
            workload(
                "TFJob",
                "kubeflow.org/v1",
                tfReplicaSpecs={
                    "PS": {"replicas": 1, "template": TEMPLATE},
                    "Worker": {"replicas": 2, "template": TEMPLATE},
                },
            ),
            3,
        ),
        # Workloads that make no pod now.
        (workload("Deployment", template=TEMPLATE, replicas=0), 0),
        (workload("Job", "batch/v1", template=TEMPLATE, parallelism=0), 0),
        (workload("Rollout", "argoproj.io/v1alpha1", template=TEMPLATE, replicas=0), 0),
    ],
)
def test_a_policy_for_its_pods_selects_something(obj: Obj, pods: int) -> None:
    given = cluster([DB, obj, POLICY])
    made = [pod for pod in given.pods if pod.name != "db"]
    assert [pod.name for pod in made] == [f"backup-{number}" for number in range(pods)]
    assert lint(given) == []
    found = connections(given, "ops/backup", "ops/db", parse_traffic("5432"))
    assert len(found) == max(pods, 1)
    assert {connection.source.name.rpartition("-")[0] for connection in found} == {"ops/backup"}


@pytest.mark.parametrize("kind", ["List", "CronJobList"])
def test_a_list_stands_for_its_items(kind: str) -> None:
    cron = workload("CronJob", "batch/v1", jobTemplate={"spec": {"template": TEMPLATE}})
    given = cluster([{"kind": kind, "apiVersion": "v1", "items": [DB, {"kind": "List", "items": [cron]}, POLICY]}])
    assert [str(pod) for pod in given.pods] == ["ops/db", "ops/backup-0"]
    assert lint(given) == []


def test_of_a_custom_resource_that_cannot_be_followed_nothing_is_claimed() -> None:
    rollout = workload("Rollout", "argoproj.io/v1alpha1", workloadRef={"kind": "Deployment", "name": "backup"})
    (finding,) = lint(cluster([DB, rollout, POLICY]))
    assert finding.check == "selects-nothing"
    assert "it is not known here whether Rollout ops/backup creates such pods" in finding.message
    secret = workload("Secret", "v1")
    (finding,) = lint(cluster([DB, secret, POLICY]))
    assert "not known here" not in finding.message


def test_what_looks_like_a_template_and_is_none() -> None:
    """It is passed over like any other kind; nothing of it is refused."""
    for spec in (
        {"template": {"spec": {"containers": {"a": {}}}}},
        {"template": {"metadata": {"labels": {"{{ x }}": 1}}, "spec": {"containers": []}}},
        {"template": [TEMPLATE]},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": TEMPLATE}}}}}}}}},
    ):
        given = cluster([workload("Thing", "example.org/v1", **spec)])
        assert given.pods == given.dormant == ()
        assert given.skipped == given.custom == ("Thing ops/backup",)


def test_with_the_real_pods_workloads_add_none() -> None:
    real = {**DB, "metadata": {**DB["metadata"], "name": "backup-1", "labels": {"app": "backup"}}}
    owner = {"kind": "StatefulSet", "name": "backup", "controller": True}
    real["metadata"]["ownerReferences"] = [owner]
    stateful = workload("StatefulSet", template=TEMPLATE, replicas=2)
    asleep = {**workload("Deployment", template=TEMPLATE), "metadata": {"name": "away", "namespace": "ops"}}
    given = cluster([real, stateful, asleep], live=True)
    assert [str(pod) for pod in given.pods] == ["ops/backup-1"]
    assert [str(pod) for pod in given.dormant] == ["ops/away-0"]
