"""Manifests into a lab: everything is checked first, then created or merged as `kubectl apply` does.

    prepared = prepare(manifests.load(paths))          # BadInputError names every file, object and field that is wrong
    for result in apply(HttpObjects("127.0.0.1", port, token), prepared):
        print(result)                                  # deployment.apps/frontend created

A live object is merged three ways with the annotation that kubectl uses too, so both may be used in turns.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nodenet.errors import BadInputError
from nodenet.lab.apiserver import defaults, patch, schema, validate
from nodenet.lab.apiserver.http_client import Objects
from nodenet.lab.apiserver.resources import BY_KIND, Resource
from nodenet.lab.apiserver.status import ApiError
from nodenet.lab.kinds import judge
from nodenet.manifests import Manifest

Obj = dict[str, Any]
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_NAMESPACE = BY_KIND["Namespace"]
# How often a merge is done anew when somebody else wrote in between.
_ATTEMPTS = 5
_HINT = "nothing was applied"


@dataclass(frozen=True, slots=True)
class ApplySet:
    """Valid objects with their namespaces filled in, Namespaces first, else in the order of the files.

    `skipped` are sentences about kinds; `namespaces` are those that objects are in and no manifest declares.
    """

    objects: tuple[Manifest, ...]
    skipped: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """One line of what happened: created, configured, unchanged, deleted or not found."""

    resource: Resource
    name: str
    action: str
    note: str = ""

    def __str__(self) -> str:
        kind = f"{self.resource.singular}.{self.resource.group}" if self.resource.group else self.resource.singular
        return f"{kind}/{self.name} {self.action}" + (f" ({self.note})" if self.note else "")


def prepare(manifests: Iterable[Manifest], namespace: str = "default") -> ApplySet:
    """Judge every object. `namespace` is for objects that name none. Raises BadInputError with all problems."""
    problems: list[str] = []
    skipped: Counter[str] = Counter()
    objects: list[Manifest] = []
    for manifest in manifests:
        judgement = judge(manifest.api_version, manifest.kind)
        if judgement.problem:
            problems.append(f"{manifest.source}: {manifest}: {judgement.problem}")
        elif judgement.resource is None:
            skipped[judgement.skipped] += 1
        else:
            placed = _placed(manifest, judgement.resource, namespace)
            found = check(placed)
            problems += [f"{manifest.source}: {placed}: {problem}" for problem in found]
            objects.append(placed)
    if not problems:
        problems = [*_twice(objects), *_collisions(objects)]
    if problems:
        raise BadInputError("\n".join(problems), _HINT)
    objects.sort(key=lambda manifest: manifest.kind != "Namespace")
    declared = {manifest.name for manifest in objects if manifest.kind == "Namespace"}
    used = dict.fromkeys(manifest.namespace for manifest in objects if manifest.namespace)
    told = tuple(text.format(count=count) for text, count in sorted(skipped.items()))
    return ApplySet(tuple(objects), told, tuple(name for name in used if name not in declared))


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


def check(manifest: Manifest) -> list[str]:
    """Everything wrong with one object of a served kind, as "field: what was expected"."""
    clean, report = schema.decode(manifest.data, manifest.kind)
    problems = report.wrong + [f"unknown field {field}" for field in report.unknown]
    if report.wrong:
        return problems
    clean["metadata"]["uid"] = "unborn"
    defaults.apply(manifest.kind, clean)
    return problems + [str(cause) for cause in validate.check(manifest.kind, clean)]


def _twice(objects: Sequence[Manifest]) -> Iterator[str]:
    """An object that two documents describe: the second would silently replace the first, or be refused half-way."""
    seen: dict[tuple[str, str, str], Manifest] = {}
    for manifest in objects:
        first = seen.setdefault((manifest.kind, manifest.namespace, manifest.name), manifest)
        if first is not manifest:
            yield f"{manifest.source}: {manifest}: is in {first.source} already"


def _collisions(objects: Sequence[Manifest]) -> Iterator[str]:
    """What two Services cannot both have."""
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
    """Create or merge. Raises BadInputError when the API refuses an object; what it can refuse is asked for first."""
    absent = [name for name in prepared.namespaces if objects.get(_NAMESPACE, "", name) is None]
    fresh = {m.name for m in prepared.objects if m.kind == "Namespace" and objects.get(_NAMESPACE, "", m.name) is None}
    for manifest in prepared.objects:
        # The API cannot try out what is in a namespace that is not there yet: such an object meets nothing old.
        if manifest.namespace not in fresh and manifest.namespace not in absent:
            _one(objects, manifest, dry_run=True, before=_HINT)
    results = [_namespace(objects, name) for name in absent]
    for manifest in prepared.objects:
        results.append(_one(objects, manifest, before=f"{len(results)} objects before it were applied"))
    return results


def _namespace(objects: Objects, name: str) -> Result:
    objects.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return Result(_NAMESPACE, name, "created", "no manifest declares it")


def _one(objects: Objects, manifest: Manifest, *, before: str, dry_run: bool = False) -> Result:
    resource = BY_KIND[manifest.kind]
    wanted = _annotated(manifest.data)
    for attempt in range(_ATTEMPTS):
        live = objects.get(resource, manifest.namespace, manifest.name)
        try:
            if live is None:
                objects.create(wanted, dry_run=dry_run)
                return Result(resource, manifest.name, "created")
            done = objects.update(merged(wanted, live), dry_run=dry_run)
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
    """With the annotation that holds the manifest itself, in kubectl's own form."""
    result = copy.deepcopy(data)
    annotations = result["metadata"].setdefault("annotations", {}) or {}
    annotations.pop(LAST_APPLIED, None)
    result["metadata"]["annotations"] = annotations
    text = json.dumps(result, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    annotations[LAST_APPLIED] = text
    return result


def merged(wanted: Obj, live: Obj) -> Obj:
    """The live object with the manifest's fields set, and those removed that only the last applied manifest had."""
    text = (live["metadata"].get("annotations") or {}).get(LAST_APPLIED, "{}")
    try:
        last = json.loads(text)
    except ValueError:
        last = {}
    result = patch.three_way(last, wanted, live, schema.SCHEMAS[live["kind"]])
    found: Obj = {**result, "status": live.get("status", {})}
    found["metadata"] = {**result["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}
    return found


def delete(objects: Objects, prepared: ApplySet) -> list[Result]:
    """Remove the objects, in the reverse order; namespaces that no manifest declares stay."""
    results: list[Result] = []
    for manifest in reversed(prepared.objects):
        resource = BY_KIND[manifest.kind]
        try:
            there = objects.delete(resource, manifest.namespace, manifest.name)
        except ApiError as error:
            raise _refused(manifest, error, f"{len(results)} objects before it were deleted") from error
        results.append(Result(resource, manifest.name, "deleted" if there else "not found"))
    return results
