"""The kinds that an API endpoint serves: those of resources.py, and those of its CustomResourceDefinitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nodenet.lab.apiserver.resources import RESOURCES, Resource

Obj = Mapping[str, Any]


def defined(definition: Obj) -> tuple[Resource, ...]:
    """The resources of a CustomResourceDefinition, one for each served version.

    All versions share the same objects. The lab does not convert: an object keeps the apiVersion with which it was
    written.
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
    """All resources that are served now. Iterable."""

    def __init__(self) -> None:
        # Key: the name of the definition, <plural>.<group>.
        self._custom: dict[str, tuple[Resource, ...]] = {}

    def __iter__(self) -> Iterator[Resource]:
        yield from RESOURCES
        for resources in self._custom.values():
            yield from resources

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """The resource for the parts of a URL, or None."""
        return next((r for r in self if (r.group, r.version, r.plural) == (group, version, plural)), None)

    def named(self, api_version: object, kind: object) -> Resource | None:
        """The resource for the apiVersion and kind of a manifest, or None."""
        return next((r for r in self if (r.api_version, r.kind) == (api_version, kind)), None)

    def by_key(self, key: str) -> Resource | None:
        return next((r for r in self if r.key == key), None)

    def groups(self) -> list[str]:
        """Names of the API groups, sorted, without the core group."""
        return sorted({r.group for r in self if r.group})

    def put(self, definition: Obj) -> None:
        """Serve the resources of a definition, in place of those of its previous version."""
        self._custom[definition["metadata"]["name"]] = defined(definition)

    def remove(self, name: str) -> None:
        """Stop serving a definition. `name` is the definition's."""
        del self._custom[name]
