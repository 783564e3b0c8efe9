"""`nodenet cleanup` takes a node back to what it was, and a dry run changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodenet.agent.lock import agent_lock
from nodenet.link import egress, netns, nft, routes
from nodenet.link.egress import Plan
from nodenet.link.handle import Link
from tests.netns.link.test_kube_proxy import FOREIGN, program, restore, saved

pytestmark = pytest.mark.kernel
HERE = Path(__file__).parents[2]


class Node:
    """A node in a network namespace, with folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.name = f"nntest-{uuid.uuid4().hex[:8]}"
        self.folder = folder
        netns.create(self.name)
        self.sh("ip link set lo up; ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up;"
                " ip address add 10.9.0.1/24 dev eth0")  # fmt: skip
        self.config = folder / "agent.yaml"
        # As in a ConfigMap for all nodes: without a name.
        self.config.write_text(f"run_dir: {folder}/run\nbpffs: {folder}/bpf/nodenet\n")

    def sh(self, script: str) -> str:
        done = netns.run(self.name, ["sh", "-ec", script], capture_output=True, text=True, check=True)
        return str(done.stdout)

    def nodenet(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nodenet", *map(str, words)]
        done = netns.run(self.name, command, capture_output=True, text=True, cwd=HERE)
        assert not check or done.returncode == 0, done.stderr
        return done

    def cleanup(self, *words: str | Path) -> list[dict[str, str]]:
        folders = ("--bin-dir", self.folder / "bin", "--conf-dir", self.folder / "net.d")
        found: list[dict[str, str]] = json.loads(
            self.nodenet("cleanup", "--config", self.config, *folders, "-o", "json", *words).stdout
        )
        return found

    def state(self) -> str:
        kernel = self.sh("ip -br link; ip route; ip -6 route; nft list ruleset")
        files = sorted(str(path) for path in self.folder.rglob("*"))
        return kernel + "\n".join(files)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path)
    yield found
    netns.delete(found.name)


def add_pod(node: Node, pod: str) -> None:
    """An attachment by the plugin, without an agent."""
    conf = {"cniVersion": "1.1.0", "name": "nodenet", "type": "nodenet", "isDefaultGateway": True, "ipMasq": True,
            "agentSocket": f"{node.folder}/run/cni.sock",
            "ipam": {"type": "host-local", "dataDir": f"{node.folder}/leases", "subnet": "10.7.0.0/24"}}  # fmt: skip
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": pod, "CNI_IFNAME": "eth0", "CNI_PATH": "/x",
               "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"}  # fmt: skip
    done = netns.run(
        node.name, [node.folder / "bin/nodenet"], input=json.dumps(conf).encode(), env=environ, capture_output=True
    )
    assert done.returncode == 0, done.stdout


def test_a_node_is_bare_afterwards(node: Node) -> None:
    before = node.state()
    (node.folder / "bin").mkdir()
    (node.folder / "net.d").mkdir()
    assert node.cleanup() == []
    pod = str(netns.create(f"{node.name}-pod"))
    try:
        node.nodenet("cni", "install", "--bin-dir", node.folder / "bin", "--conf-dir", node.folder / "net.d")
        add_pod(node, pod)
        node.sh(f"ip route add 10.2.0.0/24 via 10.9.0.2 proto {routes.PROTOCOL}")
        node.sh("ip route add 10.3.0.0/24 via 10.9.0.2; nft add table ip mine")
        netns.call(node.name, egress.apply, Plan(4, (), (), 40000, 50000))
        (node.folder / "bpf/nodenet/maps").mkdir(parents=True)
        full = node.state()
        rows = node.cleanup("--dry-run")
        assert {row["state"] for row in rows} == {"would be removed"}
        assert node.state() == full
        removed = node.cleanup()
        assert [row["what"] for row in removed] == [row["what"] for row in rows]
        assert {row["state"] for row in removed} == {"removed"}
        shown = "\n".join(row["what"] for row in rows)
        for part in ("10-nodenet.conflist", "of pod shop/web", "bridge cni0", "1 routes to other nodes",
                     "nodenet-egress", "nodenet-masq", "pinned in", f"folder {node.folder}/run"):  # fmt: skip
            assert part in shown
        assert node.cleanup() == []
        # Nothing of others was touched, and the pod has lost its interface.
        assert "10.3.0.0/24" in node.sh("ip route")
        assert "table ip mine" in node.sh("nft list ruleset")
        with Link(pod) as link:
            assert [one.name for one in link.all()] == ["lo"]
    finally:
        netns.delete(f"{node.name}-pod")
    node.sh("ip route del 10.3.0.0/24; nft delete table ip mine; rm -r leases bin net.d bpf".replace(
        "rm -r ", f"cd {node.folder}; rm -r "))  # fmt: skip
    assert node.state() == before
    assert netns.call(node.name, nft.our_tables) == []


