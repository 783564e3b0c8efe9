"""The columns of `kubectl get`, for the server's Table answers and for `nodenet lab get`. Pure.

`cells(kind, obj, now)` are in the order of `columns(kind)`. Columns of priority 1 appear only with `-o wide`. The
columns are those of kubernetes pkg/printers/internalversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Obj = Mapping[str, Any]
Cell = str | int
NONE = "<none>"


@dataclass(frozen=True, slots=True)
class Column:
    """`priority` 0 is always shown, 1 only with -o wide. `type` is string or integer."""

    name: str
    priority: int = 0
    type: str = "string"
    format: str = ""


def _columns(plain: str, wide: str = "") -> tuple[Column, ...]:
    """Columns from names separated by commas. A trailing # means that the column holds a number."""
    found = []
    for priority, names in ((0, plain), (1, wide)):
        for name in filter(None, names.split(",")):
            number = name.endswith("#")
            form = "name" if name == "Name" else ""
            found.append(Column(name.rstrip("#"), priority, "integer" if number else "string", form))
    return tuple(found)


_TEMPLATE = "Containers,Images,Selector"
COLUMNS: dict[str, tuple[Column, ...]] = {
    "Event": _columns("Last Seen,Type,Reason,Object,Message", "Count#,Name"),
    "Pod": _columns("Name,Ready,Status,Restarts,Age", "IP,Node,Nominated Node,Readiness Gates"),
    "Service": _columns("Name,Type,Cluster-IP,External-IP,Port(s),Age", "Selector"),
    "Namespace": _columns("Name,Status,Age"),
    "Node": _columns(
        "Name,Status,Roles,Age,Version", "Internal-IP,External-IP,OS-Image,Kernel-Version,Container-Runtime"
    ),
    "Deployment": _columns("Name,Ready,Up-to-date,Available,Age", _TEMPLATE),
    "ReplicaSet": _columns("Name,Desired#,Current#,Ready#,Age", _TEMPLATE),
    "StatefulSet": _columns("Name,Ready,Age", "Containers,Images"),
    "DaemonSet": _columns("Name,Desired#,Current#,Ready#,Up-to-date#,Available#,Node Selector,Age", _TEMPLATE),
    "Job": _columns("Name,Status,Completions,Duration,Age", _TEMPLATE),
    "NetworkPolicy": _columns("Name,Pod-Selector,Age"),
    "EndpointSlice": _columns("Name,AddressType,Ports,Endpoints,Age"),
}

# CustomResourceDefinitions and custom resources; additionalPrinterColumns are not read.
_OTHERS = _columns("Name,Age")


def columns(kind: str) -> tuple[Column, ...]:
    """The columns of a kind (Resource.key)."""
    return COLUMNS.get(kind, _OTHERS)


def cells(kind: str, obj: Obj, now: float) -> list[Cell]:
    """One row, in the order of `columns(kind)`. `now`: UNIX seconds, to compute ages."""
    return _ROWS.get(kind, _other)(obj, now)


def duration(seconds: float) -> str:
    """A short duration as kubectl prints it: 45s, 5m30s, 3h10m, 2d4h, 400d."""
    total = int(seconds)
    if total < 0:
        return "0s" if total > -2 else "<invalid>"
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if total < 120:
        return f"{total}s"
    if minutes < 10:
        return f"{minutes}m" + (f"{total % 60}s" if total % 60 else "")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h" + (f"{minutes % 60}m" if minutes % 60 else "")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d" + (f"{hours % 24}h" if hours % 24 else "")
    return f"{days}d" if days < 730 else f"{days // 365}y" + (f"{days % 365}d" if days % 365 and days < 2920 else "")


def _seconds(text: str) -> float | None:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _age(obj: Obj, now: float) -> str:
    made = _seconds(obj["metadata"].get("creationTimestamp", ""))
    return "<unknown>" if made is None else duration(now - made)


def _name(obj: Obj) -> str:
    return str(obj["metadata"]["name"])


def _join(items: Iterable[object]) -> str:
    return ",".join(str(item) for item in items) or NONE


