"""The kinds that the lab's API endpoint serves, as one table, and the built-in kinds it knows but does not play."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resource:
    """One served kind. `generation` tells whether metadata.generation counts the changes of its spec."""

    group: str
    version: str
    kind: str
    plural: str
    short: tuple[str, ...] = ()
    namespaced: bool = True
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ("status",)
    generation: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def qualified(self) -> str:
        """Plural with the group, as messages and `kubectl` name it: deployments.apps."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def base(self) -> str:
        """The URL prefix of its group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of a collection, an object or a subresource."""
        parts = [self.base]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


_SCALABLE = ("status", "scale")

RESOURCES: tuple[Resource, ...] = (
    Resource("", "v1", "Namespace", "namespaces", ("ns",), False, (), ("status", "finalize")),
    Resource("", "v1", "Node", "nodes", ("no",), False),
    Resource("", "v1", "Pod", "pods", ("po",), True, ("all",), ("status", "binding")),
    Resource("", "v1", "Service", "services", ("svc",), True, ("all",)),
    Resource("apps", "v1", "DaemonSet", "daemonsets", ("ds",), True, ("all",), ("status",), True),
    Resource("apps", "v1", "Deployment", "deployments", ("deploy",), True, ("all",), _SCALABLE, True),
    Resource("apps", "v1", "ReplicaSet", "replicasets", ("rs",), True, ("all",), _SCALABLE, True),
    Resource("apps", "v1", "StatefulSet", "statefulsets", ("sts",), True, ("all",), _SCALABLE, True),
    Resource("batch", "v1", "Job", "jobs", (), True, ("all",), ("status",), True),
    Resource("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", (), True, (), (), True),
    Resource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", ("netpol",), True, (), (), True),
)
BY_KIND: dict[str, Resource] = {resource.kind: resource for resource in RESOURCES}
BY_PLURAL: dict[tuple[str, str, str], Resource] = {(r.group, r.version, r.plural): r for r in RESOURCES}
GROUPS: tuple[str, ...] = tuple(sorted({r.group for r in RESOURCES if r.group}))


def find(word: str) -> Resource | None:
    """A served kind by any word that kubectl takes: kind, plural, singular, short name, with or without group."""
    head, _, group = word.lower().partition(".")
    for resource in RESOURCES:
        if head in (resource.plural, resource.singular, *resource.short) and group in ("", resource.group):
            return resource
    return None
