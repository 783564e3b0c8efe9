"""`nodenet sysdump`: what the API knows about nodenet, and what every agent knows about its node, as one tar file.

Secrets are never requested. Pods of other namespaces are listed without their containers, and those of kube-system
without commands, arguments and environment: these may have credentials.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nodenet.cluster import agents, client, status
from nodenet.cluster.archive import Report
from nodenet.cluster.client import Cluster
from nodenet.cluster.release import NAMESPACE
from nodenet.errors import CannotRunError, NodenetError
from nodenet.kinds import ENDPOINT_SLICE, ApiResource

Obj = dict[str, Any]
Say = Callable[[str], None]

# Lines of each container's log, and seconds for a node's part: it lists all maps.
_LOG_LINES = 20000
_NODE_SECONDS = 120.0
_SYSTEM = "kube-system"
_EVERYWHERE = (
    client.NODES,
    client.NAMESPACES,
    client.SERVICES,
    ENDPOINT_SLICE.resource,
    client.NETWORK_POLICIES,
    client.EVENTS,
)
_RIGHTS = (
    ApiResource("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", namespaced=False),
    ApiResource("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
)


async def collect(cluster: Cluster, report: Report, say: Say) -> None:
    """Fill the report. A part that cannot be read is named in it, and the others are collected."""
    say("objects of the API")
    parts: dict[str, Callable[[], Any]] = {"version": lambda: cluster.document("/version")}
    for resource in _EVERYWHERE:
        parts[resource.plural] = partial(cluster.list, resource)
    for resource in _RIGHTS:
        parts[resource.plural] = partial(cluster.list, resource, labelSelector=client.SELECTOR)
    parts[f"configmaps-{NAMESPACE}"] = lambda: cluster.list(client.CONFIG_MAPS, NAMESPACE)
    parts["daemonsets"] = partial(_outlined, cluster, client.DAEMON_SETS, _daemon_set)
    parts["pods"] = partial(_outlined, cluster, client.PODS, _pod)
    if not any([await _part(report, name, read) for name, read in parts.items()]):
        raise CannotRunError(f"nothing of the cluster can be read: {report.errors[0]}")
    say("status of every node")
    await _part(report, "status", lambda: status.status(cluster))
    await _agents(cluster, report, say)


async def _part(report: Report, name: str, read: Callable[[], Any]) -> bool:
    """Whether it could be read."""
    try:
        report.document(f"cluster/{name}.json", await read())
    except NodenetError as error:
        report.error(f"cluster/{name}.json: {error}")
        return False
    return True


async def _outlined(cluster: Cluster, resource: ApiResource, outline: Callable[[Obj], Obj]) -> list[Obj]:
    """Whole objects of our namespace, those of the system without what may hold secrets, and outlines of the others."""
    kinds: dict[str, Callable[[Obj], Obj]] = {NAMESPACE: lambda obj: obj, _SYSTEM: _without_commands}
    return [kinds.get(obj["metadata"]["namespace"], outline)(obj) for obj in await cluster.list(resource)]


def _without_commands(value: Any) -> Any:
    """An object without commands, arguments, headers of probes and values of environment variables: a secret there may
    have any name."""
    if isinstance(value, list):
        return [_without_commands(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: [{"name": one.get("name")} for one in inner or ()] if key == "env" else _without_commands(inner)
        for key, inner in value.items()
        if key not in ("command", "args", "httpHeaders")
    }


def _daemon_set(found: Obj) -> Obj:
    """Another network is often a DaemonSet: its name and images tell."""
    metadata, pod = found["metadata"], found["spec"]["template"]["spec"]
    images = [one.get("image") for one in pod.get("containers") or ()]
    return {
        "metadata": {key: metadata.get(key) for key in ("namespace", "name", "labels")},
        "spec": {"hostNetwork": pod.get("hostNetwork", False), "images": images},
        "status": found.get("status"),
    }


def _pod(pod: Obj) -> Obj:
    """What the network needs to know about a pod."""
    metadata, spec, state = pod["metadata"], pod["spec"], pod.get("status") or {}
    ports = [port for one in spec.get("containers") or () for port in one.get("ports") or ()]
    return {
        "metadata": {key: metadata.get(key) for key in ("namespace", "name", "uid", "labels", "ownerReferences")},
        "spec": {"nodeName": spec.get("nodeName"), "hostNetwork": spec.get("hostNetwork", False), "ports": ports},
        "status": {key: state.get(key) for key in ("phase", "reason", "podIPs", "hostIPs", "conditions", "startTime")},
    }


async def _agents(cluster: Cluster, report: Report, say: Say) -> None:
    try:
        pods = await agents.pods(cluster)
    except NodenetError as error:
        report.error(f"nodes: the agents' pods: {error}")
        return
    try:
        nodes = await cluster.list(client.NODES)
    except NodenetError as error:
        report.error(f"nodes: those without an agent are not known: {error}")
        nodes = []
    for node in nodes:
        name = str(node["metadata"]["name"])
        if name not in pods:
            report.error(f"nodes/{name}: no pod of the DaemonSet: run `nodenet sysdump --local` on this node")
    say(f"{len(pods)} agents")

    async def one(node: str) -> None:
        await _logs(cluster, report, node, pods[node])
        await _node(cluster, report, node, pods[node])
        say(f"node {node}")

    await agents.each(sorted(pods), one)


async def _logs(cluster: Cluster, report: Report, node: str, pod: Obj) -> None:
    path = client.PODS.path(NAMESPACE, pod["metadata"]["name"], "log")
    state = pod.get("status") or {}
    states = {
        one["name"]: one for key in ("initContainerStatuses", "containerStatuses") for one in state.get(key) or ()
    }
    for container in ("init", agents.CONTAINER):
        names: dict[str, dict[str, str]] = {f"{container}.log": {}}
        if (states.get(container) or {}).get("restartCount"):
            names[f"{container}.previous.log"] = {"previous": "true"}
        for name, more in names.items():
            params = {"container": container, "timestamps": "true", "tailLines": str(_LOG_LINES), **more}
            try:
                report.text(f"nodes/{node}/{name}", (await cluster.text(path, params)).decode(errors="replace"))
            except NodenetError as error:
                report.error(f"nodes/{node}/{name}: {error}")


async def _node(cluster: Cluster, report: Report, node: str, pod: Obj) -> None:
    """The agent's container writes the node's part to its standard output."""
    try:
        ran = await agents.run(cluster, pod, "sysdump", "--local", "-o", "-", seconds=_NODE_SECONDS)
        if ran.status:
            report.error(f"nodes/{node}: exit code {ran.status}: {ran.stderr.decode(errors='replace')[-500:].strip()}")
        if ran.stdout:
            report.embed(f"nodes/{node}", ran.stdout)
    except NodenetError as error:
        report.error(f"nodes/{node}: {error}")
