"""A node that reboots, and pods whose object says what a test wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodenet.lab import names
from nodenet.lab.client import LabClient
from nodenet.lab.staging import Staging
from nodenet.link import netns
from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

TTL = Path("/proc/sys/net/ipv4/ip_default_ttl")
WORLD = """
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Pod, metadata: {name: client, labels: {app: client}},
     spec: {nodeName: node2, containers: [{name: c, image: x}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: server, labels: {app: server}},
     spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: other, labels: {app: other}},
     spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
  - {apiVersion: v1, kind: Service, metadata: {name: server}, spec: {selector: {app: server}, ports: [{port: 80}]}}
  - apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: only-other}
    spec: {podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}]}
"""
EXTRA = """
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}, annotations: {lab.nodenet/sandbox: %s}}
spec: {nodeName: node1, containers: [{name: c, image: x}]}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifest = tmp_path_factory.mktemp("trouble") / "world.yaml"
    manifest.write_text(WORLD)
    with running("nodes", "--nodes", "2") as found:
        # Addresses that no other lab on this machine uses: what another namespace has is never taken for free.
        folder = leases_folder(found)
        folder.mkdir(parents=True)
        (folder / "last_reserved_ip.0").write_text("10.244.1.200")
        found("apply", "-f", manifest, "--wait")
        yield found


def trouble(lab: Lab, *words: str) -> None:
    nodenet("lab", "trouble", *words, "--name", lab.name)


def pod(lab: Lab, name: str) -> dict[str, Any]:
    return next(iter(lab.pods("default", name)), {})


def allowed(lab: Lab, source: str, target: str) -> bool:
    return lab("probe", "--from", source, "--to", target, "--timeout", "0.3", check=False).returncode == 0


def well(lab: Lab) -> bool:
    return lab("status", check=False).returncode == 0


def leases_folder(lab: Lab) -> Path:
    return names.node_dir(lab.name, "node1") / "cni" / "ipam" / "nodenet"


def leases(lab: Lab) -> set[str]:
    return {path.name for path in leases_folder(lab).iterdir() if path.name[0].isdigit()}


@pytest.mark.parametrize("forget", [False, True], ids=["containerd", "cri-o"])
def test_a_reboot_loses_what_a_machine_loses_and_its_pods_come_back(lab: Lab, forget: bool) -> None:
    before = pod(lab, "server")
    spaces = [names.node_netns(lab.name, "node1"), names.pod_netns(lab.name, "default", "server")]
    for name in spaces:
        netns.call(name, TTL.write_text, "63")
    maps = json.loads(nodenet("map", "list", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
    old_leases, log = leases(lab), len(lab.agent_log("node1"))
    boot_id = Staging(LabClient(lab.name)).reboot("node1", forget=forget)["node1"]
    until(lambda: well(lab), "all pods are ready again", 60)

    after = pod(lab, "server")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    container = [p["status"]["containerStatuses"][0] for p in (before, after)]
    assert container[0]["containerID"] != container[1]["containerID"]
    assert container[1]["restartCount"] == container[0]["restartCount"] + 1
    # Other namespaces of the same names: what was set in the old ones is gone.
    assert [netns.call(name, TTL.read_text).strip() for name in spaces] == ["64", "64"]
    node = lab.json("get", "node", "node1")
    assert node["status"]["nodeInfo"]["bootID"] == boot_id
    pid = lab.json("status")["agents"][0]["pid"]
    assert Path(f"/proc/{pid}/root/proc/sys/kernel/random/boot_id").read_text().strip() == boot_id
    # Nothing of the old pins: other maps, and every write is made again.
    now = json.loads(nodenet("map", "list", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
    assert not {entry["id"] for entry in maps} & {entry["id"] for entry in now}
    assert "0 endpoints" in next(line for line in lab.agent_log("node1")[log:].splitlines() if "ready after" in line)
    # The disk has kept the leases, and nobody's stay: by DEL, or because the boot id is another one.
    assert leases(lab) == {pod(lab, name)["status"]["podIP"] for name in ("server", "other")}
    assert not leases(lab) & old_leases
    assert ("freed 2 leases from before the reboot" in lab.agent_log("node1")[log:]) == forget
    assert allowed(lab, "other", "server")
    assert not allowed(lab, "client", "server")


def test_a_held_status_is_the_tests_and_a_released_one_the_kubelets(lab: Lab) -> None:
    assert allowed(lab, "other", "svc/server.default")
    trouble(lab, "pod", "status", "server", "--not-ready", "--phase", "Unknown")
    until(lambda: not allowed(lab, "other", "svc/server.default"), "the Service has lost its endpoint")
    assert allowed(lab, "other", "server")
    # What makes a kubelet write: the container dies and is started again.
    (pids,) = (
        p.read_text().split()
        for p in Path("/sys/fs/cgroup").glob(f"**/nodenet.{lab.name}/node1/pods/default.server/cgroup.procs")
    )
    nodenet("lab", "exec", "--name", lab.name, "server", "--", "kill", "-9", *pids)
    until(lambda: allowed(lab, "other", "server"), "it runs again")
    assert pod(lab, "server")["status"]["phase"] == "Unknown"
    restarts = pod(lab, "server")["status"]["containerStatuses"][0]["restartCount"]
    trouble(lab, "pod", "release", "server")
    until(lambda: pod(lab, "server")["status"]["phase"] == "Running", "the kubelet says what is so")
    assert pod(lab, "server")["status"]["containerStatuses"][0]["restartCount"] == restarts + 1
    until(lambda: allowed(lab, "other", "svc/server.default"), "the Service has its endpoint again")


def test_two_running_pods_with_one_address(lab: Lab, tmp_path: Path) -> None:
    """The agent of another node cannot tell which one is real; the newer one counts (decision 0022)."""
    manifest = tmp_path / "ghost.yaml"
    manifest.write_text(EXTRA % ("ghost", "other", "none"))
    assert not allowed(lab, "client", "server")
    lab("apply", "-f", manifest)
    try:
        trouble(lab, "pod", "status", "ghost", "--phase", "Running", "--ready", "--ips-of", "client")
        assert pod(lab, "ghost")["status"]["podIPs"] == pod(lab, "client")["status"]["podIPs"]
        assert not names.netns_path(names.pod_netns(lab.name, "default", "ghost")).exists()
        until(lambda: allowed(lab, "client", "server"), "node1 takes the client's address for the ghost's")
        trouble(lab, "pod", "status", "ghost", "--phase", "Failed")
        until(lambda: not allowed(lab, "client", "server"), "a failed pod holds no address")
    finally:
        lab("delete", "pod", "ghost")


def test_a_pod_that_ends_keeps_its_object_and_frees_its_address(lab: Lab, tmp_path: Path) -> None:
    manifest = tmp_path / "job.yaml"
    manifest.write_text(EXTRA % ("job", "job", "own"))
    lab("apply", "-f", manifest, "--wait")
    try:
        address = pod(lab, "job")["status"]["podIP"]
        assert address in leases(lab)
        trouble(lab, "pod", "end", "job", "--phase", "Succeeded")
        until(lambda: pod(lab, "job")["status"]["phase"] == "Succeeded", "it has ended")
        assert pod(lab, "job")["status"]["podIP"] == address
        assert address not in leases(lab)
        assert not names.netns_path(names.pod_netns(lab.name, "default", "job")).exists()
    finally:
        lab("delete", "pod", "job")