def selector_text(selector: Obj | None) -> str:
    """A LabelSelector as one line; <none> for the empty one."""
    if selector is None:
        return "<unset>"
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for term in selector.get("matchExpressions") or ():
        values = ",".join(sorted(term.get("values") or ()))
        shapes = {"In": f"{term['key']} in ({values})", "NotIn": f"{term['key']} notin ({values})"}
        shapes |= {"Exists": term["key"], "DoesNotExist": f"!{term['key']}"}
        parts.append(shapes.get(term["operator"], "<error>"))
    return _join(parts)


def _status(obj: Obj) -> Obj:
    return obj.get("status") or {}


def _template(obj: Obj) -> list[Cell]:
    containers = obj["spec"].get("template", {}).get("spec", {}).get("containers") or []
    names = _join(c.get("name", "") for c in containers)
    return [names, _join(c.get("image", "") for c in containers), selector_text(obj["spec"].get("selector"))]


def pod_status(pod: Obj) -> str:
    """The STATUS column: the phase, or the reason why the pod does not run."""
    status = _status(pod)
    reason = status.get("reason") or status.get("phase") or "Unknown"
    statuses = status.get("containerStatuses") or []
    for container in reversed(statuses):
        state = container.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        if waiting.get("reason"):
            reason = waiting["reason"]
        elif ended:
            reason = ended.get("reason") or f"ExitCode:{ended.get('exitCode', 0)}"
    if reason == "Completed" and any((c.get("state") or {}).get("running") for c in statuses):
        reason = "Running"
    if "deletionTimestamp" in pod["metadata"]:
        return "Terminating"
    return str(reason)


def is_ready(obj: Obj, kind: str = "Ready") -> bool:
    """True if a condition of that type is True."""
    return any(c.get("type") == kind and c.get("status") == "True" for c in _status(obj).get("conditions") or ())


def _pod(pod: Obj, now: float) -> list[Cell]:
    status, spec = _status(pod), pod["spec"]
    statuses = status.get("containerStatuses") or []
    total = len(spec.get("containers") or ())
    ready = sum(1 for c in statuses if c.get("ready")) if statuses else total * is_ready(pod)
    restarts = sum(int(c.get("restartCount", 0)) for c in statuses)
    gates = spec.get("readinessGates") or []
    passed = sum(1 for gate in gates if is_ready(pod, gate.get("conditionType", "")))
    wide = [status.get("podIP") or NONE, spec.get("nodeName") or NONE, status.get("nominatedNodeName") or NONE]
    plain: list[Cell] = [_name(pod), f"{ready}/{total}", pod_status(pod), str(restarts), _age(pod, now)]
    return [*plain, *wide, f"{passed}/{len(gates)}" if gates else NONE]


def _external(service: Obj) -> str:
    spec = service["spec"]
    ingress = (_status(service).get("loadBalancer") or {}).get("ingress") or []
    given = [str(i.get("ip") or i.get("hostname")) for i in ingress] if spec.get("type") == "LoadBalancer" else []
    found = given + list(spec.get("externalIPs") or ())
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName") or NONE)
    return ",".join(found) or ("<pending>" if spec.get("type") == "LoadBalancer" else NONE)


def _service(service: Obj, now: float) -> list[Cell]:
    spec = service["spec"]
    ports = _join(
        f"{p['port']}{':' + str(p['nodePort']) if p.get('nodePort') else ''}/{p.get('protocol', 'TCP')}"
        for p in spec.get("ports") or ()
    )
    address = (spec.get("clusterIPs") or [spec.get("clusterIP") or NONE])[0]
    chosen = selector_text({"matchLabels": spec.get("selector") or {}})
    return [_name(service), spec["type"], address, _external(service), ports, _age(service, now), chosen]


def _namespace(namespace: Obj, now: float) -> list[Cell]:
    return [_name(namespace), _status(namespace).get("phase", ""), _age(namespace, now)]


_ROLE = "node-role.kubernetes.io/"


