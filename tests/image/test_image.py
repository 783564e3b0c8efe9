"""containerd runs the agent out of the image on a node without Python, with the rights of the manifests and no more."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from nodenet.link import netns
from tests.image.conftest import OTHER_TAINT, Cluster
from tests.image.node import until
from tests.image.pods import Pod
from tests.ping import ping

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

Obj = dict[str, Any]
SOURCES = "/opt/nodenet/lib/python3.11/site-packages/nodenet/bpf/src"
_READY = "import urllib.request as u; u.urlopen('http://127.0.0.1:9910/readyz', timeout=2)"


def is_ready(cluster: Cluster, pod: Pod) -> bool:
    """What the readiness probe asks."""
    return cluster.node.cri.execute(pod.running["agent"], "python3", "-c", _READY)[0] == 0


def run_agent(cluster: Cluster, pod: Pod, **changes: Any) -> None:
    """Start the agent's container and wait until it is ready."""
    pod.start(pod.spec["containers"][0], **changes)
    log = cluster.node.path("/var/log/pods/agent.log")
    until(lambda: is_ready(cluster, pod), "the agent is ready", log)
    until(lambda: cluster.node.cri.ready().get("NetworkReady") is True, "the network is ready", cluster.node.log)


@dataclass(frozen=True, slots=True)
class Attached:
    """A pod with an address of each family."""

    sandbox: str
    addresses: list[str]


@contextmanager
def attached(cluster: Cluster, name: str) -> Iterator[Attached]:
    """A pod of the API that containerd starts, with its network."""
    spec = {"nodeName": "node1", "containers": [{"name": "a", "image": "a"}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec}
    made = cluster.api.create(body)
    cri, types = cluster.node.cri, cluster.node.cri.types
    config = types["Sandbox"](
        metadata=types["Metadata"](name=name, uid=made["metadata"]["uid"], namespace="default"),
        hostname=name,
        log_directory=f"/var/log/{name}",
        linux=types["SandboxLinux"](cgroup_parent=cluster.cgroup),
    )
    sandbox = cri.call("RunPodSandbox", "RunRequest", config=config).pod_sandbox_id
    try:
        network = cri.call("PodSandboxStatus", "SandboxId", pod_sandbox_id=sandbox).status.network
        yield Attached(sandbox, [network.ip, *(other.ip for other in network.additional_ips)])
    finally:
        cri.call("StopPodSandbox", "SandboxId", pod_sandbox_id=sandbox)
        cri.call("RemovePodSandbox", "SandboxId", pod_sandbox_id=sandbox)


def test_the_agent_of_the_image_attaches_pods(start: Callable[..., Cluster]) -> None:
    cluster = start("replace-kube-proxy", policy_entries=64)
    node = cluster.node
    for program in ("python3", "clang", "cc"):
        assert node.run("sh", "-c", f"command -v {program} || :").stdout == ""
    # Too large for the map: the agent reports it in an Event when a pod is selected.
    peers = [{"ipBlock": {"cidr": f"198.18.{number}.0/24"}} for number in range(100)]
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": peers, "ports": [{"port": 80}]}]}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "large"},
        "spec": spec,
    }
    cluster.api.create(policy)
    pod = cluster.pod()
    pod.run_init()
    assert node.path("/opt/cni/bin/nodenet").exists()
    run_agent(cluster, pod)
    check_rights(cluster, pod)
    # What the agent reports when it is ready.
    found = cluster.api.get("Node", "node1")
    assert found["spec"].get("taints", []) == [OTHER_TAINT]
    assert [(one["type"], one["status"]) for one in found["status"]["conditions"]] == [("NetworkUnavailable", "False")]
    with attached(cluster, "web") as web:
        assert [address.split(".")[0].split(":")[0] for address in web.addresses] == ["10", "fd00"]
        assert ping(node.name, web.addresses[0])
        # Everything stays in the kernel, and a new container continues with it.
        assert pod.stop("agent") == 0
        assert ping(node.name, web.addresses[0])
        run_agent(cluster, pod)
        assert "adopted" in pod.log("agent")
        assert ping(node.name, web.addresses[0])
    assert [path.name for path in node.path("/run/nodenet/endpoints").glob("*.json")] == []
    assert pod.stop("agent") == 0
    # The ClusterRole has what was used, and no more.
    [role] = [obj for obj in cluster.objects if obj["kind"] == "ClusterRole"]
    granted = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    # An Event is patched when the same one happens again, which takes longer than this test. A watch that begins with
    # the objects replaces a list; the right stays for API servers that have no such watch. There is no
    # ClusterNetworkPolicy whose status could be read and written.
    unused = {("list", *rest) for verb, *rest in cluster.api.used if verb == "watch"} | {
        ("patch", "", "events"),
        ("get", "policy.networking.k8s.io", "clusternetworkpolicies"),
        ("patch", "policy.networking.k8s.io", "clusternetworkpolicies/status"),
    }
    assert granted - cluster.api.used - unused == set()
    assert cluster.api.refused == set()


def check_rights(cluster: Cluster, pod: Pod) -> None:
    """The kernel's view of the agent's process: capabilities, seccomp, no new privileges, a read-only root."""
    look = "from pathlib import Path; print(Path('/proc/1/status').read_text()); Path('/written').touch()"
    code, text = cluster.node.cri.execute(pod.running["agent"], "python3", "-c", look)
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    # NET_ADMIN 12, NET_RAW 13, SYS_ADMIN 21 (linux/capability.h).
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 1 << 12 | 1 << 13 | 1 << 21
    assert (status["NoNewPrivs"], status["Seccomp"].strip()) == ("1", "2")
    assert code == 1
    assert "Read-only file system: '/written'" in text


