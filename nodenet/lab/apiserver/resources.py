"""A table of the kinds that the lab's API endpoint serves. Those that agents watch are declared in nodenet.kinds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nodenet import kinds
from nodenet.kinds import ApiKind, ApiResource


@dataclass(frozen=True, slots=True)
class Resource(ApiResource):
    """One served kind. `generation`: True if metadata.generation counts the changes of the spec."""

    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ("status",)
    generation: bool = False
    custom: bool = False

    @property
    def key(self) -> str:
        """The key under which its objects are stored. Not simply the kind, because custom resources of several groups
        may have the same kind."""
        return self.qualified if self.custom else self.kind

    @property
    def singular(self) -> str:
        return self.kind.lower()


def _watched(
    kind: ApiKind,
    short: tuple[str, ...] = (),
    categories: tuple[str, ...] = (),
    subresources: tuple[str, ...] = ("status",),
    *,
    generation: bool = False,
) -> Resource:
    """A kind that agents watch."""
    api = kind.resource
    names = (api.group, api.version, api.kind, api.plural, api.namespaced)
    return Resource(*names, short, categories, subresources, generation)


def _workload(group: str, kind: str, short: tuple[str, ...], subresources: tuple[str, ...]) -> Resource:
    return Resource(group, "v1", kind, f"{kind.lower()}s", True, short, ("all",), subresources, True)


_SCALABLE = ("status", "scale")

RESOURCES: tuple[Resource, ...] = (
    Resource("", "v1", "Event", "events", True, ("ev",), (), ()),
    _watched(kinds.NAMESPACE, ("ns",), (), ("status", "finalize")),
    _watched(kinds.NODE, ("no",)),
    _watched(kinds.POD, ("po",), ("all",), ("status", "binding")),
    _watched(kinds.SERVICE, ("svc",), ("all",)),
    Resource(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        False,
        ("crd", "crds"),
        ("api-extensions",),
        ("status",),
        True,
    ),
    _workload("apps", "DaemonSet", ("ds",), ("status",)),
    _workload("apps", "Deployment", ("deploy",), _SCALABLE),
    _workload("apps", "ReplicaSet", ("rs",), _SCALABLE),
    _workload("apps", "StatefulSet", ("sts",), _SCALABLE),
    _workload("batch", "Job", (), ("status",)),
    _watched(kinds.ENDPOINT_SLICE, subresources=(), generation=True),
    _watched(kinds.NETWORK_POLICY, ("netpol",), subresources=(), generation=True),
)
BY_KIND: dict[str, Resource] = {resource.kind: resource for resource in RESOURCES}


def find(word: str, custom: Iterable[Resource] = ()) -> Resource | None:
    """Find a served kind by any name that kubectl accepts: kind, plural, singular, short name, with or without
    group."""
    head, _, group = word.lower().partition(".")
    for resource in (*RESOURCES, *custom):
        if head in (resource.plural, resource.singular, *resource.short) and group in ("", resource.group):
            return resource
    return None
