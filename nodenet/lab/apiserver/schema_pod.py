"""The PodSpec and PodStatus part of schema.py (API reference: core/v1)."""

from __future__ import annotations

from nodenet.lab.apiserver.schema_types import (
    ANY,
    INT,
    STRING,
    STRINGS,
    ListOf,
    Struct,
    anys,
    booleans,
    integers,
    strings,
    struct,
)

_PORT = Struct({**strings("name protocol hostIP"), **integers("containerPort hostPort")})
_CONTAINER = Struct(
    {
        **strings(
            "name image workingDir terminationMessagePath terminationMessagePolicy imagePullPolicy restartPolicy"
        ),
        **booleans("stdin stdinOnce tty"),
        **anys("envFrom resources resizePolicy restartPolicyRules livenessProbe readinessProbe startupProbe lifecycle"),
        "securityContext": ANY,
        "command": ListOf(STRING),
        "args": ListOf(STRING),
        "ports": ListOf(_PORT, "containerPort"),
        "env": ListOf(struct(name=STRING, value=STRING, valueFrom=ANY), "name"),
        "volumeMounts": ListOf(ANY, "mountPath"),
        "volumeDevices": ListOf(ANY, "devicePath"),
    }
)
_EPHEMERAL = Struct({**_CONTAINER.fields, "targetContainerName": STRING})
POD_SPEC = Struct(
    {
        **strings("restartPolicy dnsPolicy serviceAccountName serviceAccount nodeName hostname subdomain"),
        **strings("schedulerName priorityClassName runtimeClassName preemptionPolicy hostnameOverride"),
        **integers("terminationGracePeriodSeconds activeDeadlineSeconds priority"),
        **booleans("automountServiceAccountToken hostNetwork hostPID hostIPC shareProcessNamespace"),
        **booleans("enableServiceLinks setHostnameAsFQDN hostUsers"),
        **anys("securityContext affinity dnsConfig readinessGates overhead os resources workloadRef"),
        "nodeSelector": STRINGS,
        "containers": ListOf(_CONTAINER, "name"),
        "initContainers": ListOf(_CONTAINER, "name"),
        "ephemeralContainers": ListOf(_EPHEMERAL, "name"),
        "volumes": ListOf(ANY, "name"),
        "imagePullSecrets": ListOf(ANY, "name"),
        "hostAliases": ListOf(ANY, "ip"),
        "tolerations": ListOf(
            Struct({**strings("key operator value effect"), "tolerationSeconds": INT}),
        ),
        "topologySpreadConstraints": ListOf(ANY, "topologyKey"),
        "schedulingGates": ListOf(ANY, "name"),
        "resourceClaims": ListOf(ANY, "name"),
    }
)
POD_STATUS = Struct(
    {
        **strings("phase message reason hostIP podIP qosClass startTime nominatedNodeName resize"),
        **anys("containerStatuses initContainerStatuses ephemeralContainerStatuses resourceClaimStatuses"),
        **anys("extendedResourceClaimStatus allocatedResources resources"),
        "observedGeneration": INT,
        "conditions": ListOf(ANY, "type"),
        "podIPs": ListOf(struct(ip=STRING), "ip"),
        "hostIPs": ListOf(struct(ip=STRING), "ip"),
    }
)