def test_each_capability_is_needed(start: Callable[..., Cluster]) -> None:
    """Without any single one of them, the agent does not start or a pod is not attached."""
    cluster = start("replace-kube-proxy")
    pod = cluster.pod()
    pod.run_init()
    [container] = pod.spec["containers"]
    run_agent(cluster, pod)
    pod.stop("agent")
    for missing in container["securityContext"]["capabilities"]["add"]:
        context = copy.deepcopy(container["securityContext"])
        context["capabilities"]["add"].remove(missing)
        before = len(pod.log("agent"))
        with pytest.raises((AssertionError, grpc.RpcError)) as failed:
            attach_one(cluster, pod, context, f"without-{missing.lower().replace('_', '-')}")
        said = f"{failed.value}\n{pod.log('agent')[before:]}"
        assert "permitted" in said, f"without {missing}: {said}"
        pod.stop("agent", 5)


def attach_one(cluster: Cluster, pod: Pod, context: Obj, name: str) -> None:
    run_agent(cluster, pod, securityContext=context)
    with attached(cluster, name):
        pass


def nft(cluster: Cluster, *words: str) -> str:
    """nft of this machine in the network namespace of the node."""
    program = shutil.which("nft", path="/usr/sbin:/usr/bin:/sbin")
    if program is None:
        pytest.skip("nft is not installed (Debian: nftables)")
    done = netns.run(cluster.node.name, [program, *words], check=True, capture_output=True, text=True)
    return str(done.stdout)


def test_beside_kube_proxy_the_agent_leaves_its_rules(start: Callable[..., Cluster]) -> None:
    cluster = start("beside-kube-proxy")
    nft(cluster, "add", "table", "ip", "kube-proxy")
    pod = cluster.pod()
    pod.run_init()
    run_agent(cluster, pod)
    with attached(cluster, "web") as web:
        assert ping(cluster.node.name, web.addresses[0])
        # Masquerading has a table of its own.
        assert set(nft(cluster, "list", "tables", "ip").split()) >= {"kube-proxy", "nodenet-egress"}


def test_rules_of_kube_proxy_are_removed_out_of_the_image(start: Callable[..., Cluster]) -> None:
    """The agent does not start beside them, so its container cannot remove them: containerd runs the command."""
    cluster = start("replace-kube-proxy")
    node = cluster.node
    nft(cluster, "add", "table", "ip", "kube-proxy")
    pod = cluster.pod()
    pod.run_init()
    pod.start(pod.spec["containers"][0])
    log = node.path("/var/log/pods/agent.log")
    until(lambda: "nodenet cleanup --kube-proxy" in pod.log("agent"), "the agent names the command", log)
    [image] = {container["image"] for container in pod.containers()}
    words = ["ctr", "-n", "k8s.io", "run", "--rm", "--net-host", "--cap-add", "CAP_NET_ADMIN", image, "cleanup"]
    assert "removed" in node.run(*words, "nodenet", "cleanup", "--kube-proxy").stdout
    run_agent(cluster, pod)


def changed_sources(cluster: Cluster, pod: Pod) -> Obj:
    """Mounts of the agent's container with other sources of the programs in place of the image's."""
    [container] = pod.spec["containers"]
    folder = cluster.node.path("/srv/src")
    checkout = Path(__file__).parents[2] / "bpf"
    for file in checkout.rglob("*.[ch]"):
        target = folder / file.relative_to(checkout)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text() + "\n/* changed */\n")
    pod.spec["volumes"].append({"name": "src", "hostPath": {"path": "/srv/src", "type": "Directory"}})
    return {"volumeMounts": [*container["volumeMounts"], {"name": "src", "mountPath": SOURCES, "readOnly": True}]}


def test_slim_says_that_it_has_no_compiler(start: Callable[..., Cluster]) -> None:
    cluster = start("replace-kube-proxy")
    pod = cluster.pod()
    pod.start(pod.spec["containers"][0], **changed_sources(cluster, pod))
    log = cluster.node.path("/var/log/pods/agent.log")
    until(lambda: "clang is not installed" in pod.log("agent"), "the agent says why", log)
    assert "use the image with clang" in pod.log("agent")


def test_full_compiles_other_sources_on_the_node(start: Callable[..., Cluster]) -> None:
    cluster = start("replace-kube-proxy", "full")
    pod = cluster.pod()
    pod.run_init()
    run_agent(cluster, pod, **changed_sources(cluster, pod))
    assert list(cluster.node.path("/var/lib/kubelet/cache").glob("endpoint-*.o"))
    with attached(cluster, "web") as web:
        assert ping(cluster.node.name, web.addresses[0])


def test_without_a_bpf_file_system_the_base_says_what_to_do(start: Callable[..., Cluster]) -> None:
    cluster = start("replace-kube-proxy", bpffs=False)
    pod = cluster.pod()
    with pytest.raises(AssertionError, match="no BPF file system can be mounted"):
        pod.run_init()


def test_mount_bpffs_mounts_it_on_the_node(start: Callable[..., Cluster]) -> None:
    cluster = start("kind", bpffs=False)
    pod = cluster.pod()
    pod.run_init()
    mounts = cluster.node.path("/proc/self/mounts").read_text()
    assert cluster.node.run("findmnt", "-n", "-o", "FSTYPE", "/sys/fs/bpf").stdout.strip() == "bpf", mounts
    run_agent(cluster, pod)
