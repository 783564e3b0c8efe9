"""What a configuration asks of the bridge holds beside an agent that hands packets over without it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodenet.cni import bundle
from nodenet.lab import names
from nodenet.link import netns
from nodenet.link.handle import Link
from tests.e2e.labs import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]
CACHE = Path("/var/cache/nodenet")
POD = "{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {nodeName: node1, containers: [{name: c, image: x}]}}"


def call(verb: str, lab: Lab, folder: Path, pod: str, keys: dict[str, Any]) -> dict[str, Any]:
    """One verb on a pod's second interface, by the static executable and the agent of node1, as multus has it."""
    conf = {
        "cniVersion": "1.0.0",
        "name": "rules",
        "type": "nodenet",
        "bridge": "nnrules0",
        "isGateway": True,
        "requireAgent": True,
        "agentSocket": str(names.node_dir(lab.name, "node1") / "cni.sock"),
        "ipam": {"type": "host-local", "dataDir": str(folder), "ranges": [[{"subnet": "10.88.0.0/24"}]]},
        **keys,
    }
    environment = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": f"rules-{pod}",
        "CNI_NETNS": f"/run/netns/{names.pod_netns(lab.name, 'default', pod)}",
        "CNI_IFNAME": "net1",
        "CNI_PATH": "/nowhere",
        "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}",
    }
    command = [bundle.build(CACHE).launcher]
    options = {"input": json.dumps(conf).encode(), "env": environment, "capture_output": True, "timeout": 30}
    done = netns.run(names.node_netns(lab.name, "node1"), command, **options)
    assert done.returncode == 0, done.stdout
    answer: dict[str, Any] = json.loads(done.stdout or b"{}")
    return answer


@contextmanager
def attached(lab: Lab, folder: Path, pods: tuple[str, ...], **keys: Any) -> Iterator[list[str]]:
    """A second interface with these keys in every pod: the addresses."""
    with ExitStack() as stack:
        found = []
        for pod in pods:
            found.append(call("ADD", lab, folder, pod, keys)["ips"][0]["address"].partition("/")[0])
            stack.callback(call, "DEL", lab, folder, pod, keys)
        yield found


@pytest.fixture
def pods(shop: Lab, tmp_path: Path) -> Iterator[tuple[str, str]]:
    manifest = tmp_path / "pods.yaml"
    manifest.write_text("\n---\n".join(POD % name for name in ("left", "right")))
    shop("apply", "-f", manifest, "--wait")
    yield "left", "right"
    shop("delete", "-f", manifest)
    netns.run(names.node_netns(shop.name, "node1"), ["ip", "link", "del", "nnrules0"], check=True)


def hears(source: str, target: str, address: str) -> bool:
    """Whether a datagram from one namespace gets into the other."""
    with (
        netns.open_socket(target, socket.AF_INET, socket.SOCK_DGRAM) as server,
        netns.open_socket(source, socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((address, 7777))
        server.settimeout(0.7)
        client.sendto(b"hello", (address, 7777))
        try:
            return server.recv(100) == b"hello"
        except TimeoutError:
            return False


def test_isolated_ports_stay_isolated(shop: Lab, pods: tuple[str, str], tmp_path: Path) -> None:
    left, right = (names.pod_netns(shop.name, "default", pod) for pod in pods)
    node = names.node_netns(shop.name, "node1")
    with attached(shop, tmp_path, pods) as [_, address]:
        assert hears(left, right, address)
    with attached(shop, tmp_path, pods, portIsolation=True) as [_, address]:
        assert hears(node, right, address)
        # Without this the question for the MAC is all that the bridge gets to keep back.
        with Link(right) as link:
            mac = link.require("net1").mac
        netns.run(left, ["ip", "neighbour", "replace", address, "lladdr", mac, "dev", "net1"], check=True)
        assert not hears(left, right, address)
