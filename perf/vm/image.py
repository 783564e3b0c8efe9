"""Makes the files that a virtual machine boots: the uncompressed kernel of Debian's bzImage, and an initramfs in
memory.

Neither needs external tools. The two compression libraries are installed on every system with apt and dpkg.
"""

from __future__ import annotations

import ctypes
import lzma
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from nodenet.errors import CannotRunError

# Documentation/arch/x86/boot.rst: setup_sects, payload_offset and payload_length of the boot protocol.
_SETUP_SECTS, _PAYLOAD = 0x1F1, 0x248
_SECTOR = 512
_ELF = b"\x7fELF"
_LZ4_LEGACY_BLOCK = 8 << 20
_KIND_FOLDER, _KIND_FILE = 0o040755, 0o100755


def vmlinux(bzimage: bytes) -> bytes:
    """The ELF image inside a bzImage. QEMU boots it by its PVH entry, so the slow guest need not decompress it.

    Raises CannotRunError for an unknown compression.
    """
    start = (bzimage[_SETUP_SECTS] + 1) * _SECTOR
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    payload = bzimage[start + offset : start + offset + length]
    # Kbuild appends the uncompressed size to every format that does not end with it anyway.
    size = struct.unpack("<I", payload[-4:])[0]
    if payload.startswith(b"\x1f\x8b"):
        image = zlib.decompressobj(wbits=31).decompress(payload)
    elif payload.startswith(b"\xfd7zXZ"):
        image = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        image = _zstd(payload[:-4], size)
    elif payload.startswith(b"\x02\x21\x4c\x18"):
        image = _lz4(payload[4:-4], size)
    else:
        raise CannotRunError(f"the kernel image is packed in a way that is not known here ({payload[:4].hex()})")
    if not image.startswith(_ELF):
        raise CannotRunError("what the kernel image holds is not an ELF file")
    return image


def _zstd(data: bytes, size: int) -> bytes:
    function = _library("libzstd.so.1").ZSTD_decompress
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    target = ctypes.create_string_buffer(size)
    if function(target, size, data, len(data)) != size:
        raise CannotRunError("the kernel image's zstd data is broken")
    return target.raw


def _lz4(data: bytes, size: int) -> bytes:
    """Decompress a legacy LZ4 frame: blocks of 8 MiB, each preceded by its compressed length."""
    function = _library("liblz4.so.1").LZ4_decompress_safe
    function.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    block = ctypes.create_string_buffer(_LZ4_LEGACY_BLOCK)
    parts, at = [], 0
    while at < len(data):
        length = struct.unpack_from("<I", data, at)[0]
        count = function(data[at + 4 : at + 4 + length], block, length, len(block))
        if count <= 0:
            raise CannotRunError("the kernel image's lz4 data is broken")
        parts.append(block.raw[:count])
        at += 4 + length
    image = b"".join(parts)
    if len(image) != size:
        raise CannotRunError("the kernel image's lz4 data is incomplete")
    return image


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise CannotRunError(f"the kernel image cannot be unpacked: {error}") from error


def cpio(files: Mapping[str, bytes], folders: Iterable[str] = ()) -> bytes:
    """An archive in the "newc" format, which the kernel unpacks as its initial root (buffer-format.rst). Files are
    executable. Archives may be concatenated; a later file replaces an earlier one of the same name."""
    entries = [*((name, _KIND_FOLDER, b"") for name in folders), *((n, _KIND_FILE, data) for n, data in files.items())]
    parts: list[bytes] = []
    for number, (name, mode, data) in enumerate((*entries, ("TRAILER!!!", 0, b"")), 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        parts += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)


def module_files(folder: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """(name, content) of modules with their dependencies, in load order. Built-in modules are left out. `folder` is
    lib/modules/<release> after depmod. Raises CannotRunError for a module that does not exist."""
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[_module_name(path)] = (path, [_module_name(other) for other in others.split()])
    builtin = {_module_name(line) for line in (folder / "modules.builtin").read_text().splitlines()}
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in needs:
            raise CannotRunError(f"kernel {folder.name} has no module {name}")
        for other in reversed(needs[name][1]):
            visit(other)
        order.append(name)

    for name in wanted:
        visit(name)
    return [(name, _unpacked(folder / needs[name][0])) for name in order]


def _module_name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data
