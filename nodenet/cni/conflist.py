"""The conflist: the file that tells a container runtime to call the plugin, and that the node's network is ready."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodenet.cni import conf as configuration
from nodenet.cni.errors import CniError
from nodenet.cni.keys import DEFAULT_SOCKET
from nodenet.errors import BadInputError, CannotRunError

EXECUTABLE = "nodenet"
CONFLIST = "10-nodenet.conflist"
# Runtimes read files with these names, in alphabetical order, and use the first valid one (libcni, ConfFiles).
_SUFFIXES = (".conf", ".conflist", ".json")
# A runtime with libcni before 1.2 (containerd 1, podman 4) rejects results of 1.1.0 and ignores `cniVersions`. A newer
# one uses the newest version of both keys, and then supports GC and STATUS (SPEC.md 1.1.0, "Configuration format").
_VERSION, _VERSIONS = "1.0.0", ("1.0.0", "1.1.0")
# The reference's plugin for hostPort of containers. It must be in the folder of plugins.
_PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
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
    ip_masq: bool = False
    host_ports: bool = False
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
    if options.ip_masq:
        plugin["ipMasq"] = True
    if options.subnets:
        plugin["ipam"]["ranges"] = [[{"subnet": subnet}] for subnet in options.subnets]
    checked = plugin | {"ipam": {"ranges": _SOME_RANGE} | plugin["ipam"]}
    try:
        configuration.parse(json.dumps({"cniVersion": _VERSIONS[-1], "name": options.name} | checked).encode(), {})
    except CniError as error:
        raise BadInputError(f"conflist {options.name}: {error}", error.details) from error
    plugins = [plugin, _PORTMAP] if options.host_ports else [plugin]
    body = {"cniVersion": _VERSION, "cniVersions": _VERSIONS, "name": options.name, "plugins": plugins}
    return json.dumps(body, indent=2) + "\n"


def write_conflist(conf_dir: Path, text: str) -> bool:
    """Write the conflist atomically. Returns False if it is unchanged: runtimes reload on every change. Raises
    CannotRunError."""
    return write_file(conf_dir / CONFLIST, text.encode(), 0o600)


def earlier(conf_dir: Path) -> list[Path]:
    """Configurations of other networks that a runtime uses instead of ours. Raises OSError."""
    return sorted(path for path in conf_dir.iterdir() if path.suffix in _SUFFIXES and path.name < CONFLIST)


def port_mapper(conf_dir: Path) -> str:
    """The plugin that serves hostPorts in the configuration that runtimes use, with its file: `portmap`, or another one
    that takes the capability portMappings. "" if there is none. Raises OSError."""
    if not conf_dir.is_dir():
        return ""
    for path in sorted(path for path in conf_dir.iterdir() if path.suffix in _SUFFIXES):
        plugins = _plugins_of(path)
        if plugins is not None:
            found = next((str(plugin.get("type")) for plugin in plugins if _maps_ports(plugin)), "")
            return f"{found} ({path})" if found else ""
    return ""


def _plugins_of(path: Path) -> list[dict[str, Any]] | None:
    """None if the file is no valid configuration: a runtime skips it."""
    try:
        body = json.loads(path.read_bytes())
    except ValueError:
        return None
    plugins = body.get("plugins", [body]) if isinstance(body, dict) else None
    if not isinstance(plugins, list) or not all(isinstance(one, dict) and one.get("type") for one in plugins):
        return None
    return plugins


def _maps_ports(plugin: dict[str, Any]) -> bool:
    capabilities = plugin.get("capabilities")
    return plugin["type"] == "portmap" or (isinstance(capabilities, dict) and bool(capabilities.get("portMappings")))


def write_file(path: Path, data: bytes, mode: int) -> bool:
    """Replace a file atomically; False if it has this content and mode. Raises CannotRunError."""
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


def remove_file(path: Path) -> bool:
    """Remove a file; False if it does not exist. Raises CannotRunError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CannotRunError(f"{path}: {error.strerror}") from error
    return True
