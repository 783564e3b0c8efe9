"""Compile bpf/*.bpf.c with clang, with a cache keyed by the content of sources and flags.

    <cache>/<program>-<key of sources and flags>.o

If the object is in the cache, clang is not started and need not be installed. The compiler is not part of the key: a
container image holds objects that another machine compiled. To compile with another clang, remove the cache. The
image's objects are in config.PREBUILT, which is read-only and comes before the cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from nodenet.config import PREBUILT
from nodenet.errors import CannotRunError

PROGRAMS = ("endpoint", "netdev", "sock")
# -mcpu=v3 (kernel 5.1) has 32-bit jumps and ALU: shorter programs.
FLAGS = ("-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function")
# Seconds: a loaded node, or an emulated machine that builds an image, takes minutes.
_TIMEOUT = 600


@cache
def source_dir() -> Path:
    """The folder of the C sources: inside the package if it was installed from a wheel, else beside it in the
    checkout."""
    packaged = Path(__file__).parent / "src"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "bpf"


def _include_flags() -> list[str]:
    # Debian and Ubuntu have <asm/types.h> in the multiarch folder.
    machine = os.uname().machine
    return [f"-I/usr/include/{machine}-linux-gnu"]


def _sources_key(program: str, arguments: list[str], sources: Path) -> str:
    digest = hashlib.sha256("\0".join(arguments).encode())
    for path in [sources / f"{program}.bpf.c", *sorted((sources / "lib").glob("*.h"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def find(cache_dir: Path, cast_ctx: bool = False) -> None:
    """Check that `build_all` would succeed, without compiling. Raises CannotRunError."""
    for program in PROGRAMS:
        target, arguments = _target(program, cache_dir, source_dir(), cast_ctx)
        if not target.exists():
            _clang(target, arguments[-1])


def build(program: str, cache_dir: Path, sources: Path | None = None, *, cast_ctx: bool = False) -> Path:
    """The object file of `program`: from the image, from the cache, or compiled now. `sources`: another source folder
    (default: our own). `cast_ctx`: for kernels with bpf_cast_to_kern_ctx (bpf/lib/offload.h). Raises CannotRunError
    with clang's output, or if clang is needed and not installed."""
    target, arguments = _target(program, cache_dir, sources or source_dir(), cast_ctx)
    if not target.exists():
        _compile([_clang(target, arguments[-1]), *arguments], arguments[-1], target)
    return target


def _target(program: str, cache_dir: Path, folder: Path, cast_ctx: bool) -> tuple[Path, list[str]]:
    """The object of a program (the image's, or that of the cache), and clang's arguments: the last one is the
    source."""
    defines = ("-DNN_CAST_CTX",) if cast_ctx else ()
    arguments = [*FLAGS, *defines, *_include_flags(), "-c", str(folder / f"{program}.bpf.c")]
    name = f"{program}-{_sources_key(program, arguments, folder)}.o"
    prebuilt = PREBUILT / name
    return (prebuilt if prebuilt.exists() else cache_dir / name), arguments


def _clang(target: Path, source: str) -> str:
    clang = shutil.which("clang")
    if clang is None:
        raise CannotRunError(
            f"neither {PREBUILT} nor {target.parent} has {target.name}, and clang is not installed to compile {source}",
            "apt-get install clang, or use the image with clang: the slim one has objects of its own sources only",
        )
    return clang


def _compile(command: list[str], source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Write to a temporary file and rename it: two agents may build at the same time, and a crash must leave no
    # incomplete object.
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    result = subprocess.run([*command, "-o", str(draft)], capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if result.returncode != 0:
        draft.unlink(missing_ok=True)
        raise CannotRunError(
            f"clang could not compile {source}:\n{result.stderr.strip()}",
            "the headers come from libbpf-dev and linux-libc-dev",
        )
    draft.rename(target)


def build_all(cache_dir: Path, cast_ctx: bool = False) -> dict[str, Path]:
    """Build all objects. Returns them by program name."""
    return {program: build(program, cache_dir, cast_ctx=cast_ctx) for program in PROGRAMS}


def build_every_variant(cache_dir: Path) -> dict[bool, dict[str, Path]]:
    """Build all objects for all kernels. Returns them by `cast_ctx`."""
    return {cast_ctx: build_all(cache_dir, cast_ctx) for cast_ctx in (False, True)}
