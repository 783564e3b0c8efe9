"""Applies manifests to a lab: checks all of them first, then creates or merges objects as `kubectl apply` does.

    prepared = prepare(manifests.load(paths))          # BadInputError names every file, object and field that is wrong
    for result in apply(HttpObjects("127.0.0.1", port, token), prepared):
        print(result)                                  # deployment.apps/frontend created

An existing object gets a three-way merge that uses kubectl's last-applied annotation, so the user may alternate between
kubectl and this.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from netpolicy import foreign
from nodenet.errors import BadInputError
from nodenet.lab.apiserver import defaults, installed, patch, schema, validate
from nodenet.lab.apiserver.catalog import defined
from nodenet.lab.apiserver.http_client import Objects
from nodenet.lab.apiserver.resources import BY_KIND, Resource
from nodenet.lab.apiserver.status import ApiError
from nodenet.lab.kinds import judge
from nodenet.manifests import Manifest

Obj = dict[str, Any]
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_NAMESPACE = BY_KIND["Namespace"]
_DEFINITION = BY_KIND["CustomResourceDefinition"]
# Other objects need these, so they are created first.
_FIRST = (_NAMESPACE.kind, _DEFINITION.kind)
# Retries when another writer changed the object (HTTP 409).
_ATTEMPTS = 5
_HINT = "nothing was applied"


@dataclass(frozen=True, slots=True)
class ApplySet:
    """Valid objects with their namespaces filled in. Namespaces and CustomResourceDefinitions come first, then the rest
    in the order of the files.

    `skipped`: one sentence for each kind that the lab does not support. `namespaces`: those that objects use but no
    manifest declares. `custom`: the resources of CustomResourceDefinitions, of the manifests and of the lab.
    `warning`: a sentence about policies that agents do not enforce, or empty.
    """

    objects: tuple[Manifest, ...]
    skipped: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    custom: tuple[Resource, ...] = ()
    warning: str = ""

    def resource(self, manifest: Manifest) -> Resource:
        return _resource(manifest, self.custom)


@dataclass(frozen=True, slots=True)
class Result:
    """What happened to one object. `action` is created, configured, unchanged, deleted or not found."""

    resource: Resource
    name: str
    action: str
    note: str = ""

    def __str__(self) -> str:
        kind = f"{self.resource.singular}.{self.resource.group}" if self.resource.group else self.resource.singular
        return f"{kind}/{self.name} {self.action}" + (f" ({self.note})" if self.note else "")


def prepare(
    manifests: Iterable[Manifest], namespace: str = "default", custom: Iterable[Resource] = installed.RESOURCES
) -> ApplySet:
    """Check every object. Raises BadInputError with all problems.

    `namespace` is for objects without one. `custom`: the resources of the lab's CustomResourceDefinitions; by
    default those that a new lab has.
    """
    manifests = list(manifests)
    custom = (*_defined(manifests), *custom)
    problems: list[str] = []
    skipped: Counter[str] = Counter()
    objects: list[Manifest] = []
    for manifest in manifests:
        judgement = judge(manifest.api_version, manifest.kind, custom)
        if judgement.problem:
            problems.append(f"{manifest.source}: {manifest}: {judgement.problem}")
        elif judgement.resource is None:
            skipped[judgement.skipped] += 1
        else:
            placed = _placed(manifest, judgement.resource, namespace)
            found = check(placed, judgement.resource)
            problems += [f"{manifest.source}: {placed}: {problem}" for problem in found]
            objects.append(placed)
    if not problems:
        problems = [*_twice(objects), *_collisions(objects)]
    if problems:
        raise BadInputError("\n".join(problems), _HINT)
    objects.sort(key=lambda manifest: manifest.kind not in _FIRST)
    declared = {manifest.name for manifest in objects if manifest.kind == "Namespace"}
    used = dict.fromkeys(manifest.namespace for manifest in objects if manifest.namespace)
    notes = tuple(text.format(count=count) for text, count in sorted(skipped.items()))
    warning = foreign.warning(str(manifest) for manifest in manifests if foreign.is_policy(manifest.data))
    return ApplySet(tuple(objects), notes, tuple(name for name in used if name not in declared), custom, warning)


def _defined(manifests: Iterable[Manifest]) -> Iterator[Resource]:
    """The resources of the valid CustomResourceDefinitions among the manifests."""
    for manifest in manifests:
        if (manifest.api_version, manifest.kind) == (_DEFINITION.api_version, _DEFINITION.kind):
            placed = _placed(manifest, _DEFINITION, "")
            if not check(placed, _DEFINITION):
                yield from defined(placed.data)


def _resource(manifest: Manifest, custom: Iterable[Resource]) -> Resource:
    found = judge(manifest.api_version, manifest.kind, custom).resource
    assert found is not None, f"{manifest} is in no ApplySet"
    return found


def _placed(manifest: Manifest, resource: Resource, namespace: str) -> Manifest:
    data = copy.deepcopy(manifest.data)
    data.pop("status", None)
    metadata = data["metadata"]
    for key in ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields", "selfLink"):
        metadata.pop(key, None)
    if resource.namespaced:
        metadata["namespace"] = metadata.get("namespace") or namespace
    else:
        metadata.pop("namespace", None)
    return replace(manifest, data=data)


def check(manifest: Manifest, resource: Resource) -> list[str]:
    """All problems of one object, as "field: what was expected"."""
    clean, report = schema.decode(manifest.data, resource.key)
    problems = report.wrong + [f"unknown field {field}" for field in report.unknown]
    if report.wrong:
        return problems
    # The API assigns the UID at creation. The defaults of a Job need one before that, for its selector.
    clean["metadata"]["uid"] = "not-created"
    defaults.apply(resource.key, clean)
    return problems + [str(cause) for cause in validate.check(resource.key, clean)]


def _twice(objects: Sequence[Manifest]) -> Iterator[str]:
    """A problem for each object that two documents define: the second would replace the first without a warning, or be
    refused after other objects have been applied."""
    seen: dict[tuple[str, str, str], Manifest] = {}
    for manifest in objects:
        first = seen.setdefault((manifest.kind, manifest.namespace, manifest.name), manifest)
        if first is not manifest:
            yield f"{manifest.source}: {manifest}: is in {first.source} already"


def _collisions(objects: Sequence[Manifest]) -> Iterator[str]:
    """A problem for each nodePort or clusterIP that two Services ask for."""
    taken: dict[tuple[str, object], Manifest] = {}
    services = {(m.namespace, m.name): m for m in objects if m.kind == "Service"}
    for manifest in services.values():
        spec = manifest.data["spec"]
        ports = {port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")}
        wanted: list[tuple[str, object]] = [("nodePort", port) for port in sorted(ports)]
        addresses = spec.get("clusterIPs") or [spec.get("clusterIP")]
        wanted += [("clusterIP", address) for address in addresses if address and address != "None"]
        for field, value in wanted:
            other = taken.setdefault((field, value), manifest)
            if other is not manifest:
                yield f"{manifest.source}: {manifest}: spec {field}: {value} is that of {other} ({other.source})"


def apply(objects: Objects, prepared: ApplySet) -> list[Result]:
    """Create or merge the objects. Raises BadInputError if the API refuses one. A dry run of all objects comes first,
    so that most refusals happen before any write."""
    absent = [name for name in prepared.namespaces if objects.get(_NAMESPACE, "", name) is None]
    fresh = {(m.kind, m.name) for m in prepared.objects if m.kind in _FIRST and not _is_there(objects, prepared, m)}
    for manifest in prepared.objects:
        resource = prepared.resource(manifest)
        # A dry run fails for an object whose namespace or definition does not exist yet. Skip it: such an object cannot
        # conflict with an existing one.
        needs = {(_NAMESPACE.kind, manifest.namespace), (_DEFINITION.kind, resource.qualified)}
        if manifest.namespace not in absent and not needs & fresh:
            _one(objects, manifest, resource, dry_run=True, before=_HINT)
    results = [_namespace(objects, name) for name in absent]
    for manifest in prepared.objects:
        before = f"{len(results)} objects before it were applied"
        results.append(_one(objects, manifest, prepared.resource(manifest), before=before))
    return results


def _is_there(objects: Objects, prepared: ApplySet, manifest: Manifest) -> bool:
    return objects.get(prepared.resource(manifest), "", manifest.name) is not None


def _namespace(objects: Objects, name: str) -> Result:
    objects.create(_NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return Result(_NAMESPACE, name, "created", "no manifest declares it")


def _one(objects: Objects, manifest: Manifest, resource: Resource, *, before: str, dry_run: bool = False) -> Result:
    wanted = _annotated(manifest.data)
    for attempt in range(_ATTEMPTS):
        live = objects.get(resource, manifest.namespace, manifest.name)
        try:
            if live is None:
                objects.create(resource, wanted, dry_run=dry_run)
                return Result(resource, manifest.name, "created")
            done = objects.update(resource, merged(wanted, live, resource), dry_run=dry_run)
        except ApiError as error:
            if error.code == 409 and attempt < _ATTEMPTS - 1:
                continue
            raise _refused(manifest, error, before) from error
        same = done["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"] and not dry_run
        note = "it is being deleted: apply it again when it is gone" if "deletionTimestamp" in live["metadata"] else ""
        return Result(resource, manifest.name, "unchanged" if same else "configured", note)
    raise AssertionError("the last attempt returns or raises")


def _refused(manifest: Manifest, error: ApiError, before: str) -> BadInputError:
    what = "; ".join(str(cause) for cause in error.causes) or error.message
    return BadInputError(f"{manifest.source}: {manifest}: {what}", before)


def _annotated(data: Obj) -> Obj:
    """Add the last-applied annotation: the manifest as JSON, formatted as kubectl does."""
    result = copy.deepcopy(data)
    annotations = result["metadata"].setdefault("annotations", {}) or {}
    annotations.pop(LAST_APPLIED, None)
    result["metadata"]["annotations"] = annotations
    text = json.dumps(result, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    annotations[LAST_APPLIED] = text
    return result


def merged(wanted: Obj, live: Obj, resource: Resource) -> Obj:
    """The live object with the fields of the manifest set. Fields that the last applied manifest had and this one does
    not are removed."""
    text = (live["metadata"].get("annotations") or {}).get(LAST_APPLIED, "{}")
    try:
        last = json.loads(text)
    except ValueError:
        last = {}
    result = patch.three_way(last, wanted, live, schema.of(resource.key))
    found: Obj = {**result, "status": live.get("status", {})}
    found["metadata"] = {**result["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}
    return found


def delete(objects: Objects, prepared: ApplySet) -> list[Result]:
    """Delete the objects in reverse order. Namespaces that no manifest declares remain."""
    results: list[Result] = []
    for manifest in reversed(prepared.objects):
        resource = prepared.resource(manifest)
        try:
            there = objects.delete(resource, manifest.namespace, manifest.name)
        except ApiError as error:
            raise _refused(manifest, error, f"{len(results)} objects before it were deleted") from error
        results.append(Result(resource, manifest.name, "deleted" if there else "not found"))
    return results
