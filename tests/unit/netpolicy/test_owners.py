"""A dump of a cluster has pods beside their owners: all of them are one workload."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from netpolicy.cluster import Cluster
from netpolicy.objects import cluster

Obj = dict[str, Any]
API = {"Deployment": "apps/v1", "ReplicaSet": "apps/v1", "StatefulSet": "apps/v1", "DaemonSet": "apps/v1"} | {
    "Job": "batch/v1",
    "CronJob": "batch/v1",
    "Pod": "v1",
    "Rollout": "argoproj.io/v1alpha1",
    "Database": "example.org/v1",
}


def obj(kind: str, name: str, owner: tuple[str, str] | None = None, labels: Obj | None = None, **spec: Any) -> Obj:
    metadata: Obj = {"name": name, "namespace": "shop", "labels": labels or {}}
    if owner is not None:
        metadata["ownerReferences"] = [{"kind": "Audit", "name": "x"}, dict(zip(("kind", "name"), owner, strict=True))]
        metadata["ownerReferences"][1]["controller"] = True
    return {"apiVersion": API[kind], "kind": kind, "metadata": metadata, "spec": spec}


def template(**labels: str) -> Obj:
    return {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}}


def pod(name: str, owner: tuple[str, str] | None, phase: str = "Running", **labels: str) -> Obj:
    return obj("Pod", name, owner, labels) | {"spec": template()["spec"], "status": {"phase": phase}}


def pods(given: Cluster) -> dict[str, str]:
    """Each pod's name and workload."""
    return {pod.name: pod.workload for pod in given.pods}


WEB = [
    obj("Deployment", "web", template=template(app="web"), replicas=2),
    obj("ReplicaSet", "web-5d8f", ("Deployment", "web"), {"pod-template-hash": "5d8f"}, template=template(app="web")),
    obj("ReplicaSet", "web-old1", ("Deployment", "web"), template=template(app="web"), replicas=0),
    pod("web-5d8f-a", ("ReplicaSet", "web-5d8f"), app="web", **{"pod-template-hash": "5d8f"}),
    pod("web-5d8f-b", ("ReplicaSet", "web-5d8f"), app="web", **{"pod-template-hash": "5d8f"}),
]
BACKUP = [
    obj("CronJob", "backup", jobTemplate={"spec": {"template": template(app="backup")}}),
    obj("Job", "backup-28391234", ("CronJob", "backup"), template=template(app="backup")),
    pod("backup-28391234-x", ("Job", "backup-28391234"), app="backup"),
]


@pytest.mark.parametrize("missing", [c for n in range(4) for c in itertools.combinations(range(3), n)])
def test_a_deployment_with_any_part_of_its_chain(missing: tuple[int, ...]) -> None:
    """The dump may lack the Deployment, either ReplicaSet, or all of them."""
    given = cluster([each for number, each in enumerate(WEB) if number not in missing])
    assert pods(given) == {"web-5d8f-a": "web", "web-5d8f-b": "web"}
    assert given.dormant == ()


def test_without_pods_the_deployment_represents_them_once() -> None:
    given = cluster(WEB[:3])
    assert pods(given) == {"web-0": "web", "web-1": "web"}
    assert given.dormant == ()
    assert pods(cluster(WEB[1:2])) == {"web-5d8f-0": "web"}


@pytest.mark.parametrize("missing", [(), (0,), (1,), (0, 1)])
def test_a_cron_job_with_any_part_of_its_chain(missing: tuple[int, ...]) -> None:
    given = cluster([each for number, each in enumerate(BACKUP) if number not in missing])
    # Without the Job and the CronJob nothing shows that the number in the Job's name is a time.
    name = "backup" if missing != (0, 1) else "backup-28391234"
    assert pods(given) == {"backup-28391234-x": name}
    assert given.dormant == ()


def test_a_workload_whose_pods_have_finished_creates_none_now() -> None:
    done = pod("backup-28391234-x", ("Job", "backup-28391234"), "Succeeded", app="backup")
    given = cluster([*BACKUP[:2], done])
    assert pods(given) == {}
    assert [(pod.name, pod.workload) for pod in given.dormant] == [("backup-0", "backup")]


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "Job", "ReplicaSet"])
def test_direct_owners(kind: str) -> None:
    owner = obj(kind, "db", template=template(app="db"), replicas=3)
    assert pods(cluster([owner, pod("db-0", (kind, "db"), app="db")])) == {"db-0": "db"}


def test_another_workload_of_the_same_name_keeps_its_pods() -> None:
    """The kind is part of the owner's name."""
    stateful = obj("StatefulSet", "web", template=template(app="other"))
    assert pods(cluster([*WEB, stateful])) == {"web-5d8f-a": "web", "web-5d8f-b": "web", "web-0": "web"}
    other = {**stateful, "metadata": {"name": "db", "namespace": "shop"}}
    assert len(cluster([*WEB, other]).pods) == 3


def test_custom_owners() -> None:
    """A Rollout owns ReplicaSets as a Deployment does. The owner of a StatefulSet has other labels than its pods."""
    rollout = obj("Rollout", "web", template=template(app="web"), replicas=2)
    chain = [
        rollout,
        obj("ReplicaSet", "web-77", ("Rollout", "web"), template=template(app="web")),
        pod("web-77-a", ("ReplicaSet", "web-77"), **{"rollouts-pod-template-hash": "77"}),
    ]
    for given in (chain, chain[::2], chain[2:]):
        assert pods(cluster(given)) == {"web-77-a": "web"}
    assert pods(cluster(chain[:2])) == {"web-0": "web", "web-1": "web"}
    by_reference = obj("Rollout", "web", workloadRef={"kind": "Deployment", "name": "web"})
    assert pods(cluster([by_reference, chain[1]])) == {"web-77-0": "web"}

    database = obj("Database", "db", pods={"template": template(app="of-the-operator")})
    stateful = obj("StatefulSet", "db", ("Database", "db"), template=template(app="db"), replicas=2)
    for given in ([database, stateful], [stateful, database]):
        assert [pod.labels.mapping["app"] for pod in cluster(given).pods] == ["db", "db"]
    assert pods(cluster([database, stateful, pod("db-0", ("StatefulSet", "db"), app="db")])) == {"db-0": "db"}
    assert pods(cluster([database, pod("db-x", ("Database", "db"), app="db")])) == {"db-x": "db"}


def test_a_static_pod_is_no_workload_of_its_node() -> None:
    static = [pod(name, ("Node", "node1")) for name in ("etcd-node1", "scheduler-node1")]
    for each in static:
        del each["metadata"]["ownerReferences"][0]
    assert pods(cluster(static)) == {"etcd-node1": "etcd-node1", "scheduler-node1": "scheduler-node1"}


def test_owners_in_a_circle_end() -> None:
    circle = [
        obj("Job", "a", ("Job", "b"), template=template()),
        obj("Job", "b", ("Job", "a"), template=template()),
        pod("a-x", ("Job", "a")),
    ]
    assert "a-x" in pods(cluster(circle))


def test_a_lab_or_cluster_shows_real_pods_only() -> None:
    given = cluster([*WEB[:3], *BACKUP], live=True)
    assert pods(given) == {"backup-28391234-x": "backup"}
    assert [pod.name for pod in given.dormant] == ["web-0"]
