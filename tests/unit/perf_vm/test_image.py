"""What a virtual machine boots: archives, modules, kernel images."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from nodenet.errors import CannotRunError
from perf.vm import image

ELF = b"\x7fELF" + bytes(range(256)) * 64


def bzimage(payload: bytes) -> bytes:
    """A boot sector with one more setup sector, then the payload 16 bytes into the protected-mode code."""
    setup = bytearray(1024)
    setup[0x1F1] = 1
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload + b"what follows"


def sized(packed: bytes) -> bytes:
    return packed + struct.pack("<I", len(ELF))


@pytest.mark.parametrize(
    "payload",
    [
        gzip.compress(ELF),
        sized(lzma.compress(ELF, check=lzma.CHECK_CRC32)),
    ],
    ids=["gzip", "xz"],
)
def test_kernel_image_is_unpacked(payload: bytes) -> None:
    assert image.vmlinux(bzimage(payload)) == ELF


@pytest.mark.parametrize(("tool", "options"), [("zstd", ["-q"]), ("lz4", ["-q", "-l"])])
def test_kernel_image_is_unpacked_by_libraries(tool: str, options: list[str]) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed: nothing here packs in that way")
    packed = subprocess.run([tool, *options, "-c"], input=ELF, capture_output=True, check=True).stdout
    assert image.vmlinux(bzimage(sized(packed))) == ELF


def test_an_unknown_compression_is_reported() -> None:
    with pytest.raises(CannotRunError, match="not known here"):
        image.vmlinux(bzimage(b"BZh9 something else"))


def test_image_that_is_no_elf_is_refused() -> None:
    with pytest.raises(CannotRunError, match="not an ELF"):
        image.vmlinux(bzimage(gzip.compress(b"MZ")))


def test_broken_zstd_is_reported() -> None:
    with pytest.raises(CannotRunError, match="broken"):
        image.vmlinux(bzimage(sized(b"\x28\xb5\x2f\xfd" + bytes(40))))


def test_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    archive = image.cpio({"init": b"#!/bin/sh\n", "bin/tool": b"abc"}, folders=("bin", "dev"))
    assert len(archive) % 4 == 0
    if not shutil.which("cpio"):
        pytest.skip("cpio is not installed: only the size was checked")
    subprocess.run(["cpio", "-id", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin/tool").read_bytes() == b"abc"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "dev").is_dir()


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "6.99"
    (folder / "kernel").mkdir(parents=True)
    for name in ("virtio.ko", "virtio-ring.ko", "virtio_pci.ko"):
        (folder / "kernel" / name).write_bytes(name.encode())
    (folder / "kernel/overlay.ko.xz").write_bytes(lzma.compress(b"overlay"))
    (folder / "modules.dep").write_text(
        "kernel/virtio_pci.ko: kernel/virtio.ko kernel/virtio-ring.ko\n"
        "kernel/virtio.ko: kernel/virtio-ring.ko\nkernel/virtio-ring.ko:\nkernel/overlay.ko.xz:\n"
    )
    (folder / "modules.builtin").write_text("kernel/fs/fuse/fuse.ko\n")
    return folder


def test_modules_come_after_what_they_need_and_unpacked(modules: Path) -> None:
    found = image.module_files(modules, ["virtio_pci", "fuse", "overlay"])
    assert [name for name, _ in found] == ["virtio_ring", "virtio", "virtio_pci", "overlay"]
    assert dict(found)["overlay"] == b"overlay"


def test_module_that_is_missing_is_named(modules: Path) -> None:
    with pytest.raises(CannotRunError, match=r"kernel 6\.99 has no module virtiofs"):
        image.module_files(modules, ["virtiofs"])
