"""Renders the manifests of daemonset/ as `kubectl kustomize` does, without kubectl.

It knows the fields of kustomize that the manifests use. Every other field is an error, because an ignored one would
render other objects than kubectl. A test compares both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from nodenet import jsonpatch
from nodenet.errors import BadInputError

Obj = dict[str, Any]

_FILE = "kustomization.yaml"
_CLUSTER_KINDS = ("Namespace", "ClusterRole", "ClusterRoleBinding")


@cache
def folder() -> Path:
    """The manifests: inside the package if it was installed from a wheel, else in the checkout."""
    packaged = Path(__file__).parent / "daemonset"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "daemonset"


def overlays() -> list[str]:
    return sorted(path.parent.name for path in (folder() / "overlays").glob(f"*/{_FILE}"))


def components() -> list[str]:
    return sorted(path.parent.name for path in (folder() / "components").glob(f"*/{_FILE}"))


def render(overlay: str, with_components: Sequence[str] = ()) -> list[Obj]:
    """The objects of an overlay with components. Raises BadInputError for a name that does not exist."""
    for what, name, known in (
        ("overlay", overlay, overlays()),
        *(("component", name, components()) for name in with_components),
    ):
        if name not in known:
            raise BadInputError(f"--{what} {name}: there is no such {what} (there are: {', '.join(known)})")
    objects = _folder(folder() / "overlays" / overlay, [])
    for name in with_components:
        objects = _folder(folder() / "components" / name, objects)
    return objects


@dataclass(frozen=True, slots=True)
class _Place:
    """A kustomization, for messages."""

    folder: Path

    def error(self, field: str, message: str) -> BadInputError:
        return BadInputError(f"{self.folder / _FILE}: {field}: {message}")


def _folder(path: Path, objects: list[Obj]) -> list[Obj]:
    """The objects of a kustomization; a component is applied to `objects`."""
    place = _Place(path)
    data = yaml.safe_load((path / _FILE).read_text())
    unknown = data.keys() - _STEPS.keys() - {"apiVersion", "kind"}
    if unknown:
        raise place.error(sorted(unknown)[0], f"not supported by nodenet install (it knows {', '.join(_STEPS)})")
    # kustomize's order, whatever the order in the file is.
    for field, step in _STEPS.items():
        if field in data:
            objects = step(place, objects, data[field])
    return objects


def _resources(place: _Place, objects: list[Obj], names: Sequence[str]) -> list[Obj]:
    found = list(objects)
    for name in names:
        path = place.folder / name
        found += _folder(path, []) if path.is_dir() else [obj for obj in yaml.safe_load_all(path.read_text()) if obj]
    return found


def _config_maps(place: _Place, objects: list[Obj], generators: Sequence[Mapping[str, Any]]) -> list[Obj]:
    found = list(objects)
    for generator in generators:
        options = generator.get("options") or {}
        if not options.get("disableNameSuffixHash") or generator.keys() - {"name", "namespace", "files", "options"}:
            raise place.error(
                "configMapGenerator", f"{generator.get('name')}: only files without a name suffix are supported"
            )
        pairs = [entry.partition("=") for entry in generator["files"]]
        metadata: Obj = {
            "name": generator["name"],
            "namespace": generator["namespace"],
            "labels": options.get("labels") or {},
        }
        data = {key: (place.folder / file).read_text() for key, _, file in pairs}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return found


def _components(place: _Place, objects: list[Obj], names: Sequence[str]) -> list[Obj]:
    for name in names:
        objects = _folder(place.folder / name, objects)
    return objects


def _namespace(_place: _Place, objects: list[Obj], name: str) -> list[Obj]:
    found = []
    for obj in objects:
        place = {} if obj["kind"] in _CLUSTER_KINDS else {"namespace": name}
        found.append({**obj, "metadata": {**obj["metadata"], **place}})
    return found


def _patches(place: _Place, objects: list[Obj], patches: Sequence[Mapping[str, Any]]) -> list[Obj]:
    for entry in patches:
        target = entry.get("target") or {}
        operations = yaml.safe_load(entry.get("patch") or "")
        if target.keys() != {"kind", "name"} or not isinstance(operations, list) or entry.keys() != {"target", "patch"}:
            raise place.error("patches", "only a JSON patch with a target of kind and name is supported")
        matched = [obj for obj in objects if (obj["kind"], obj["metadata"]["name"]) == (target["kind"], target["name"])]
        if not matched:
            raise place.error("patches", f"no object is {target['kind']} {target['name']}")
        try:
            objects = [jsonpatch.apply(obj, operations) if obj in matched else obj for obj in objects]
        except ValueError as error:
            raise place.error("patches", f"{target['kind']} {target['name']}: {error}") from error
    return objects


def _images(_place: _Place, objects: list[Obj], images: Sequence[Mapping[str, str]]) -> list[Obj]:
    found = copy.deepcopy(objects)
    for image in images:
        name = f"{image.get('newName', image['name'])}:{image['newTag']}"
        for obj in found:
            for container in containers(obj):
                if container["image"].partition(":")[0] == image["name"]:
                    container["image"] = name
    return found


def containers(obj: Obj) -> list[Obj]:
    """The containers of a workload, init containers first."""
    spec = ((obj.get("spec") or {}).get("template") or {}).get("spec") or {}
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


_STEPS: dict[str, Callable[[_Place, list[Obj], Any], list[Obj]]] = {
    "resources": _resources,
    "configMapGenerator": _config_maps,
    "components": _components,
    "patches": _patches,
    "namespace": _namespace,
    "images": _images,
}
