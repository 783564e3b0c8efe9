"""The DaemonSet that takes the nodes back, and what happens when a node cannot be cleaned."""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.cluster import clean_nodes, install, kustomize, release, status
from nodenet.cluster.client import RefusedError
from nodenet.errors import BadInputError, CannotRunError
from tests.unit.cluster.api import Api

Obj = dict[str, Any]


def agents(overlay: str = "replace-kube-proxy") -> Obj:
    [found] = [obj for obj in kustomize.render(overlay) if obj["kind"] == "DaemonSet"]
    return found


@pytest.mark.parametrize("overlay", kustomize.overlays())
def test_it_has_every_folder_of_the_node_that_cleanup_changes(overlay: str) -> None:
    spec = clean_nodes.cleaner(agents(overlay))["spec"]["template"]["spec"]
    [cleanup] = spec["initContainers"]
    volumes = {volume["name"]: (volume.get("hostPath") or {}).get("path") for volume in spec["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in cleanup["volumeMounts"]}
    assert len(mounted) == len(cleanup["volumeMounts"])
    assert mounted["/host/opt/cni/bin"] == "/opt/cni/bin"
    assert mounted["/host/etc/cni/net.d"] == "/etc/cni/net.d"
    assert mounted["/var/lib/cni/networks"] == "/var/lib/cni/networks"
    assert mounted["/sys/fs/bpf"] == "/sys/fs/bpf"
    # A mounted folder cannot be deleted, so it is the folder above.
    assert mounted["/run"] == "/run"
    assert not any(path.startswith("/run/") for path in mounted)
    assert [word for word in cleanup["args"] if word.startswith("/")] == [
        "/etc/nodenet/agent.yaml",
        "/host/opt/cni/bin",
        "/host/etc/cni/net.d",
    ]


def test_it_has_the_rights_of_the_agent_and_its_own_label() -> None:
    found = clean_nodes.cleaner(agents())
    spec = found["spec"]["template"]["spec"]
    [agent] = agents()["spec"]["template"]["spec"]["containers"]
    [cleanup] = spec["initContainers"]
    assert cleanup["securityContext"] == agent["securityContext"]
    assert cleanup["image"] == agent["image"]
    assert {one["name"] for one in cleanup["env"]} == {"NODENET_NODE_NAME", "NODENET_PROC_SYS_NET"}
    [done] = spec["containers"]
    assert done["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert done["securityContext"]["allowPrivilegeEscalation"] is False
    assert spec["hostNetwork"] is True
    assert spec["automountServiceAccountToken"] is False
    # The agents' pods must not be counted with these.
    assert found["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] != "nodenet"


async def installed_api() -> Api:
    api = Api()
    async with api.cluster() as cluster:
        objects = release.objects(release.Release("replace-kube-proxy", {"apiServers": "192.0.2.1:6443"}))
        await install.carry_out(cluster, await install.plan(cluster, objects, force=False), lambda _: None, force=False)
    api.writes.clear()
    return api


def pod(ready: bool) -> Obj:
    labels = {"app.kubernetes.io/name": clean_nodes.NAME}
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "restarting"}}
    status: Obj = {"initContainerStatuses": [{"name": "cleanup", "state": state}]}
    if ready:
        status = {"conditions": [{"type": "Ready", "status": "True"}]}
    metadata = {"name": "c1", "namespace": "nodenet", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n1"}, "status": status}


def control(api: Api, ready: bool) -> None:
    """What the controller of DaemonSets and the kubelet do."""

    def react(obj: Obj) -> None:
        if obj["metadata"]["name"] == clean_nodes.NAME:
            numbers = dict.fromkeys(("desiredNumberScheduled", "updatedNumberScheduled"), 1)
            obj["status"] = {**numbers, "numberReady": int(ready), "observedGeneration": obj["metadata"]["generation"]}
            api.add(pod(ready))

    api.react = react
    api.logs["c1"] = "WHAT  STATE\nfolder /run/nodenet  removed\n"


async def test_nodes_are_cleaned_after_the_agents_have_ended() -> None:
    api, said = await installed_api(), list[str]()
    control(api, ready=True)
    async with api.cluster() as cluster:
        await clean_nodes.clean(cluster, 10, said.append)
    assert [write for write in api.writes if "daemonsets" in write[1]] == [
        ("DELETE", "daemonsets/nodenet"),
        ("PATCH", "daemonsets/nodenet-cleanup"),
        ("DELETE", "daemonsets/nodenet-cleanup"),
    ]
    assert said[-1] == "n1:\nWHAT  STATE\nfolder /run/nodenet  removed"


async def test_a_node_that_cannot_be_cleaned_is_named_and_the_next_call_continues() -> None:
    api, said = await installed_api(), list[str]()
    control(api, ready=False)
    async with api.cluster() as cluster:
        with pytest.raises(CannotRunError) as caught:
            await clean_nodes.clean(cluster, 0.1, said.append)
        assert "n1: CrashLoopBackOff restarting\nWHAT  STATE" in str(caught.value)
        found = api.named("DaemonSet", clean_nodes.NAME)
        assert found is not None
        found["status"]["numberReady"] = 1
        await clean_nodes.clean(cluster, 10, said.append)
    assert api.named("DaemonSet", clean_nodes.NAME) is None


async def test_the_agents_stay_if_the_api_refuses_what_cleans() -> None:
    api = await installed_api()
    api.refuse[clean_nodes.NAME] = (403, "denied by an admission policy")
    async with api.cluster() as cluster:
        with pytest.raises(RefusedError, match="denied by an admission policy"):
            await clean_nodes.clean(cluster, 1, print)
    assert api.named("DaemonSet", "nodenet") is not None


async def test_an_interrupt_while_the_agents_end_leaves_what_the_next_call_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = await installed_api()

    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    async with api.cluster() as cluster:
        monkeypatch.setattr(clean_nodes, "wait_no_pods", interrupted)
        with pytest.raises(KeyboardInterrupt):
            await clean_nodes.clean(cluster, 1, print)
        assert api.named("DaemonSet", clean_nodes.NAME) is not None
        with pytest.raises(BadInputError, match=r"DaemonSet nodenet/nodenet-cleanup: .* is not complete"):
            await clean_nodes.require_none_left(cluster)
        assert any(clean_nodes.NAME in problem for problem in (await status.status(cluster))["problems"])


async def test_without_an_installation_there_is_no_image() -> None:
    api = Api()
    async with api.cluster() as cluster:
        with pytest.raises(BadInputError, match="--clean-nodes: there is no DaemonSet"):
            await clean_nodes.clean(cluster, 1, print)
