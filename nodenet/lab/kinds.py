"""Finds out whether the lab supports the kind of a manifest, skips it, or must reject it. Pure.

API groups without a dot and those below belong to Kubernetes itself, so an unknown kind or version in them is an error.
Any other group is that of a custom resource (apiextensions requires a dot in its name).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from nodenet.lab.apiserver.resources import BY_KIND, Resource

# Kinds of Kubernetes 1.34 by group. All are served as v1; some have other versions too.
BUILT_IN: dict[str, tuple[str, ...]] = {
    group: tuple(kinds.split())
    for group, kinds in {
        "": "Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume "
        "PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount",
        "admissionregistration.k8s.io": "MutatingWebhookConfiguration ValidatingAdmissionPolicy "
        "ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration MutatingAdmissionPolicy "
        "MutatingAdmissionPolicyBinding",
        "apiextensions.k8s.io": "CustomResourceDefinition",
        "apiregistration.k8s.io": "APIService",
        "apps": "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet",
        "authentication.k8s.io": "SelfSubjectReview TokenRequest TokenReview",
        "authorization.k8s.io": "LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview "
        "SubjectAccessReview",
        "autoscaling": "HorizontalPodAutoscaler Scale",
        "batch": "CronJob Job",
        "certificates.k8s.io": "CertificateSigningRequest ClusterTrustBundle PodCertificateRequest",
        "coordination.k8s.io": "Lease LeaseCandidate",
        "discovery.k8s.io": "EndpointSlice",
        "events.k8s.io": "Event",
        "flowcontrol.apiserver.k8s.io": "FlowSchema PriorityLevelConfiguration",
        "internal.apiserver.k8s.io": "StorageVersion",
        "networking.k8s.io": "IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR",
        "node.k8s.io": "RuntimeClass",
        "policy": "Eviction PodDisruptionBudget",
        "rbac.authorization.k8s.io": "ClusterRole ClusterRoleBinding Role RoleBinding",
        "resource.k8s.io": "DeviceClass DeviceTaintRule ResourceClaim ResourceClaimTemplate ResourceSlice",
        "scheduling.k8s.io": "PriorityClass",
        "storage.k8s.io": "CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass",
        "storagemigration.k8s.io": "StorageVersionMigration",
    }.items()
}
_VERSION = re.compile(r"v\d+((alpha|beta)\d+)?")


@dataclass(frozen=True, slots=True)
class Judgement:
    """Exactly one of the three is set."""

    resource: Resource | None = None
    skipped: str = ""
    problem: str = ""


def judge(api_version: str, kind: str, custom: Iterable[Resource] = ()) -> Judgement:
    """Look up a manifest's apiVersion and kind. `problem` names the field and the value that was probably meant.

    `custom`: the resources of CustomResourceDefinitions.
    """
    for each in custom:
        if (each.api_version, each.kind) == (api_version, kind):
            return Judgement(each)
    group, _, version = api_version.rpartition("/")
    if group not in BUILT_IN:
        return _foreign(group, version, api_version, kind)
    if kind not in BUILT_IN[group]:
        return Judgement(problem=_unknown_kind(api_version, group, kind))
    resource = BY_KIND.get(kind)
    if resource is not None and resource.group == group:
        if resource.version == version:
            return Judgement(resource)
        return Judgement(problem=f"apiVersion: {api_version} has no {kind} (did you mean {resource.api_version}?)")
    if not _VERSION.fullmatch(version):
        return Judgement(problem=f"apiVersion: expected a version such as v1, got {api_version!r}")
    return Judgement(skipped=f"{kind} x{{count}} (the lab does not know this kind)")


def _foreign(group: str, version: str, api_version: str, kind: str) -> Judgement:
    played = BY_KIND.get(kind)
    if "." not in group or not _VERSION.fullmatch(version):
        meant = f" (did you mean {played.api_version}?)" if played else _close(group, BUILT_IN)
        return Judgement(problem=f"apiVersion: there is no {api_version}{meant}")
    if played is not None and difflib.SequenceMatcher(None, group, played.group).ratio() > 0.85:
        meant = f" (did you mean {played.api_version}?)"
        return Judgement(problem=f"apiVersion: {api_version} has no {kind} in Kubernetes{meant}")
    return Judgement(skipped=f"{kind}.{group} x{{count}} (a custom resource without a CustomResourceDefinition)")


def _unknown_kind(api_version: str, group: str, kind: str) -> str:
    homes = [name for name, kinds in BUILT_IN.items() if kind in kinds]
    if homes:
        meant = f" (did you mean apiVersion: {homes[0]}/v1?)" if homes[0] else " (did you mean apiVersion: v1?)"
        return f"apiVersion: {api_version} has no kind {kind}{meant}"
    every = [name for kinds in BUILT_IN.values() for name in kinds]
    meant = _close(kind, BUILT_IN[group]) or _close(kind, every)
    return f"kind: {api_version} has no kind {kind}{meant}"


def _close(word: str, known: object) -> str:
    names = {name.lower(): name for name in known if name}  # type: ignore[attr-defined]
    found = difflib.get_close_matches(word.lower(), names, 1)
    return f" (did you mean {names[found[0]]}?)" if found else ""
