"""A node without Python that runs the agent out of the image with exactly the rights of the manifests.

`make test-image` builds the image and the root folder of the node, and runs these tests. The other verbs skip them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet.link import cgroups
from tests import pause_image, rendered
from tests.image import api
from tests.image.node import Node, node
from tests.image.pods import Files, Pod

Obj = dict[str, Any]
ROOT = Path(__file__).parents[2]
VERSION = next(
    line.split('"')[1] for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version")
)
NODE_ROOT = ROOT / "build" / "image" / "node.tar"
SUBNETS = ["10.88.0.0/24", "fd00:88::/64"]
OTHER_TAINT = {"key": "test.nodenet.io/other", "effect": "NoSchedule"}
_NODE_OBJECT: Obj = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node1"},
    "spec": {
        "podCIDR": SUBNETS[0],
        "podCIDRs": SUBNETS,
        "taints": [{"key": "node.nodenet.io/agent-not-ready", "effect": "NoSchedule"}, OTHER_TAINT],
    },
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}


def archive(target: str) -> Path:
    """The archive that `make image` wrote. Skips the test without it."""
    path = ROOT / "dist" / f"nodenet-{VERSION}{'-slim' if target == 'slim' else ''}.tar"
    if os.geteuid() != 0 or "NODENET_TEST_IMAGE" not in os.environ:
        # An archive that is here may be of other sources.
        pytest.skip("needs root and a new image: make test-image")
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT)} is missing: make test-image")
    return path


@pytest.fixture(scope="session")
def pause(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pause_image.make(tmp_path_factory.mktemp("pause"))


@pytest.fixture(scope="session")
def node_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root folder of every node."""
    if not NODE_ROOT.exists():
        pytest.skip(f"{NODE_ROOT.relative_to(ROOT)} is missing: make test-image")
    folder = tmp_path_factory.mktemp("node")
    subprocess.run(["tar", "-xf", NODE_ROOT, "-C", folder, "--numeric-owner"], check=True)
    return folder


@dataclass
class Cluster:
    """A node, its API server, and the objects of the manifests."""

    node: Node
    api: api.Api
    objects: list[Obj]
    files: Files
    cgroup: str
    pods: ExitStack

    def pod(self) -> Pod:
        """The agent's pod; its containers are not started yet."""
        [daemonset] = [obj for obj in self.objects if obj["kind"] == "DaemonSet"]
        pod = Pod(self.node, daemonset, self.files, self.cgroup)
        self.pods.callback(pod.remove)
        return pod


@pytest.fixture
def start(pause: Path, node_root: Path, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Starts a cluster of one node. `overlay`: the manifests. `target`: of the image. `config`: more keys for the
    agent."""
    with ExitStack() as stack:

        def begin(overlay: str, target: str = "slim", *, bpffs: bool = True, **config: Any) -> Cluster:
            image = archive(target)
            objects = rendered.kustomize(overlay)
            if target == "full":
                objects = _with_image(objects, f"localhost/nodenet:{VERSION}")
            running = stack.enter_context(node(node_root, pause_image.IMAGE, bpffs=bpffs))
            running.load(pause)
            running.load(image)
            api.make_certificate(tmp_path)
            [role] = [obj for obj in objects if obj["kind"] == "ClusterRole"]
            server = stack.enter_context(api.serving(running.name, tmp_path, role["rules"]))
            server.create(_NODE_OBJECT)
            pods = stack.enter_context(ExitStack())
            files = _files(running, tmp_path, objects, config)
            return Cluster(running, server, objects, files, f"/{running.name}", pods)

        yield begin


def _with_image(objects: list[Obj], name: str) -> list[Obj]:
    for obj in objects:
        if obj["kind"] == "DaemonSet":
            spec = obj["spec"]["template"]["spec"]
            for container in (*spec["initContainers"], *spec["containers"]):
                container["image"] = name
    return objects


def _files(running: Node, folder: Path, objects: list[Obj], changes: Obj) -> Files:
    [config] = [obj for obj in objects if obj["kind"] == "ConfigMap" and obj["metadata"]["name"] == "nodenet"]
    # The cgroup of this node. A real node's agent finds the root by itself, which is the machine's here.
    own = cgroups.make(cgroups.mount_point() / running.name)
    agent = yaml.safe_load(config["data"]["agent.yaml"]) | {"cgroup": f"/host{own}"} | changes
    files = Files(Path("/run/test/config"), Path("/run/test/account"), {"api-servers": f"{api.ADDRESS}:{api.PORT}"})
    for path in (files.config, files.service_account):
        running.path(str(path)).mkdir(parents=True)
    running.path(str(files.config / "agent.yaml")).write_text(yaml.safe_dump(agent))
    running.path(str(files.service_account / "token")).write_text(api.TOKEN)
    certificate = (folder / "tls.crt").read_text()
    running.path(str(files.service_account / "ca.crt")).write_text(certificate)
    return files
