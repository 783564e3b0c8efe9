"""daemonset/archive.py: one archive for containerd, kind, podman and docker."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
NAME = "localhost/nodenet:1-slim"
_specification = importlib.util.spec_from_file_location("nodenet_archive", ROOT / "daemonset" / "archive.py")
assert _specification is not None
assert _specification.loader is not None
archive = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(archive)


def layout(folder: Path, architecture: str) -> Path:
    """An OCI layout as buildah writes it, with layers of which one is common to all architectures."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    layers = [blob(b"common", "layer.v1.tar+gzip"), blob(architecture.encode(), "layer.v1.tar+gzip")]
    config = blob(json.dumps({"architecture": architecture, "os": "linux"}).encode(), "config.v1+json")
    manifest = blob(json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode(), "manifest.v1+json")
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return folder


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        found = {}
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
        return found


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    layouts = [layout(tmp_path / name, name) for name in ("amd64", "arm64")]
    archive.write(tmp_path / "out.tar", archive.members(layouts, NAME))
    archive.write(tmp_path / "again.tar", archive.members(layouts, NAME))
    assert (tmp_path / "out.tar").read_bytes() == (tmp_path / "again.tar").read_bytes()
    assert archive.compressed_size(layouts[0]) == len(b"common") + len(b"amd64")
    return read(tmp_path / "out.tar")


def test_the_index_has_both_architectures(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    [entry] = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == NAME
    index = json.loads(files[f"blobs/{entry['digest'].replace(':', '/')}"])
    assert [image["platform"]["architecture"] for image in index["manifests"]] == ["amd64", "arm64"]
    for image in index["manifests"]:
        manifest = json.loads(files[f"blobs/{image['digest'].replace(':', '/')}"])
        for blob in (manifest["config"], *manifest["layers"]):
            assert len(files[f"blobs/{blob['digest'].replace(':', '/')}"]) == blob["size"]


def test_docker_finds_the_first_one(files: dict[str, bytes]) -> None:
    [image] = json.loads(files["manifest.json"])
    assert image["RepoTags"] == [NAME]
    assert json.loads(files[image["Config"]])["architecture"] == "amd64"
    assert [files[layer] for layer in image["Layers"]] == [b"common", b"amd64"]


def test_a_layout_with_two_images_is_refused(tmp_path: Path) -> None:
    made = layout(tmp_path / "two", "amd64")
    index = json.loads((made / "index.json").read_text())
    index["manifests"] *= 2
    (made / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected one image, found 2"):
        archive.members([made], NAME)
