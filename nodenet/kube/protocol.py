"""What the API's protocol wraps around objects: pages of a list, events of a watch, errors; as msgspec structs."""

from __future__ import annotations

import msgspec

from nodenet.decode.schema import ObjectName, Struct


class Named(Struct):
    """Any object, as far as its name goes."""

    metadata: ObjectName


class ListMetadata(Struct):
    resource_version: str | None = None
    continue_: str | None = msgspec.field(default=None, name="continue")


class ListPage(Struct):
    """One page of a list. Items stay raw: one that cannot be read must not spoil the others."""

    metadata: ListMetadata
    items: list[msgspec.Raw] | None = None


class WatchEvent(Struct):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


class ServedResource(Struct):
    name: str = ""


class ResourceList(Struct):
    """What a group and version serves, subresources included."""

    kind: str | None = None
    resources: list[ServedResource] | None = None


class GroupVersion(Struct):
    group_version: str = ""


class Group(Struct):
    name: str = ""
    versions: list[GroupVersion] | None = None


class GroupList(Struct):
    """/apis: the groups that are served, but for the core group."""

    kind: str | None = None
    groups: list[Group] | None = None


class Cause(Struct):
    reason: str | None = None


class StatusDetails(Struct):
    causes: list[Cause] | None = None


class Status(Struct):
    """What an API server answers instead of what was asked for."""

    details: StatusDetails | None = None

    code: int | None = None
    reason: str | None = None
    message: str | None = None
