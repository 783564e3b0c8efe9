"""Joins OCI layouts, one for each architecture, into one archive that containerd, kind, podman and docker read.

    index.json      one image index with the image of each architecture
    manifest.json   the image of the first layout as docker reads it; the others ignore this file

Equal layouts make equal archives: names are sorted, and times are 0.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

_INDEX = "application/vnd.oci.image.index.v1+json"
_NAME = "io.containerd.image.name"
_REF = "org.opencontainers.image.ref.name"

Json = dict[str, Any]


def blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def image_of(layout: Path) -> Json:
    """The descriptor of the layout's only image, with its platform. Raises ValueError for more or fewer images."""
    manifests = json.loads((layout / "index.json").read_text())["manifests"]
    if len(manifests) != 1:
        raise ValueError(f"{layout}: expected one image, found {len(manifests)}")
    [found] = manifests
    config = json.loads(blob(layout, json.loads(blob(layout, found["digest"]))["config"]["digest"]))
    platform = {"architecture": config["architecture"], "os": config["os"]}
    return {"mediaType": found["mediaType"], "digest": found["digest"], "size": found["size"], "platform": platform}


def docker_manifest(layout: Path, name: str) -> list[Json]:
    """The list that `docker load` reads."""
    manifest = json.loads(blob(layout, image_of(layout)["digest"]))

    def path(digest: str) -> str:
        return f"blobs/{digest.replace(':', '/')}"

    layers = [path(layer["digest"]) for layer in manifest["layers"]]
    return [{"Config": path(manifest["config"]["digest"]), "RepoTags": [name], "Layers": layers}]


def members(layouts: list[Path], name: str) -> dict[str, bytes | Path]:
    """The archive's files by name: bytes, or the file that has them."""
    found: dict[str, bytes | Path] = {
        f"blobs/sha256/{path.name}": path for layout in layouts for path in (layout / "blobs" / "sha256").iterdir()
    }
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [image_of(layout) for layout in layouts]}
    text = json.dumps(index).encode()
    digest = hashlib.sha256(text).hexdigest()
    found[f"blobs/sha256/{digest}"] = text
    entry = {
        "mediaType": _INDEX,
        "digest": f"sha256:{digest}",
        "size": len(text),
        "annotations": {_NAME: name, _REF: name},
    }
    found["index.json"] = json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [entry]}).encode()
    found["manifest.json"] = json.dumps(docker_manifest(layouts[0], name)).encode()
    found["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    return found


def write(output: Path, files: dict[str, bytes | Path]) -> None:
    draft = output.with_name(f".{output.name}")
    with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content) if isinstance(content, bytes) else content.stat().st_size
            info.mode = 0o644
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                tar.addfile(info, file)
    draft.rename(output)


def compressed_size(layout: Path) -> int:
    """Bytes of the image's layers, as a registry stores them."""
    return sum(layer["size"] for layer in json.loads(blob(layout, image_of(layout)["digest"]))["layers"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="name and tag of the image")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("layouts", type=Path, nargs="+", help="OCI layouts, this machine's architecture first")
    options = parser.parse_args()
    write(options.output, members(options.layouts, options.name))
    for layout in options.layouts:
        architecture = image_of(layout)["platform"]["architecture"]
        print(f"{options.output}: {options.name} {architecture}: {compressed_size(layout) / 1e6:.1f} MB compressed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
