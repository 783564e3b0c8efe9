"""Starts the pod of a rendered DaemonSet through CRI as a kubelet does: same security context, mounts and order."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.image.cri import CONTAINER_EXITED
from tests.image.node import Node

Obj = dict[str, Any]
_PROPAGATION = {None: 0, "None": 0, "HostToContainer": 1, "Bidirectional": 2}
_SECCOMP = {"RuntimeDefault": 0, "Unconfined": 1}
_NODE, _POD = 2, 0  # NamespaceMode
# What a kubelet sends for procMount: Default (k8s.io/kubernetes, pkg/securitycontext/util.go).
_MASKED = (
    *("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
    *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"),
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class Files:
    """What a kubelet takes from the API: folders of the node with the ConfigMap and with the service account."""

    config: Path
    service_account: Path
    config_data: Obj


class Pod:
    """A sandbox of one DaemonSet's pod, with its containers by name."""

    def __init__(self, node: Node, daemonset: Obj, files: Files, cgroup: str) -> None:
        self.node, self.spec, self.files = node, daemonset["spec"]["template"]["spec"], files
        types = node.cri.types
        seccomp = types["SecurityProfile"](
            profile_type=_SECCOMP[self.spec["securityContext"]["seccompProfile"]["type"]]
        )
        security = types["SandboxSecurity"](namespace_options=types["Namespaces"](network=_NODE), seccomp=seccomp)
        security.privileged = any(_is_privileged(entry) for entry in self.containers())
        self.config = types["Sandbox"](
            metadata=types["Metadata"](name="nodenet-x", uid="u-nodenet", namespace="nodenet"),
            log_directory="/var/log/pods",
            linux=types["SandboxLinux"](cgroup_parent=cgroup, security_context=security),
        )
        self.id = node.cri.call("RunPodSandbox", "RunRequest", config=self.config).pod_sandbox_id
        self.running: dict[str, str] = {}
        self._made: list[str] = []

    def containers(self) -> list[Obj]:
        return [*self.spec["initContainers"], *self.spec["containers"]]

    def run_init(self) -> None:
        """Run the init containers, one after the other. Raises AssertionError with the log of one that fails."""
        for container in self.spec["initContainers"]:
            identity = self.start(container)
            deadline = time.monotonic() + 180
            while (state := self.node.cri.state(identity)).state != CONTAINER_EXITED:
                assert time.monotonic() < deadline, self.log(container["name"])
                time.sleep(0.1)
            assert state.exit_code == 0, (
                f"{state.exit_code} {state.reason} {state.message}\n{self.log(container['name'])}"
            )

    def start(self, container: Obj, **changes: Any) -> str:
        """Create and start one container. `changes` replace fields of it. Returns its id."""
        container = {**container, **changes}
        types, name = self.node.cri.types, container["name"]
        request = types["Container"](
            metadata=types["ContainerMetadata"](name=name, attempt=len(self._made)),
            image=types["Image"](image=container["image"]),
            command=container.get("command", []),
            args=container.get("args", []),
            envs=[types["KeyValue"](key=key, value=value) for key, value in self._environment(container).items()],
            mounts=[self._mount(mount) for mount in container["volumeMounts"]] + [self._service_account()],
            log_path=f"{name}.log",
            linux=types["ContainerLinux"](security_context=self._security(container)),
        )
        made = self.node.cri.call(
            "CreateContainer", "CreateRequest", pod_sandbox_id=self.id, config=request, sandbox_config=self.config
        )
        self._made.append(made.container_id)
        self.running[name] = made.container_id
        self.node.cri.call("StartContainer", "ContainerId", container_id=made.container_id)
        return str(made.container_id)

    def stop(self, name: str, seconds: int = 30) -> int:
        """SIGTERM, and SIGKILL after `seconds`. Returns the exit code."""
        identity = self.running.pop(name)
        self.node.cri.call("StopContainer", "StopRequest", container_id=identity, timeout=seconds)
        code = self.node.cri.state(identity).exit_code
        return int(code)

    def remove(self) -> None:
        self.node.cri.call("StopPodSandbox", "SandboxId", pod_sandbox_id=self.id)
        self.node.cri.call("RemovePodSandbox", "SandboxId", pod_sandbox_id=self.id)

    def log(self, name: str) -> str:
        path = self.node.path(f"/var/log/pods/{name}.log")
        return path.read_text() if path.exists() else "(no log)"

    def _environment(self, container: Obj) -> dict[str, str]:
        found = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        for entry in container.get("env", []):
            source = entry.get("valueFrom", {})
            if "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "spec.nodeName"
                found[entry["name"]] = "node1"
            elif "configMapKeyRef" in source:
                found[entry["name"]] = self.files.config_data[source["configMapKeyRef"]["key"]]
            else:
                found[entry["name"]] = entry["value"]
        return found

    def _mount(self, mount: Obj) -> Any:
        [volume] = [entry for entry in self.spec["volumes"] if entry["name"] == mount["name"]]
        if volume["name"] == "ip-masq-agent":
            source = "/var/lib/kubelet/no-ip-masq-agent"  # an optional ConfigMap that does not exist
            self.node.path(source).mkdir(parents=True, exist_ok=True)
        elif "configMap" in volume:
            source = str(self.files.config)
        elif "emptyDir" in volume:
            source = f"/var/lib/kubelet/{volume['name']}"
            self.node.path(source).mkdir(parents=True, exist_ok=True)
        else:
            source = volume["hostPath"]["path"]
            self._check_host_path(source, volume["hostPath"]["type"])
        return self.node.cri.types["Mount"](
            container_path=mount["mountPath"],
            host_path=source,
            readonly=mount.get("readOnly", False),
            propagation=_PROPAGATION[mount.get("mountPropagation")],
        )

    def _check_host_path(self, source: str, kind: str) -> None:
        path = self.node.path(source)
        if kind == "DirectoryOrCreate":
            path.mkdir(parents=True, exist_ok=True)
        assert kind in ("Directory", "DirectoryOrCreate")
        assert path.is_dir(), f"hostPath {source}: not a folder of the node"

    def _service_account(self) -> Any:
        return self.node.cri.types["Mount"](
            container_path="/var/run/secrets/kubernetes.io/serviceaccount",
            host_path=str(self.files.service_account),
            readonly=True,
        )

    def _security(self, container: Obj) -> Any:
        types, context = self.node.cri.types, container["securityContext"]
        capabilities = context.get("capabilities", {})
        privileged = _is_privileged(container)
        return types["Security"](
            capabilities=types["Capabilities"](
                add_capabilities=capabilities.get("add", []), drop_capabilities=capabilities.get("drop", [])
            ),
            privileged=privileged,
            namespace_options=types["Namespaces"](network=_NODE, pid=1, ipc=_POD),
            run_as_user=types["Int"](value=context["runAsUser"]),
            run_as_group=types["Int"](value=context["runAsGroup"]),
            readonly_rootfs=context["readOnlyRootFilesystem"],
            no_new_privs=not context.get("allowPrivilegeEscalation", True),
            masked_paths=() if privileged else _MASKED,
            readonly_paths=() if privileged else _READ_ONLY,
            seccomp=types["SecurityProfile"](profile_type=1 if privileged else 0),
        )


def _is_privileged(container: Obj) -> bool:
    return bool(container["securityContext"].get("privileged", False))
