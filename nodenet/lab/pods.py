"""Derives from a Pod object what a kubelet needs: ports, environment and the parts of its status. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nodenet.model import IPAddress

Object = Mapping[str, Any]

# Annotations by which a test takes over a part of the kubelet's work for a pod.
STATUS = "lab.nodenet/status"
SANDBOX = "lab.nodenet/sandbox"
END = "lab.nodenet/end"
END_PHASES = ("Failed", "Succeeded")


class Port(NamedTuple):
    """One port that a container declares."""

    number: int
    protocol: str

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"


def containers(pod: Object) -> list[Object]:
    """The containers that run as long as the pod: spec.containers and sidecars (init containers with restartPolicy
    Always, KEP-753)."""
    spec = pod["spec"]
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    return [*sidecars, *spec["containers"]]


def ports(pod: Object) -> list[Port]:
    """Every declared port, without duplicates, in the order of declaration."""
    declared = (port for container in containers(pod) for port in container.get("ports") or ())
    return list(dict.fromkeys(Port(port["containerPort"], port.get("protocol", "TCP")) for port in declared))


def host_network(pod: Object) -> bool:
    return bool(pod["spec"].get("hostNetwork"))


def finished(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _annotation(pod: Object, key: str) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(key, ""))


def manual_status(pod: Object) -> bool:
    """True if a test sets the status. The kubelet then runs the pod but writes no status."""
    return _annotation(pod, STATUS) == "manual"


def without_sandbox(pod: Object) -> bool:
    """True if the kubelet creates nothing for the pod: no namespace and no network. Only the object exists."""
    return _annotation(pod, SANDBOX) == "none"


def end_phase(pod: Object) -> str:
    """The phase in which the pod must end now; "" if it must not end."""
    phase = _annotation(pod, END)
    return phase if phase in END_PHASES else ""


def restarts(pod: Object) -> int:
    """The number of earlier starts of its containers. 0 for a pod that has never run."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    ran = [status.get("restartCount", 0) + 1 for status in statuses if "running" in (status.get("state") or {})]
    return max(ran, default=max((status.get("restartCount", 0) for status in statuses), default=0))


def addresses(pod: Object) -> list[str]:
    status = pod.get("status", {})
    found = [entry["ip"] for entry in status.get("podIPs") or ()]
    return found or ([status["podIP"]] if status.get("podIP") else [])


def waiting_message(pod: Object) -> str:
    """The reason in the pod's status why it does not run, or ""."""
    for status in pod.get("status", {}).get("containerStatuses") or ():
        message = status.get("state", {}).get("waiting", {}).get("message")
        if message:
            return str(message)
    return ""


def service_environment(pod: Object, services: Iterable[Object]) -> dict[str, str]:
    """The variables that kubelet sets in a container for each Service of its namespace that has a cluster address.

    Those of the Service default/kubernetes are set in every namespace, and are the only ones if enableServiceLinks is
    false.
    """
    namespace, links = pod["metadata"]["namespace"], pod["spec"].get("enableServiceLinks", True)
    found: dict[str, str] = {}
    for service in services:
        own = service["metadata"]["namespace"]
        kubernetes = (own, service["metadata"]["name"]) == ("default", "kubernetes")
        if cluster_ips(service) and (kubernetes or (links and own == namespace)):
            found |= _variables(service)
    return found


def cluster_ips(service: Object) -> list[str]:
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return []
    found = spec.get("clusterIPs") or [spec.get("clusterIP") or "None"]
    return [address for address in found if address and address != "None"]


def _variables(service: Object) -> dict[str, str]:
    name = _variable_name(service["metadata"]["name"])
    host = cluster_ips(service)[0]
    found = {f"{name}_SERVICE_HOST": host}
    for index, port in enumerate(service["spec"].get("ports") or ()):
        number, protocol = str(port["port"]), port.get("protocol", "TCP")
        url = f"{protocol.lower()}://{f'[{host}]' if ':' in host else host}:{number}"
        link = f"{name}_PORT_{number}_{protocol}"
        if index == 0:
            found |= {f"{name}_SERVICE_PORT": number, f"{name}_PORT": url}
        if port.get("name"):
            found[f"{name}_SERVICE_PORT_{_variable_name(port['name'])}"] = number
        found |= {link: url, f"{link}_PROTO": protocol.lower(), f"{link}_PORT": number, f"{link}_ADDR": host}
    return found


def _variable_name(name: str) -> str:
    return name.upper().replace("-", "_")


# Variables that choose what the dynamic linker, a shell or an interpreter loads and runs. A pod's commands are programs
# of the host and run as root.
_LOADS_CODE = (
    "LD_", "GLIBC_", "GCONV_PATH", "LOCPATH", "NLSPATH", "MALLOC_", "PATH", "IFS", "ENV", "BASH", "SHELLOPTS", "PS4",
    "PROMPT_COMMAND", "PYTHON", "PERL", "RUBY", "NODE_", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS",
    "OPENSSL_", "SSLKEYLOGFILE", "CURL_HOME", "GIT_", "EDITOR", "VISUAL", "PAGER", "LESSOPEN", "LESSCLOSE", "HOME",
    "XDG_", "TERMINFO", "TERMCAP", "HOSTALIASES", "RES_OPTIONS", "LOCALDOMAIN", "TMPDIR",
)  # fmt: skip


