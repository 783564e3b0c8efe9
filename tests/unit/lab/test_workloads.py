"""Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs and the scheduler, with a kubelet that is played."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .control_plane import control_plane, node, workload

Obj = dict[str, Any]


def names(objects: list[Obj]) -> list[str]:
    return sorted(obj["metadata"]["name"] for obj in objects)


async def test_a_deployment_makes_a_replica_set_and_pods_with_real_looking_names() -> None:
    async with control_plane() as plane:
        await plane.client.create(workload("Deployment", "web", 3))
        pods = await plane.ready(3)
        (replica_set,) = (await plane.client.list("ReplicaSet")).items
        number = replica_set["metadata"]["labels"]["pod-template-hash"]
        assert replica_set["metadata"]["name"] == f"web-{number}"
        assert all(re.fullmatch(rf"web-{number}-[a-z0-9]{{5}}", name) for name in names(pods))
        owner = pods[0]["metadata"]["ownerReferences"][0]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("ReplicaSet", f"web-{number}", True)
        await plane.until("Deployment", lambda d: d[0]["status"].get("availableReplicas") == 3)
        status = (await plane.client.get("Deployment", "web"))["status"]
        assert {c["type"]: c["status"] for c in status["conditions"]} == {"Available": "True", "Progressing": "True"}
        assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (3, 3, 3)


async def test_scaling_keeps_the_pods_that_are_ready() -> None:
    async with control_plane(hold=lambda pod: "held" in pod["metadata"].get("labels", {})) as plane:
        await plane.client.create(workload("Deployment", "web", 2))
        kept = names(await plane.ready(2))
        await plane.client.create(node("sick") | {"status": {}})
        await plane.client.patch("Deployment", "web", {"spec": {"replicas": 4}})
        await plane.ready(4)
        new = [pod for pod in (await plane.client.list("Pod")).items if pod["metadata"]["name"] not in kept]
        for pod in new:
            await plane.kubelet.set_ready(pod, False)
        await plane.client.patch("Deployment", "web", {"spec": {"replicas": 2}})
        assert names(await plane.ready(2)) == kept
        await plane.client.patch("Deployment", "web", {"spec": {"replicas": 0}})
        await plane.until("Pod", lambda pods: not pods)
        await plane.until("Deployment", lambda d: not d[0]["status"].get("replicas"))


async def test_a_new_template_rolls_over_without_a_gap() -> None:
    async with control_plane() as plane:
        await plane.client.create(workload("Deployment", "web", 4))
        await plane.ready(4)
        fewest, most = 4, 4
        image = {"spec": {"template": {"metadata": {"labels": {"app": "web", "version": "2"}}}}}
        # List and watch from one version: a watch from an older one tells of pods that are gone by now.
        before = await plane.client.list("Pod")
        live = {pod["metadata"]["uid"]: True for pod in before.items}
        await plane.client.patch("Deployment", "web", image)
        async for event in plane.client.watch("Pod", version=before.version):
            pod = event.object
            gone = event.type == "DELETED" or "deletionTimestamp" in pod["metadata"]
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
            live[pod["metadata"]["uid"]] = ready and not gone
            if gone:
                del live[pod["metadata"]["uid"]]
            fewest, most = min(fewest, sum(live.values())), max(most, len(live))
            pods = (await plane.client.list("Pod")).items
            if (
                len(pods) == 4
                and all(p["metadata"]["labels"].get("version") == "2" for p in pods)
                and all(live.values())
            ):
                break
        # 25% of 4: one more, one less.
        assert (fewest, most) == (3, 5)
        sets = (await plane.client.list("ReplicaSet")).items
        assert sorted(s["spec"]["replicas"] for s in sets) == [0, 4]
        revisions = {s["metadata"]["annotations"]["deployment.kubernetes.io/revision"] for s in sets}
        assert revisions == {"1", "2"}


async def test_a_broken_template_leaves_the_old_pods_running() -> None:
    async with control_plane(hold=lambda pod: pod["metadata"]["labels"].get("version") == "broken") as plane:
        await plane.client.create(workload("Deployment", "web", 4))
        old = set(names(await plane.ready(4)))
        broken = {"spec": {"template": {"metadata": {"labels": {"app": "web", "version": "broken"}}}}}
        await plane.client.patch("Deployment", "web", broken)

        def stuck(pods: list[Obj]) -> bool:
            new = [p for p in pods if p["metadata"]["labels"].get("version") == "broken"]
            return (len(new), len(pods)) == (2, 5) and len(old & set(names(pods))) == 3

        pods = await plane.until("Pod", stuck)
        back = {"spec": {"template": {"metadata": {"labels": {"version": None}}}}}
        await plane.client.patch("Deployment", "web", back)
        for pod in pods:
            if pod["metadata"]["labels"].get("version") == "broken":
                plane.kubelet.hold = lambda pod: False
                await plane.client.patch("Pod", pod["metadata"]["name"], {"metadata": {"annotations": {"wake": "up"}}})
        assert len(old & set(names(await plane.ready(4)))) == 3


async def test_recreate_has_no_two_versions_at_once() -> None:
    async with control_plane() as plane:
        await plane.client.create(workload("Deployment", "web", 2, strategy={"type": "Recreate"}))
        await plane.ready(2)
        change = {"spec": {"template": {"metadata": {"labels": {"version": "2"}}}}}
        version = (await plane.client.patch("Deployment", "web", change))["metadata"]["resourceVersion"]
        old = set(names((await plane.client.list("Pod")).items))
        async for event in plane.client.watch("Pod", version=int(version)):
            if event.type == "DELETED":
                old.discard(event.object["metadata"]["name"])
            elif event.type == "ADDED":
                assert not old
                break
        await plane.ready(2)


async def test_a_paused_deployment_scales_and_does_not_roll() -> None:
    async with control_plane() as plane:
        await plane.client.create(workload("Deployment", "web", 1))
        await plane.ready(1)
        change = {"spec": {"paused": True, "replicas": 2, "template": {"metadata": {"labels": {"version": "2"}}}}}
        await plane.client.patch("Deployment", "web", change)
        await plane.until("Deployment", lambda d: d[0]["status"].get("observedGeneration") == 2)
        assert len((await plane.client.list("ReplicaSet")).items) == 1
        await plane.client.patch("Deployment", "web", {"spec": {"paused": False}})
        pods = await plane.ready(2)
        assert all(pod["metadata"]["labels"]["version"] == "2" for pod in pods)


async def test_a_deployment_takes_everything_along() -> None:
    async with control_plane() as plane:
        await plane.client.create(workload("Deployment", "web", 2))
        await plane.ready(2)
        await plane.client.delete("Deployment", "web")
        await plane.until("Pod", lambda pods: not pods)
        await plane.until("ReplicaSet", lambda sets: not sets)


async def test_orphan_and_foreground_deletion() -> None:
    async with control_plane() as plane:
        await plane.client.create(workload("ReplicaSet", "web", 2))
        kept = names(await plane.ready(2))
        await plane.client.delete("ReplicaSet", "web", propagation="Orphan")
        await plane.until("ReplicaSet", lambda sets: not sets)
        pods = await plane.until("Pod", lambda pods: not any(p["metadata"].get("ownerReferences") for p in pods))
        assert names(pods) == kept
        # The next one of that selector adopts them.
        await plane.client.create(workload("ReplicaSet", "web", 2))
        await plane.until("ReplicaSet", lambda sets: sets[0].get("status", {}).get("readyReplicas") == 2)
        assert names((await plane.client.list("Pod")).items) == kept
        await plane.client.delete("ReplicaSet", "web", propagation="Foreground")
        await plane.until("ReplicaSet", lambda sets: not sets)
        assert (await plane.client.list("Pod")).items == []


async def test_a_pod_that_loses_its_label_is_replaced_and_left() -> None:
    async with control_plane() as plane:
        await plane.client.create(workload("ReplicaSet", "web", 1))
        (pod,) = await plane.ready(1)
        await plane.client.patch("Pod", pod["metadata"]["name"], {"metadata": {"labels": {"app": "debug"}}})
        pods = await plane.ready(2)
        assert {p["metadata"]["labels"]["app"] for p in pods} == {"web", "debug"}
        assert "ownerReferences" not in (await plane.client.get("Pod", pod["metadata"]["name"]))["metadata"]


async def test_a_stateful_set_goes_in_order() -> None:
    async with control_plane(hold=lambda pod: pod["metadata"]["name"] == "db-1") as plane:
        await plane.client.create(workload("StatefulSet", "db", 3, serviceName="db"))
        pods = await plane.until("Pod", lambda pods: len(pods) == 2)
        assert names(pods) == ["db-0", "db-1"]
        plane.kubelet.hold = lambda pod: False
        await plane.kubelet.play(await plane.client.get("Pod", "db-1"))
        pods = await plane.ready(3)
        assert names(pods) == ["db-0", "db-1", "db-2"]
        assert pods[0]["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"] == "db-0"
        assert (pods[0]["spec"]["hostname"], pods[0]["spec"]["subdomain"]) == ("db-0", "db")
        await plane.client.patch("StatefulSet", "db", {"spec": {"replicas": 1}})
        assert names(await plane.ready(1)) == ["db-0"]
        await plane.client.patch("StatefulSet", "db", {"spec": {"template": {"metadata": {"labels": {"v": "2"}}}}})
        await plane.until("Pod", lambda pods: [p["metadata"]["labels"].get("v") for p in pods] == ["2"])
        await plane.ready(1)
        await plane.until("StatefulSet", lambda s: s[0]["status"].get("updatedReplicas") == 1)
        await plane.client.delete("StatefulSet", "db")
        await plane.until("Pod", lambda pods: not pods)


async def test_a_daemon_set_is_on_every_node() -> None:
    async with control_plane(nodes=2) as plane:
        await plane.client.create(workload("DaemonSet", "agent", None))
        pods = await plane.ready(2)
        assert sorted(p["spec"]["nodeName"] for p in pods) == ["node1", "node2"]
        await plane.client.create(node("node3"))
        await plane.ready(3)
        await plane.client.patch("Node", "node3", {"spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}})
        await plane.ready(2)
        selector = {"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "node1"}}}}}
        await plane.client.patch("DaemonSet", "agent", selector)
        (pod,) = await plane.until("Pod", lambda pods: len(pods) == 1 and "nodeSelector" in pods[0]["spec"])
        assert pod["spec"]["nodeName"] == "node1"
        await plane.until("DaemonSet", lambda d: d[0]["status"].get("numberAvailable") == 1)


async def test_a_job_runs_until_enough_have_succeeded() -> None:
    job = workload("Job", "once", None, completions=3, parallelism=2)
    job["apiVersion"] = "batch/v1"
    del job["spec"]["selector"]
    job["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    async with control_plane() as plane:
        await plane.client.create(job)
        for _ in range(3):
            pods = await plane.until("Pod", lambda pods: any(p["status"]["phase"] == "Running" for p in pods))
            running = [p for p in pods if p["status"]["phase"] == "Running"]
            assert len([p for p in pods if p["status"]["phase"] in ("Running", "Pending")]) <= 2
            await plane.client.patch(
                "Pod", running[0]["metadata"]["name"], {"status": {"phase": "Succeeded"}}, subresource="status"
            )
        (done,) = await plane.until("Job", lambda jobs: "completionTime" in jobs[0].get("status", {}))
        assert done["status"]["succeeded"] == 3
        assert [c["type"] for c in done["status"]["conditions"]] == ["Complete"]
        assert len((await plane.client.list("Pod")).items) == 3


async def test_pods_spread_over_ready_nodes() -> None:
    async with control_plane(nodes=3) as plane:
        await plane.client.create(node("off", unschedulable=True))
        await plane.client.create(workload("Deployment", "web", 9))
        pods = await plane.ready(9)
        load = [p["spec"]["nodeName"] for p in pods]
        assert sorted(load.count(name) for name in set(load)) == [3, 3, 3]
        assert "off" not in load


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"nodeSelector": {"disk": "ssd"}}, "2 node(s) didn't match Pod's node affinity/selector"),
        (
            {
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]
                        }
                    }
                }
            },
            "2 node(s) didn't match Pod's node affinity/selector",
        ),
    ],
)
async def test_a_pod_that_fits_nowhere_says_why_and_waits(spec: Obj, wanted: str) -> None:
    async with control_plane(nodes=2) as plane:
        body = {"containers": [{"name": "c", "image": "i"}], **spec}
        await plane.client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": body})
        (pod,) = await plane.until("Pod", lambda pods: "conditions" in pods[0]["status"])
        (condition,) = pod["status"]["conditions"]
        assert (condition["type"], condition["status"], condition["reason"]) == (
            "PodScheduled",
            "False",
            "Unschedulable",
        )
        assert condition["message"] == f"0/2 nodes are available: {wanted}."
        await plane.client.patch("Node", "node2", {"metadata": {"labels": {"disk": "ssd"}}})
        (pod,) = await plane.ready(1)
        assert pod["spec"]["nodeName"] == "node2"


async def test_a_node_name_that_is_not_there_is_named() -> None:
    async with control_plane(hold=lambda pod: True) as plane:
        body = {"containers": [{"name": "c", "image": "i"}], "nodeName": "mars"}
        await plane.client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": body})
        (pod,) = await plane.until("Pod", lambda pods: "conditions" in pods[0]["status"])
        assert pod["status"]["conditions"][0]["message"] == "spec.nodeName: there is no node mars"


async def test_a_namespace_takes_everything_along() -> None:
    async with control_plane() as plane:
        await plane.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
        for obj in (
            workload("Deployment", "web", 2),
            workload("StatefulSet", "db", 1),
            workload("DaemonSet", "a", None),
        ):
            obj["metadata"]["namespace"] = "shop"
            await plane.client.create(obj)
        await plane.ready(5)
        await plane.client.delete("Namespace", "shop")
        await plane.until("Namespace", lambda found: "shop" not in names(found))
        for kind in ("Pod", "ReplicaSet", "Deployment", "StatefulSet"):
            assert (await plane.client.list(kind)).items == []
