"""The conditions for which a CNI ADD waits before its pod may start. Raises CniError with code 11, after which the
runtime tries again."""

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

# Seconds that an ADD waits until the API has sent its pod. It takes little time, because the kubelet starts the pod
# from the same object. An ADD waits for the same time again until broken watches work.
POD_SECONDS = 10.0
_POLL_SECONDS = 0.1


class Pods(Protocol):
    """The methods of nodenet.engine.Engine that are used here."""

    def snapshot(self) -> Snapshot: ...

    def pod_is_removed(self, uid: str) -> bool: ...

    def next_change(self, kind: Kind) -> asyncio.Event: ...


async def pod_known(pods: Pods, endpoint: Endpoint, seconds: float = POD_SECONDS) -> None:
    """Wait until the API has sent the endpoint's pod and its Namespace, whose labels decide policy. Raises CniError
    after `seconds`, or if the API has removed the pod."""
    kind: Kind | None = None
    try:
        async with asyncio.timeout(seconds):
            while (kind := _missing(pods, endpoint)) is not None:
                refuse_removed(pods, endpoint.pod, endpoint.pod_uid)
                await pods.next_change(kind).wait()
    except TimeoutError as error:
        raise CniError(
            Code.TRY_AGAIN,
            f"pod {endpoint.pod}: the Kubernetes API has not shown {_words(kind, endpoint)} within {seconds:g} s, "
            "so its policies are not known",
        ) from error


def refuse_removed(pods: Pods, pod: ObjectRef, uid: str) -> None:
    """Raises CniError if the API has removed the pod. The kubelet gets the same event and stops its retries. May be
    called from any thread."""
    if uid and pods.pod_is_removed(uid):
        raise CniError(Code.TRY_AGAIN, f"pod {pod} (UID {uid}): the Kubernetes API has removed it")


async def policies_known(stats: Mapping[ApiKind, KindStats], endpoint: Endpoint, seconds: float = POD_SECONDS) -> None:
    """Wait until no watch of a policy kind is broken. Otherwise a policy that is older than the pod might be missing,
    and the pod would start without it. Raises CniError after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while _broken(stats):  # noqa: ASYNC110 a watch does not notify when it works again
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as error:
        raise CniError(
            Code.TRY_AGAIN,
            f"pod {endpoint.pod}: its policies may not all be known: watch of {'; '.join(_broken(stats))}",
        ) from error


def _missing(pods: Pods, endpoint: Endpoint) -> Kind | None:
    """The kind whose object the API has not sent yet."""
    snapshot = pods.snapshot()
    pod = snapshot.pods.get(endpoint.pod)
    if pod is None or endpoint.pod_uid not in ("", pod.uid):
        return kinds.POD
    return None if ObjectRef("", endpoint.pod.namespace) in snapshot.namespaces else kinds.NAMESPACE


def _words(kind: Kind | None, endpoint: Endpoint) -> str:
    return f"Namespace {endpoint.pod.namespace}" if kind is kinds.NAMESPACE else "it"


def _broken(stats: Mapping[ApiKind, KindStats]) -> list[str]:
    return [f"{kind}: {error}" for kind, found in stats.items() if kind.decides_policy and (error := found.error)]
