"""`nodenet status --cluster`: the DaemonSet, every node and its agent as one document."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nodenet.cluster import agents, clean_nodes, rollout
from nodenet.cluster.client import DAEMON_SETS, NODES, PODS, Cluster
from nodenet.cluster.pods import has_own_network, waits_for
from nodenet.cluster.release import NAME, NAMESPACE
from nodenet.errors import NodenetError

Obj = dict[str, Any]

TAINT = "node.nodenet.io/agent-not-ready"
_POLL_SECONDS = 2.0


async def status(cluster: Cluster) -> Obj:
    """The document: `ok`, `problems`, `daemonSet`, `pods` and `nodes`."""
    daemon_set = await cluster.find(DAEMON_SETS, NAMESPACE, NAME)
    nodes, pods = await cluster.list(NODES), await agents.pods(cluster)
    running = [pod for pod in pods.values() if not waits_for(pod)]
    answers = dict(
        zip(
            [pod["spec"]["nodeName"] for pod in running],
            await agents.each(running, lambda pod: agents.status(cluster, pod)),
            strict=True,
        )
    )
    rows = [_node(node, pods.get(_name(node)), answers.get(_name(node))) for node in nodes]
    counts = {
        "running": sum(map(has_own_network, await cluster.list(PODS, fieldSelector="status.phase=Running"))),
        "attached": sum(row["endpoints"] or 0 for row in rows),
    }
    problems = _daemon_set_problems(daemon_set)
    if await cluster.find(DAEMON_SETS, NAMESPACE, clean_nodes.NAME) is not None:
        problems.append(f"{clean_nodes.LEFT}: {clean_nodes.HINT}")
    problems += [f"{row['node']}: {problem}" for row in rows for problem in row["problems"]]
    return {
        "ok": not problems,
        "problems": problems,
        "daemonSet": _daemon_set(daemon_set) if daemon_set else None,
        "pods": counts,
        "nodes": rows,
    }


async def wait(cluster: Cluster, seconds: float, say: Callable[[str], None]) -> Obj:
    """The document as soon as it is ok; the last one after `seconds`."""
    deadline, said = time.monotonic() + seconds, ""
    while True:
        found = await status(cluster)
        if found["ok"] or time.monotonic() > deadline:
            return found
        text = f"{found['problems'][0]}" + (
            f" (and {len(found['problems']) - 1} more)" if found["problems"][1:] else ""
        )
        if text != said:
            say(text)
            said = text
        await asyncio.sleep(_POLL_SECONDS)


def _daemon_set(found: Mapping[str, Any]) -> Obj:
    state = found.get("status") or {}
    return {
        "image": found["spec"]["template"]["spec"]["containers"][0]["image"],
        "desired": state.get("desiredNumberScheduled", 0),
        "updated": state.get("updatedNumberScheduled", 0),
        "ready": state.get("numberReady", 0),
        "available": state.get("numberAvailable", 0),
    }


def _daemon_set_problems(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return [f"DaemonSet {NAMESPACE}/{NAME} does not exist: nodenet install"]
    left = rollout.left(found)
    wanted = (found.get("status") or {}).get("desiredNumberScheduled", 0)
    if not left and not wanted:
        return [f"DaemonSet {NAMESPACE}/{NAME}: it runs on no node: is its nodeSelector right?"]
    return [f"DaemonSet {NAMESPACE}/{NAME}: {left}"] if left else []


def _node(node: Mapping[str, Any], pod: Obj | None, answer: Obj | NodenetError | None) -> Obj:
    """A row of the document. `answer`: the agent's status."""
    state: Obj = answer if isinstance(answer, dict) else {}
    return {
        "node": _name(node),
        "agent": pod["metadata"]["name"] if pod else None,
        "restarts": sum(
            one.get("restartCount", 0) for one in (pod or {}).get("status", {}).get("containerStatuses") or ()
        ),
        "healthy": state.get("healthy"),
        "version": str(state.get("version") or "").removeprefix("nodenet ") or None,
        "kernel": state.get("kernel") or node.get("status", {}).get("nodeInfo", {}).get("kernelVersion"),
        "endpoints": (state.get("objects") or {}).get("endpoints"),
        "problems": _node_problems(node) + _agent_problems(pod, answer),
    }


def _node_problems(node: Mapping[str, Any]) -> list[str]:
    conditions = {one["type"]: one for one in node.get("status", {}).get("conditions") or ()}
    found = []
    ready = conditions.get("Ready") or {}
    if ready.get("status") != "True":
        found.append(f"the node is not ready: {ready.get('message') or ready.get('reason') or 'no condition Ready'}")
    network = conditions.get("NetworkUnavailable") or {}
    if network.get("status") == "True":
        found.append(f"the node has no network: {network.get('message') or network.get('reason')}")
    taints: Sequence[Mapping[str, Any]] = node.get("spec", {}).get("taints") or ()
    if any(taint.get("key") == TAINT for taint in taints):
        found.append(f"the node still has the taint {TAINT}")
    return found


def _agent_problems(pod: Mapping[str, Any] | None, answer: Obj | NodenetError | None) -> list[str]:
    if pod is None:
        return ["no agent: the DaemonSet has no pod here"]
    if reason := waits_for(pod):
        return [f"the agent is not ready: {reason}"]
    if isinstance(answer, NodenetError):
        return [f"the agent does not answer: {answer}"]
    if answer is None or answer.get("healthy"):
        return []
    return [str(problem) for problem in answer.get("problems") or ()] or ["the agent is not healthy"]


def _name(obj: Mapping[str, Any]) -> str:
    return str(obj["metadata"]["name"])
