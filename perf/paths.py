"""The workload `paths`: short connections along each path to a Service, on labs of two nodes.

There is one lab for each mode, with real agents; iptables, nftables and IPVS are the lab's own proxy modes. Every
Service has five backends. Each path is compared with a connection to a pod along the same path, in the same lab.
Targets of all modes take turns.

    near, far          a pod's call to a ClusterIP; backends on its own node, on the other one
    sticky             near, with session affinity
    node-port-snat     a machine outside calls node1's NodePort, the backends are on node2: the answer must come back
                       through node1, so the source is replaced
    node-port-local    it calls node2's NodePort with externalTrafficPolicy Local: the source is kept

Each also over IPv6. A Service's connections go to five processes in turn, those to a pod to one, whose caches stay
warm. So the ratio is more than what the Service costs. Use it to compare modes and versions.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nodenet.errors import CannotRunError
from nodenet.lab import groups, names, proxies
from nodenet.lab.client import LabClient
from perf.blocks import Sizes
from perf.load import LoadMaker, Place
from perf.node import set_sysctls
from perf.results import Result
from perf.services import TARGET_PORT

MODES = ("ebpf", "iptables", "nftables", "ipvs")
BACKENDS = 5
NAMESPACE = "paths"
PORT = 80
NODE_PORTS = {"snat": 30080, "local": 30081}
OUTSIDE, CLIENT = "outside", "client"
_NODES = {"near": "node1", "far": "node2"}
_TAG = "A"
_UP_SECONDS = 180


class Way(NamedTuple):
    """`place`: who calls. `base`: the pod on the same path that is called directly."""

    name: str
    place: str
    service: str
    base: str
    node: str = ""


PATHS = (
    Way("near", CLIENT, "near", "near"),
    Way("sticky", CLIENT, "sticky", "near"),
    Way("far", CLIENT, "far", "far"),
    Way("node-port-snat", OUTSIDE, "snat", "far", "node1"),
    Way("node-port-local", OUTSIDE, "local", "far", "node2"),
)


@dataclass(frozen=True, slots=True)
class Call:
    """One target: a Service's path, or (`direct`) the pod on it."""

    mode: str
    path: str
    family: int
    direct: bool
    place: Place
    address: str
    port: int

    @property
    def metric(self) -> str:
        return self.path + ("-ipv6" if self.family == 6 else "")


def run(
    modes: Sequence[str],
    sizes: Sizes,
    executable: Path,
    progress: Callable[[str], None],
    leave_out: Callable[[str, CannotRunError], None],
) -> list[Result]:
    """Measure all paths. `leave_out` gets each mode that cannot run here. Raises CannotRunError."""
    wanted = []
    for mode in (mode for mode in MODES if mode in modes):
        try:
            proxies.check(mode)
            wanted.append(mode)
        except CannotRunError as error:
            leave_out(mode, error)
    if not wanted:
        raise CannotRunError(f"none of its modes was asked for, or can run here: {', '.join(MODES)}")
    with ExitStack() as stack:
        maker = LoadMaker(executable)
        calls = [call for mode in wanted for call in stack.enter_context(_lab(mode, maker, progress))]
        # Entered last, so that it is closed first: namespaces can only be removed without processes.
        stack.enter_context(maker)
        return _rows(_measured(maker, calls, sizes, progress), wanted)


Measured = dict[Call, list[list[float]]]


def _measured(maker: LoadMaker, calls: Sequence[Call], sizes: Sizes, progress: Callable[[str], None]) -> Measured:
    """The blocks of each call, in the order of the rounds: A B C, C B A, A B C."""
    found: Measured = {call: [] for call in calls}
    for number in range(sizes.rounds):
        progress(f"paths: round {number + 1} of {sizes.rounds}")
        for call in reversed(calls) if number % 2 else calls:
            block = maker.block(call.place, "crr", call.address, call.port, sizes.count, sizes.warmup)
            found[call].append(block.values)
    return found


def _rows(found: Measured, modes: Sequence[str]) -> list[Result]:
    medians = {call: tuple(map(statistics.median, blocks)) for call, blocks in found.items()}
    base = {(c.mode, c.path, c.family): values for c, values in medians.items() if c.direct}
    bases = {path.name: ("outside-" if path.place == OUTSIDE else "") + path.base for path in PATHS}
    rows = []
    for mode in modes:
        for call, blocks in found.items():
            if call.mode != mode:
                continue
            samples = tuple(value for block in blocks for value in block)
            own = () if call.direct else base[mode, bases[call.path], call.family]
            metric = f"pod-{call.metric}" if call.direct else call.metric
            rows.append(Result(mode, "paths", 0, metric, "us", samples, medians[call], own))
    return rows


