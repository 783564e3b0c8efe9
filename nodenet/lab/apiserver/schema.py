"""Schemas of the served kinds: field names, JSON types and the merge keys of lists.

Three functions use them: decoding (wrong types, unknown fields), strategic merge patch (how to merge lists) and the
three-way merge of `apply`. Parts that the lab never reads are `ANY` and are stored unchanged. Field names follow the
Kubernetes API reference, merge keys its `x-kubernetes-patch-merge-key`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from nodenet.lab.apiserver.schema_pod import POD_SPEC, POD_STATUS
from nodenet.lab.apiserver.schema_types import (
    ANY,
    BOOL,
    CONDITIONS,
    INT,
    INT_OR_STRING,
    STRING,
    STRINGS,
    Anything,
    ListOf,
    MapOf,
    Scalar,
    Struct,
    Type,
    anys,
    booleans,
    integers,
    strings,
    struct,
)

SELECTOR = struct(
    matchLabels=STRINGS, matchExpressions=ListOf(struct(key=STRING, operator=STRING, values=ListOf(STRING)))
)
METADATA = Struct(
    {
        **strings("name generateName namespace selfLink uid resourceVersion creationTimestamp deletionTimestamp"),
        **integers("generation deletionGracePeriodSeconds"),
        "labels": STRINGS,
        "annotations": STRINGS,
        "ownerReferences": ListOf(
            Struct({**strings("apiVersion kind name uid"), **booleans("controller blockOwnerDeletion")}), "uid"
        ),
        "finalizers": ListOf(STRING, ""),
        "managedFields": ANY,
    }
)
_TEMPLATE = struct(metadata=METADATA, spec=POD_SPEC)
_COUNTS = "replicas readyReplicas availableReplicas updatedReplicas unavailableReplicas fullyLabeledReplicas"
_WORKLOAD_STATUS = Struct(
    {
        **integers(_COUNTS + " observedGeneration collisionCount terminatingReplicas currentReplicas"),
        **integers("currentNumberScheduled numberMisscheduled desiredNumberScheduled numberReady"),
        **integers("updatedNumberScheduled numberAvailable numberUnavailable"),
        **strings("currentRevision updateRevision"),
        "conditions": CONDITIONS,
    }
)
_STRATEGY = struct(type=STRING, rollingUpdate=ANY)
_REPLICAS: dict[str, Type] = {"replicas": INT, "selector": SELECTOR, "template": _TEMPLATE, "minReadySeconds": INT}
_DEPLOYMENT = Struct(
    {
        **_REPLICAS,
        **integers("revisionHistoryLimit progressDeadlineSeconds"),
        "strategy": _STRATEGY,
        "paused": BOOL,
    }
)
_STATEFULSET = Struct(
    {
        **_REPLICAS,
        **strings("serviceName podManagementPolicy"),
        **anys("volumeClaimTemplates persistentVolumeClaimRetentionPolicy ordinals"),
        "updateStrategy": _STRATEGY,
        "revisionHistoryLimit": INT,
    }
)
_DAEMONSET = Struct(
    {
        "selector": SELECTOR,
        "template": _TEMPLATE,
        "updateStrategy": _STRATEGY,
        **integers("minReadySeconds revisionHistoryLimit"),
    }
)
_JOB = Struct(
    {
        **integers("parallelism completions activeDeadlineSeconds backoffLimit backoffLimitPerIndex maxFailedIndexes"),
        **integers("ttlSecondsAfterFinished"),
        **booleans("manualSelector suspend"),
        **strings("completionMode podReplacementPolicy managedBy"),
        **anys("podFailurePolicy successPolicy"),
        "selector": SELECTOR,
        "template": _TEMPLATE,
    }
)
_JOB_STATUS = Struct(
    {
        **integers("active succeeded failed terminating ready observedGeneration"),
        **strings("startTime completionTime completedIndexes failedIndexes"),
        "uncountedTerminatedPods": ANY,
        "conditions": CONDITIONS,
    }
)
_SERVICE_PORT = Struct(
    {**strings("name protocol appProtocol"), **integers("port nodePort"), "targetPort": INT_OR_STRING}
)
_SERVICE = Struct(
    {
        **strings("clusterIP type sessionAffinity loadBalancerIP loadBalancerClass externalName externalTrafficPolicy"),
        **strings("internalTrafficPolicy ipFamilyPolicy trafficDistribution"),
        **booleans("publishNotReadyAddresses allocateLoadBalancerNodePorts"),
        "healthCheckNodePort": INT,
        "selector": STRINGS,
        "ports": ListOf(_SERVICE_PORT, "port"),
        "clusterIPs": ListOf(STRING),
        "externalIPs": ListOf(STRING),
        "ipFamilies": ListOf(STRING),
        "loadBalancerSourceRanges": ListOf(STRING),
        "sessionAffinityConfig": struct(clientIP=struct(timeoutSeconds=INT)),
    }
)
_INGRESS = Struct({**strings("ip hostname ipMode"), "ports": ANY})
_SERVICE_STATUS = struct(loadBalancer=struct(ingress=ListOf(_INGRESS)), conditions=CONDITIONS)
_POLICY_PORTS = ListOf(struct(port=INT_OR_STRING, endPort=INT, protocol=STRING))
_PEERS = ListOf(
    struct(
        podSelector=SELECTOR,
        namespaceSelector=SELECTOR,
        ipBlock=Struct({"cidr": STRING, "except": ListOf(STRING)}),
    )
)
_POLICY = struct(
    podSelector=SELECTOR,
    policyTypes=ListOf(STRING),
    ingress=ListOf(Struct({"from": _PEERS, "ports": _POLICY_PORTS})),
    egress=ListOf(struct(to=_PEERS, ports=_POLICY_PORTS)),
)
_SLICE_ENDPOINT = struct(
    addresses=ListOf(STRING),
    conditions=struct(ready=BOOL, serving=BOOL, terminating=BOOL),
    hostname=STRING,
    targetRef=ANY,
    deprecatedTopology=STRINGS,
    nodeName=STRING,
    zone=STRING,
    hints=ANY,
)
_SLICE_PORT = struct(name=STRING, protocol=STRING, port=INT, appProtocol=STRING)
_NODE = Struct(
    {
        **strings("podCIDR providerID externalID"),
        "podCIDRs": ListOf(STRING, ""),
        "unschedulable": BOOL,
        "taints": ListOf(struct(key=STRING, value=STRING, effect=STRING, timeAdded=STRING)),
        "configSource": ANY,
    }
)
_NODE_STATUS = Struct(
    {
        **anys("capacity allocatable daemonEndpoints nodeInfo images volumesInUse volumesAttached config"),
        **anys("runtimeHandlers features declaredFeatures"),
        "phase": STRING,
        "conditions": CONDITIONS,
        "addresses": ListOf(struct(type=STRING, address=STRING), "type"),
    }
)


_EVENT = Struct(
    {
        **strings("apiVersion kind reason message firstTimestamp lastTimestamp type eventTime action"),
        **strings("reportingComponent reportingInstance"),
        **anys("involvedObject source series related"),
        "metadata": METADATA,
        "count": INT,
    }
)
_NAMES = Struct(
    {**strings("plural singular kind listKind"), "shortNames": ListOf(STRING), "categories": ListOf(STRING)}
)
_VERSION = Struct(
    {
        **strings("name deprecationWarning"),
        **booleans("served storage deprecated"),
        **anys("schema subresources additionalPrinterColumns selectableFields"),
    }
)
_DEFINITION = struct(
    group=STRING,
    scope=STRING,
    names=_NAMES,
    versions=ListOf(_VERSION),
    conversion=ANY,
    preserveUnknownFields=BOOL,
)


def _object(**parts: Type) -> Struct:
    return struct(apiVersion=STRING, kind=STRING, metadata=METADATA, **parts)


SCHEMAS: dict[str, Struct] = {
    "Event": _EVENT,
    "CustomResourceDefinition": _object(spec=_DEFINITION, status=ANY),
    "Namespace": _object(spec=struct(finalizers=ListOf(STRING)), status=struct(phase=STRING, conditions=CONDITIONS)),
    "Node": _object(spec=_NODE, status=_NODE_STATUS),
    "Pod": _object(spec=POD_SPEC, status=POD_STATUS),
    "Service": _object(spec=_SERVICE, status=_SERVICE_STATUS),
    "Deployment": _object(spec=_DEPLOYMENT, status=_WORKLOAD_STATUS),
    "ReplicaSet": _object(spec=Struct(dict(_REPLICAS)), status=_WORKLOAD_STATUS),
    "StatefulSet": _object(spec=_STATEFULSET, status=_WORKLOAD_STATUS),
    "DaemonSet": _object(spec=_DAEMONSET, status=_WORKLOAD_STATUS),
    "Job": _object(spec=_JOB, status=_JOB_STATUS),
    "NetworkPolicy": _object(spec=_POLICY, status=ANY),
    "EndpointSlice": _object(
        addressType=STRING,
        endpoints=ListOf(_SLICE_ENDPOINT, keep_empty=True),
        ports=ListOf(_SLICE_PORT, keep_empty=True),
    ),
}


# Custom resources may have any field, because the lab does not check the schema of the definition.
_CUSTOM = Struct({**_object().fields}, open=True)


def of(kind: str) -> Struct:
    """The schema of a kind (Resource.key)."""
    return SCHEMAS.get(kind, _CUSTOM)


class Decoded:
    """Problems that decoding found, by path of the field: wrong types and unknown fields."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.unknown: list[str] = []

    def take(self, value: object, wanted: Type, path: str) -> Any:
        if isinstance(wanted, Anything):
            return _without_nulls(value)
        if isinstance(wanted, Scalar):
            return self._scalar(value, wanted, path)
        if isinstance(wanted, ListOf):
            if not isinstance(value, list):
                return self._mismatch(path, "list", value)
            return [self.take(_zero(item, wanted.item), wanted.item, f"{path}[{i}]") for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return self._mismatch(path, "object", value)
        if isinstance(wanted, MapOf):
            return {str(k): self.take(v, wanted.value, f"{path}[{k}]") for k, v in value.items() if v is not None}
        return self._struct(value, wanted, path)

    def _struct(self, value: dict[str, Any], wanted: Struct, path: str) -> dict[str, Any]:
        found = {}
        for key, item in value.items():
            where = f"{path}.{key}" if path else str(key)
            known = wanted.fields.get(key)
            if known is None and wanted.open:
                known = ANY
            if known is None:
                self.unknown.append(where + _suggest(str(key), wanted.fields))
            elif item is not None and not _nothing(item, known):
                found[key] = self.take(item, known, where)
        return found

    def _scalar(self, value: object, wanted: Scalar, path: str) -> object:
        if isinstance(value, bool) and bool not in wanted.types:
            return self._mismatch(path, wanted.name, value)
        if isinstance(value, float) and int in wanted.types and value.is_integer():
            return int(value)
        return value if isinstance(value, wanted.types) else self._mismatch(path, wanted.name, value)

    def _mismatch(self, path: str, wanted: str, value: object) -> object:
        self.wrong.append(f"{path}: expected {wanted}, got {_json_name(value)}")
        return value


def decode(obj: dict[str, Any], kind: str) -> tuple[dict[str, Any], Decoded]:
    """A copy of an object of `kind` without nulls and unknown fields, and its problems. The input is not changed."""
    report = Decoded()
    clean = report.take(obj, of(kind), "")
    return clean, report


def _zero(item: object, wanted: Type) -> object:
    """Replace a null list element by the zero value of its type, as Go does. For example, a null rule of a
    NetworkPolicy becomes an empty rule, which allows everything."""
    if item is not None or isinstance(wanted, Anything):
        return item
    if isinstance(wanted, Scalar):
        return wanted.types[0]()
    return [] if isinstance(wanted, ListOf) else {}


def _nothing(item: object, wanted: Type) -> bool:
    """True for an empty list or map that means the same as an absent one. Go's omitempty drops it."""
    if isinstance(wanted, ListOf):
        return item == [] and not wanted.keep_empty
    return isinstance(wanted, MapOf) and item == {}


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _json_name(value: object) -> str:
    if isinstance(value, bool):
        return f"boolean {str(value).lower()}"
    if isinstance(value, str):
        return f'string "{value}"'
    if isinstance(value, int | float):
        return f"number {value}"
    if isinstance(value, list | dict):
        return "list" if isinstance(value, list) else "object"
    return type(value).__name__
