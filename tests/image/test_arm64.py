"""The image for arm64, booted in an emulated machine of that architecture: the agent starts and attaches a pod.

QEMU's emulator is slow: minutes. `make test-image ARCHES="amd64 arm64"` makes what it needs.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.conftest import ROOT, archive

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1500)]

HERE = Path(__file__).parent
KERNEL = ROOT / "build" / "image" / "kernel-arm64.deb"
_SECONDS = 1200
_FOLDER, _FILE, _LINK = 0o040000, 0o100000, 0o120000
Files = dict[str, tuple[int, bytes]]


def image_files(path: Path) -> Files:
    """The image's files: name -> (mode, content)."""
    with tarfile.open(path) as tar:

        def blob(digest: str) -> bytes:
            file = tar.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert file is not None
            return file.read()

        index = tar.extractfile("index.json")
        assert index is not None
        [entry] = json.loads(index.read())["manifests"]
        images = json.loads(blob(entry["digest"]))["manifests"]
        found = [image for image in images if image["platform"]["architecture"] == "arm64"]
        if not found:
            pytest.skip(f'{path.name} has no image for arm64: make test-image ARCHES="amd64 arm64"')
        files: Files = {}
        for layer in json.loads(blob(found[0]["digest"]))["layers"]:
            _apply(files, blob(layer["digest"]))
    return files


def _apply(files: Files, layer: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        for member in tar:
            name = member.name.removeprefix("./").rstrip("/")
            folder, _, last = name.rpartition("/")
            if last.startswith(".wh."):
                gone = f"{folder}/{last.removeprefix('.wh.')}".lstrip("/")
                for known in [one for one in files if one == gone or one.startswith(f"{gone}/")]:
                    del files[known]
            elif member.isdir():
                files[name] = (_FOLDER | member.mode, b"")
            elif member.issym():
                files[name] = (_LINK | 0o777, member.linkname.encode())
            elif member.islnk():
                files[name] = files[member.linkname.removeprefix("./")]
            elif member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                files[name] = (_FILE | member.mode, content.read())


def cpio(files: Files) -> Iterator[bytes]:
    """The "newc" format (buffer-format.rst)."""
    for number, (name, (mode, data)) in enumerate([*sorted(files.items()), ("TRAILER!!!", (0, b""))], 1):
        encoded = name.encode()
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded + b"\0"
        yield header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)


def test_the_image_for_arm64_runs_in_a_machine_of_that_architecture(tmp_path: Path) -> None:
    qemu = shutil.which("qemu-system-aarch64")
    if qemu is None or not KERNEL.exists():
        pytest.skip(f"needs qemu-system-aarch64 (Debian: qemu-system-arm) and {KERNEL.relative_to(ROOT)}")
    files = image_files(archive("slim"))
    subprocess.run(["dpkg-deb", "-x", KERNEL, tmp_path / "kernel"], check=True)
    [kernel] = (tmp_path / "kernel" / "boot").glob("vmlinuz-*")
    for path in (tmp_path / "kernel" / "lib").rglob("*.ko"):
        if path.is_relative_to(tmp_path / "kernel") and {"net", "mii"} & set(path.parts):
            files[f"usr/{path.relative_to(tmp_path / 'kernel')}"] = (_FILE | 0o644, path.read_bytes())
    for name, source in {
        "init": HERE / "arm64/init",
        "guest.py": HERE / "arm64/guest.py",
        "ping.py": HERE.parent / "ping.py",
    }.items():
        files[name] = (_FILE | 0o755, source.read_bytes())
    for folder in {parent for name in files for parent in map(str, Path(name).parents)} - {"."} - files.keys():
        files[folder] = (_FOLDER | 0o755, b"")
    with (tmp_path / "initrd").open("wb") as out:
        out.writelines(cpio(files))
    command = [qemu, "-M", "virt", "-cpu", "max,pauth-impdef=on", "-m", "3G", "-smp", "1", "-nographic", "-no-reboot"]
    command += ["-nic", "none", "-kernel", str(kernel), "-initrd", str(tmp_path / "initrd")]
    command += ["-append", "console=ttyAMA0 panic=-1 quiet"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    print(done.stdout[-6000:])
    assert any(line.startswith("NODENET machine aarch64") for line in lines)
    assert "NODENET check 0" in lines
    assert "NODENET ready" in lines
    assert "NODENET ping True version 0" in lines
    assert "NODENET end 0" in lines
    assert "NODENET-EXIT 0" in lines
