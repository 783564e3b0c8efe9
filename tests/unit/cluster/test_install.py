"""Install, upgrade and uninstall against an API server."""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.agent import node_report
from nodenet.cluster import conditions, install, kustomize, release, rollout, status
from nodenet.cluster.install import Effect
from nodenet.cluster.release import Release
from nodenet.errors import BadInputError, CannotRunError, NodenetError
from tests.unit.cluster.api import Api

Obj = dict[str, Any]
WANTED = Release("replace-kube-proxy", {"apiServers": "192.0.2.1:6443"})


def node(name: str, provider: str = "") -> Obj:
    metadata = {"name": name, "resourceVersion": "1"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"providerID": provider}}


def proxy() -> Obj:
    metadata = {"name": "kube-proxy", "namespace": "kube-system"}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": {}}


async def apply(api: Api, wanted: Release) -> list[str]:
    said: list[str] = []
    async with api.cluster() as cluster:
        steps = await install.plan(cluster, release.objects(wanted), force=False)
        await install.carry_out(cluster, steps, said.append, force=False)
    return said


async def test_an_installation_makes_every_object_and_a_second_one_changes_nothing() -> None:
    api = Api()
    said = await apply(api, WANTED)
    assert said[0] == "Namespace nodenet: created"
    assert {line.rpartition(": ")[2] for line in said} == {"created"}
    assert api.remaining() == {f"{obj['kind']} {obj['metadata']['name']}" for obj in release.objects(WANTED)}
    written = len(api.writes)
    assert {line.rpartition(": ")[2] for line in await apply(api, WANTED)} == {"unchanged"}
    assert len(api.writes) == written


async def test_an_upgrade_names_the_fields_and_deletes_what_is_no_longer_wanted() -> None:
    api = Api()
    await apply(api, WANTED)
    [service] = [obj for obj in kustomize.render("kind", ["monitoring"]) if obj["kind"] == "Service"]
    api.add(service)
    async with api.cluster() as cluster:
        found = await install.daemon_set(cluster)
        assert found is not None
        before = release.of(found)
        assert before == WANTED
        changed = before.with_values({"image.tag": "9"})
        steps = await install.plan(cluster, release.objects(changed), force=False)
    effects = {step.obj["kind"]: step for step in steps if step.effect is not Effect.NONE}
    assert {kind: step.effect for kind, step in effects.items()} == {"DaemonSet": "change", "Service": "delete"}
    fields = effects["DaemonSet"].fields
    assert any(
        line.startswith("spec.template.spec.containers[agent].image: ") and line.endswith(":9'") for line in fields
    )
    assert all("image" in line for line in fields)


