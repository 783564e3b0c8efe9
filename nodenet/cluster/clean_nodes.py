"""`nodenet uninstall --clean-nodes`: runs `nodenet cleanup` on every node, by a DaemonSet made from that of the agents.

An init container cleans; the pod is ready when that has ended well. The pods use the agents' image, folders and rights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from nodenet.cluster import rollout
from nodenet.cluster.client import DAEMON_SETS, PODS, Cluster
from nodenet.cluster.install import daemon_set, wait_no_pods
from nodenet.cluster.pods import waits_for
from nodenet.cluster.release import NAMESPACE
from nodenet.errors import BadInputError, CannotRunError, NodenetError

Obj = dict[str, Any]
Say = Callable[[str], None]

NAME = "nodenet-cleanup"
LEFT = f"DaemonSet {NAMESPACE}/{NAME}: an earlier `nodenet uninstall --clean-nodes` is not complete"
HINT = (
    f"nodenet uninstall --clean-nodes completes it, kubectl delete daemonset --namespace {NAMESPACE} {NAME} gives it up"
)
_LABEL = "app.kubernetes.io/name"
_CONTAINER = "cleanup"
_COMMAND = [
    *("cleanup", "--config", "/etc/nodenet/agent.yaml"),
    *("--bin-dir", "/host/opt/cni/bin", "--conf-dir", "/host/etc/cni/net.d"),
]
# The folder of the agent's sockets is deleted too, which is not possible where it is mounted.
_RUN = "/run/nodenet"


async def clean(cluster: Cluster, seconds: float, say: Say) -> None:
    """End the agents, clean every node, and say what was removed. Raises CannotRunError naming the nodes that could not
    be cleaned: a further call continues."""
    agents = await daemon_set(cluster)
    wanted = cleaner(agents) if agents else await cluster.find(DAEMON_SETS, NAMESPACE, NAME)
    if wanted is None:
        raise BadInputError(
            f"--clean-nodes: there is no DaemonSet {NAMESPACE}/nodenet whose image and folders could be used",
            "nodenet cleanup cleans the node that it runs on",
        )
    if agents:
        # Only the agents' DaemonSet knows image and folders. So it stays if the API refuses the one that cleans. The
        # other is made before the wait: a user may interrupt it. Its pods try again until the node's agent has ended.
        await cluster.apply(wanted, dry_run=True)
        await cluster.delete(DAEMON_SETS, NAMESPACE, agents["metadata"]["name"])
        await cluster.apply(wanted)
        say(f"DaemonSet {NAMESPACE}/nodenet: deleted")
    await wait_no_pods(cluster, say)
    await _wait(cluster, seconds, say)
    for node, pod in sorted((await _pods(cluster)).items()):
        say(f"{node}:\n{await _log(cluster, pod)}")
    await cluster.delete(DAEMON_SETS, NAMESPACE, NAME)


async def require_none_left(cluster: Cluster) -> None:
    """Raises BadInputError if a cleaning that did not end is still there: it would take new agents' nodes back."""
    if await cluster.find(DAEMON_SETS, NAMESPACE, NAME) is not None:
        raise BadInputError(f"{LEFT}: it would take the nodes of new agents back", HINT)


def cleaner(agents: Mapping[str, Any]) -> Obj:
    """The DaemonSet that cleans, from that of the agents. Raises BadInputError if that has no container `agent`."""
    pod = copy.deepcopy(agents["spec"]["template"]["spec"])
    containers = {one["name"]: one for one in (*(pod.get("initContainers") or ()), *pod["containers"])}
    agent = containers.get("agent")
    if agent is None:
        raise BadInputError(f"DaemonSet {NAMESPACE}/nodenet: expected a container with the name agent")
    mounts = {mount["mountPath"]: mount for one in containers.values() for mount in one.get("volumeMounts") or ()}
    run = next((volume["name"] for volume in pod["volumes"] if (volume.get("hostPath") or {}).get("path") == _RUN), "")
    for volume in pod["volumes"]:
        if volume["name"] == run:
            volume["hostPath"] = {"path": "/run"}
    kept = [mount for path, mount in mounts.items() if not path.startswith("/run/")]
    kept.append({"name": run or "run", "mountPath": "/run", "mountPropagation": "HostToContainer"})
    common = {"image": agent["image"], "imagePullPolicy": agent["imagePullPolicy"]}
    work = {key: agent[key] for key in ("env", "securityContext", "resources") if key in agent}
    # Without a namespace's ConfigMap the variables of the API servers would keep the pod from its start.
    work["env"] = [one for one in work.get("env") or () if "configMapKeyRef" not in (one.get("valueFrom") or {})]
    spec = {
        **{key: pod[key] for key in _KEPT if key in pod},
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "initContainers": [{"name": _CONTAINER, "args": _COMMAND, "volumeMounts": kept, **common, **work}],
        "containers": [{"name": "done", "command": ["sleep", "infinity"], "securityContext": _NO_RIGHTS, **common}],
    }
    labels = {_LABEL: NAME}
    template = {"metadata": {"labels": labels}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


# The container that only shows that the node is clean.
_NO_RIGHTS = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_KEPT = (
    *("nodeSelector", "tolerations", "hostNetwork", "dnsPolicy", "priorityClassName", "securityContext", "volumes"),
    "imagePullSecrets",
)


async def _wait(cluster: Cluster, seconds: float, say: Say) -> None:
    async def failed(left: str) -> CannotRunError:
        pods = sorted((await _pods(cluster)).items())
        texts = [f"\n{node}: {reason}\n{await _log(cluster, pod)}" for node, pod in pods if (reason := waits_for(pod))]
        return CannotRunError(
            f"--clean-nodes: not complete after {seconds:g} s: {left}{''.join(texts)}",
            "the same command continues; without --clean-nodes it leaves the nodes as they are",
        )

    await rollout.wait(cluster, NAME, seconds, say, failed)


async def _pods(cluster: Cluster) -> dict[str, Obj]:
    pods = await cluster.list(PODS, NAMESPACE, labelSelector=f"{_LABEL}={NAME}")
    return {str(pod["spec"].get("nodeName")): pod for pod in pods}


async def _log(cluster: Cluster, pod: Mapping[str, Any]) -> str:
    path = PODS.path(NAMESPACE, pod["metadata"]["name"], "log")
    try:
        return (
            (await cluster.text(path, {"container": _CONTAINER, "tailLines": "40"})).decode(errors="replace").rstrip()
        )
    except NodenetError as error:
        return f"no log: {error}"
