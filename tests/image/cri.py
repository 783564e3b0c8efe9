"""A client of a container runtime's CRI: the messages of runtime.v1 that are used, by their field numbers
(k8s.io/cri-api, api.proto)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "text": _Field.TYPE_STRING,
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "enum": _Field.TYPE_INT32,  # the same on the wire
}
# message -> field -> (number, type); "*" for a repeated one.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Nothing": {},
    "Metadata": {"name": (1, "text"), "uid": (2, "text"), "namespace": (3, "text"), "attempt": (4, "uint32")},
    "ContainerMetadata": {"name": (1, "text"), "attempt": (2, "uint32")},
    "Namespaces": {"network": (1, "enum"), "pid": (2, "enum"), "ipc": (3, "enum")},
    "SecurityProfile": {"profile_type": (1, "enum"), "localhost_ref": (2, "text")},
    "Int": {"value": (1, "int64")},
    "SandboxSecurity": {
        "namespace_options": (1, "Namespaces"),
        "privileged": (6, "bool"),
        "seccomp": (9, "SecurityProfile"),
    },
    "SandboxLinux": {"cgroup_parent": (1, "text"), "security_context": (2, "SandboxSecurity")},
    "Sandbox": {
        "metadata": (1, "Metadata"),
        "hostname": (2, "text"),
        "log_directory": (3, "text"),
        "linux": (8, "SandboxLinux"),
    },
    "RunRequest": {"config": (1, "Sandbox")},
    "SandboxId": {"pod_sandbox_id": (1, "text")},
    "PodIP": {"ip": (1, "text")},
    "Network": {"ip": (1, "text"), "additional_ips": (2, "*PodIP")},
    "SandboxState": {"id": (1, "text"), "network": (5, "Network")},
    "SandboxStatus": {"status": (1, "SandboxState")},
    "Image": {"image": (1, "text")},
    "KeyValue": {"key": (1, "text"), "value": (2, "text")},
    "Mount": {
        "container_path": (1, "text"),
        "host_path": (2, "text"),
        "readonly": (3, "bool"),
        "propagation": (5, "enum"),
    },
    "Capabilities": {"add_capabilities": (1, "*text"), "drop_capabilities": (2, "*text")},
    "Security": {
        "capabilities": (1, "Capabilities"),
        "privileged": (2, "bool"),
        "namespace_options": (3, "Namespaces"),
        "run_as_user": (5, "Int"),
        "readonly_rootfs": (7, "bool"),
        "no_new_privs": (11, "bool"),
        "run_as_group": (12, "Int"),
        "masked_paths": (13, "*text"),
        "readonly_paths": (14, "*text"),
        "seccomp": (15, "SecurityProfile"),
    },
    "ContainerLinux": {"security_context": (2, "Security")},
    "Container": {
        "metadata": (1, "ContainerMetadata"),
        "image": (2, "Image"),
        "command": (3, "*text"),
        "args": (4, "*text"),
        "envs": (6, "*KeyValue"),
        "mounts": (7, "*Mount"),
        "log_path": (11, "text"),
        "linux": (15, "ContainerLinux"),
    },
    "CreateRequest": {"pod_sandbox_id": (1, "text"), "config": (2, "Container"), "sandbox_config": (3, "Sandbox")},
    "ContainerId": {"container_id": (1, "text")},
    "StopRequest": {"container_id": (1, "text"), "timeout": (2, "int64")},
    "State": {
        "id": (1, "text"),
        "state": (3, "enum"),
        "exit_code": (7, "int32"),
        "reason": (10, "text"),
        "message": (11, "text"),
    },
    "ContainerStatus": {"status": (1, "State")},
    "ExecRequest": {"container_id": (1, "text"), "cmd": (2, "*text"), "timeout": (3, "int64")},
    "ExecResult": {"stdout": (1, "bytes"), "stderr": (2, "bytes"), "exit_code": (3, "int32")},
    "Condition": {"type": (1, "text"), "status": (2, "bool"), "reason": (3, "text"), "message": (4, "text")},
    "Conditions": {"conditions": (1, "*Condition")},
    "Status": {"status": (1, "Conditions")},
}
_ANSWERS = {
    "RunPodSandbox": "SandboxId",
    "PodSandboxStatus": "SandboxStatus",
    "StopPodSandbox": "Nothing",
    "RemovePodSandbox": "Nothing",
    "CreateContainer": "ContainerId",
    "StartContainer": "Nothing",
    "StopContainer": "Nothing",
    "RemoveContainer": "Nothing",
    "ContainerStatus": "ContainerStatus",
    "ExecSync": "ExecResult",
    "Status": "Status",
}
CONTAINER_EXITED = 2


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="nodenet_cri_image.proto", package="nnimage", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = 3 if kind.startswith("*") else 1
            made = message.field.add(name=field, number=number, label=label)
            plain = kind.removeprefix("*")
            made.type = _SCALARS.get(plain, _Field.TYPE_MESSAGE)
            if plain not in _SCALARS:
                made.type_name = f".nnimage.{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"nnimage.{name}")) for name in _MESSAGES}


class Cri:
    """A client of the runtime that listens at `address`."""

    def __init__(self, address: Path) -> None:
        self.types = _messages()
        self.channel = grpc.insecure_channel(f"unix:{address}")

    def call(self, method: str, request: str, **fields: Any) -> Any:
        """Call a method with a message of the type `request`. Raises grpc.RpcError."""
        function = self.channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self.types[_ANSWERS[method]].FromString,
        )
        return function(self.types[request](**fields), timeout=180)

    def ready(self) -> dict[str, bool]:
        """Conditions by name; {} while nothing answers."""
        with suppress(grpc.RpcError):
            return {entry.type: entry.status for entry in self.call("Status", "Nothing").status.conditions}
        return {}

    def execute(self, container: str, *words: str) -> tuple[int, str]:
        """Run a command in a container. Returns its exit code and both outputs."""
        done = self.call("ExecSync", "ExecRequest", container_id=container, cmd=words, timeout=60)
        return done.exit_code, (done.stdout + done.stderr).decode()

    def state(self, container: str) -> Any:
        return self.call("ContainerStatus", "ContainerId", container_id=container).status
