"""Builds the stage of a connectivity test in a cluster, and takes it down."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_address
from typing import Any

from nodenet.cluster.client import DAEMON_SETS, NAMESPACES, NODES, PODS, SELECTOR, SERVICES, Cluster
from nodenet.cluster.connectivity import objects
from nodenet.cluster.connectivity.values import Addresses, Peer, Stage
from nodenet.cluster.pods import waits_for
from nodenet.errors import BadInputError, CannotRunError

Obj = dict[str, Any]
Say = Callable[[str], None]

_POLL_SECONDS = 0.5
_GONE_SECONDS = 90.0
_NOT_PULLED = ("ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError")


@dataclass(frozen=True, slots=True)
class Options:
    """`nodes`: where to put the pods, at most two; empty: the first two that can run pods. `ready_seconds`: the longest
    time until pods are ready."""

    image: str
    nodes: tuple[str, ...] = ()
    egress_target: str = ""
    ready_seconds: float = 120.0


def new_name() -> str:
    """A name for the namespace of one test: two tests at once do not meet."""
    return f"nodenet-test-{secrets.token_hex(3)}"


async def default_image(cluster: Cluster) -> str:
    """The image of the nodenet DaemonSet: every node has it. Raises BadInputError if there is none."""
    found = await cluster.list(DAEMON_SETS, labelSelector=SELECTOR)
    if not found:
        raise BadInputError(
            "--image: required: the cluster has no nodenet DaemonSet whose image could be used",
            "give any image with python3 that the nodes have or can pull",
        )
    return str(found[0]["spec"]["template"]["spec"]["containers"][0]["image"])


async def build(cluster: Cluster, namespace: str, options: Options, say: Say) -> Stage:
    """Make pods and Services in the namespace, and wait until all pods are ready. Raises CannotRunError otherwise."""
    nodes = await _choose_nodes(cluster, options.nodes)
    say(f"namespace {namespace}, image {options.image}, nodes {', '.join(_name(node) for node in nodes)}")
    source = files("nodenet.cluster.connectivity").joinpath("peer.py").read_text()
    await cluster.create(objects.program(namespace, source))
    for service in objects.services(namespace):
        await cluster.create(service)
    pods = _pods(namespace, [_name(node) for node in nodes], options.image)
    for pod in pods:
        await cluster.create(pod)
    say(f"waiting for {len(pods)} pods")
    found = await wait_ready(cluster, namespace, [_name(pod) for pod in pods], options.ready_seconds)
    return await _stage(cluster, namespace, options, found)


def _pods(namespace: str, nodes: Sequence[str], image: str) -> list[Obj]:
    found = [
        objects.pod(namespace, f"{role}-{number}", node, image, **{objects.ROLE: role})
        for number, node in enumerate(nodes, 1)
        for role in (objects.CLIENT, objects.SERVER)
    ]
    labels = {objects.ROLE: objects.CLIENT, **objects.FRIEND}
    return [*found, objects.pod(namespace, "friend", nodes[0], image, **labels)]


async def _choose_nodes(cluster: Cluster, wanted: Sequence[str]) -> list[Obj]:
    known = {_name(node): node for node in await cluster.list(NODES)}
    if missing := [name for name in wanted if name not in known]:
        raise BadInputError(f"--node {missing[0]}: the cluster has no such node (its nodes: {', '.join(known)})")
    # Nodes with taints, such as those of the control plane, are the last choice: traffic of users is on the others.
    usable = [known[name] for name in wanted] or sorted(filter(_can_run, known.values()), key=_is_tainted)
    if not usable:
        raise CannotRunError(
            "no node can run pods: each is not ready, or cordoned", "nodenet status --cluster shows what nodes lack"
        )
    return usable[:2]


def _can_run(node: Obj) -> bool:
    conditions = {one["type"]: one["status"] for one in node.get("status", {}).get("conditions") or ()}
    return conditions.get("Ready") == "True" and not node.get("spec", {}).get("unschedulable")


def _is_tainted(node: Obj) -> bool:
    taints = node.get("spec", {}).get("taints") or ()
    return any(taint.get("effect") in ("NoSchedule", "NoExecute") for taint in taints)


async def wait_ready(cluster: Cluster, namespace: str, names: Sequence[str], seconds: float) -> dict[str, Obj]:
    """Wait until these pods are ready. Raises CannotRunError that says what each of the others waits for."""
    deadline = time.monotonic() + seconds
    while True:
        pods = {_name(pod): pod for pod in await cluster.list(PODS, namespace) if _name(pod) in names}
        waiting = {name: reason for name, pod in pods.items() if (reason := waits_for(pod))}
        if len(pods) == len(names) and not waiting:
            return pods
        hopeless = any(word in reason for reason in waiting.values() for word in _NOT_PULLED)
        if time.monotonic() > deadline or hopeless:
            missing = {name: "it does not exist" for name in names if name not in pods}
            raise CannotRunError(f"pods of namespace {namespace} are not ready: {_by_reason(waiting | missing)}")
        await asyncio.sleep(_POLL_SECONDS)


def _by_reason(waiting: Mapping[str, str]) -> str:
    """Pods often wait for the same: `client-1, server-1: reason; friend: another`."""
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(waiting.items()):
        reasons.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())


async def _stage(cluster: Cluster, namespace: str, options: Options, pods: Mapping[str, Obj]) -> Stage:
    services = {_name(one): one for one in await cluster.list(SERVICES, namespace)}
    api = await cluster.find(SERVICES, "default", "kubernetes")
    dns = await cluster.list(SERVICES, "kube-system", labelSelector="k8s-app=kube-dns")
    numbers = [port["nodePort"] for port in services[objects.NODE_PORT]["spec"]["ports"] if port["protocol"] == "TCP"]
    peers = {name: _peer(pod) for name, pod in sorted(pods.items())}
    return Stage(
        namespace=namespace,
        image=options.image,
        clients=tuple(peer for name, peer in peers.items() if name.startswith(objects.CLIENT)),
        servers=tuple(peer for name, peer in peers.items() if name.startswith(objects.SERVER)),
        friend=peers["friend"],
        services={name: _by_family(service["spec"].get("clusterIPs") or ()) for name, service in services.items()},
        nodes={_name(node): _node_addresses(node) for node in await cluster.list(NODES)},
        node_port=numbers[0],
        api=_by_family(api["spec"]["clusterIPs"]) if api else {},
        api_port=api["spec"]["ports"][0]["port"] if api else 0,
        has_dns=bool(dns),
        egress_target=options.egress_target,
    )


def _peer(pod: Mapping[str, Any]) -> Peer:
    addresses = [str(one["ip"]) for one in pod["status"].get("podIPs") or ()]
    return Peer(_name(pod), pod["spec"]["nodeName"], _by_family(addresses))


def _node_addresses(node: Mapping[str, Any]) -> Addresses:
    return _by_family(
        [one["address"] for one in node.get("status", {}).get("addresses") or () if one["type"] == "InternalIP"]
    )


def _by_family(addresses: Sequence[str]) -> Addresses:
    """The first address of each family. A headless Service has the address None."""
    found: dict[int, str] = {}
    for address in addresses:
        if address != "None":
            found.setdefault(ip_address(address).version, address)
    return found


async def remove(cluster: Cluster, namespace: str, say: Say) -> None:
    """Delete the namespace, and wait until it is gone."""
    say(f"deleting namespace {namespace}")
    if not await cluster.delete(NAMESPACES, "", namespace):
        return
    deadline = time.monotonic() + _GONE_SECONDS
    while await cluster.find(NAMESPACES, "", namespace) is not None:
        if time.monotonic() > deadline:
            say(f"namespace {namespace} still exists after {_GONE_SECONDS:g} s: kubectl describe namespace {namespace}")
            return
        await asyncio.sleep(_POLL_SECONDS)


def _name(obj: Mapping[str, Any]) -> str:
    return str(obj["metadata"]["name"])
