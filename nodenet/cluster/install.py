"""Installs, upgrades and removes nodenet: server-side apply of the objects of a release."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from nodenet.cluster import agents, kustomize, release, rollout
from nodenet.cluster.changes import changes
from nodenet.cluster.client import DAEMON_SETS, NODES, PODS, SELECTOR, Cluster, NotServedError, RefusedError, describe
from nodenet.cluster.pods import waits_for
from nodenet.cluster.release import NAME, NAMESPACE, Release
from nodenet.errors import BadInputError, CannotRunError, NodenetError
from nodenet.kinds import ENDPOINT_SLICE, ApiResource

Obj = dict[str, Any]
Say = Callable[[str], None]

_POLL_SECONDS = 1.0
_GONE_SECONDS = 120.0
_HELM = "meta.helm.sh/release-name"


class Effect(StrEnum):
    """What an apply does to an object."""

    CREATE = "create"
    CHANGE = "change"
    NONE = "unchanged"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Step:
    """One object of a plan. `fields`: its changed fields, as text."""

    effect: Effect
    obj: Obj
    fields: tuple[str, ...] = ()


async def daemon_set(cluster: Cluster) -> Obj | None:
    """The installed DaemonSet. Raises BadInputError if Helm made it: Helm would not know of our changes."""
    found = await cluster.find(DAEMON_SETS, NAMESPACE, NAME)
    name = ((found or {}).get("metadata", {}).get("annotations") or {}).get(_HELM)
    if name:
        raise BadInputError(
            f"DaemonSet {NAMESPACE}/{NAME}: the Helm release {name} owns it",
            f"helm upgrade {name}, helm uninstall {name}",
        )
    return found


async def choose_overlay(cluster: Cluster) -> str:
    """The overlay for this cluster. Raises BadInputError if it is not clear."""
    known = kustomize.overlays()
    nodes = await cluster.list(NODES)
    if "kind" in known and any(str(node["spec"].get("providerID", "")).startswith("kind://") for node in nodes):
        return "kind"
    proxy = await cluster.find(DAEMON_SETS, "kube-system", "kube-proxy")
    if proxy is None:
        return "replace-kube-proxy"
    if release.BESIDE in known:
        return release.BESIDE
    raise BadInputError(
        "--overlay: required: this cluster has kube-proxy (DaemonSet kube-system/kube-proxy)",
        "remove kube-proxy, then --overlay replace-kube-proxy",
    )


async def with_api_servers(cluster: Cluster, wanted: Release) -> Release:
    """The release with the addresses of the API servers, as hosts reach them, if it names none. With kube-proxy the
    agents use the `kubernetes` Service. Raises CannotRunError if the cluster does not say them."""
    if release.api_servers(wanted) or not release.needs_api_servers(wanted):
        return wanted
    slices = await cluster.list(
        ENDPOINT_SLICE.resource, "default", labelSelector="kubernetes.io/service-name=kubernetes"
    )
    found = [
        f"[{address}]:{port['port']}" if ":" in address else f"{address}:{port['port']}"
        for one in slices
        for port in one.get("ports") or ()
        for endpoint in one.get("endpoints") or ()
        for address in endpoint["addresses"]
    ]
    if not found:
        raise CannotRunError(
            "the Service default/kubernetes has no EndpointSlice with addresses of API servers",
            "give them: --set apiServers=HOST:PORT,...",
        )
    return replace(wanted, discovered=",".join(sorted(set(found))))


async def plan(cluster: Cluster, objects: Sequence[Obj], *, force: bool) -> list[Step]:
    """What an apply of these objects would change, and which objects of an earlier release it would delete. Changes
    nothing: the API answers a dry run. Raises NodenetError with every object that it refuses."""
    steps: list[Step] = []
    problems: list[NodenetError] = []
    for obj in objects:
        try:
            current = await _current(cluster, obj)
            changed = await cluster.apply(obj, dry_run=True, force=force) if current else None
        except NodenetError as error:
            problems.append(error)
            continue
        if current is None or changed is None:
            steps.append(Step(Effect.CREATE, obj))
            continue
        fields = changes(current, changed) or _stored(current, changed)
        steps.append(Step(Effect.CHANGE if fields else Effect.NONE, obj, tuple(fields)))
    _raise_together(problems)
    wanted = {_key(obj) for obj in objects}
    steps += [Step(Effect.DELETE, obj) for obj in await installed(cluster) if _key(obj) not in wanted]
    return steps


def _stored(before: Obj, after: Obj) -> list[str]:
    """The change of the stored release: without one, a value that was the default so far would be forgotten."""
    old, new = ((obj["metadata"].get("annotations") or {}).get(release.RELEASE) for obj in (before, after))
    return [f"metadata.annotations[{release.RELEASE}]: {old!r} -> {new!r}"] if old != new else []


async def carry_out(cluster: Cluster, steps: Iterable[Step], say: Say, *, force: bool) -> None:
    """Raises NodenetError with every object that the API refused, after it tried all."""
    problems: list[NodenetError] = []
    for step in steps:
        try:
            if step.effect is Effect.DELETE:
                resource = await cluster.resource(step.obj)
                await cluster.delete(resource, step.obj["metadata"].get("namespace", ""), step.obj["metadata"]["name"])
            elif step.effect is not Effect.NONE:
                await cluster.apply(step.obj, force=force)
        except NodenetError as error:
            problems.append(error)
            # Everything else is in the namespace.
            if step.obj["kind"] == "Namespace":
                break
        else:
            say(f"{describe(step.obj)}: {_DONE[step.effect]}")
    _raise_together(problems)


def _raise_together(problems: Sequence[NodenetError]) -> None:
    if problems:
        conflict = any(isinstance(error, RefusedError) and error.code == 409 for error in problems)
        hint = "--force takes the fields over from their manager" if conflict else problems[0].hint
        raise NodenetError("\n".join(str(error) for error in problems), hint)


_DONE = {Effect.CREATE: "created", Effect.CHANGE: "changed", Effect.NONE: "unchanged", Effect.DELETE: "deleted"}


async def wait_rollout(cluster: Cluster, seconds: float, say: Say) -> None:
    """Wait until every node runs the DaemonSet's present version, ready. Raises CannotRunError with what each pod waits
    for."""

    async def failed(left: str) -> CannotRunError:
        pods = (await agents.pods(cluster)).items()
        waiting = [f"\n{node}: {reason}" for node, pod in sorted(pods) if (reason := waits_for(pod))]
        return CannotRunError(
            f"DaemonSet {NAMESPACE}/{NAME}: not rolled out after {seconds:g} s: {left}{''.join(waiting)}",
            "nodenet status --cluster shows every node",
        )

    await rollout.wait(cluster, NAME, seconds, say, failed)


async def installed(cluster: Cluster) -> list[Obj]:
    """The objects in the cluster that belong to an installation, with any overlay and components."""
    found = []
    names = {_key(obj): obj for name in kustomize.overlays() for obj in kustomize.render(name, kustomize.components())}
    for obj in names.values():
        current = await _current(cluster, obj)
        if current is not None and (current["metadata"].get("labels") or {}).get("app.kubernetes.io/name") == NAME:
            found.append({**current, "apiVersion": obj["apiVersion"], "kind": obj["kind"]})
    return found


async def remove(cluster: Cluster, objects: Sequence[Obj], say: Say) -> None:
    """Delete the objects: the DaemonSet first, so that its agents end while they still may use the API; the namespace
    last."""

    def rank(obj: Obj) -> int:
        return {"DaemonSet": 0, "Namespace": 2}.get(obj["kind"], 1)

    for obj in sorted(objects, key=rank):
        resource = await cluster.resource(obj)
        metadata = obj["metadata"]
        if await cluster.delete(resource, metadata.get("namespace", ""), metadata["name"]):
            say(f"{describe(obj)}: deleted")
        if obj["kind"] == "DaemonSet":
            await wait_no_pods(cluster, say)
        elif obj["kind"] == "Namespace":
            await _wait_gone(cluster, resource, metadata["name"])


async def wait_no_pods(cluster: Cluster, say: Say) -> None:
    """Wait until every agent has ended, and say which has not."""
    deadline = time.monotonic() + _GONE_SECONDS
    while pods := await cluster.list(PODS, NAMESPACE, labelSelector=SELECTOR):
        if time.monotonic() > deadline:
            names = ", ".join(f"{pod['metadata']['name']} on {pod['spec'].get('nodeName')}" for pod in pods)
            say(f"these agents did not end within {_GONE_SECONDS:g} s: {names}")
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _wait_gone(cluster: Cluster, resource: ApiResource, name: str) -> None:
    deadline = time.monotonic() + _GONE_SECONDS
    while await cluster.find(resource, "", name) is not None:
        if time.monotonic() > deadline:
            raise CannotRunError(
                f"{resource.kind} {name}: still there after {_GONE_SECONDS:g} s",
                f"kubectl describe {resource.plural} {name}",
            )
        await asyncio.sleep(_POLL_SECONDS)


async def _current(cluster: Cluster, obj: Obj) -> Obj | None:
    """The object in the cluster; None if there is none, or its kind is not served."""
    try:
        resource = await cluster.resource(obj)
    except NotServedError:
        return None
    return await cluster.find(resource, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


def _key(obj: Mapping[str, Any]) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
