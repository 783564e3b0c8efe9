"""A report has what a reader needs, says what is missing, and holds no credential."""

from __future__ import annotations

import io
import json
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nodenet.cli.sysdump import sysdump as command
from nodenet.cluster import archive, client, status, sysdump
from nodenet.cluster.archive import Report
from nodenet.errors import CannotRunError
from nodenet.kinds import ApiResource
from tests.unit.cluster.api import Api

Obj = dict[str, Any]
# Every planted credential contains this word.
PLANTED = "hunter2"
JWT = f"eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJzeXN0ZW0{PLANTED}.c2lnbmF0dXJl"


def members(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        found = {}
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            found[member.name.partition("/")[2]] = content.read().decode()
        return found


def report_of(**texts: str) -> bytes:
    """A node's part, of an agent that redacts nothing."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, text in texts.items():
            info = tarfile.TarInfo(f"top/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return file.getvalue()


def daemon_set() -> Obj:
    env = [{"name": "REGISTRY_PASSWORD", "value": PLANTED}]
    spec = {"template": {"spec": {"containers": [{"name": "agent", "image": "i:1", "env": env}]}}}
    numbers = dict.fromkeys(
        ("desiredNumberScheduled", "updatedNumberScheduled", "numberReady", "numberAvailable", "observedGeneration"), 1
    )
    metadata = {"name": "nodenet", "namespace": "nodenet", "generation": 1}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": spec, "status": numbers}


def agent_pod(node: str) -> Obj:
    owner = {"kind": "DaemonSet", "name": "nodenet"}
    labels = {"app.kubernetes.io/name": "nodenet"}
    metadata = {"name": f"nodenet-{node}", "namespace": "nodenet", "labels": labels, "ownerReferences": [owner]}
    state = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}],
        "initContainerStatuses": [{"name": "init", "restartCount": 1}],
        "containerStatuses": [{"name": "agent", "restartCount": 2}],
    }
    spec = {"nodeName": node, "hostNetwork": True, "containers": [{"name": "agent"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": state}


def user_pod() -> Obj:
    container = {
        "name": "c",
        "args": [PLANTED],
        "env": [{"name": "X", "value": PLANTED}],
        "ports": [{"containerPort": 80}],
    }
    metadata = {"name": "web", "namespace": "shop", "labels": {"app": "web"}, "annotations": {"note": PLANTED}}
    spec = {"nodeName": "a", "containers": [container]}
    status = {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def system(obj: Obj) -> Obj:
    """The same object in kube-system, with secrets under names that tell nothing."""
    container = {
        "name": "c",
        "image": "proxy:1",
        "command": ["sh", "-c", f"login {PLANTED}"],
        "args": [PLANTED],
        "env": [{"name": "X", "value": PLANTED}],
        "livenessProbe": {
            "exec": {"command": [PLANTED]},
            "httpGet": {"httpHeaders": [{"name": "X", "value": PLANTED}]},
        },
    }
    spec = {"containers": [container], "initContainers": [container], "hostNetwork": True}
    spec = {"template": {"spec": spec}} if obj["kind"] == "DaemonSet" else spec
    return {**obj, "metadata": {"name": "proxy", "namespace": "kube-system"}, "spec": spec}


def node(name: str, ready: str = "True", **more: Any) -> Obj:
    conditions = [{"type": "Ready", "status": ready, "message": "cni plugin not initialized"}]
    body = {"metadata": {"name": name}, "spec": more, "status": {"conditions": conditions}}
    return {"apiVersion": "v1", "kind": "Node", **body}


def cluster_api() -> Api:
    api = Api(logs={"nodenet-a": f"ready\nAuthorization: Bearer {PLANTED}\nGET /x?token={PLANTED}\nsent {JWT}\n"})
    api.add(node("a"), node("b", "False", taints=[{"key": status.TAINT}]), daemon_set(), agent_pod("a"), user_pod())
    api.add(system(daemon_set()), system(user_pod()))
    space = {"namespace": "nodenet"}
    api.add({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", **space}, "data": {"k": PLANTED}})
    config = {"agent.yaml": f"flow_buffer: 1\npassword: {PLANTED}\n"}
    api.add({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "nodenet", **space}, "data": config})
    event = {
        "metadata": {"name": "e", "namespace": "shop"},
        "message": f"pull https://user:{PLANTED}@registry/x failed",
    }
    api.add({"apiVersion": "v1", "kind": "Event", **event})

    async def execute(_pod: str, words: list[str]) -> tuple[int, bytes, bytes]:
        if words == ["nodenet", "status", "-o", "json"]:
            return 0, json.dumps({"healthy": True, "objects": {"endpoints": 3}, "version": "nodenet 1.0"}).encode(), b""
        assert words == ["nodenet", "sysdump", "--local", "-o", "-"]
        return 0, report_of(**{"node/proc.txt": f"Linux\nsecret={PLANTED}", "agent/status.json": "{}"}), b""

    api.execute = execute
    return api


async def collected(api: Api) -> dict[str, str]:
    file = io.BytesIO()
    async with api.cluster() as cluster:
        with Report(file, "top") as report:
            await sysdump.collect(cluster, report, lambda _text: None)
    return members(file.getvalue())


async def test_no_planted_credential_is_in_the_report() -> None:
    found = await collected(cluster_api())
    assert {name for name, text in found.items() if PLANTED in text} == set()
    # The test would pass with an empty report too.
    assert "flow_buffer: 1" in found["cluster/configmaps-nodenet.json"]
    assert "<redacted>" in found["cluster/daemonsets.json"]
    assert json.loads(found["cluster/version.json"]) == {"gitVersion": "v1.36.0"}
    assert "proxy:1" in found["cluster/daemonsets.json"]
    assert "proxy:1" in found["cluster/pods.json"]
    assert "@registry/x failed" in found["cluster/events.json"]
    assert found["nodes/a/agent.log"].startswith("ready\n")
    assert found["nodes/a/node/proc.txt"].startswith("Linux\n")


async def test_secrets_are_never_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    api = cluster_api()
    paths: list[str] = []
    handle = api._list
    monkeypatch.setattr(api, "_list", lambda request, path: (paths.append(request.path), handle(request, path))[1])
    await collected(api)
    assert any(path.endswith("/pods") for path in paths)
    assert [path for path in paths if "secret" in path] == []


async def test_a_pod_of_a_user_is_an_outline() -> None:
    [web] = [
        pod
        for pod in json.loads((await collected(cluster_api()))["cluster/pods.json"])
        if pod["metadata"]["name"] == "web"
    ]
    assert web["status"]["podIPs"] == [{"ip": "10.0.0.1"}]
    assert web["spec"] == {"nodeName": "a", "hostNetwork": False, "ports": [{"containerPort": 80}]}
    assert "annotations" not in web["metadata"]


async def test_logs_of_a_restarted_agent_and_parts_that_are_missing() -> None:
    found = await collected(cluster_api())
    assert {"nodes/a/init.log", "nodes/a/init.previous.log", "nodes/a/agent.log", "nodes/a/agent.previous.log"} <= set(
        found
    )
    assert "nodes/b: no pod of the DaemonSet: run `nodenet sysdump --local`" in found["errors.txt"]


async def test_a_node_s_part_stays_in_its_folder() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in ("../../etc/passwd", "/etc/passwd", "top/../x", "top/good.txt"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"hi"))
        link = tarfile.TarInfo("top/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        tar.addfile(link)
    out = io.BytesIO()
    with Report(out, "top") as report:
        report.embed("nodes/a", file.getvalue())
    assert set(members(out.getvalue())) == {"nodes/a/good.txt", "errors.txt"}
    assert len(report.errors) == 4


def embedded(data: bytes) -> tuple[set[str], list[str]]:
    out = io.BytesIO()
    with Report(out, "top") as report:
        report.embed("nodes/a", data)
    return set(members(out.getvalue())) - {"errors.txt"}, report.errors


@pytest.mark.parametrize("cut", ["no gzip", "end", "middle"])
def test_a_damaged_part_of_a_node_costs_only_its_rest(cut: str) -> None:
    good = report_of(one="1", two="".join(map(chr, range(32, 120))) * 300)
    bad = {
        "no gzip": b"not a tar",
        "end": good[:-40],
        "middle": good[: len(good) // 2] + b"\xff" * 60 + good[len(good) // 2 + 60 :],
    }[cut]
    _, errors = embedded(bad)
    assert len(errors) == 1
    assert errors[0].startswith("nodes/a: the rest cannot be read: ")


def test_a_node_cannot_fill_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 2)
    found, errors = embedded(report_of(a="1", b="2", c="3", d="4"))
    assert found == {"nodes/a/a", "nodes/a/b"}
    assert errors == ["nodes/a: the rest cannot be read: it has more than 2 members"]
    monkeypatch.setattr(archive, "MOST_TOTAL", 50_000)
    found, errors = embedded(report_of(a="1", b="x" * 100_000))
    assert found == {"nodes/a/a"}
    assert errors == ["nodes/a: the rest cannot be read: it has more than 50000 bytes"]


@pytest.mark.parametrize("plural", ["pods", "nodes"])
async def test_a_list_that_is_refused_does_not_cost_the_report(plural: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = client.Cluster.list

    async def refused(cluster: client.Cluster, resource: ApiResource, *words: str, **more: str) -> list[Obj]:
        if resource.plural == plural:
            raise CannotRunError("403 not for you")
        return await listed(cluster, resource, *words, **more)

    monkeypatch.setattr(client.Cluster, "list", refused)
    found = await collected(cluster_api())
    assert "cluster/daemonsets.json" in found
    assert "\nnodes: " in found["errors.txt"]
    assert ("nodes/a/agent.log" in found) == (plural == "nodes")


async def test_an_agent_that_fails_does_not_cost_the_report() -> None:
    api = cluster_api()

    async def execute(_pod: str, _words: list[str]) -> tuple[int, bytes, bytes]:
        return 2, b"not a tar", b"No such command 'sysdump'"

    api.execute = execute
    found = await collected(api)
    assert "nodes/a: exit code 2: No such command 'sysdump'" in found["errors.txt"]
    assert "nodes/a/agent.log" in found
    assert "the agent does not answer" in found["cluster/status.json"]


async def test_the_status_of_a_cluster() -> None:
    async with cluster_api().cluster() as cluster:
        found = await status.status(cluster)
    assert found["ok"] is False
    assert found["problems"] == [
        "b: the node is not ready: cni plugin not initialized",
        f"b: the node still has the taint {status.TAINT}",
        "b: no agent: the DaemonSet has no pod here",
    ]
    assert found["pods"] == {"running": 1, "attached": 3}
    assert found["daemonSet"] == {"image": "i:1", "desired": 1, "updated": 1, "ready": 1, "available": 1}
    first = found["nodes"][0]
    assert (first["node"], first["healthy"], first["version"], first["restarts"]) == ("a", True, "1.0", 2)


async def test_waiting_for_a_cluster_says_what_it_waits_for() -> None:
    api, said = cluster_api(), list[str]()

    def repair(text: str) -> None:
        said.append(text)
        api.add(node("b"), agent_pod("b"))

    async with api.cluster() as cluster:
        found = await status.wait(cluster, 30, repair)
    assert found["ok"] is True
    assert said == ["b: the node is not ready: cni plugin not initialized (and 2 more)"]


def test_a_local_report_is_made_without_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.tar.gz"
    monkeypatch.setenv("NODENET_METRICS_ADDRESS", "127.0.0.1:1")
    result = CliRunner().invoke(command, ["--local", "-o", str(path), "--socket", str(tmp_path / "agent.sock")])
    assert result.exit_code == 0, result.output
    assert "missing: agent: " in result.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = members(path.read_bytes())
    assert "uname" in json.loads(found["node/versions.json"])
    assert "/proc/version" in found["node/proc.txt"]
    assert any(entry["name"] == "lo" for entry in json.loads(found["node/interfaces.json"]))
    assert "agent: " in found["errors.txt"]
    again = CliRunner().invoke(command, ["--local", "-o", str(path)])
    assert isinstance(again.exception, FileExistsError)
    assert members(path.read_bytes()) == found


def test_a_file_of_cni_that_is_no_configuration_is_not_read(tmp_path: Path) -> None:
    from nodenet.agent import facts

    (tmp_path / "calico-kubeconfig").write_text(PLANTED)
    (tmp_path / "10-x.conflist").write_text('{"name": "x"}')
    text = facts._cni(tmp_path)
    assert "calico-kubeconfig" in text
    assert '{"name": "x"}' in text
    assert PLANTED not in text


def test_an_incomplete_report_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "r.tar.gz"
    config = tmp_path / "config"
    cluster = {"name": "k", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "k"}}
    config.write_text(json.dumps({"clusters": [cluster], "contexts": [context], "current-context": "c"}))
    result = CliRunner().invoke(command, ["-o", str(path), "--kubeconfig", str(config)])
    assert result.exit_code != 0
    assert not path.exists()
    assert list(tmp_path.iterdir()) == [config]
