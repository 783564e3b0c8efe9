"""Installs the plugin and its conflist where a container runtime searches for them, and removes them again.

    <bin-dir>/nodenet                  the launcher
    <bin-dir>/.nodenet-<key>/alone     started by the launcher if no agent listens; the launcher knows the key
    <conf-dir>/10-nodenet.conflist

Each file is written to a temporary name and renamed. The launcher is replaced after the program that it starts, and the
folders of older versions are removed after that. The conflist comes last, because it tells the runtime that the network
is ready. It is not rewritten if it is unchanged, because runtimes reload on every change.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodenet.cni import bundle
from nodenet.cni import conf as configuration
from nodenet.cni.errors import CniError
from nodenet.cni.keys import DEFAULT_SOCKET
from nodenet.errors import BadInputError, CannotRunError

EXECUTABLE = "nodenet"
CONFLIST = "10-nodenet.conflist"
# A runtime with libcni before 1.2 (containerd 1, podman 4) rejects results of 1.1.0 and ignores `cniVersions`. A newer
# one uses the newest version of both keys, and then supports GC and STATUS (SPEC.md 1.1.0, "Configuration format").
_VERSION, _VERSIONS = "1.0.0", ("1.0.0", "1.1.0")
_MARK = b"nodenet's CNI plugin"
_FOLDER = re.compile(r"\.nodenet-[0-9a-f]{12}")
# A placeholder for the pod networks that the agent supplies, so that the other keys can be checked.
_SOME_RANGE = [[{"subnet": "10.0.0.0/24"}]]


@dataclass(frozen=True, slots=True)
class Options:
    """The content of the conflist. `subnets` are this node's pod networks, one per family; if empty, the agent reads
    them from its Node object."""

    subnets: tuple[str, ...] = ()
    name: str = "nodenet"
    bridge: str = "cni0"
    mtu: int = 0
    agent_socket: str = DEFAULT_SOCKET
    require_agent: bool = True
    data_dir: str = "/var/lib/cni/networks"


def render_conflist(options: Options) -> str:
    """The conflist as text. Raises BadInputError that names the invalid key."""
    plugin: dict[str, Any] = {
        "type": EXECUTABLE,
        "bridge": options.bridge,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "mtu": options.mtu,
        "agentSocket": options.agent_socket,
        "requireAgent": options.require_agent,
        "ipam": {"type": "host-local", "dataDir": options.data_dir},
    }
    if options.subnets:
        plugin["ipam"]["ranges"] = [[{"subnet": subnet}] for subnet in options.subnets]
    checked = plugin | {"ipam": {"ranges": _SOME_RANGE} | plugin["ipam"]}
    try:
        configuration.parse(json.dumps({"cniVersion": _VERSIONS[-1], "name": options.name} | checked).encode(), {})
    except CniError as error:
        raise BadInputError(f"conflist {options.name}: {error}", error.details) from error
    body = {"cniVersion": _VERSION, "cniVersions": _VERSIONS, "name": options.name, "plugins": [plugin]}
    return json.dumps(body, indent=2) + "\n"


def install(bin_dir: Path, conf_dir: Path, options: Options, cache_dir: Path) -> dict[Path, bool]:
    """Write all three files. Returns for each whether it changed. Raises BadInputError, CannotRunError.

    Built files are kept in `cache_dir`. A launcher of an older version that is about to start its program during this
    replies "try again".
    """
    conflist = render_conflist(options).encode()
    changed = place(bin_dir, bundle.build(cache_dir))
    return changed | {conf_dir / CONFLIST: _write(conf_dir / CONFLIST, conflist, 0o600)}


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
    gone = {path: _remove(path) for path in (conflist, executable)}
    return gone | {folder / bundle.ALONE: _remove_folder(folder) for folder in _folders(bin_dir)}


def _folders(bin_dir: Path) -> list[Path]:
    if not bin_dir.is_dir():
        return []
    return sorted(path for path in bin_dir.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())


def _remove_folder(folder: Path) -> bool:
    was = _remove(folder / bundle.ALONE)
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
    return _write(target, data, 0o755)


def _write(path: Path, data: bytes, mode: int) -> bool:
    try:
        if path.exists() and path.read_bytes() == data and path.stat().st_mode & 0o777 == mode:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # The name starts with a dot, because runtimes read every *.conflist of the folder.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CannotRunError(f"{path}: {error.strerror}") from error
    return True


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CannotRunError(f"{path}: {error.strerror}") from error
    return True
