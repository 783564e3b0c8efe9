"""Put the executable and its conflist where a container runtime looks, and take them away again.

Both are written beside their place and moved into it. The conflist comes last, for its presence tells the runtime
that the network is ready, and it is left alone when it says the same already: runtimes reload on every change.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodenet
from nodenet.cni import conf as configuration
from nodenet.cni.errors import CniError
from nodenet.errors import BadInputError, CannotRunError

EXECUTABLE = "nodenet"
CONFLIST = "10-nodenet.conflist"
# Not 1.1.0 yet: a runtime would ask for STATUS then, and take its error for a network that is not ready.
_VERSION = "1.0.0"
_MARK = "nodenet's CNI plugin"


@dataclass(frozen=True, slots=True)
class Options:
    """What the conflist says. `subnets` are the pod networks of this node, one per family."""

    subnets: tuple[str, ...]
    name: str = "nodenet"
    bridge: str = "cni0"
    mtu: int = 0
    agent_socket: str = configuration.DEFAULT_SOCKET
    require_agent: bool = False
    data_dir: str = "/var/lib/cni/networks"


def source() -> Path:
    """The executable as it stands in this package or checkout. Raises CannotRunError when it is not there."""
    package = Path(nodenet.__file__).parent
    for folder in (package / "cni" / "bin", package.parent / "cni-bin"):
        if (folder / EXECUTABLE).is_file():
            return folder / EXECUTABLE
    raise CannotRunError(f"{package}: the CNI executable is not part of this installation")


def render_executable() -> str:
    """The executable with absolute paths of this interpreter and this package in it."""
    text = source().read_text()
    head, _, rest = text.partition("\n")
    # The launcher needs the standard library alone: the interpreter behind a virtual environment starts faster.
    interpreter = Path(sys.executable).resolve()
    # A shebang line is cut at 127 bytes by older kernels.
    shebang = f"#!{interpreter} -IS"
    rest = rest.replace('PYTHON = ""', f"PYTHON = {sys.executable!r}", 1)
    rest = rest.replace('PACKAGE = ""', f"PACKAGE = {str(Path(nodenet.__file__).parent.parent)!r}", 1)
    if not head.startswith("#!") or len(shebang) > 127 or " " in str(interpreter):
        raise CannotRunError(f"{interpreter}: a script cannot name this interpreter in its first line")
    return f"{shebang}\n{rest}"


def render_conflist(options: Options) -> str:
    """The conflist as text. Raises BadInputError naming the key that is wrong."""
    plugin: dict[str, Any] = {
        "type": EXECUTABLE,
        "bridge": options.bridge,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "mtu": options.mtu,
        "agentSocket": options.agent_socket,
        "requireAgent": options.require_agent,
        "ipam": {
            "type": "host-local",
            "dataDir": options.data_dir,
            "ranges": [[{"subnet": subnet}] for subnet in options.subnets],
        },
    }
    try:
        configuration.parse(json.dumps({"cniVersion": _VERSION, "name": options.name} | plugin).encode(), {})
    except CniError as error:
        raise BadInputError(f"conflist {options.name}: {error}", error.details) from error
    body = {"cniVersion": _VERSION, "name": options.name, "plugins": [plugin]}
    return json.dumps(body, indent=2) + "\n"


def install(bin_dir: Path, conf_dir: Path, options: Options) -> dict[Path, bool]:
    """Write both files; whether each one changed. Raises BadInputError, CannotRunError."""
    conflist, executable = render_conflist(options), render_executable()
    return {
        path: _write(path, text, mode)
        for path, text, mode in (
            (bin_dir / EXECUTABLE, executable, 0o755),
            (conf_dir / CONFLIST, conflist, 0o600),
        )
    }


def uninstall(bin_dir: Path, conf_dir: Path) -> dict[Path, bool]:
    """Remove both files, the conflist first; whether each one was there. Raises CannotRunError on a foreign file."""
    executable, conflist = bin_dir / EXECUTABLE, conf_dir / CONFLIST
    if executable.exists() and _MARK not in executable.read_text(errors="replace"):
        raise CannotRunError(f"{executable}: not nodenet's executable", "remove it by hand if it is to go")
    return {path: _remove(path) for path in (conflist, executable)}


def _write(path: Path, text: str, mode: int) -> bool:
    try:
        if path.exists() and path.read_text(errors="replace") == text and path.stat().st_mode & 0o777 == mode:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # The dot: runtimes take every *.conflist of the folder.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("w") as file:
                file.write(text)
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
