"""Installs the plugin and its conflist where a container runtime searches for them, and removes them again.

    <bin-dir>/nodenet                  the launcher
    <bin-dir>/.nodenet-<key>/alone     started by the launcher if no agent listens; the launcher knows the key
    <conf-dir>/10-nodenet.conflist

Each file is written to a temporary name and renamed. The launcher is replaced after the program that it starts, and the
folders of older versions are removed after that. The conflist comes last, because it tells the runtime that the network
is ready. It is not rewritten if it is unchanged, because runtimes reload on every change.
"""

from __future__ import annotations

import re
from pathlib import Path

from nodenet.cni import bundle
from nodenet.cni.conflist import CONFLIST, EXECUTABLE, Options, remove_file, render_conflist, write_conflist, write_file
from nodenet.errors import CannotRunError

_MARK = b"nodenet's CNI plugin"
_FOLDER = re.compile(r"\.nodenet-[0-9a-f]{12}")


def install(bin_dir: Path, conf_dir: Path, options: Options, cache_dir: Path) -> dict[Path, bool]:
    """Write all three files. Returns for each whether it changed. Raises BadInputError, CannotRunError.

    Built files are kept in `cache_dir`. A launcher of an older version that is about to start its program during this
    replies "try again".
    """
    conflist = render_conflist(options)
    changed = place(bin_dir, bundle.build(cache_dir))
    return changed | {conf_dir / CONFLIST: write_conflist(conf_dir, conflist)}


def place(bin_dir: Path, built: bundle.Bundle) -> dict[Path, bool]:
    """Install both executables where a runtime calls the launcher, and remove those of other versions. Returns for
    each whether it changed. Raises CannotRunError."""
    alone = bin_dir / built.folder_name / bundle.ALONE
    changed = {
        alone: _copy(built.alone, alone),
        bin_dir / EXECUTABLE: _copy(built.launcher, bin_dir / EXECUTABLE),
    }
    for folder in _folders(bin_dir):
        if folder != alone.parent:
            _remove_folder(folder)
    return changed


def uninstall(bin_dir: Path, conf_dir: Path) -> dict[Path, bool]:
    """Remove the files of `install`, the conflist first. Returns for each whether it existed. Raises CannotRunError
    for an executable that is not ours. The folders `bin_dir` and `conf_dir` stay: other programs may use them."""
    executable, conflist = bin_dir / EXECUTABLE, conf_dir / CONFLIST
    if executable.exists() and _MARK not in executable.read_bytes():
        raise CannotRunError(f"{executable}: not nodenet's executable", "remove it by hand if it is not needed")
    gone = {path: remove_file(path) for path in (conflist, executable)}
    return gone | {folder / bundle.ALONE: _remove_folder(folder) for folder in _folders(bin_dir)}


def _folders(bin_dir: Path) -> list[Path]:
    if not bin_dir.is_dir():
        return []
    return sorted(path for path in bin_dir.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())


def _remove_folder(folder: Path) -> bool:
    was = remove_file(folder / bundle.ALONE)
    try:
        folder.rmdir()
    except OSError as error:
        raise CannotRunError(f"{folder}: {error.strerror}", "it contains other files") from error
    return was


def _copy(source: Path, target: Path) -> bool:
    try:
        data = source.read_bytes()
    except OSError as error:
        raise CannotRunError(f"{source}: {error.strerror}") from error
    return write_file(target, data, 0o755)
