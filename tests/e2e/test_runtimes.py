"""Real container runtimes start pods with the installed plugin: containerd through CRI, podman with its CNI backend.

Each has folders and sockets of its own and runs inside a network namespace that stands for the node. No registry is
needed: the image is a static program made here.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from nodenet.cni.agent import AgentHooks
from nodenet.cni.conflist import Options
from nodenet.cni.install import install
from nodenet.cni.server import CniServer
from nodenet.link import netns
from nodenet.link.handle import Link
from nodenet.model import Endpoint
from tests import pause_image
from tests.pause_image import IMAGE
from tests.ping import ping

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

REFERENCE = Path("/usr/lib/cni")
SUBNET = "10.86.0.0/24"


def need(program: str, package: str) -> str:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if not found:
        pytest.skip(f"{program} is not installed (Debian's package {package})")
    return found


@dataclass
class Node:
    """A namespace with the plugin installed for it."""

    name: str
    folder: Path

    @property
    def leases(self) -> list[str]:
        folder = self.folder / "leases" / "nodenet"
        found = [path.name for path in folder.iterdir()] if folder.exists() else []
        return [name for name in found if name[0].isdigit()]

    @property
    def veths(self) -> list[str]:
        def inside() -> list[str]:
            with Link() as link:
                return [entry.name for entry in link.all() if entry.kind == "veth"]

        return netns.call(self.name, inside)


@pytest.fixture
def node(bpf_cache: Path) -> Iterator[Node]:
    with ExitStack() as stack:
        name = f"nntest-{uuid.uuid4().hex[:8]}"
        netns.create(name)
        stack.callback(netns.delete, name)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nnrt")))
        options = Options(
            (SUBNET,), agent_socket=str(folder / "cni.sock"), data_dir=str(folder / "leases"), require_agent=False
        )
        install(folder / "bin", folder / "net.d", options, bpf_cache)
        yield Node(name, folder)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pause_image.make(tmp_path_factory.mktemp("image"))


# --- CRI: the few messages of runtime.v1 that are used, by their field numbers (k8s.io/cri-api, api.proto).

_TEXT = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Nothing": {},
    "Metadata": {"name": (1, ""), "uid": (2, ""), "namespace": (3, "")},
    "Linux": {"cgroup_parent": (1, "")},
    "Config": {"metadata": (1, "Metadata"), "hostname": (2, ""), "log_directory": (3, ""), "linux": (8, "Linux")},
    "RunRequest": {"config": (1, "Config")},
    "Sandbox": {"pod_sandbox_id": (1, "")},
    "Network": {"ip": (1, "")},
    "SandboxStatus": {"id": (1, ""), "network": (5, "Network")},
    "StatusResponse": {"status": (1, "SandboxStatus")},
    "Condition": {"type": (1, ""), "status": (2, "bool"), "reason": (3, ""), "message": (4, "")},
    "RuntimeStatus": {"conditions": (1, "repeated Condition")},
    "RuntimeStatusResponse": {"status": (1, "RuntimeStatus")},
}
_METHODS = {
    "RunPodSandbox": "Sandbox",
    "PodSandboxStatus": "StatusResponse",
    "StopPodSandbox": "Nothing",
    "RemovePodSandbox": "Nothing",
    "Status": "RuntimeStatusResponse",
}


def messages() -> dict[str, Any]:
    """A class for each message."""
    file = descriptor_pb2.FileDescriptorProto(name="nodenet_cri_test.proto", package="nntest", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            made = message.field.add(name=field, number=number, type=_TEXT, label=1)
            if kind == "bool":
                made.type = descriptor_pb2.FieldDescriptorProto.TYPE_BOOL
            elif kind:
                made.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                made.type_name = f".nntest.{kind.removeprefix('repeated ')}"
                made.label = 3 if kind.startswith("repeated ") else 1
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"nntest.{name}")) for name in _MESSAGES}


class Cri:
    """A client of containerd's CRI service."""

    def __init__(self, address: Path) -> None:
        self.types = messages()
        self.channel = grpc.insecure_channel(f"unix:{address}")

    def call(self, method: str, request: Any) -> Any:
        answer = self.types[_METHODS[method]]
        function = self.channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return function(request, timeout=40)

    def ready(self) -> dict[str, bool]:
        """Conditions by name; {} while nobody answers."""
        with suppress(grpc.RpcError):
            status = self.call("Status", self.types["Nothing"]()).status
            return {entry.type: entry.status for entry in status.conditions}
        return {}


CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/bin"
    conf_dir = "{folder}/net.d"
"""
_DISABLED = ("aufs", "btrfs", "devmapper", "zfs")


@contextmanager
def containerd(node: Node, image: Path) -> Iterator[Cri]:
    """containerd with everything below the node's folder, ready, with the image."""
    program, runc = need("containerd", "containerd"), need("runc", "runc")
    if not (REFERENCE / "loopback").exists():
        pytest.skip("the loopback plugin, which CRI calls, is not installed (Debian's containernetworking-plugins)")
    (node.folder / "bin" / "loopback").symlink_to(REFERENCE / "loopback")
    disabled = ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in _DISABLED)
    config = node.folder / "config.toml"
    config.write_text(CONFIG.format(folder=node.folder, image=IMAGE, runc=runc, disabled=disabled))
    log = node.folder / "containerd.log"
    with log.open("wb") as out:
        process = netns.popen(node.name, [program, "--config", config], stdout=out, stderr=out)
    try:
        cri = Cri(node.folder / "containerd.sock")
        until(lambda: cri.ready().get("RuntimeReady") is True, log)
        socket_path = node.folder / "containerd.sock"
        subprocess.run(
            ["ctr", "--address", socket_path, "-n", "k8s.io", "images", "import", "--snapshotter", "native", image],
            check=True,
            capture_output=True,
        )
        until(lambda: cri.ready().get("NetworkReady") is True, log)
        yield cri
        cri.channel.close()
    finally:
        process.terminate()
        process.wait(20)