def loads_code(variable: str) -> bool:
    """True if this variable could make a program of the host run other code. True also for names with special
    characters, because bash imports functions from such variables."""
    return variable.startswith(_LOADS_CODE) or not variable.isidentifier() or not variable.isascii()


def left_out(pod: Object) -> list[str]:
    """The variables of the first container's `env` that `environment` leaves out because of `loads_code`. Variables
    without a value in the Pod object (secretKeyRef, configMapKeyRef) are left out too, but not listed here."""
    return [entry["name"] for entry in pod["spec"]["containers"][0].get("env") or () if loads_code(entry["name"])]


def environment(pod: Object, services: Iterable[Object]) -> dict[str, str]:
    """The first container's environment: Services, HOSTNAME, then its own `env` (values and fieldRef), without the
    variables of `loads_code`."""
    found = service_environment(pod, services) | {"HOSTNAME": pod["metadata"]["name"]}
    for entry in pod["spec"]["containers"][0].get("env") or ():
        if loads_code(entry["name"]):
            continue
        value = entry.get("value")
        if value is None:
            value = _field(pod, entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", ""))
        if value is not None:
            found[entry["name"]] = value
    return found


def _field(pod: Object, path: str) -> str | None:
    value: Any = pod
    for part in path.split(".") if path else ("",):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None


def hosts_file(pod: Object, services: Iterable[Object]) -> str:
    """An /etc/hosts with the pod and every Service that has a cluster address. It replaces a DNS server.

    Services of the pod's own namespace also get their short name, as with the search list of a pod's resolver.
    """
    metadata = pod["metadata"]
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {metadata['name']}" for address in addresses(pod)[:1]]
    lines += _service_lines(metadata["namespace"], services)
    return "\n".join(lines) + "\n"


def _service_lines(namespace: str, services: Iterable[Object]) -> Iterator[str]:
    for service in services:
        name, own = service["metadata"]["name"], service["metadata"]["namespace"]
        full = [f"{name}.{own}", f"{name}.{own}.svc", f"{name}.{own}.svc.cluster.local"]
        for address in cluster_ips(service):
            yield " ".join([address, *([name] if own == namespace else []), *full])


def running_status(
    pod: Object, now: str, ips: Iterable[IPAddress], host_ips: Iterable[IPAddress], container_id: str, restarts: int
) -> dict[str, Any]:
    """The status of a pod whose stand-in answers. `now` is an RFC 3339 time."""
    pod_ips, node_ips = [str(ip) for ip in ips], [str(ip) for ip in host_ips]
    statuses = [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": container.get("image", ""),
            "containerID": f"nodenet://{container_id}",
            "ready": True,
            "started": True,
            "restartCount": restarts,
            "state": {"running": {"startedAt": now}},
        }
        for container in pod["spec"]["containers"]
    ]
    return {
        "phase": "Running",
        "podIP": pod_ips[0],
        "podIPs": [{"ip": ip} for ip in pod_ips],
        "hostIP": node_ips[0],
        "hostIPs": [{"ip": ip} for ip in node_ips],
        "startTime": pod.get("status", {}).get("startTime") or now,
        "conditions": _conditions(pod, now, ready=True),
        "containerStatuses": statuses,
    }


def waiting_status(pod: Object, now: str, reason: str, message: str, restarts: int = 0) -> dict[str, Any]:
    """The status fields of a pod that does not run (again) yet, with the reason in state.waiting."""
    waiting = {"reason": reason, **({"message": message} if message else {})}
    statuses = [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": "",
            "ready": False,
            "started": False,
            "restartCount": restarts,
            "state": {"waiting": waiting},
        }
        for container in pod["spec"]["containers"]
    ]
    return {
        "startTime": pod.get("status", {}).get("startTime") or now,
        "conditions": _conditions(pod, now, ready=False, message=message),
        "containerStatuses": statuses,
    }


def finished_status(pod: Object, now: str, phase: str, restarts: int) -> dict[str, Any]:
    """The status of a finished pod, without podIPs, which remain. `phase` is one of END_PHASES."""
    fine = phase == "Succeeded"
    reason = "Completed" if fine else "Error"
    ended = {"exitCode": 0 if fine else 1, "reason": reason, "finishedAt": now}
    statuses = [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": container.get("image", ""),
            "ready": False,
            "started": False,
            "restartCount": restarts,
            "state": {"terminated": ended},
        }
        for container in pod["spec"]["containers"]
    ]
    message = "the pod has completed" if fine else "the pod has failed"
    return {
        "phase": phase,
        "conditions": _conditions(pod, now, ready=False, message=message),
        "containerStatuses": statuses,
    }


def _conditions(pod: Object, now: str, *, ready: bool, message: str = "") -> list[dict[str, Any]]:
    """The pod's conditions. Those that did not change keep their lastTransitionTime. `message`: why Ready is False."""
    before = {c["type"]: c for c in pod.get("status", {}).get("conditions") or ()}
    wanted = {
        "PodScheduled": "True",
        "Initialized": "True",
        "PodReadyToStartContainers": str(ready),
        "ContainersReady": str(ready),
        "Ready": str(ready),
    }
    made = []
    for kind, status in wanted.items():
        old = before.get(kind, {})
        since = old.get("lastTransitionTime", now) if old.get("status") == status else now
        why = {"reason": "ContainersNotReady", "message": message} if message and kind == "Ready" else {}
        made.append({"type": kind, "status": status, "lastTransitionTime": since, **why})
    return made
