"""What one API endpoint serves: the kinds of resources.py, and those that its CustomResourceDefinitions add."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nodenet.lab.apiserver.resources import RESOURCES, Resource

Obj = Mapping[str, Any]


def defined(definition: Obj) -> tuple[Resource, ...]:
    """The resources of a CustomResourceDefinition: one for each version that is served.

    All versions share their objects. The lab does not convert: an object has the apiVersion that it was written with.
    """
    spec = definition["spec"]
    names = spec["names"]
    return tuple(
        Resource(
            spec["group"],
            version["name"],
            names["kind"],
            names["plural"],
            spec["scope"] == "Namespaced",
            tuple(names.get("shortNames") or ()),
            tuple(names.get("categories") or ()),
            tuple(name for name in ("status",) if name in (version.get("subresources") or {})),
            generation=True,
            custom=True,
        )
        for version in spec["versions"]
        if version.get("served")
    )


class Catalog:
    """Iterates over every resource that is served now."""

    def __init__(self) -> None:
        # By the name of the definition, <plural>.<group>.
        self._custom: dict[str, tuple[Resource, ...]] = {}

    def __iter__(self) -> Iterator[Resource]:
        yield from RESOURCES
        for resources in self._custom.values():
            yield from resources

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """By the words of a URL."""
        return next((r for r in self if (r.group, r.version, r.plural) == (group, version, plural)), None)

    def named(self, api_version: object, kind: object) -> Resource | None:
        """By the words of a manifest."""
        return next((r for r in self if (r.api_version, r.kind) == (api_version, kind)), None)

    def by_key(self, key: str) -> Resource | None:
        return next((r for r in self if r.key == key), None)

    def groups(self) -> list[str]:
        """Sorted, without the core group."""
        return sorted({r.group for r in self if r.group})

    def put(self, definition: Obj) -> None:
        """Serve what the definition says, and no longer what it said before."""
        self._custom[definition["metadata"]["name"]] = defined(definition)

    def remove(self, name: str) -> None:
        """`name` is that of the definition."""
        del self._custom[name]
