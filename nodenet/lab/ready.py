"""Decides whether all pods and workloads of the manifests are ready. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nodenet.lab import find, pods

Object = Mapping[str, Any]

# Kind -> section and field with the wanted number of pods, and the status field with the number of ready ones.
_COUNTED = {
    "Deployment": ("spec", "replicas", "readyReplicas"),
    "StatefulSet": ("spec", "replicas", "readyReplicas"),
    "ReplicaSet": ("spec", "replicas", "readyReplicas"),
    "DaemonSet": ("status", "desiredNumberScheduled", "numberReady"),
    "Job": ("spec", "parallelism", "ready"),
}
WORKLOADS = tuple(_COUNTED)


@dataclass(frozen=True, slots=True)
class Progress:
    """`waiting`: names of what is not ready. `problems`: a sentence for each pod that cannot run, with the reason."""

    ready: int
    total: int
    waiting: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def done(self) -> bool:
        return not self.waiting


def progress(all_pods: Iterable[Object], workloads: Iterable[Object]) -> Progress:
    """The progress of pods and of the workloads that create them."""
    alive = [p for p in all_pods if not pods.finished(p) and "deletionTimestamp" not in p["metadata"]]
    unready = [p for p in alive if not pods.ready(p)]
    waiting = [f"Pod {find.full_name(p)}" for p in unready] + list(_unfinished(workloads))
    problems = [
        f"Pod {find.full_name(p)}: {message}" for p in unready if (message := pods.waiting_message(p) or _unbound(p))
    ]
    return Progress(len(alive) - len(unready), len(alive), tuple(waiting), tuple(problems))


def _unfinished(workloads: Iterable[Object]) -> Iterator[str]:
    for obj in workloads:
        section, wanted, counted = _COUNTED[obj["kind"]]
        status = obj.get("status", {})
        seen = status.get("observedGeneration", 0) >= obj["metadata"].get("generation", 0) or obj["kind"] == "Job"
        finished = obj["kind"] == "Job" and status.get("completionTime")
        if not finished and not (seen and status.get(counted, 0) >= obj.get(section, {}).get(wanted, 1)):
            yield f"{obj['kind']} {find.full_name(obj)}"


def _unbound(pod: Object) -> str:
    """The scheduler's message why it found no node, or ""."""
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message", ""))
    return ""


def without_endpoints(services: Iterable[Object], slices: Iterable[Object]) -> list[str]:
    """A sentence for each Service whose selector matches no ready pod."""
    served = {
        (s["metadata"]["namespace"], (s["metadata"].get("labels") or {}).get("kubernetes.io/service-name", ""))
        for s in slices
        if any((e.get("conditions") or {}).get("ready", True) for e in s.get("endpoints") or ())
    }
    return [
        f"Service {find.full_name(service)}: spec.selector: no ready pod matches "
        + ",".join(f"{key}={value}" for key, value in sorted(service["spec"]["selector"].items()))
        for service in services
        if service["spec"].get("selector")
        and service["spec"].get("type") != "ExternalName"
        and (service["metadata"]["namespace"], service["metadata"]["name"]) not in served
    ]
