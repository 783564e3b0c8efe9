"""What a CNI ADD waits for before its pod may start. Raises CniError with code 11: the runtime tries again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from nodenet import kinds
from nodenet.cni.errors import CniError, Code
from nodenet.kinds import ApiKind, Kind
from nodenet.kube.health import KindStats
from nodenet.model import Endpoint, ObjectRef
from nodenet.store import Snapshot

# Seconds that an ADD waits for the API to show its pod: the kubelet starts it from the same object. As long again for
# broken watches to come back.
POD_SECONDS = 10.0
_LOOK_SECONDS = 0.1


class Pods(Protocol):
    """What is asked of nodenet.engine.Engine."""

    def snapshot(self) -> Snapshot: ...

    def pod_is_removed(self, uid: str) -> bool: ...

    def next_change(self, kind: Kind) -> asyncio.Event: ...


async def pod_known(pods: Pods, endpoint: Endpoint, seconds: float = POD_SECONDS) -> None:
    """Until the API has shown the endpoint's pod, or its removal."""
    try:
        async with asyncio.timeout(seconds):
            while not _is_known(pods, endpoint):
                refuse_removed(pods, endpoint.pod, endpoint.pod_uid)
                await pods.next_change(kinds.POD).wait()
    except TimeoutError as error:
        raise CniError(
            Code.TRY_AGAIN,
            f"pod {endpoint.pod}: the Kubernetes API has not shown it within {seconds:g} s, "
            "so its policies are not known",
        ) from error


def refuse_removed(pods: Pods, pod: ObjectRef, uid: str) -> None:
    """Raises CniError when the API removed the pod: the kubelet learns of that as we did. From any thread."""
    if uid and pods.pod_is_removed(uid):
        raise CniError(Code.TRY_AGAIN, f"pod {pod} (UID {uid}): the Kubernetes API has removed it")


async def policies_known(stats: Mapping[ApiKind, KindStats], endpoint: Endpoint, seconds: float = POD_SECONDS) -> None:
    """Until no watch that decides policy is broken: one older than the pod may be missing, and the pod would start
    without it."""
    try:
        async with asyncio.timeout(seconds):
            while _broken(stats):  # noqa: ASYNC110 a watch tells nobody when it is back
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError as error:
        raise CniError(
            Code.TRY_AGAIN,
            f"pod {endpoint.pod}: its policies may not all be known: watch of {'; '.join(_broken(stats))}",
        ) from error


def _is_known(pods: Pods, endpoint: Endpoint) -> bool:
    pod = pods.snapshot().pods.get(endpoint.pod)
    return pod is not None and endpoint.pod_uid in ("", pod.uid)


def _broken(stats: Mapping[ApiKind, KindStats]) -> list[str]:
    return [f"{kind}: {error}" for kind, found in stats.items() if kind.decides_policy and (error := found.error)]
