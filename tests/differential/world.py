"""A lab of two nodes with the table's objects, and a process at each place that answers or calls."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from nodenet.lab import names
from nodenet.lab.apiserver.resources import BY_KIND
from nodenet.lab.client import LabClient
from nodenet.link import netns
from tests.differential.probes import CLIENTS, HOSTS, OUTSIDE, Places, Probe, Seen, seen
from tests.differential.tables import BACKENDS, NAMESPACE, TARGET, ZONES, Spec, balancer_status, service, slices
from tests.e2e.labs import NODENET, Lab, running

PEER = Path(__file__).with_name("peer.py")
# Networks that only Services have: the machine outside reaches them by way of node1.
_ROUTED = ("203.0.113.0/24", "198.51.100.0/24", "10.96.0.0/16", "2001:db8::/32", "fd00:10:96::/112")
_GATEWAYS = {4: "172.30.0.11", 6: "fd00:172:30::b"}
_TIMEOUT = 2.5
_TRIES = 5


class Peer:
    """A running peer.py."""

    def __init__(self, prefix: Sequence[str], name: str, port: int) -> None:
        command = [*prefix, sys.executable, "-I", "-S", "-E", str(PEER), name, str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready"

    def ask(self, groups: list[list[dict[str, Any]]]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"timeout": _TIMEOUT, "groups": groups}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> list[list[list[list[str]]]]:
        found: list[list[list[list[str]]]] = self._read()
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the peer ended with {self._process.wait()}"
        return json.loads(line)


class World:
    def __init__(self, lab: Lab, peers: dict[str, Peer], places: Places) -> None:
        self.lab = lab
        self.peers = peers
        self.places = places

    def call(self, probes: Sequence[Probe]) -> list[Seen]:
        """Make all calls. If some tries of a call are answered and some are not, make it once more: a busy machine may
        miss the timeout, while a backend that is not reached will not be reached again."""
        found = self._called(probes)
        doubtful = [probe for probe, one in found.items() if {"answered", "timeout"} <= one.answers]
        found |= self._called(doubtful)
        return [found[probe] for probe in probes]

    def _called(self, probes: Sequence[Probe]) -> dict[Probe, Seen]:
        """Make the calls. Those that may share an entry of session affinity are made one after the other."""
        found: dict[Probe, Seen] = {}
        asked: dict[str, list[list[Probe]]] = {}
        for _, group in groupby(sorted(probes, key=lambda probe: probe.key), key=lambda probe: probe.key):
            members = list(group)
            asked.setdefault(members[0].client, []).append(members)
        for client, groups in asked.items():
            self.peers[client].ask([[_as_call(probe) for probe in group] for group in groups])
        for client, groups in asked.items():
            for group, answers in zip(groups, self.peers[client].answer(), strict=True):
                found |= {p: seen(p, tries, self.places) for p, tries in zip(group, answers, strict=True)}
        return found

    def switch(self, mode: str) -> None:
        self.lab("proxy", mode)


def _as_call(probe: Probe) -> dict[str, Any]:
    return {"address": probe.address, "port": probe.port, "protocol": probe.protocol, "tries": _TRIES}


def _pod(name: str, node: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"nodeName": node, "containers": [{"name": "c", "image": "stand-in"}]}
    if name in HOSTS:
        spec["hostNetwork"] = True
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


@contextmanager
def world(folder: Path, mode: str) -> Iterator[World]:
    """The lab, without Services."""
    pods = {**BACKENDS, **{name: node for name, node in CLIENTS.items() if node}}
    objects = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
    objects += [_pod(name, node) for name, node in pods.items()]
    file = folder / "pods.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    options = ("--nodes", "2", "--ip-family", "dual", "--proxy", mode, "-f", file)
    with running("differential", *options) as lab, ExitStack() as stack:
        peers = {}
        for name in pods:
            prefix = [*NODENET, "lab", "exec", "--name", lab.name, "-n", NAMESPACE, name, "--"]
            peers[name] = Peer(prefix, name, TARGET if name in BACKENDS else 0)
            stack.callback(peers[name].close)
        fabric = names.fabric_netns(lab.name)
        for name in (fabric, *(names.node_netns(lab.name, node) for node in ZONES)):
            netns.call(name, _answer_every_packet)
        for network in _ROUTED:
            via = _GATEWAYS[6 if ":" in network else 4]
            subprocess.run(["ip", "-n", fabric, "route", "add", network, "via", via], check=True)
        peers[OUTSIDE] = Peer(["ip", "netns", "exec", fabric], OUTSIDE, 0)
        stack.callback(peers[OUTSIDE].close)
        client = LabClient(lab.name)
        for node, zone in ZONES.items():
            client.patch(BY_KIND["Node"], "", node, {"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}})
        yield World(lab, peers, _places(lab, client))


def _answer_every_packet() -> None:
    """The kernel limits the rate of ICMP errors: a refused call looks then as if it were dropped."""
    for name in ("ipv4/icmp_ratemask", "ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):
        Path("/proc/sys/net", name).write_text("0")


def _places(lab: Lab, client: LabClient) -> Places:
    own = {}
    for pod in client.objects("Pod", NAMESPACE):
        for entry in pod["status"]["podIPs"]:
            own[pod["metadata"]["name"], _family(entry["ip"])] = entry["ip"]
    of_node = {}
    for node in lab.json("get", "nodes")["items"]:
        name = node["metadata"]["name"]
        for entry in node["status"]["addresses"]:
            if entry["type"] == "InternalIP":
                own[name, _family(entry["address"])] = entry["address"]
        shown = subprocess.run(
            ["ip", "-n", f"nn.{lab.name}.{name}", "-j", "addr"], capture_output=True, text=True, check=True
        )
        of_node[name] = frozenset(info["local"] for link in json.loads(shown.stdout) for info in link["addr_info"])
    for interface in client.plan.fabric:
        own[OUTSIDE, interface.version] = str(interface.ip)
    return Places(own, of_node, {})


def apply(world: World, specs: Sequence[Spec], folder: Path) -> World:
    """Make the Services and their endpoints, and wait until every node has them. Returns the world with their
    addresses."""
    objects: list[dict[str, Any]] = []
    for spec in specs:
        objects += [service(spec), *slices(spec, dict(world.places.own))]
    file = folder / "services.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    world.lab("apply", "-f", file)
    client = LabClient(world.lab.name)
    for spec in specs:
        if spec.balanced:
            client.patch(BY_KIND["Service"], NAMESPACE, spec.name, {"status": balancer_status(spec)}, "status")
    found = {
        (item["metadata"]["name"], _family(ip)): ip
        for item in client.objects("Service", NAMESPACE)
        for ip in item["spec"]["clusterIPs"]
    }
    return World(world.lab, world.peers, Places(world.places.own, world.places.of_node, found))


def _family(address: str) -> int:
    return 6 if ":" in address else 4
