"""Lists once all objects that policy questions need, for commands that ask a cluster and end.

The lists are not from one moment: a change between two of them may show in the later one only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from netpolicy import foreign
from nodenet.errors import CannotRunError
from nodenet.kinds import CLUSTER_NETWORK_POLICY, NAMESPACE, NETWORK_POLICY, NODE, POD, SERVICE, ApiResource
from nodenet.kube import pages, protocol
from nodenet.kube.config import ClusterAccess
from nodenet.kube.reader import PAGE_SIZE
from nodenet.kube.session import NETWORK_ERRORS, AnswerError, Session

_NEEDED = tuple(kind.resource for kind in (POD, NAMESPACE, SERVICE, NETWORK_POLICY, CLUSTER_NETWORK_POLICY))
# A cluster without their CustomResourceDefinition has no such objects.
_OPTIONAL = (CLUSTER_NETWORK_POLICY.resource,)
# Without these the answers say less: whose address a node's is, and which workloads have no pods now. ReplicaSets are
# left out: clusters keep many old ones, and a pod names the Deployment above its ReplicaSet by a label.
_HELPFUL = (
    NODE.resource,
    ApiResource("apps", "v1", "Deployment", "deployments"),
    ApiResource("apps", "v1", "StatefulSet", "statefulsets"),
    ApiResource("apps", "v1", "DaemonSet", "daemonsets"),
    ApiResource("batch", "v1", "Job", "jobs"),
    ApiResource("batch", "v1", "CronJob", "cronjobs"),
)
# An aggregated API that serves the objects of another group.
_SAME_OBJECTS = {"projectcalico.org": "crd.projectcalico.org"}
# How often a list is begun again because its next page has expired (410 Gone).
_ATTEMPTS = 3

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Listed:
    """`notes`: a sentence for each kind that could not be listed."""

    objects: list[Object]
    notes: tuple[str, ...] = ()


def read(access: ClusterAccess) -> Listed:
    """All objects. Raises CannotRunError if the API does not answer, or refuses a kind without which every verdict may
    be wrong."""
    return asyncio.run(_read(access))


async def _read(access: ClusterAccess) -> Listed:
    objects: list[Object] = []
    notes: list[str] = []
    async with Session(access) as session:
        for resource in _NEEDED:
            try:
                objects += await _list(session, resource)
            except (AnswerError, *NETWORK_ERRORS) as error:
                if resource in _OPTIONAL and isinstance(error, AnswerError) and error.code == 404:
                    continue
                raise CannotRunError(
                    f"{access.server}: {resource.qualified}: {str(error) or type(error).__name__}",
                    f"the user of the kubeconfig needs the verb list for {resource.qualified} in all namespaces",
                ) from error
        try:
            others = [resource async for resource in _foreign(session)]
        except (AnswerError, *NETWORK_ERRORS) as error:
            notes.append(f"policies of other APIs cannot be looked for: {error}; verdicts may be wrong")
            others = []
        for resource in (*_HELPFUL, *others):
            try:
                objects += await _list(session, resource)
            except (AnswerError, *NETWORK_ERRORS) as error:
                # A server may lack a kind that only helps.
                if isinstance(error, AnswerError) and error.code == 404:
                    continue
                wrong = "; verdicts may be wrong" if resource in others else ""
                notes.append(f"{resource.qualified} cannot be listed: {str(error) or type(error).__name__}{wrong}")
    return Listed(objects, tuple(notes))


async def _list(session: Session, resource: ApiResource) -> list[Object]:
    """All pages. Items of a list have neither apiVersion nor kind."""
    for attempt in range(_ATTEMPTS):
        found: dict[str, Object] = {}
        progress = pages.Progress()
        params = {"limit": str(PAGE_SIZE)}
        try:
            while True:
                async with session.get(resource.path(), params) as response:
                    page = msgspec.json.decode(await response.read(), type=protocol.ListPage)
                for raw in page.items or ():
                    item = msgspec.json.decode(raw, type=Object)
                    found[pages.key_of(item)] = {**item, "apiVersion": resource.api_version, "kind": resource.kind}
                if not page.metadata.continue_:
                    return list(found.values())
                progress.check(page.metadata.continue_, len(found))
                params["continue"] = page.metadata.continue_
        except AnswerError as error:
            if error.code != 410 or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


async def _foreign(session: Session) -> AsyncIterator[ApiResource]:
    """The served kinds of other policy APIs, by discovery."""
    async with session.get("/apis") as response:
        served = msgspec.json.decode(await response.read(), type=protocol.GroupList)
    groups = {group.name: group.versions for group in served.groups or () if group.versions}
    for name, kinds in foreign.KINDS.items():
        if name not in groups or _SAME_OBJECTS.get(name) in groups:
            continue
        version = groups[name][0].group_version.rpartition("/")[2]
        async with session.get(f"/apis/{name}/{version}") as response:
            resources = msgspec.json.decode(await response.read(), type=protocol.ResourceList)
        for resource in resources.resources or ():
            if resource.kind in kinds and "/" not in resource.name:
                yield ApiResource(name, version, resource.kind, resource.name)
