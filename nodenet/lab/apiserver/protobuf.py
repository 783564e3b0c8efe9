"""Decodes Kubernetes' protobuf bodies, which `kubectl create namespace|deployment|service|job` sends instead of JSON.

It knows only the messages and fields that these commands use. A body with other fields is refused with 415, never
decoded in part. The envelope is "k8s\\0" and a runtime.Unknown (apimachinery runtime/generated.proto). The field
numbers are those of the API's generated.proto files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nodenet.lab.apiserver.status import ApiError

Obj = dict[str, Any]
MAGIC = b"k8s\0"


@dataclass(frozen=True, slots=True)
class Field:
    """`kind`: text, number, bool, map, port (IntOrString) or a Message.

    count and flag are a number and a bool for which Go also sends the zero value; a zero counts as absent.
    """

    name: str
    kind: str | Message
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """`ignored`: fields that are always sent but empty, or that only the server sets."""

    name: str
    fields: dict[int, Field] = field(default_factory=dict)
    ignored: frozenset[int] = frozenset()


def _message(name: str, ignored: tuple[int, ...] = (), /, **numbers: Any) -> Message:
    """Each keyword is a field: (number, kind) or (number, kind, repeated)."""
    fields = {number[0]: Field(key, *number[1:]) for key, number in numbers.items()}
    return Message(name, fields, frozenset(ignored))


_META = _message(
    "ObjectMeta",
    (8,),  # creationTimestamp
    name=(1, "text"),
    generateName=(2, "text"),
    namespace=(3, "text"),
    uid=(5, "text"),
    resourceVersion=(6, "text"),
    labels=(11, "map"),
    annotations=(12, "map"),
)
_REQUIREMENT = _message("LabelSelectorRequirement", key=(1, "text"), operator=(2, "text"), values=(3, "text", True))
_SELECTOR = _message("LabelSelector", matchLabels=(1, "map"), matchExpressions=(2, _REQUIREMENT, True))
_ENV = _message("EnvVar", name=(1, "text"), value=(2, "text"))
_CONTAINER_PORT = _message(
    "ContainerPort",
    name=(1, "text"),
    hostPort=(2, "count"),
    containerPort=(3, "number"),
    protocol=(4, "text"),
    hostIP=(5, "text"),
)
_CONTAINER = _message(
    "Container",
    name=(1, "text"),
    image=(2, "text"),
    command=(3, "text", True),
    args=(4, "text", True),
    workingDir=(5, "text"),
    ports=(6, _CONTAINER_PORT, True),
    env=(7, _ENV, True),
    imagePullPolicy=(14, "text"),
)
_POD_SPEC = _message(
    "PodSpec",
    containers=(2, _CONTAINER, True),
    restartPolicy=(3, "text"),
    terminationGracePeriodSeconds=(4, "number"),
    nodeSelector=(7, "map"),
    nodeName=(10, "text"),
    hostNetwork=(11, "flag"),
    initContainers=(20, _CONTAINER, True),
)
_TEMPLATE = _message("PodTemplateSpec", metadata=(1, _META), spec=(2, _POD_SPEC))
_STRATEGY = _message("DeploymentStrategy", type=(1, "text"))
_DEPLOYMENT = _message(
    "DeploymentSpec",
    replicas=(1, "number"),
    selector=(2, _SELECTOR),
    template=(3, _TEMPLATE),
    strategy=(4, _STRATEGY),
    minReadySeconds=(5, "count"),
    revisionHistoryLimit=(6, "number"),
    paused=(7, "flag"),
    progressDeadlineSeconds=(9, "number"),
)
_JOB = _message(
    "JobSpec",
    parallelism=(1, "number"),
    completions=(2, "number"),
    activeDeadlineSeconds=(3, "number"),
    selector=(4, _SELECTOR),
    manualSelector=(5, "bool"),
    template=(6, _TEMPLATE),
    backoffLimit=(7, "number"),
    ttlSecondsAfterFinished=(8, "number"),
)
_SERVICE_PORT = _message(
    "ServicePort",
    name=(1, "text"),
    protocol=(2, "text"),
    port=(3, "number"),
    targetPort=(4, "port"),
    nodePort=(5, "count"),
    appProtocol=(6, "text"),
)
_SERVICE = _message(
    "ServiceSpec",
    ports=(1, _SERVICE_PORT, True),
    selector=(2, "map"),
    clusterIP=(3, "text"),
    type=(4, "text"),
    externalIPs=(5, "text", True),
    sessionAffinity=(7, "text"),
    loadBalancerIP=(8, "text"),
    loadBalancerSourceRanges=(9, "text", True),
    externalName=(10, "text"),
    externalTrafficPolicy=(11, "text"),
    publishNotReadyAddresses=(13, "flag"),
    ipFamilyPolicy=(17, "text"),
    clusterIPs=(18, "text", True),
    ipFamilies=(19, "text", True),
    internalTrafficPolicy=(22, "text"),
)
_NAMESPACE = _message("NamespaceSpec", finalizers=(1, "text", True))


def _object(name: str, spec: Message) -> Message:
    return _message(name, (3,), metadata=(1, _META), spec=(2, spec))  # 3: status


OBJECTS: dict[tuple[str, str], Message] = {
    ("v1", "Namespace"): _object("Namespace", _NAMESPACE),
    ("v1", "Service"): _object("Service", _SERVICE),
    ("v1", "Pod"): _object("Pod", _POD_SPEC),
    ("apps/v1", "Deployment"): _object("Deployment", _DEPLOYMENT),
    ("batch/v1", "Job"): _object("Job", _JOB),
}
_TYPE = _message("TypeMeta", apiVersion=(1, "text"), kind=(2, "text"))
_UNKNOWN = _message("Unknown", (3, 4), typeMeta=(1, _TYPE), raw=(2, "bytes"))


def decode(body: bytes) -> Obj:
    """The object as JSON-like data. Raises a 415 ApiError for unknown messages and fields, 400 for malformed bytes."""
    try:
        if not body.startswith(MAGIC):
            raise ValueError("the body does not start as a Kubernetes protobuf object does")
        envelope = _read(body[len(MAGIC) :], _UNKNOWN)
        kind = (envelope["typeMeta"].get("apiVersion", ""), envelope["typeMeta"].get("kind", ""))
        if kind not in OBJECTS:
            raise _unsupported(f"{kind[0]} {kind[1]}")
        return {"apiVersion": kind[0], "kind": kind[1], **_read(envelope.get("raw", b""), OBJECTS[kind])}
    except (ValueError, IndexError, KeyError) as error:
        raise ApiError(400, "BadRequest", f"not a protobuf object: {error}") from error


def _unsupported(what: str) -> ApiError:
    message = f"the lab does not read {what} in protobuf: send JSON or YAML (kubectl create -f)"
    return ApiError(415, "UnsupportedMediaType", message)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _entries(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) in order. Supports only the two wire types that the API uses."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _varint(data, at)
        if tag & 7 == 0:
            yield tag >> 3, value
        elif tag & 7 == 2:
            if at + value > len(data):
                raise ValueError("the body ends too early")
            yield tag >> 3, data[at : at + value]
            at += value
        else:
            raise ValueError(f"wire type {tag & 7}")


def _read(data: bytes, message: Message) -> Obj:
    found: Obj = {}
    for number, raw in _entries(data):
        known = message.fields.get(number)
        if known is None:
            # Go sends non-pointer fields even if they are empty.
            if raw and number not in message.ignored:
                raise _unsupported(f"field {number} of {message.name}")
            continue
        value = _value(raw, known.kind)
        if known.kind == "map":
            found.setdefault(known.name, {}).update(value)
        elif known.repeated:
            found.setdefault(known.name, []).append(value)
        elif value != "" and (value or known.kind not in ("count", "flag")):
            found[known.name] = value
    return found


def _value(raw: int | bytes, kind: str | Message) -> Any:
    if isinstance(raw, int):
        signed = raw - (1 << 64) if raw >> 63 else raw
        return bool(raw) if kind in ("bool", "flag") else signed
    if isinstance(kind, Message):
        return _read(raw, kind)
    if kind == "bytes":
        return raw
    if kind == "map":
        pair = {number: value for number, value in _entries(raw) if isinstance(value, bytes)}
        return {pair.get(1, b"").decode(): pair.get(2, b"").decode()}
    if kind == "port":
        # The fields of IntOrString: 1 type (0: number, 1: text), 2 the number, 3 the text.
        parts = dict(_entries(raw))
        text = parts.get(3, b"")
        return text.decode() if parts.get(1) and isinstance(text, bytes) else parts.get(2, 0)
    return raw.decode()
