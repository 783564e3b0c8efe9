"""The verbs of the API on objects: admission, validation, storage. HTTP and the lab's own controllers both use it.

The methods are synchronous on purpose: no other request runs between the check of a request and its storage, so two
writers cannot interleave. Deletion of a scheduled pod takes two steps, as with a real kubelet. DELETE sets
metadata.deletionTimestamp. The kubelet stops the pod (CNI DEL) and deletes it with gracePeriodSeconds=0, which removes
the object.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from nodenet.lab.apiserver import defaults, installed, names, patch, rules, schema, status, validate
from nodenet.lab.apiserver.addresses import ServiceAddresses
from nodenet.lab.apiserver.catalog import Catalog
from nodenet.lab.apiserver.resources import BY_KIND, Resource
from nodenet.lab.apiserver.status import ApiError, Cause
from nodenet.lab.apiserver.storage import Storage, Stored, make

Obj = dict[str, Any]


class PatchType(StrEnum):
    """The patch formats, with their content types."""

    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class Patch:
    """The body of a PATCH request, and its format."""

    type: PatchType
    body: Any


class Unknown(StrEnum):
    """How unknown fields are treated: the values of the API's fieldValidation."""

    IGNORE = "Ignore"
    WARN = "Warn"
    STRICT = "Strict"


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a write. `warnings` collects warnings for the client."""

    dry_run: bool = False
    unknown: Unknown = Unknown.WARN
    manager: str = ""
    warnings: list[str] | None = None


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """`grace` in seconds; None: that of the pod. `uid` and `version`: preconditions. `propagation`:
    propagationPolicy."""

    grace: int | None = None
    propagation: str = "Background"
    uid: str = ""
    version: str = ""
    dry_run: bool = False


_DEFINITIONS = "CustomResourceDefinition"
DEFAULT_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
# The NamespaceLifecycle admission plugin refuses to delete these.
_IMMORTAL = ("default", "kube-public", "kube-system")
_PLAIN = Options()


class Registry:
    """The objects, changed only according to the API's rules. `clock` returns UNIX seconds."""

    def __init__(self, storage: Storage, addresses: ServiceAddresses, clock: Callable[[], float]) -> None:
        self.storage = storage
        self.catalog = Catalog()
        self.addresses = addresses
        self._clock = clock
        # What each field manager applied last (server-side apply). Fields missing from its next apply are removed.
        self._applied: dict[tuple[str, str], Obj] = {}
        for name in DEFAULT_NAMESPACES:
            self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for definition in installed.DEFINITIONS:
            self.create(definition)

    def now(self) -> str:
        """The current time in the API's format: UTC, whole seconds."""
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def get(self, resource: Resource, namespace: str, name: str) -> Stored:
        stored = self.storage.get(resource.key, (namespace if resource.namespaced else "", name))
        if stored is None:
            raise status.not_found(resource, name)
        return stored

    def create(self, obj: Obj, namespace: str = "", options: Options = _PLAIN) -> Stored:
        """Raises ApiError: 400 not decodable, 404 no such namespace, 409 already exists, 422 with all causes."""
        resource, clean = self._decode(obj, options)
        metadata = clean["metadata"]
        self._place(resource, metadata, namespace)
        if metadata.get("resourceVersion"):
            raise status.bad_request("resourceVersion should not be set on objects to be created", resource)
        rules.prepare_create(resource, clean)
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = self._generate(resource, metadata)
        self._check_namespace(resource, metadata)
        metadata.update(uid=str(uuid.uuid4()), creationTimestamp=self.now())
        if resource.generation:
            metadata["generation"] = 1
        self._complete(resource, clean, None)
        if self.storage.get(resource.key, (metadata.get("namespace", ""), metadata["name"])) is not None:
            raise status.already_exists(resource, metadata["name"])
        return self._store(resource, clean, options)

    def update(
        self, obj: Obj, namespace: str = "", name: str = "", subresource: str = "", options: Options = _PLAIN
    ) -> Stored:
        """Replace. Raises 409 if obj's resourceVersion is not the stored one. Without a resourceVersion there is no
        such check."""
        resource, clean = self._decode(obj, options)
        metadata = clean["metadata"]
        self._place(resource, metadata, namespace)
        if name and metadata.setdefault("name", name) != name:
            message = f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            raise status.bad_request(message, resource)
        stored = self.get(resource, metadata.get("namespace", ""), metadata.get("name", ""))
        wanted = metadata.get("resourceVersion", "")
        if wanted and wanted != str(stored.version):
            message = "the object has been modified; please apply your changes to the latest version and try again"
            raise status.conflict(resource, stored.ref[1], message)
        if metadata.get("uid", stored.uid) != stored.uid:
            message = f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {stored.uid}"
            raise status.conflict(resource, stored.ref[1], message)
        return self._replace(resource, clean, stored, subresource, options)

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        wanted: Patch,
        subresource: str = "",
        options: Options = _PLAIN,
    ) -> Stored:
        kind, body = wanted.type, wanted.body
        if kind is PatchType.APPLY:
            return self._server_side_apply(resource, namespace, name, body, subresource, options)
        stored = self.get(resource, namespace, name)
        current = stored.decode()
        if kind is PatchType.JSON:
            result = patch.json_patch(current, body)
        elif kind is PatchType.STRATEGIC and resource.custom:
            message = f"the body of the request was in an unknown format: {kind} is not for custom resources"
            raise ApiError(415, "UnsupportedMediaType", message, resource=resource)
        elif not isinstance(body, dict):
            raise status.bad_request(f"patch: expected an object, got {type(body).__name__}", resource)
        elif kind is PatchType.MERGE:
            result = patch.merge(current, body)
        else:
            result = patch.strategic(current, body, schema.of(resource.key))
        if not isinstance(result, dict) or not isinstance(result.get("metadata"), dict):
            raise status.bad_request("patch: the result is no object with metadata", resource)
        return self.update(result, namespace, name, subresource, options)

    def delete(
        self, resource: Resource, namespace: str, name: str, options: DeleteOptions | None = None
    ) -> tuple[Stored, bool]:
        """Returns the object, and True if it was removed. Otherwise it waits for its kubelet or for finalizers."""
        options = options or DeleteOptions()
        stored = self.get(resource, namespace, name)
        for wanted, have, what in ((options.uid, stored.uid, "UID"), (options.version, str(stored.version), "version")):
            if wanted and wanted != have:
                message = f"Precondition failed: {what} in precondition: {wanted}, in object meta: {have}"
                raise status.conflict(resource, name, message)
        if resource.key == "Namespace" and name in _IMMORTAL:
            raise status.denied(resource, name, "this namespace may not be deleted")
        obj = stored.decode()
        _propagate(obj["metadata"], options.propagation)
        grace = _grace(resource.key, obj, options)
        if not (grace or _blocked(obj)):
            return (stored if options.dry_run else self._remove(resource, stored)), True
        if options.dry_run or not self._mark(obj, grace):
            return stored, False
        return self.storage.put(resource.key, obj), False

    def bind(self, namespace: str, name: str, node: str) -> Stored:
        """The pods/binding subresource, the only way to set spec.nodeName of an existing pod."""
        resource = BY_KIND["Pod"]
        stored = self.get(resource, namespace, name)
        obj = stored.decode()
        if not node:
            raise status.invalid_object(resource, name, [status.required("target.name")])
        if obj["spec"].get("nodeName") or "deletionTimestamp" in obj["metadata"]:
            why = f"pod {name} is already assigned to node" if obj["spec"].get("nodeName") else "pod is being deleted"
            raise status.conflict(resource, name, why)
        obj["spec"]["nodeName"] = node
        conditions = [c for c in obj["status"].get("conditions", ()) if c.get("type") != "PodScheduled"]
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": self.now()}
        obj["status"]["conditions"] = [*conditions, scheduled]
        return self.storage.put("Pod", obj)

    def _decode(self, obj: Obj, options: Options) -> tuple[Resource, Obj]:
        kind, api_version = obj.get("kind"), obj.get("apiVersion")
        resource = self.catalog.named(api_version, kind)
        if resource is None:
            raise ApiError(404, "NotFound", f"no matches for kind {kind!r} in version {api_version!r}")
        clean, report = schema.decode(obj, resource.key)
        if report.wrong:
            message = f"{resource.kind} in version {api_version!r} cannot be handled as a {resource.kind}: "
            raise status.bad_request(message + "; ".join(report.wrong), resource)
        if report.unknown and options.unknown is Unknown.STRICT:
            listed = ", ".join(f"unknown field {field}" for field in report.unknown)
            raise status.bad_request(f"strict decoding error: {listed}", resource)
        if options.unknown is Unknown.WARN and options.warnings is not None:
            options.warnings.extend(f"unknown field {field}" for field in report.unknown)
        clean.setdefault("metadata", {})
        return resource, rules.sort_keys(clean)

    def _place(self, resource: Resource, metadata: Obj, namespace: str) -> None:
        """Set the namespace. That of the URL and that of the object must be equal; without either it is `default`."""
        if not resource.namespaced:
            metadata.pop("namespace", None)
            return
        own = metadata.get("namespace")
        if namespace and own and own != namespace:
            message = f"the namespace of the provided object does not match the namespace sent on the request ({own!r})"
            raise status.bad_request(message, resource)
        metadata["namespace"] = own or namespace or "default"

    def _check_namespace(self, resource: Resource, metadata: Obj) -> None:
        if not resource.namespaced:
            return
        namespace = self.storage.get("Namespace", ("", metadata["namespace"]))
        if namespace is None:
            raise status.not_found(BY_KIND["Namespace"], metadata["namespace"])
        if namespace.fields["status.phase"] == "Terminating":
            message = (
                f"unable to create new content in namespace {metadata['namespace']} because it is being terminated"
            )
            raise status.denied(resource, metadata.get("name", ""), message)

    def _generate(self, resource: Resource, metadata: Obj) -> str:
        base = str(metadata["generateName"])[:58]
        while True:
            name = base + names.random_suffix()
            if self.storage.get(resource.key, (metadata.get("namespace", ""), name)) is None:
                return name

    def _complete(self, resource: Resource, obj: Obj, old: Obj | None) -> None:
        """Apply defaults, validate and allocate. Raises 422 with all problems."""
        defaults.apply(resource.key, obj)
        causes: Sequence[Cause] = validate.check(resource.key, obj)
        if old is not None:
            causes = [*causes, *rules.check_update(resource.key, obj, old)]
        ref = (obj["metadata"].get("namespace", ""), obj["metadata"].get("name", ""))
        if not causes and resource.key == "Service":
            causes = self.addresses.assign(ref, obj["spec"], old["spec"] if old else None)
        if causes:
            raise status.invalid_object(resource, ref[1], causes)

    def _replace(self, resource: Resource, clean: Obj, stored: Stored, subresource: str, options: Options) -> Stored:
        old = stored.decode()
        if subresource == "status":
            clean = rules.status_update(clean, old)
        elif subresource == "finalize":
            clean = {**old, "metadata": dict(old["metadata"]), "spec": {"finalizers": [], **(clean.get("spec") or {})}}
        else:
            rules.prepare_update(resource, clean, old)
        if subresource != "finalize":
            self._complete(resource, clean, old)
        clean["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if resource.generation and _spec(clean) != _spec(old):
            clean["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        if clean == old:
            return stored
        if "deletionTimestamp" in clean["metadata"] and not (_blocked(clean) or _waits_for_kubelet(clean)):
            return stored if options.dry_run else self._remove(resource, stored)
        return self._store(resource, clean, options)

    def _store(self, resource: Resource, obj: Obj, options: Options) -> Stored:
        if options.dry_run:
            obj["metadata"].setdefault("resourceVersion", str(self.storage.version))
            return make(resource.key, obj)
        stored = self.storage.put(resource.key, obj)
        if resource.key == "Service":
            self.addresses.record(stored.ref, obj["spec"])
        elif resource.key == _DEFINITIONS:
            self.storage.add(stored.ref[1])
            self.catalog.put(obj)
        return stored

    def _remove(self, resource: Resource, stored: Stored) -> Stored:
        if resource.key == _DEFINITIONS:
            # As in a real API server: delete the objects, then stop serving the kind.
            self.storage.drop(stored.ref[1])
            self.catalog.remove(stored.ref[1])
        last = self.storage.remove(resource.key, stored.ref)
        if resource.key == "Service":
            self.addresses.record(stored.ref, None)
        for key in [key for key in self._applied if key[0] == stored.uid]:
            del self._applied[key]
        return last

    def _mark(self, obj: Obj, grace: int) -> bool:
        """Set deletionTimestamp. Returns False if it is already set with the same or a shorter grace period."""
        metadata = obj["metadata"]
        if "deletionTimestamp" in metadata and metadata.get("deletionGracePeriodSeconds", 0) <= grace:
            return False
        metadata["deletionGracePeriodSeconds"] = grace
        when = datetime.fromtimestamp(self._clock() + grace, UTC)
        metadata["deletionTimestamp"] = when.strftime("%Y-%m-%dT%H:%M:%SZ")
        if _is(obj, "Namespace"):
            obj["status"]["phase"] = "Terminating"
        return True

    def _server_side_apply(
        self, resource: Resource, namespace: str, name: str, body: Any, subresource: str, options: Options
    ) -> Stored:
        """A simplified server-side apply without conflicts between managers. Fields that a manager's next apply does
        not contain are removed."""
        if not isinstance(body, dict):
            raise status.bad_request("apply: expected an object", resource)
        body = {**body, "metadata": {**body.get("metadata", {}), "name": name}}
        stored = self.storage.get(resource.key, (namespace if resource.namespaced else "", name))
        if stored is None:
            result = self.create(body, namespace, options)
        else:
            before = self._applied.get((stored.uid, options.manager), {})
            merged = patch.three_way(before, body, stored.decode(), schema.of(resource.key))
            result = self.update(merged, namespace, name, subresource, options)
        if not options.dry_run:
            self._applied[(result.uid, options.manager)] = body
        return result


def _spec(obj: Obj) -> Obj:
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}


def _is(obj: Obj, kind: str) -> bool:
    """True for a kind of the core group. A custom resource may have the same kind in another group."""
    return (obj["apiVersion"], obj["kind"]) == ("v1", kind)


def _blocked(obj: Obj) -> bool:
    """True if the object has finalizers."""
    own = (obj.get("spec") or {}).get("finalizers") if _is(obj, "Namespace") else None
    return bool(own or obj["metadata"].get("finalizers"))


def _waits_for_kubelet(obj: Obj) -> bool:
    return _is(obj, "Pod") and bool(obj["metadata"].get("deletionGracePeriodSeconds"))


def _grace(kind: str, obj: Obj, options: DeleteOptions) -> int:
    """The grace period in seconds. 0 for a pod that is finished or on no node, because no kubelet must stop it."""
    if kind != "Pod" or not obj["spec"].get("nodeName") or obj["status"].get("phase") in ("Failed", "Succeeded"):
        return 0
    return obj["spec"].get("terminationGracePeriodSeconds", 30) if options.grace is None else max(options.grace, 0)


ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"


def _propagate(metadata: Obj, policy: str) -> None:
    """Add the finalizer for Orphan or Foreground. The garbage collector handles them (controllers/garbage.py)."""
    finalizer = {"Orphan": ORPHAN, "Foreground": FOREGROUND}.get(policy)
    if finalizer and finalizer not in metadata.get("finalizers", ()):
        metadata["finalizers"] = [*metadata.get("finalizers", ()), finalizer]
