"""The PodSpec and PodStatus part of schema.py (API reference: core/v1)."""

from __future__ import annotations

from nodenet.lab.apiserver.schema_types import (
    ANY,
    CONDITIONS,
    INT,
    OBJECT,
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
        "volumeMounts": ListOf(OBJECT, "mountPath"),
        "volumeDevices": ListOf(OBJECT, "devicePath"),
    }
)
_EPHEMERAL = Struct({**_CONTAINER.fields, "targetContainerName": STRING})
_TERMS = ListOf(struct(key=STRING, operator=STRING, values=ListOf(STRING)))
_NODE_AFFINITY = struct(
    requiredDuringSchedulingIgnoredDuringExecution=struct(
        nodeSelectorTerms=ListOf(struct(matchExpressions=_TERMS, matchFields=_TERMS))
    ),
    preferredDuringSchedulingIgnoredDuringExecution=ANY,
)
POD_SPEC = Struct(
    {
        **strings("restartPolicy dnsPolicy serviceAccountName serviceAccount nodeName hostname subdomain"),
        **strings("schedulerName priorityClassName runtimeClassName preemptionPolicy hostnameOverride"),
        **integers("terminationGracePeriodSeconds activeDeadlineSeconds priority"),
        **booleans("automountServiceAccountToken hostNetwork hostPID hostIPC shareProcessNamespace"),
        **booleans("enableServiceLinks setHostnameAsFQDN hostUsers"),
        **anys("securityContext dnsConfig overhead os resources workloadRef"),
        "affinity": struct(nodeAffinity=_NODE_AFFINITY, podAffinity=ANY, podAntiAffinity=ANY),
        "readinessGates": ListOf(struct(conditionType=STRING)),
        "nodeSelector": STRINGS,
        "containers": ListOf(_CONTAINER, "name"),
        "initContainers": ListOf(_CONTAINER, "name"),
        "ephemeralContainers": ListOf(_EPHEMERAL, "name"),
        "volumes": ListOf(OBJECT, "name"),
        "imagePullSecrets": ListOf(OBJECT, "name"),
        "hostAliases": ListOf(OBJECT, "ip"),
        "tolerations": ListOf(
            Struct({**strings("key operator value effect"), "tolerationSeconds": INT}),
        ),
        "topologySpreadConstraints": ListOf(OBJECT, "topologyKey"),
        "schedulingGates": ListOf(OBJECT, "name"),
        "resourceClaims": ListOf(OBJECT, "name"),
    }
)
POD_STATUS = Struct(
    {
        **strings("phase message reason hostIP podIP qosClass startTime nominatedNodeName resize"),
        **anys("extendedResourceClaimStatus allocatedResources resources resourceClaimStatuses"),
        "containerStatuses": ListOf(OBJECT),
        "initContainerStatuses": ListOf(OBJECT),
        "ephemeralContainerStatuses": ListOf(OBJECT),
        "observedGeneration": INT,
        "conditions": CONDITIONS,
        "podIPs": ListOf(struct(ip=STRING), "ip"),
        "hostIPs": ListOf(struct(ip=STRING), "ip"),
    }
)
