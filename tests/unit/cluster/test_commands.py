"""The commands as a user calls them: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from nodenet.cli.main import root
from nodenet.cluster import kustomize, release
from nodenet.link import networkd, reserved_ports, routes
from nodenet.tables import state
from tests.unit.cluster.api import Api

Obj = dict[str, Any]
NUMBERS = ("desiredNumberScheduled", "updatedNumberScheduled", "numberReady", "numberAvailable")


def called(*words: str) -> Result:
    return CliRunner().invoke(root, list(words))


def roll_out(obj: Obj) -> None:
    """The controller of DaemonSets, with one node."""
    if obj["kind"] == "DaemonSet":
        obj["status"] = {**dict.fromkeys(NUMBERS, 1), "observedGeneration": obj["metadata"]["generation"]}


@pytest.fixture
def api() -> Api:
    api = Api(react=roll_out)
    ready = [{"type": "Ready", "status": "True"}]
    api.add(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {}, "status": {"conditions": ready}}
    )
    labels = {"kubernetes.io/service-name": "kubernetes"}
    api.add(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
            "ports": [{"port": 6443}],
            "endpoints": [{"addresses": ["192.0.2.2"]}],
        }
    )
    return api


def test_install_upgrade_and_uninstall(api: Api, tmp_path: Path) -> None:
    with api.kubeconfig(tmp_path) as file:
        where = ("--kubeconfig", file)
        done = called("install", *where, "--wait", "--set", "image.tag=1")
        assert done.exit_code == 0, done.stderr
        assert "overlay replace-kube-proxy with image.tag=1; API servers of the cluster: 192.0.2.2:6443" in done.stderr
        assert "every node is ready" in done.stderr

        again = called("install", *where)
        assert (again.exit_code, again.stdout) == (2, "")
        assert "nodenet is installed already" in again.stderr
        assert "nodenet upgrade" in again.stderr

        shown = called("upgrade", *where, "--dry-run", "--set", "image.tag=2")
        assert shown.exit_code == 0, shown.stderr
        [head, *fields] = shown.stdout.splitlines()
        assert head == "change DaemonSet nodenet/nodenet"
        assert all(field.strip().endswith(":1' -> 'localhost/nodenet:2'") for field in fields)
        assert called("upgrade", *where, "--dry-run").stdout == "nothing changes\n"

        slices = api.named("EndpointSlice", "kubernetes")
        assert slices is not None
        slices["endpoints"] = [{"addresses": ["192.0.2.3"]}]
        moved = called("upgrade", *where, "--dry-run").stdout
        assert "data.api-servers: '192.0.2.2:6443' -> '192.0.2.3:6443'" in moved
        set_by_user = called("upgrade", *where, "--set", "apiServers=192.0.2.2:6443")
        assert set_by_user.exit_code == 0, set_by_user.stderr
        assert called("upgrade", *where, "--dry-run").stdout == "nothing changes\n"
        assert "192.0.2.3:6443" in called("upgrade", *where, "--dry-run", "--set", "apiServers=").stdout

        would = called("uninstall", *where, "--dry-run")
        assert "DaemonSet nodenet/nodenet: would be deleted" in would.stdout
        assert api.named("DaemonSet", "nodenet") is not None
        gone = called("uninstall", *where)
        assert gone.exit_code == 0, gone.stderr
        assert "What stays on each node" in gone.stdout
        assert "nodenet uninstall --clean-nodes" in gone.stdout
        for stays in (f"net.{reserved_ports.KEY.replace('/', '.')}", str(networkd.FOLDER / networkd.FILE)):
            assert stays in gone.stdout
        assert f"routes (proto {routes.PROTOCOL})" in gone.stdout
        assert called("uninstall", *where).exit_code == 2
    assert api.remaining() == {"Node n1", "EndpointSlice kubernetes"}


def test_install_and_upgrade_refuse_a_cleaning_that_did_not_end(api: Api, tmp_path: Path) -> None:
    metadata = {"name": "nodenet-cleanup", "namespace": "nodenet"}
    api.add({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": {}})
    with api.kubeconfig(tmp_path) as file:
        for command in ("install", "upgrade"):
            done = called(command, "--kubeconfig", file)
            assert done.exit_code == 2
            assert "DaemonSet nodenet/nodenet-cleanup: an earlier" in done.stderr
            assert "kubectl delete daemonset" in done.stderr
    assert api.writes == []


def test_a_dry_run_prints_objects_that_kubectl_would_apply(api: Api, tmp_path: Path) -> None:
    with api.kubeconfig(tmp_path) as file:
        done = called("install", "--kubeconfig", file, "--dry-run")
    objects = list(yaml.safe_load_all(done.stdout))
    assert len(objects) == len(kustomize.render("replace-kube-proxy"))
    [config] = [obj for obj in objects if obj["kind"] == "ConfigMap"]
    assert config["data"]["api-servers"] == "192.0.2.2:6443"
    assert api.writes == []


def test_an_upgrade_refuses_a_later_versions_connections(api: Api, tmp_path: Path) -> None:
    with api.kubeconfig(tmp_path) as file:
        where = ("--kubeconfig", file)
        assert called("install", *where, "--set", "image.tag=2").exit_code == 0
        found = api.named("DaemonSet", "nodenet")
        assert found is not None
        found["metadata"]["annotations"][release.STATE] = str(state.STATE + 1)
        before = json.dumps(found)
        for words in ((), ("--dry-run",), ("--set", "image.tag=1"), ("--set", "config.allow_downgrade=false")):
            refused = called("upgrade", *where, *words)
            assert (refused.exit_code, refused.stdout) == (3, ""), refused.stderr
            assert f"state {state.STATE + 1}, expected at most {state.STATE}" in refused.stderr
            assert "--set config.allow_downgrade=true" in refused.stderr
        assert json.dumps(api.named("DaemonSet", "nodenet")) == before
        done = called("upgrade", *where, "--set", "image.tag=1", "--set", "config.allow_downgrade=true")
        assert done.exit_code == 0, done.stderr
        found = api.named("DaemonSet", "nodenet")
        assert found is not None
        assert found["metadata"]["annotations"][release.STATE] == str(state.STATE)


def test_an_upgrade_needs_an_installation(api: Api, tmp_path: Path) -> None:
    with api.kubeconfig(tmp_path) as file:
        done = called("upgrade", "--kubeconfig", file)
    assert done.exit_code == 2
    assert "nodenet is not installed" in done.stderr


def test_the_status_of_a_cluster_and_its_exit_code(api: Api, tmp_path: Path) -> None:
    pod = {"metadata": {"name": "p", "namespace": "d"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}
    api.add({"apiVersion": "v1", "kind": "Pod", **pod})
    with api.kubeconfig(tmp_path) as file:
        where = ("--kubeconfig", file)
        bare = called("status", "--cluster", *where)
        assert bare.exit_code == 1
        assert "! DaemonSet nodenet/nodenet does not exist: nodenet install" in bare.stdout
        assert called("install", *where).exit_code == 0
        owner = {"kind": "DaemonSet", "name": "nodenet"}
        labels = {"app.kubernetes.io/name": "nodenet"}
        metadata = {"name": "a1", "namespace": "nodenet", "labels": labels, "ownerReferences": [owner]}
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        spec = {"nodeName": "n1", "hostNetwork": True}
        api.add({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": ready})

        async def execute(_pod: str, _words: list[str]) -> tuple[int, bytes, bytes]:
            return 0, json.dumps({"healthy": True, "objects": {"endpoints": 0}, "version": "nodenet 1"}).encode(), b""

        api.execute = execute
        well = called("status", "--cluster", "--wait", *where)
        assert well.exit_code == 0, well.stdout
        assert "agents: 1 of 1 nodes healthy" in well.stdout
        assert "(1 began without nodenet: delete them to attach them)" in well.stdout
        assert json.loads(called("status", "--cluster", "-o", "json", *where).stdout)["ok"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "--wait"), "need --cluster"),
        (("status", "--cluster", "--socket", "/x"), "--cluster and --socket cannot be combined"),
        (("sysdump", "--socket", "/x"), "need --local"),
        (("connectivity", "test", "--test", "nope"), "--test nope: no such check"),
        (("install", "--set", "x"), "expected NAME=VALUE"),
    ],
)
def test_wrong_usage_is_named(words: tuple[str, ...], message: str) -> None:
    done = called(*words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_the_checks_are_listed() -> None:
    names = [row["name"] for row in json.loads(called("connectivity", "test", "--list", "-o", "json").stdout)]
    assert {"pod-to-pod-other-node", "dns", "deny-ingress", "host-to-pod"} <= set(names)
