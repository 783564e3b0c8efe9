"""The real kubectl against the endpoint, its controllers and a fake kubelet: what people will type."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet.lab.apiserver.server import serve

from .control_plane import ControlPlane, control_plane, service, workload

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
BOUTIQUE = Path(__file__).parents[4] / "shared" / "manifests" / "online-boutique"
Obj = dict[str, Any]


class Kubectl:
    """Runs kubectl with a kubeconfig and cache of its own."""

    def __init__(self, folder: Path, plane: ControlPlane, url: str) -> None:
        self.plane = plane
        self.folder = folder
        cluster = {"clusters": [{"name": "lab", "cluster": {"server": url}}], "current-context": "lab"}
        context = {"contexts": [{"name": "lab", "context": {"cluster": "lab"}}]}
        config = {"apiVersion": "v1", "kind": "Config", **cluster, **context}
        (folder / "config").write_text(yaml.safe_dump(config))
        self._environment = {"KUBECONFIG": str(folder / "config"), "HOME": str(folder), "PATH": "/usr/bin:/bin"}

    async def start(self, *words: str, **environment: str) -> asyncio.subprocess.Process:
        assert KUBECTL is not None
        return await asyncio.create_subprocess_exec(
            KUBECTL,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**self._environment, **environment},
            cwd=self.folder,
        )

    async def __call__(self, *words: str, code: int = 0, **environment: str) -> str:
        """What it prints on stdout, or on stderr when it is meant to fail."""
        process = await self.start(*words, **environment)
        async with asyncio.timeout(30):
            out, err = await process.communicate()
        assert process.returncode == code, f"{words}: {out.decode()} {err.decode()}"
        return (err if code else out).decode()

    def file(self, *objects: Obj) -> str:
        (self.folder / "objects.yaml").write_text(yaml.safe_dump_all(objects))
        return "objects.yaml"


@asynccontextmanager
async def kubectl_for(folder: Path) -> AsyncIterator[Kubectl]:
    async with control_plane() as plane, serve(plane.api, addresses=[("127.0.0.1", 0)]) as server:
        yield Kubectl(folder, plane, server.urls[0])


@pytest.fixture
async def kubectl(tmp_path: Path) -> AsyncIterator[Kubectl]:
    # Fixtures of generators and task groups do not mix: the context is entered and left in this one task.
    async with kubectl_for(tmp_path) as found:
        yield found


async def test_apply_get_scale_delete(kubectl: Kubectl) -> None:
    file = kubectl.file(workload("Deployment", "web"), service("web"))
    assert await kubectl("apply", "-f", file) == "deployment.apps/web created\nservice/web created\n"
    assert await kubectl("apply", "-f", file) == "deployment.apps/web unchanged\nservice/web unchanged\n"
    await kubectl("rollout", "status", "deploy/web", "--timeout=10s")
    head, *rows = (await kubectl("get", "pods", "-o", "wide")).splitlines()
    assert head.split()[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert sorted(row.split()[6] for row in rows) == ["node1", "node2"]
    assert all(row.split()[1:3] == ["1/1", "Running"] for row in rows)
    assert "web" in await kubectl("get", "all")
    await kubectl("scale", "deploy", "web", "--replicas=3")
    await kubectl.plane.ready(3, "web")
    await kubectl("wait", "--for=condition=Available", "deploy/web", "--timeout=10s")
    assert "deleted" in await kubectl("delete", "-f", file)
    await kubectl.plane.until("Pod", lambda pods: not pods)
    assert "NotFound" in await kubectl("get", "deploy", "web", code=1)


async def test_the_ways_to_change_an_object(kubectl: Kubectl) -> None:
    await kubectl("create", "-f", kubectl.file(workload("Deployment", "web", 1)))
    await kubectl("label", "deploy", "web", "tier=front")
    await kubectl("annotate", "deploy", "web", "note=hi")
    await kubectl("set", "image", "deploy/web", "main=example/server:2")
    await kubectl(
        "patch", "deploy", "web", "-p", '{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"s"}]}}}}'
    )
    await kubectl("patch", "deploy", "web", "--type=merge", "-p", '{"spec":{"revisionHistoryLimit":3}}')
    await kubectl("patch", "deploy", "web", "--type=json", "-p", '[{"op":"remove","path":"/metadata/labels/tier"}]')
    await kubectl("edit", "deploy", "web", EDITOR="sed -i s/note:.hi/note:\\ there/")
    found = json.loads(await kubectl("get", "deploy", "web", "-o", "json"))
    assert found["metadata"]["annotations"]["note"] == "there"
    assert "labels" not in found["metadata"]
    assert found["spec"]["revisionHistoryLimit"] == 3
    assert {c["name"]: c["image"] for c in found["spec"]["template"]["spec"]["containers"]} == {
        "main": "example/server:2",
        "side": "s",
    }
    await kubectl("rollout", "undo", "deploy/web")
    await kubectl("rollout", "status", "deploy/web", "--timeout=10s")
    assert "main" in await kubectl("describe", "deploy", "web")
    stale = {**found, "spec": {**found["spec"], "replicas": 2}}
    assert "Conflict" in await kubectl("replace", "-f", kubectl.file(stale), code=1)
    del stale["metadata"]["resourceVersion"]
    await kubectl("replace", "-f", kubectl.file(stale))
    await kubectl.plane.ready(2, "web")


async def test_get_watch_prints_every_change(kubectl: Kubectl) -> None:
    await kubectl("create", "-f", kubectl.file(service("web")))
    watching = await kubectl.start("get", "svc", "-w", "--no-headers")
    assert watching.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert (await watching.stdout.readline()).split()[0] == b"web"
            await kubectl.plane.client.patch("Service", "web", {"spec": {"type": "NodePort"}})
            assert (await watching.stdout.readline()).split()[1] == b"NodePort"
    finally:
        watching.terminate()
        await watching.communicate()


async def test_create_without_a_file(kubectl: Kubectl) -> None:
    """These commands send protobuf."""
    await kubectl("create", "namespace", "shop")
    await kubectl("create", "deployment", "web", "--image=nginx", "--replicas=2", "--port=80", "-n", "shop")
    await kubectl("create", "service", "clusterip", "web", "--tcp=80:8080", "--tcp=81:http", "-n", "shop")
    await kubectl("create", "service", "externalname", "far", "--external-name=example.com")
    await kubectl("create", "job", "once", "--image=busybox", "--", "true")
    await kubectl("run", "alone", "--image=nginx", "--port=80")
    await kubectl("expose", "pod", "alone")
    await kubectl.plane.ready(4)
    found = json.loads(await kubectl("get", "svc", "web", "-n", "shop", "-o", "json"))
    assert [port["targetPort"] for port in found["spec"]["ports"]] == [8080, "http"]
    assert found["spec"]["selector"] == {"app": "web"}
    # Waits until the namespace and all that is in it are gone.
    await kubectl("delete", "namespace", "shop")
    assert len(await kubectl.plane.ready(2)) == 2


async def test_what_is_wrong_is_named(kubectl: Kubectl) -> None:
    bad = service("Web", {"port": 99999})
    told = await kubectl("apply", "-f", kubectl.file(bad), code=1)
    assert "metadata.name: Invalid value" in told
    assert "spec.ports[0].port: Invalid value: 99999" in told
    bad = service("web", selectr={})
    assert "unknown field spec.selectr (did you mean selector?)" in await kubectl(
        "apply", "-f", kubectl.file(bad), code=1
    )
    bad = {"apiVersion": "apps/v1", "kind": "Deploymnet", "metadata": {"name": "x"}}
    assert 'no matches for kind "Deploymnet"' in await kubectl("apply", "-f", kubectl.file(bad), code=1)
    assert "field label not supported" in await kubectl("get", "pods", "--field-selector=a=b", code=1)
    assert "resource type" in await kubectl("get", "secrets", code=1)


async def test_server_side_apply_and_diff(kubectl: Kubectl) -> None:
    file = kubectl.file(service("web"))
    assert await kubectl("apply", "--server-side", "-f", file) == "service/web serverside-applied\n"
    assert await kubectl("apply", "--server-side", "-f", file) == "service/web serverside-applied\n"


@pytest.mark.skipif(not BOUTIQUE.exists(), reason="the Online Boutique manifests are not here")
async def test_online_boutique(kubectl: Kubectl) -> None:
    # The ServiceAccounts are refused, each by name; everything else is applied.
    told = await kubectl("apply", "-R", "-f", str(BOUTIQUE), code=1)
    assert told.count('no matches for kind "ServiceAccount"') == 11
    pods = await kubectl.plane.ready(12)
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node1", "node2"}
    await kubectl("rollout", "status", "deploy", "--timeout=10s")
    await kubectl.plane.until("EndpointSlice", lambda s: len(s) == 12 and all(len(e["endpoints"]) == 1 for e in s))
    assert len((await kubectl("get", "netpol", "--no-headers")).splitlines()) == 13


async def test_custom_resources_and_events(kubectl: Kubectl) -> None:
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "tenants.policy.example.com"},
        "spec": {
            "group": "policy.example.com",
            "scope": "Cluster",
            "names": {"plural": "tenants", "kind": "Tenant", "shortNames": ["tn"]},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "subresources": {"status": {}}, "schema": {}},
            ],
        },
    }
    await kubectl("apply", "-f", kubectl.file(crd))
    await kubectl("wait", "--for=condition=Established", "crd/tenants.policy.example.com", "--timeout=10s")
    tenant = {"apiVersion": "policy.example.com/v1", "kind": "Tenant", "metadata": {"name": "a"}, "spec": {"x": 1}}
    assert "created" in await kubectl("apply", "-f", kubectl.file(tenant))
    assert "configured" in await kubectl("apply", "-f", kubectl.file({**tenant, "spec": {"z": 2}}))
    assert json.loads(await kubectl("get", "tn", "a", "-o", "json"))["spec"] == {"z": 2}
    status = '{"status":{"ready":true}}'
    await kubectl("patch", "tenant", "a", "--subresource=status", "--type=merge", "-p", status)
    assert "NAME   AGE" in await kubectl("get", "tenants")
    event = {"kind": "Pod", "name": "web", "namespace": "default"}
    await kubectl.plane.client.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "web.1", "namespace": "default"},
            "involvedObject": event,
            "reason": "Denied",
            "message": "no way",
            "type": "Warning",
            "lastTimestamp": "2020-01-01T00:00:00Z",
        }
    )
    shown = await kubectl("get", "events")
    assert "Denied" in shown
    assert "pod/web" in shown
    await kubectl("delete", "crd", "tenants.policy.example.com")
    # kubectl remembers for a while what is served.
    assert "NotFound" in await kubectl("get", "tenants", code=1)