def until(true: Callable[[], bool], log: Path, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


@contextmanager
def cgroup(name: str) -> Iterator[str]:
    """A parent for the pods' cgroups; it goes with all that the runtime leaves in it, from every hierarchy."""
    try:
        yield f"/{name}"
    finally:
        deadline = time.monotonic() + 10
        while tops := [path for pattern in ("*/", "") for path in Path("/sys/fs/cgroup").glob(f"{pattern}{name}")]:
            for top in tops:
                # The runtime's monitor ends a moment after the container.
                with suppress(OSError):
                    for path in sorted((entry for entry in top.rglob("*") if entry.is_dir()), reverse=True):
                        path.rmdir()
                    top.rmdir()
            assert time.monotonic() < deadline, tops
            time.sleep(0.02)


def mounts(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]


@contextmanager
def sandbox(node: Node, cri: Cri, parent: str) -> Iterator[Any]:
    """A pod named shop/web; its CRI status. Nothing of it is left afterwards."""
    config = cri.types["Config"](hostname="web", log_directory=str(node.folder / "logs"))
    config.metadata.name, config.metadata.namespace, config.metadata.uid = "web", "shop", "u-1"
    config.linux.cgroup_parent = parent
    started = cri.call("RunPodSandbox", cri.types["RunRequest"](config=config))
    try:
        yield cri.call("PodSandboxStatus", started).status
    finally:
        # Twice: the kubelet also stops what is stopped already.
        cri.call("StopPodSandbox", started)
        cri.call("StopPodSandbox", started)
        cri.call("RemovePodSandbox", started)
    assert (node.leases, node.veths, list((node.folder / "endpoints").glob("*.json"))) == ([], [], [])


def check_pod(node: Node, status: Any) -> None:
    assert status.network.ip == "10.86.0.2"
    assert node.leases == ["10.86.0.2"]
    assert len(node.veths) == 1
    inside = next(iter((node.folder / "state").rglob("netns/cni-*")))
    assert ping(inside, "10.86.0.1")
    assert ping(node.name, "10.86.0.2")
    record = json.loads(next((node.folder / "endpoints").glob("*.json")).read_text())
    assert (record["podNamespace"], record["podName"]) == ("shop", "web")


def test_containerd_without_an_agent(node: Node, image: Path) -> None:
    with (
        cgroup(f"nntest{uuid.uuid4().hex[:8]}") as parent,
        containerd(node, image) as cri,
        sandbox(node, cri, parent) as status,
    ):
        check_pod(node, status)
    assert mounts(node.folder / "state") == []


def test_containerd_by_way_of_the_agent(node: Node, image: Path) -> None:
    with cgroup(f"nntest{uuid.uuid4().hex[:8]}") as parent, agent(node) as told, containerd(node, image) as cri:
        with sandbox(node, cri, parent) as status:
            check_pod(node, status)
            assert [str(endpoint.pod) for endpoint in told] == ["shop/web"]
        assert told == []


@contextmanager
def agent(node: Node) -> Iterator[list[Endpoint]]:
    """The agent's side of the plugin, in the node's namespace: the endpoints that it has been told of."""
    told: list[Endpoint] = []
    ready, stop = threading.Event(), threading.Event()

    async def added(endpoint: Endpoint) -> None:
        told.append(endpoint)

    async def deleted(endpoint: Endpoint) -> None:
        if endpoint in told:
            told.remove(endpoint)

    async def serve() -> None:
        server = CniServer(node.folder, AgentHooks(added, deleted))
        await server.start()
        ready.set()
        await asyncio.to_thread(stop.wait)
        await server.close()

    thread = threading.Thread(target=lambda: netns.call(node.name, asyncio.run, serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield told
    finally:
        stop.set()
        thread.join(20)


PODMAN = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
cgroups = "enabled"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
network_cmd_path = ""
tmp_dir = "{folder}/tmp"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{folder}/bin"]
network_config_dir = "{folder}/net.d"
default_network = "nodenet"
"""


def podman(node: Node, *words: str | Path) -> str:
    """Run podman with everything below the node's folder; its output."""
    program, _ = need("podman", "podman"), need("runc", "runc")
    config = node.folder / "containers.conf"
    config.write_text(PODMAN.format(folder=node.folder))
    storage = f'[storage]\ndriver = "vfs"\nrunroot = "{node.folder}/run"\ngraphroot = "{node.folder}/podman"\n'
    (node.folder / "storage.conf").write_text(storage)
    environment = os.environ | {
        "CONTAINERS_CONF": str(config),
        "CONTAINERS_STORAGE_CONF": str(node.folder / "storage.conf"),
    }
    done = netns.run(node.name, [program, *words], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


def test_podman_with_its_cni_backend(node: Node, image: Path) -> None:
    with cgroup(f"nntest{uuid.uuid4().hex[:8]}") as parent:
        podman(node, "load", "-i", image)
        identity = podman(node, "run", "-d", "--cgroup-parent", parent, "--network", "nodenet", IMAGE)
        try:
            where = "{{.NetworkSettings.Networks.nodenet.IPAddress}} {{.State.Pid}}"
            address, pid = podman(node, "inspect", "-f", where, identity).split()
            assert (address, node.leases) == ("10.86.0.2", ["10.86.0.2"])
            assert ping(f"/proc/{pid}/ns/net", "10.86.0.1")
            assert ping(node.name, address)
        finally:
            podman(node, "rm", "-f", "-t", "1", identity)
        assert (node.leases, node.veths, list((node.folder / "endpoints").glob("*.json"))) == ([], [], [])
    assert mounts(node.folder) == []
