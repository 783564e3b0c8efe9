"""What a pod waits for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def has_own_network(pod: Mapping[str, Any]) -> bool:
    """Whether a pod runs, and a CNI plugin made its network."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    return not spec.get("hostNetwork") and status.get("phase") == "Running"


def waits_for(pod: Mapping[str, Any]) -> str:
    """Why a pod is not ready; "" if it is."""
    status = pod.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    if (conditions.get("Ready") or {}).get("status") == "True":
        return ""
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        state = container.get("state") or {}
        for found in (state.get("waiting"), state.get("terminated") if not container.get("ready") else None):
            if found and found.get("reason") not in ("PodInitializing", "Completed"):
                return f"{found.get('reason')} {found.get('message') or ''}".strip()
    scheduled = conditions.get("PodScheduled") or {}
    if scheduled.get("status") == "False":
        return f"not scheduled: {scheduled.get('message')}"
    return "running, but its readiness probe does not succeed" if _runs(status) else status.get("phase") or "Pending"


def _runs(status: Mapping[str, Any]) -> bool:
    containers = status.get("containerStatuses") or ()
    return bool(containers) and all("running" in (one.get("state") or {}) for one in containers)
