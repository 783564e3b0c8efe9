"""Lets a test set the status of pods through the lab's API: a false status, a duplicate address, a finished pod.

The kubelet follows the annotations of pods.py. Manifests may have them too, and kubectl can set them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from nodenet.errors import BadInputError
from nodenet.lab import pods
from nodenet.lab.apiserver.resources import BY_KIND
from nodenet.lab.client import LabClient

_POD = BY_KIND["Pod"]
_CONDITIONS = ("Ready", "ContainersReady")


def hold(client: LabClient, pod: Mapping[str, Any]) -> None:
    """The kubelet stops writing this pod's status, so only the caller does. Processes and network do not change."""
    _annotate(client, pod, {pods.STATUS: "manual"})


def release(client: LabClient, pod: Mapping[str, Any]) -> None:
    """The kubelet writes the real status again and continues as before `hold`."""
    _annotate(client, pod, {pods.STATUS: None})


def set_status(
    client: LabClient,
    pod: Mapping[str, Any],
    *,
    phase: str = "",
    ready: bool | None = None,
    addresses: Sequence[str] = (),
) -> None:
    """Hold the pod and write these fields of its status. The other fields do not change. The first address becomes
    status.podIP. Raises RequestError if the API refuses.
    """
    hold(client, pod)
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    status: dict[str, Any] = {"phase": phase} if phase else {}
    if addresses:
        status |= {"podIP": addresses[0], "podIPs": [{"ip": address} for address in addresses]}
    if ready is not None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        have = client.get(_POD, namespace, name).get("status", {}).get("conditions") or []
        kept = [condition for condition in have if condition["type"] not in _CONDITIONS]
        status["conditions"] = kept + [
            {"type": kind, "status": str(ready), "lastTransitionTime": now} for kind in _CONDITIONS
        ]
    client.patch(_POD, namespace, name, {"status": status}, "status")


def end(client: LabClient, pod: Mapping[str, Any], phase: str) -> None:
    """End the pod's processes and remove its network (CNI DEL). The object remains with this phase and its addresses,
    like a finished pod of a Job. Raises BadInputError for a phase that is not final."""
    if phase not in pods.END_PHASES:
        raise BadInputError(f"phase: expected {' or '.join(pods.END_PHASES)}, got {phase!r}")
    _annotate(client, pod, {pods.END: phase})


def _annotate(client: LabClient, pod: Mapping[str, Any], annotations: Mapping[str, str | None]) -> None:
    metadata = pod["metadata"]
    body = {"metadata": {"uid": metadata["uid"], "annotations": dict(annotations)}}
    client.patch(_POD, metadata["namespace"], metadata["name"], body)
