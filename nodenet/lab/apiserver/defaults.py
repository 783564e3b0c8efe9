"""Default values that the API server adds to objects (kubernetes pkg/apis/*/v1/defaults). Pure.

Each function completes a private, decoded object in place. Defaults that have no effect in the lab are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nodenet.lab.apiserver.schema import SCHEMAS

Obj = dict[str, Any]


def apply(kind: str, obj: Obj) -> None:
    """Complete an object of `kind`. Invalid values are left for the validation to report."""
    if "spec" not in obj and kind in SCHEMAS and "spec" in SCHEMAS[kind].fields:
        obj["spec"] = {}
    complete = _BY_KIND.get(kind)
    if complete is not None:
        complete(obj)


def _set(obj: Obj, **values: Any) -> None:
    """Set fields that are absent. An empty string counts as absent, because in Go it is the field's zero value."""
    for key, value in values.items():
        if obj.get(key, "") == "":
            obj[key] = value


def _containers(spec: Obj) -> list[Obj]:
    return [*spec.get("containers", ()), *spec.get("initContainers", ())]


def pod_spec(spec: Obj) -> None:
    _set(spec, restartPolicy="Always", dnsPolicy="ClusterFirst", schedulerName="default-scheduler")
    _set(spec, terminationGracePeriodSeconds=30, securityContext={})
    # Negative values are accepted and treated as 1 (API reference, PodSpec).
    if isinstance(spec["terminationGracePeriodSeconds"], int) and spec["terminationGracePeriodSeconds"] < 0:
        spec["terminationGracePeriodSeconds"] = 1
    for container in _containers(spec):
        image = str(container.get("image", ""))
        tag = image.rpartition("/")[2].partition(":")[2]
        _set(container, imagePullPolicy="Always" if tag in ("", "latest") and "@" not in image else "IfNotPresent")
        _set(container, terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File", resources={})
        for port in container.get("ports", ()):
            _set(port, protocol="TCP")
            if spec.get("hostNetwork") and "containerPort" in port:
                _set(port, hostPort=port["containerPort"])


def _template(obj: Obj) -> None:
    template = obj["spec"].get("template")
    if template is not None:
        template.setdefault("metadata", {})
        pod_spec(template.setdefault("spec", {}))


def _pod(obj: Obj) -> None:
    pod_spec(obj["spec"])
    _set(obj["spec"], enableServiceLinks=True)
    status = obj.setdefault("status", {})
    _set(status, phase="Pending", qosClass=qos_class(obj["spec"]))
    _one_address(status)


def _one_address(status: Obj) -> None:
    """Make podIP and podIPs[0] equal. If they differ, podIP counts, because old kubelets set only that field."""
    listed = [entry.get("ip", "") for entry in status.get("podIPs") or ()]
    if status.get("podIP") and listed[:1] != [status["podIP"]]:
        status["podIPs"] = [{"ip": status["podIP"]}]
    elif listed:
        status["podIP"] = listed[0]


def qos_class(spec: Obj) -> str:
    """Guaranteed, Burstable or BestEffort, by cpu and memory of every container."""
    resources = [container.get("resources") or {} for container in _containers(spec)]
    if not any(r.get("requests") or r.get("limits") for r in resources):
        return "BestEffort"
    for r in resources:
        limits = r.get("limits") or {}
        if {"cpu", "memory"} - limits.keys() or {**limits, **(r.get("requests") or {})} != limits:
            return "Burstable"
    return "Guaranteed"


def _deployment(obj: Obj) -> None:
    _set(obj["spec"], replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600)
    strategy = obj["spec"].setdefault("strategy", {})
    _set(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        _set(strategy.setdefault("rollingUpdate", {}), maxSurge="25%", maxUnavailable="25%")
    _template(obj)


def _replica_set(obj: Obj) -> None:
    _set(obj["spec"], replicas=1)
    _template(obj)


def _stateful_set(obj: Obj) -> None:
    _set(obj["spec"], replicas=1, podManagementPolicy="OrderedReady", revisionHistoryLimit=10, serviceName="")
    strategy = obj["spec"].setdefault("updateStrategy", {})
    _set(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        _set(strategy.setdefault("rollingUpdate", {}), partition=0)
    _template(obj)


def _daemon_set(obj: Obj) -> None:
    _set(obj["spec"], revisionHistoryLimit=10)
    strategy = obj["spec"].setdefault("updateStrategy", {})
    _set(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        _set(strategy.setdefault("rollingUpdate", {}), maxSurge=0, maxUnavailable=1)
    _template(obj)


JOB_UID_LABEL = "batch.kubernetes.io/controller-uid"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"


def _job(obj: Obj) -> None:
    spec, metadata = obj["spec"], obj["metadata"]
    if "completions" not in spec and "parallelism" not in spec:
        _set(spec, completions=1)
    _set(spec, parallelism=1, backoffLimit=6, completionMode="NonIndexed", suspend=False)
    _set(spec, podReplacementPolicy="TerminatingOrFailed", manualSelector=False)
    _template(obj)
    if not spec["manualSelector"] and isinstance(spec.get("template"), dict):
        labels = spec["template"]["metadata"].setdefault("labels", {})
        own = {JOB_UID_LABEL: metadata["uid"], "controller-uid": metadata["uid"]}
        labels.update(own, **{JOB_NAME_LABEL: metadata["name"], "job-name": metadata["name"]})
        spec["selector"] = {"matchLabels": {JOB_UID_LABEL: metadata["uid"]}}


def _service(obj: Obj) -> None:
    spec = obj["spec"]
    _set(spec, type="ClusterIP", sessionAffinity="None")
    if spec["sessionAffinity"] == "ClientIP":
        _set(spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {}), timeoutSeconds=10800)
    if spec["type"] in ("NodePort", "LoadBalancer"):
        _set(spec, externalTrafficPolicy="Cluster")
    if spec["type"] == "LoadBalancer":
        _set(spec, allocateLoadBalancerNodePorts=True)
    if spec["type"] != "ExternalName":
        _set(spec, internalTrafficPolicy="Cluster")
    for port in spec.get("ports", ()):
        _set(port, protocol="TCP")
        if "port" in port and not port.get("targetPort"):
            port["targetPort"] = port["port"]
    obj.setdefault("status", {}).setdefault("loadBalancer", {})


def _network_policy(obj: Obj) -> None:
    spec = obj["spec"]
    spec.setdefault("podSelector", {})
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    for rule in [*spec.get("ingress", ()), *spec.get("egress", ())]:
        for port in rule.get("ports", ()):
            _set(port, protocol="TCP")


def _endpoint_slice(obj: Obj) -> None:
    for port in obj.get("ports", ()):
        _set(port, name="", protocol="TCP")


NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def _namespace(obj: Obj) -> None:
    obj["metadata"].setdefault("labels", {})[NAMESPACE_LABEL] = obj["metadata"]["name"]
    _set(obj["spec"], finalizers=["kubernetes"])
    _set(obj.setdefault("status", {}), phase="Active")


def _definition(obj: Obj) -> None:
    """Set the conditions of a definition that is served. The lab serves it at once, a real server after a moment."""
    names = obj["spec"].setdefault("names", {})
    _set(names, singular=names.get("kind", "").lower(), listKind=f"{names.get('kind', '')}List")
    _set(obj["spec"], conversion={"strategy": "None"})
    conditions = [{"type": kind, "status": "True"} for kind in ("NamesAccepted", "Established")]
    stored = [version.get("name") for version in obj["spec"].get("versions") or () if version.get("storage")]
    _set(obj.setdefault("status", {}), conditions=conditions, acceptedNames=dict(names), storedVersions=stored)


_BY_KIND: dict[str, Callable[[Obj], None]] = {
    "CustomResourceDefinition": _definition,
    "Pod": _pod,
    "Deployment": _deployment,
    "ReplicaSet": _replica_set,
    "StatefulSet": _stateful_set,
    "DaemonSet": _daemon_set,
    "Job": _job,
    "Service": _service,
    "NetworkPolicy": _network_policy,
    "EndpointSlice": _endpoint_slice,
    "Namespace": _namespace,
}