def test_what_others_have_in_our_folders_and_on_our_bridge_stays(node: Node) -> None:
    run, pins = node.folder / "run", node.folder / "bpf/nodenet"
    for folder in (run / "endpoints/ids", run / "others", pins / "maps", pins / "tc"):
        folder.mkdir(parents=True)
    (run / "others/file").write_text("x")
    (run / "pod-mtu").write_text("1400")
    node.sh("ip link add cni0 type bridge; ip link set far master cni0")
    rows = node.cleanup()
    assert {row["what"].partition(",")[0]: row["state"] for row in rows if "bridge" in row["what"]} == {
        "bridge cni0": "kept: it has 1 ports of others: far"
    }
    assert [row["state"] for row in rows if "because of what others have in it" in row["what"]] == ["removed"] * 2
    assert sorted(path.name for path in run.iterdir()) == ["others"]
    assert (run / "others/file").read_text() == "x"
    assert [path.name for path in pins.iterdir()] == ["tc"]
    assert "cni0" in node.sh("ip -br link")
    # What stays is not ours: there is nothing to do any more.
    assert node.cleanup() == []


def test_it_refuses_while_an_agent_runs(node: Node) -> None:
    with agent_lock(node.folder / "run"):
        done = node.nodenet("cleanup", "--config", node.config, check=False)
    assert done.returncode == 3
    assert "another agent of this node is running" in done.stderr


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
def test_kube_proxys_remains(node: Node, backend: str) -> None:
    restore(node.name, backend, FOREIGN)
    before = saved(node.name, backend)
    program(node.name, backend)
    full = saved(node.name, backend)
    words = ("cleanup", "--kube-proxy", "-o", "json")
    rows = json.loads(node.nodenet(*words, "--dry-run").stdout)
    assert [row["state"] for row in rows] == ["would be removed"] * 2
    assert saved(node.name, backend) == full
    rows = json.loads(node.nodenet(*words).stdout)
    assert [row["state"] for row in rows] == ["removed"] * 2
    assert saved(node.name, backend) == before
    assert json.loads(node.nodenet(*words).stdout) == []


def test_what_cannot_be_checked_is_an_error(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH without ipvsadm and ipset, as in the image."""
    subprocess.run(["ip", "-n", node.name, "link", "add", "kube-ipvs0", "type", "bridge"], check=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    for words, removed in ((("--dry-run",), "would be removed"), ((), "removed")):
        done = node.nodenet("cleanup", "--kube-proxy", "-o", "json", *words, check=False)
        assert done.returncode == 3
        assert [row["state"] for row in json.loads(done.stdout)] == [
            removed,
            "not checked: ipvsadm is not installed here",
            "not checked: ipset is not installed here",
        ]
        assert "run on the node: ipvsadm -Ln" in done.stderr


def test_the_agent_names_what_it_found(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODENET_NODE_NAME", "n1")
    program(node.name, "iptables-nft")
    for words in (("agent", "--check"), ("agent",)):
        done = node.nodenet(*words, "--config", node.config, check=False)
        assert done.returncode == 3
        assert "iptables (nf_tables): " in done.stderr
        assert "nodenet cleanup --kube-proxy" in done.stderr