def _node(node: Obj, now: float) -> list[Cell]:
    status, labels = _status(node), node["metadata"].get("labels") or {}
    known = any(c.get("type") == "Ready" for c in status.get("conditions") or ())
    state = ("Ready" if is_ready(node) else "NotReady") if known else "Unknown"
    if node["spec"].get("unschedulable"):
        state += ",SchedulingDisabled"
    roles = _join(sorted(key.removeprefix(_ROLE) for key in labels if key.startswith(_ROLE)))
    info = status.get("nodeInfo") or {}
    found = {entry.get("type"): entry.get("address") for entry in reversed(status.get("addresses") or [])}
    wide = [found.get("InternalIP") or NONE, found.get("ExternalIP") or NONE]
    wide += [info.get(key) or "<unknown>" for key in ("osImage", "kernelVersion", "containerRuntimeVersion")]
    return [_name(node), state, roles, _age(node, now), info.get("kubeletVersion", ""), *wide]


def _deployment(obj: Obj, now: float) -> list[Cell]:
    status = _status(obj)
    ready = f"{status.get('readyReplicas', 0)}/{obj['spec'].get('replicas', 0)}"
    counts = [str(status.get("updatedReplicas", 0)), str(status.get("availableReplicas", 0))]
    return [_name(obj), ready, *counts, _age(obj, now), *_template(obj)]


def _replica_set(obj: Obj, now: float) -> list[Cell]:
    status = _status(obj)
    counts = [obj["spec"].get("replicas", 0), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return [_name(obj), *counts, _age(obj, now), *_template(obj)]


def _stateful_set(obj: Obj, now: float) -> list[Cell]:
    ready = f"{_status(obj).get('readyReplicas', 0)}/{obj['spec'].get('replicas', 0)}"
    return [_name(obj), ready, _age(obj, now), *_template(obj)[:2]]


def _daemon_set(obj: Obj, now: float) -> list[Cell]:
    status = _status(obj)
    keys = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled")
    counts = [status.get(key, 0) for key in (*keys, "numberAvailable")]
    where = obj["spec"].get("template", {}).get("spec", {}).get("nodeSelector") or {}
    return [_name(obj), *counts, selector_text({"matchLabels": where}), _age(obj, now), *_template(obj)]


def _job(obj: Obj, now: float) -> list[Cell]:
    status, spec = _status(obj), obj["spec"]
    wanted = spec.get("completions")
    done = f"{status.get('succeeded', 0)}/{wanted if wanted is not None else '1 of ' + str(spec.get('parallelism', 1))}"
    state = next((word for word in ("Complete", "Failed", "Suspended") if is_ready(obj, word)), "Running")
    started = _seconds(status.get("startTime", ""))
    ended = _seconds(status.get("completionTime", ""))
    took = "" if started is None else duration((now if ended is None else ended) - started)
    return [_name(obj), state, done, took, _age(obj, now), *_template(obj)]


def _network_policy(obj: Obj, now: float) -> list[Cell]:
    return [_name(obj), selector_text(obj["spec"].get("podSelector") or {}), _age(obj, now)]


def _few(items: list[str]) -> str:
    more = f" + {len(items) - 3} more..." if len(items) > 3 else ""
    return (",".join(items[:3]) + more) if items else "<unset>"


def _endpoint_slice(obj: Obj, now: float) -> list[Cell]:
    ports = [str(port.get("port", "*")) for port in obj.get("ports") or ()]
    addresses = [address for endpoint in obj.get("endpoints") or () for address in endpoint.get("addresses") or ()]
    return [_name(obj), obj["addressType"], _few(ports), _few(addresses), _age(obj, now)]


def _event(obj: Obj, now: float) -> list[Cell]:
    seen = _seconds(obj.get("lastTimestamp") or obj.get("firstTimestamp") or "")
    about = obj.get("involvedObject") or {}
    what = f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"
    last = "<unknown>" if seen is None else duration(now - seen)
    words = [str(obj.get(key, "")) for key in ("type", "reason")]
    return [last, *words, what, str(obj.get("message", "")).strip(), int(obj.get("count") or 1), _name(obj)]


def _other(obj: Obj, now: float) -> list[Cell]:
    return [_name(obj), _age(obj, now)]


_ROWS: dict[str, Callable[[Obj, float], list[Cell]]] = {
    "Event": _event,
    "Pod": _pod,
    "Service": _service,
    "Namespace": _namespace,
    "Node": _node,
    "Deployment": _deployment,
    "ReplicaSet": _replica_set,
    "StatefulSet": _stateful_set,
    "DaemonSet": _daemon_set,
    "Job": _job,
    "NetworkPolicy": _network_policy,
    "EndpointSlice": _endpoint_slice,
}
