"""What the API's discovery documents say about one kind: served, served in another version only, or not served.

The documents: https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api. A server with incomplete
discovery, or one that is not a Kubernetes API, does not count as a server without the kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from nodenet.kinds import ApiResource
from nodenet.kube import protocol
from nodenet.kube.reader import Reader
from nodenet.kube.session import AnswerError

# Every API server that can serve custom resources lists this group in /apis.
_CRD_GROUP = "apiextensions.k8s.io"

T = TypeVar("T")


class OtherVersionError(AnswerError):
    """The API serves the kind, but not in the version that nodenet reads."""

    def __init__(self, resource: ApiResource, version: str) -> None:
        super().__init__(404, f"{resource.qualified} is served as {version}, but nodenet reads {resource.api_version}")


async def lacks(reader: Reader) -> bool:
    """Whether the discovery documents show that the API serves the kind in no version. Raises OtherVersionError if it
    serves the kind in another version: its objects exist, and nodenet cannot read them."""
    resource = reader.kind.resource
    own_version = await _get_if_served(reader, resource.base, protocol.ResourceList)
    if own_version is not None and not _is_without(own_version, resource):
        return False
    if not resource.group:
        return own_version is not None
    known = await _get(reader, "/apis", protocol.GroupList)
    groups = {group.name: [v.group_version for v in group.versions or ()] for group in known.groups or ()}
    served = groups.get(resource.group, [])
    # The list of groups must not contradict the document of the version.
    if _CRD_GROUP not in groups or (own_version is not None) != (resource.api_version in served):
        return False
    return await _is_in_none(reader, served)


async def group_is_unknown(reader: Reader) -> bool:
    """Whether the API serves the kind's group in no version. This is the check for a kind that is known to be not
    installed: one GET. A proxy's 404 counts here, because there are no objects that it could take out of force."""
    group = reader.kind.resource.group
    return bool(group) and await _get_if_served(reader, f"/apis/{group}", protocol.Group) is None


async def _is_in_none(reader: Reader, versions: Iterable[str]) -> bool:
    """Whether no other version of the group has the kind. A group is often served without it: AdminNetworkPolicy is in
    the group of ClusterNetworkPolicy, in an older version."""
    resource = reader.kind.resource
    for version in versions:
        if version == resource.api_version:
            continue
        found = await _get(reader, f"/apis/{version}", protocol.ResourceList)
        if found.kind != "APIResourceList":
            return False
        if not _is_without(found, resource):
            raise OtherVersionError(resource, version)
    return True


def _is_without(found: protocol.ResourceList, resource: ApiResource) -> bool:
    names = [entry.name for entry in found.resources or ()]
    return found.kind == "APIResourceList" and resource.plural not in names


async def _get_if_served(reader: Reader, path: str, kind: type[T]) -> T | None:
    """None if the API answers with 404."""
    try:
        return await _get(reader, path, kind)
    except AnswerError as error:
        if error.code != 404:
            raise
        return None


async def _get(reader: Reader, path: str, kind: type[T]) -> T:
    async with reader.get(path) as response:
        return msgspec.json.decode(await response.read(), type=kind)