async def test_uninstall_deletes_what_install_made_and_nothing_else() -> None:
    api = Api()
    await apply(api, WANTED)
    role = {"name": "other", "labels": {"app.kubernetes.io/name": "nodenet"}}
    api.add({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": role})
    said: list[str] = []
    async with api.cluster() as cluster:
        await install.remove(cluster, await install.installed(cluster), said.append)
    assert api.remaining() == {"ClusterRole other"}
    assert said[0] == "DaemonSet nodenet/nodenet: deleted"
    assert said[-1] == "Namespace nodenet: deleted"


async def test_the_agents_condition_goes_with_them_and_no_other() -> None:
    assert (conditions.CONDITION, conditions.REASON) == (node_report.CONDITION, node_report.REASON)
    assert status.TAINT == node_report.TAINT
    api, ready = Api(), {"type": "Ready", "status": "True"}
    ours = {"type": conditions.CONDITION, "status": "False", "reason": conditions.REASON}
    cloud = {"type": conditions.CONDITION, "status": "False", "reason": "RouteCreated"}
    for name, other in (("n1", ours), ("n2", cloud), ("n3", ours)):
        api.add({**node(name), "status": {"conditions": [ready, other]}})
    api.refuse["n3"] = (403, "nodes/status is forbidden")
    said: list[str] = []
    async with api.cluster() as cluster:
        await conditions.remove(cluster, said.append)
    assert api.writes == [("PATCH", "nodes/n1/status")]
    left = {o["metadata"]["name"]: o["status"]["conditions"] for o in api.objects.values()}
    assert left == {"n1": [ready], "n2": [ready, cloud], "n3": [ready, ours]}
    assert said[0] == "Node n1: condition NetworkUnavailable deleted"
    assert "Node n3: its condition NetworkUnavailable (NodenetIsUp) stays: " in said[1]
    assert "nodes/status is forbidden" in said[1]


OURS = {"type": conditions.CONDITION, "status": "False", "reason": conditions.REASON}
THEIRS = {"type": conditions.CONDITION, "status": "False", "reason": "AnotherCniIsUp"}


async def test_a_condition_that_another_network_sets_meanwhile_stays() -> None:
    """The next CNI writes its condition, of the same type, after the Nodes were listed."""
    api = Api()
    api.add({**node("n1"), "status": {"conditions": [OURS]}})

    def write(found: Obj) -> None:
        found["metadata"]["resourceVersion"] = "2"
        found["status"]["conditions"] = [THEIRS]

    api.before_patch = write
    said: list[str] = []
    async with api.cluster() as cluster:
        await conditions.remove(cluster, said.append)
    (left,) = api.objects.values()
    assert left["status"]["conditions"] == [THEIRS]
    assert (said, api.writes) == ([], [])


@pytest.mark.parametrize(("changes", "is_deleted"), [(3, True), (100, False)])
async def test_a_node_that_changes_is_read_again(changes: int, is_deleted: bool) -> None:
    api, versions = Api(), iter(range(2, changes + 2))
    api.add({**node("n1"), "status": {"conditions": [OURS]}})
    api.before_patch = lambda found: found["metadata"].update(
        resourceVersion=str(next(versions, found["metadata"]["resourceVersion"]))
    )
    said: list[str] = []
    async with api.cluster() as cluster:
        await conditions.remove(cluster, said.append)
    (left,) = api.objects.values()
    assert left["status"]["conditions"] == ([] if is_deleted else [OURS])
    assert said[0].startswith("Node n1: condition" if is_deleted else "Node n1: its condition")
    assert is_deleted or "409" in said[0]


async def test_nodes_that_may_not_be_listed_do_not_fail_the_removal() -> None:
    api = Api(refuse_lists={"nodes": (403, "nodes is forbidden")})
    api.add({**node("n1"), "status": {"conditions": [OURS]}})
    said: list[str] = []
    async with api.cluster() as cluster:
        await conditions.remove(cluster, said.append)
    assert len(said) == 1
    assert said[0].startswith("Nodes: their condition NetworkUnavailable (NodenetIsUp) stays: ")
    assert "nodes is forbidden" in said[0]


async def test_an_object_without_our_label_is_not_ours() -> None:
    api = Api()
    api.add({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nodenet"}})
    async with api.cluster() as cluster:
        assert await install.installed(cluster) == []


async def test_every_refused_object_is_named_with_what_the_api_says() -> None:
    api = Api()
    await apply(api, WANTED)
    api.refuse["nodenet"] = (409, 'Apply failed with 1 conflict: conflict with "kubectl": .data.api-servers')
    async with api.cluster() as cluster:
        with pytest.raises(NodenetError, match=r"DaemonSet nodenet/nodenet: 409 .*\.data\.api-servers"):
            await install.plan(cluster, release.objects(WANTED), force=False)
        steps = [install.Step(Effect.CHANGE, obj) for obj in release.objects(WANTED) if obj["kind"] != "Namespace"]
        with pytest.raises(NodenetError) as caught:
            await install.carry_out(cluster, steps, print, force=False)
    text = str(caught.value)
    assert "ConfigMap nodenet/nodenet: 409 Apply failed" in text
    assert "DaemonSet nodenet/nodenet: 409" in text
    assert ".data.api-servers" in text
    assert "--force" in caught.value.hint


async def test_a_kind_that_the_cluster_does_not_serve() -> None:
    api = Api()
    with pytest.raises(NodenetError) as caught:
        await apply(api, WANTED.with_values({"monitoring.enabled": "true"}))
    assert "does not serve ServiceMonitor of monitoring.coreos.com/v1" in str(caught.value)


@pytest.mark.parametrize(
    ("objects", "overlay"),
    [([node("a")], "replace-kube-proxy"), ([node("a", "kind://docker/kind/a"), proxy()], "kind")],
)
async def test_the_overlay_fits_the_cluster(objects: list[Obj], overlay: str) -> None:
    api = Api()
    api.add(*objects)
    async with api.cluster() as cluster:
        assert await install.choose_overlay(cluster) == overlay


async def test_with_kube_proxy_the_agent_does_not_serve_the_same_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()
    api.add(node("a"), proxy())
    async with api.cluster() as cluster:
        monkeypatch.setattr(install.kustomize, "overlays", lambda: ["replace-kube-proxy"])
        with pytest.raises(BadInputError, match="--overlay: required: this cluster has kube-proxy"):
            await install.choose_overlay(cluster)
        monkeypatch.setattr(install.kustomize, "overlays", lambda: ["replace-kube-proxy", "beside-kube-proxy"])
        assert await install.choose_overlay(cluster) == "beside-kube-proxy"


async def test_the_api_servers_come_from_the_cluster() -> None:
    api = Api()
    slices: Obj = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "ports": [{"port": 6443}],
        "endpoints": [{"addresses": ["192.0.2.2"]}, {"addresses": ["2001:db8::1"]}],
    }
    async with api.cluster() as cluster:
        with pytest.raises(CannotRunError, match="default/kubernetes has no EndpointSlice"):
            await install.with_api_servers(cluster, Release("replace-kube-proxy"))
        api.add(slices)
        found = await install.with_api_servers(cluster, Release("replace-kube-proxy"))
        assert found.discovered == release.api_servers(found) == "192.0.2.2:6443,[2001:db8::1]:6443"
        [daemon_set] = [obj for obj in release.objects(found) if obj["kind"] == "DaemonSet"]
        # An upgrade looks again.
        assert release.of(daemon_set) == Release("replace-kube-proxy")
        assert await install.with_api_servers(cluster, WANTED) == WANTED
        assert await install.with_api_servers(cluster, Release("kind")) == Release("kind")


async def test_helm_s_installation_is_left_to_helm() -> None:
    api = Api()
    metadata = {"name": "nodenet", "namespace": "nodenet", "annotations": {"meta.helm.sh/release-name": "net"}}
    api.add({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata})
    async with api.cluster() as cluster:
        with pytest.raises(BadInputError, match="the Helm release net owns it"):
            await install.daemon_set(cluster)


@pytest.mark.parametrize(
    ("generation", "status", "left"),
    [
        (2, {"observedGeneration": 1}, "the controller has not seen the change yet"),
        (1, {"observedGeneration": 1, "desiredNumberScheduled": 3, "updatedNumberScheduled": 1}, "1 of 3 nodes have"),
        (
            1,
            {"observedGeneration": 1, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberReady": 2},
            "2 of 3 nodes are ready",
        ),
        (
            1,
            {"observedGeneration": 1, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberReady": 3},
            "",
        ),
    ],
)
def test_a_rollout_is_complete_when_every_node_has_the_new_version_ready(
    generation: int, status: Obj, left: str
) -> None:
    found = rollout.left({"metadata": {"generation": generation}, "status": status})
    assert found.startswith(left)
    assert bool(found) == bool(left)