@contextmanager
def _lab(mode: str, maker: LoadMaker, progress: Callable[[str], None]) -> Iterator[list[Call]]:
    """A lab with servers in all backends. Yields its calls."""
    lab = f"paths{os.getpid()}-{mode}"
    progress(f"paths: a lab of two nodes, {mode}")
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file, ExitStack() as stack:
            yaml.safe_dump_all(_objects(), file)
            file.flush()
            _nodenet(
                "lab", "up", "--name", lab, "--nodes", "2", "--ip-family", "dual", "--proxy", mode, "-f", file.name
            )
            for name in _pods():
                # The side that closes first would collect them until connect() has to search for a port.
                set_sysctls(names.pod_netns(lab, NAMESPACE, name), {"net.ipv4.tcp_max_tw_buckets": 0})
                if name != CLIENT:
                    stack.enter_context(maker.serving(_place(lab, name), TARGET_PORT, _TAG))
            yield list(_calls(mode, lab))
    finally:
        # Its clients run in the lab's namespaces.
        maker.close()
        _nodenet("lab", "down", "--name", lab)


def _nodenet(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nodenet", *words], capture_output=True, text=True, timeout=_UP_SECONDS, check=False
    )
    if done.returncode:
        raise CannotRunError(f"nodenet {' '.join(words[:2])}: {done.stderr.strip().splitlines()[-1:]}")


def _place(lab: str, pod: str) -> Place:
    node = _pods()[pod]
    return Place(names.pod_netns(lab, NAMESPACE, pod), groups.pod_group(lab, node, NAMESPACE, pod))


def _pods() -> dict[str, str]:
    """Pod -> node."""
    backends = {f"{role}-{n}": node for role, node in _NODES.items() for n in range(1, BACKENDS + 1)}
    return {CLIENT: "node1", **backends}


def _calls(mode: str, lab: str) -> Iterator[Call]:
    client = LabClient(lab)
    pods = {
        (pod["metadata"]["name"], _family(entry["ip"])): entry["ip"]
        for pod in client.objects("Pod", NAMESPACE)
        for entry in pod["status"]["podIPs"]
    }
    services = {
        (service["metadata"]["name"], _family(ip)): ip
        for service in client.objects("Service", NAMESPACE)
        for ip in service["spec"]["clusterIPs"]
    }
    nodes = {(node.name, own.version): str(own.ip) for node in client.plan.nodes for own in node.addresses}
    places = {CLIENT: _place(lab, CLIENT), OUTSIDE: Place(names.fabric_netns(lab))}
    for family in (4, 6):
        for path in PATHS:
            if path.node:
                to, port = nodes[path.node, family], NODE_PORTS[path.service]
            else:
                to, port = services[path.service, family], PORT
            yield Call(mode, path.name, family, False, places[path.place], to, port)
        for place, base in ((CLIENT, "near"), (CLIENT, "far"), (OUTSIDE, "far")):
            name = f"{OUTSIDE}-{base}" if place == OUTSIDE else base
            yield Call(mode, name, family, True, places[place], pods[f"{base}-1", family], TARGET_PORT)


def _family(address: str) -> int:
    return 6 if ":" in address else 4


def _objects() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
    for name, node in _pods().items():
        labels = {"role": name.partition("-")[0]}
        spec = {"nodeName": node, "containers": [{"name": "c", "image": "stand-in"}]}
        metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
        found.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    found += [
        _service("near", "near"),
        _service("sticky", "near", sessionAffinity="ClientIP"),
        _service("far", "far"),
        _service("snat", "far", NODE_PORTS["snat"]),
        _service("local", "far", NODE_PORTS["local"], externalTrafficPolicy="Local"),
    ]
    # The servers are isolated, so that conntrack and policy take part.
    rule = {"ports": [{"protocol": "TCP", "port": TARGET_PORT}]}
    policy = {"podSelector": {"matchExpressions": [{"key": "role", "operator": "NotIn", "values": [CLIENT]}]}}
    found.append(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "servers", "namespace": NAMESPACE},
            "spec": {**policy, "policyTypes": ["Ingress"], "ingress": [rule]},
        }
    )
    return found


def _service(name: str, role: str, node_port: int = 0, **spec: Any) -> dict[str, Any]:
    port = {"port": PORT, "targetPort": TARGET_PORT} | ({"nodePort": node_port} if node_port else {})
    kind = "NodePort" if node_port else "ClusterIP"
    body = {"type": kind, "selector": {"role": role}, "ports": [port], "ipFamilyPolicy": "RequireDualStack", **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": body}
