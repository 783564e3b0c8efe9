"""The kinds of objects that the agent uses, one declaration each.

Store, API client, status, metrics and the lab read them. A new kind needs a declaration here, a struct and a build
function in `nodenet.decode`, a field in `store.Snapshot`, and code that uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from netpolicy.types import ClusterPolicy, NetworkPolicy
from nodenet.decode import build, schema, services
from nodenet.decode.values import Unreads
from nodenet.endpoint import AttachmentKey
from nodenet.model import UNSERVED_LABELS, Endpoint, EndpointSlice, Namespace, Node, ObjectRef, Pod, Service


@dataclass(frozen=True, slots=True)
class ApiResource:
    """The API resource of a kind. `group` is "" for the core group; `plural` is the name in URLs."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """apiVersion as in manifests: v1, apps/v1."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """Plural and group, as in messages, `kubectl` and names of CRDs: deployments.apps."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def base(self) -> str:
        """The URL path of the group and version. A GET returns the list of its resources (discovery)."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of a collection, an object or a subresource. An empty `namespace` means all namespaces."""
        parts = [self.base]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class Kind:
    """A kind of object in the Store. `holds`: the type of its objects in the model; `key` returns an object's unique
    key within the kind.

    `place`: the field of store.Snapshot with these objects.
    """

    holds: type[Any]
    key: Callable[[Any], tuple[str, str]]
    place: str

    @property
    def name(self) -> str:
        """The name in messages and metrics: the API's kind, or the type's name for a record of this node."""
        return self.holds.__name__

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class ApiKind(Kind):
    """A kind that the API serves.

    `wire` is the type that the JSON is decoded into. `build` makes the model's object from it, and adds the parts that
    it could not read to its third argument. It returns None for an object that the agent does not need, and raises
    netpolicy.types.PolicyError for one that cannot be used at all.
    `optional`: its CustomResourceDefinition may not be installed. The agent then works without it (kube/absence.py).
    `decides_policy`: a pod may start only after the first list of this kind has arrived.
    `selector`: the label selector of requests: the server does not send objects that the agent never uses.
    """

    resource: ApiResource
    wire: Any
    build: Callable[[ObjectRef, Any, Unreads], object | None]
    optional: bool = False
    decides_policy: bool = False
    selector: str = ""

    @property
    def name(self) -> str:
        return self.resource.kind


def _ref(obj: Any) -> ObjectRef:
    found: ObjectRef = obj.ref
    return found


def _cluster_name(obj: Any) -> ObjectRef:
    return ObjectRef("", obj.name)


_SERVED = ",".join(f"!{label}" for label in UNSERVED_LABELS)

POD = ApiKind(
    resource=ApiResource("", "v1", "Pod", "pods"),
    holds=Pod,
    key=_ref,
    place="pods",
    wire=schema.Pod,
    build=build.pod,
    decides_policy=True,
)
NAMESPACE = ApiKind(
    resource=ApiResource("", "v1", "Namespace", "namespaces", namespaced=False),
    holds=Namespace,
    key=_cluster_name,
    place="namespaces",
    wire=schema.Namespace,
    build=build.namespace,
    decides_policy=True,
)
NODE = ApiKind(
    resource=ApiResource("", "v1", "Node", "nodes", namespaced=False),
    holds=Node,
    key=_cluster_name,
    place="nodes",
    wire=schema.Node,
    build=build.node,
)
SERVICE = ApiKind(
    resource=ApiResource("", "v1", "Service", "services"),
    holds=Service,
    key=_ref,
    place="services",
    wire=schema.Service,
    build=services.service,
    selector=_SERVED,
)
ENDPOINT_SLICE = ApiKind(
    resource=ApiResource("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    holds=EndpointSlice,
    key=_ref,
    place="slices",
    wire=schema.EndpointSlice,
    build=services.endpoint_slice,
    selector=f"{services.SERVICE_NAME_LABEL},{_SERVED}",
)
NETWORK_POLICY = ApiKind(
    resource=ApiResource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    holds=NetworkPolicy,
    key=lambda policy: ObjectRef(policy.namespace, policy.name),
    place="policies",
    # netpolicy.parse reads the JSON itself.
    wire=dict[str, Any],
    build=build.network_policy,
    decides_policy=True,
)
CLUSTER_NETWORK_POLICY = ApiKind(
    resource=ApiResource(
        "policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies", namespaced=False
    ),
    holds=ClusterPolicy,
    key=_cluster_name,
    place="cluster_policies",
    # netpolicy.parse_cluster reads the JSON itself.
    wire=dict[str, Any],
    build=build.cluster_policy,
    optional=True,
    decides_policy=True,
)
# An attached pod on this node; not an API object.
ENDPOINT = Kind(
    holds=Endpoint,
    key=lambda endpoint: AttachmentKey(endpoint.container_id, endpoint.ifname),
    place="endpoints",
)

API_KINDS: tuple[ApiKind, ...] = (POD, NAMESPACE, NODE, SERVICE, ENDPOINT_SLICE, NETWORK_POLICY, CLUSTER_NETWORK_POLICY)
KINDS: tuple[Kind, ...] = (*API_KINDS, ENDPOINT)
BY_NAME: dict[str, ApiKind] = {kind.name: kind for kind in API_KINDS}
