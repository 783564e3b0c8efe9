"""The renderer of the manifests renders what kubectl does, and nothing that it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodenet.cluster import kustomize
from nodenet.errors import BadInputError
from tests import rendered

Obj = dict[str, Any]


def by_name(objects: list[Obj]) -> list[Obj]:
    return sorted(objects, key=lambda obj: (obj["kind"], obj["metadata"]["name"]))


@pytest.mark.parametrize("overlay", kustomize.overlays())
def test_an_overlay_is_what_kubectl_renders(overlay: str) -> None:
    assert by_name(kustomize.render(overlay)) == by_name(rendered.kustomize(overlay))


@pytest.mark.parametrize("overlay", kustomize.overlays())
def test_an_overlay_with_all_components_is_what_kubectl_renders(overlay: str, tmp_path: Path) -> None:
    names = [name for name in kustomize.components() if name != "mount-bpffs" or overlay != "kind"]
    found = rendered.kustomize_with(tmp_path, overlay, *names)
    assert len(found) > len(kustomize.render(overlay))
    assert by_name(kustomize.render(overlay, names)) == by_name(found)


def test_every_overlay_and_component_is_found() -> None:
    assert set(rendered.OVERLAYS) <= set(kustomize.overlays())
    assert {"monitoring", "mount-bpffs"} <= set(kustomize.components())


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(BadInputError, match=r"--overlay other: there is no such overlay .*replace-kube-proxy"):
        kustomize.render("other")
    with pytest.raises(BadInputError, match="--component other"):
        kustomize.render("kind", ["other"])


BASE = "resources: [a.yaml]\n"
OBJECT = "kind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("namePrefix: x-\n", "namePrefix: not supported"),
        ("patches: [{path: p.yaml}]\n", "patches: only a JSON patch"),
        ("patches: [{target: {kind: ConfigMap, name: c}, patch: 'data: {a: c}'}]\n", "patches: only a JSON patch"),
        ("patches: [{target: {kind: ConfigMap, name: d}, patch: '[]'}]\n", "no object is ConfigMap d"),
        (
            "patches: [{target: {kind: ConfigMap, name: c}, patch: '[{op: remove, path: /x}]'}]\n",
            "ConfigMap c: json patch: operation 0",
        ),
        ("configMapGenerator: [{name: g, files: [a=a.yaml]}]\n", "configMapGenerator: g"),
    ],
)
def test_what_is_not_known_is_an_error(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "overlays" / "one"
    folder.mkdir(parents=True)
    (folder / "kustomization.yaml").write_text(BASE + text)
    (folder / "a.yaml").write_text(OBJECT)
    monkeypatch.setattr(kustomize, "folder", lambda: tmp_path)
    with pytest.raises(BadInputError) as caught:
        kustomize.render("one")
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
