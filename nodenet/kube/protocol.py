"""The envelopes of the API protocol as msgspec structs: pages of a list, events of a watch, discovery and errors."""

from __future__ import annotations

import msgspec

from nodenet.decode.schema import ObjectName, Struct


class Named(Struct):
    """Name and resourceVersion of any object."""

    metadata: ObjectName


# The annotation of the bookmark after the last object of a streaming list.
INITIAL_EVENTS_END = "k8s.io/initial-events-end"


class BookmarkMetadata(Struct):
    resource_version: str | None = None
    annotations: dict[str, str] | None = None


class Bookmark(Struct):
    metadata: BookmarkMetadata

    @property
    def version(self) -> str:
        return self.metadata.resource_version or ""

    @property
    def ends_list(self) -> bool:
        return (self.metadata.annotations or {}).get(INITIAL_EVENTS_END) == "true"


class ListMetadata(Struct):
    resource_version: str | None = None
    continue_: str | None = msgspec.field(default=None, name="continue")
    remaining_item_count: int | None = None


class ListPage(Struct):
    """One page of a list. Items stay raw, so that an invalid item does not affect the others."""

    metadata: ListMetadata
    items: list[msgspec.Raw] | None = None


class WatchEvent(Struct):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


class ServedResource(Struct):
    name: str = ""
    kind: str = ""
    namespaced: bool = True


class ResourceList(Struct):
    """The resources of one group and version, including subresources."""

    kind: str | None = None
    resources: list[ServedResource] | None = None


class GroupVersion(Struct):
    group_version: str = ""


class Group(Struct):
    name: str = ""
    versions: list[GroupVersion] | None = None


class GroupList(Struct):
    """The answer to /apis: all served groups except the core group."""

    kind: str | None = None
    groups: list[Group] | None = None


class Cause(Struct):
    reason: str | None = None


class StatusDetails(Struct):
    causes: list[Cause] | None = None


class Status(Struct):
    """The body of an error answer."""

    details: StatusDetails | None = None

    code: int | None = None
    reason: str | None = None
    message: str | None = None
