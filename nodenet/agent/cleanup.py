"""Takes a node back to what it was before nodenet: finds everything of ours, for `nodenet cleanup`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple

from nodenet.agent import source_ports, uplink_programs
from nodenet.bpf import loader
from nodenet.bpf.pins import Pins
from nodenet.cni import install
from nodenet.cni.conflist import CONFLIST, EXECUTABLE, Options
from nodenet.cni.records import Records
from nodenet.config import Config
from nodenet.link import networkd, nft, routes
from nodenet.link.handle import Interface, Link

# Names of others' files and interfaces that are shown.
_MOST_NAMES = 5


class Item(NamedTuple):
    """One thing that is there. `remove` raises NodenetError or OSError. `kept`: why it is not removed; "" if it is."""

    what: str
    remove: Callable[[], object]
    kept: str = ""


class Folders(NamedTuple):
    """The node's folders outside of the configuration."""

    bin_dir: Path
    conf_dir: Path
    data_dir: Path = Path(Options().data_dir)


def items(config: Config, folders: Folders) -> Iterator[Item]:
    """Everything of ours on this node, in the order of removal: first what brings new pods, then what serves the
    others, and last what the agent would start from."""
    bridge = _bridge(folders.conf_dir / CONFLIST)
    yield from _plugin(folders)
    pins = Pins(config.bpffs)
    links = [name for name in loader.CGROUP_PROGRAMS if (pins.links / name).exists()]
    if links:
        yield Item(f"{len(links)} socket programs of {config.bpffs}", partial(loader.detach_cgroup, pins))
    yield from _uplinks()
    if source_ports.noted(config.run_dir):
        yield Item("ports reserved for calls from outside", partial(source_ports.release, config.run_dir))
    yield from _interfaces(config, bridge)
    yield from _routes()
    yield from (Item(f"nf_tables: table {name}", remove) for name, remove in nft.our_tables())
    yield from _folder(config.bpffs, "programs and maps pinned in", (path.name for path in pins.folders))
    networkd_file = networkd.FOLDER / networkd.FILE
    if networkd_file.exists():
        yield Item(f"systemd-networkd: {networkd_file}", networkd_file.unlink)
    leases = folders.data_dir / Options().name
    if leases.is_dir():
        yield Item(f"folder {leases}", partial(shutil.rmtree, leases))
    yield from _folder(config.run_dir, "folder", _RUN_FILES)


# Patterns of what agent and plugin write in run_dir.
_RUN_FILES = (
    *("agent.lock", "agent.sock", "cni.sock", ".cni.[0-9]*", "endpoints", "leases"),
    *("pod-addresses.lock", "pod-cidrs", "pod-cidrs.new", "pod-mtu", ".pod-mtu.new"),
    *("reserved-ports", ".reserved-ports.new", "node-count", ".node-count.new"),
)


def _folder(folder: Path, what: str, ours: Iterable[str]) -> Iterator[Item]:
    """A folder of the configuration. It may be one that others use too, as /run: only what is ours is removed."""
    if not folder.is_dir():
        return
    there, patterns = sorted(path.name for path in folder.iterdir()), tuple(ours)
    mine = [name for name in there if any(fnmatchcase(name, pattern) for pattern in patterns)]
    others = [name for name in there if name not in mine]
    if others and mine:
        why = f"which stays because of what others have in it ({_shown(others)})"
        yield Item(f"{', '.join(mine)} in {folder}, {why}", partial(_remove, folder, mine, False))
    elif not others:
        yield Item(f"{what} {folder}", partial(_remove, folder, mine, True))


def _remove(folder: Path, names: Iterable[str], itself: bool) -> None:
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if itself:
        folder.rmdir()


def _plugin(folders: Folders) -> Iterator[Item]:
    conflist, executable = folders.conf_dir / CONFLIST, folders.bin_dir / EXECUTABLE
    if conflist.exists() or executable.exists():
        found = " and ".join(str(path) for path in (conflist, executable) if path.exists())
        yield Item(found, partial(install.uninstall, folders.bin_dir, folders.conf_dir))


def _interfaces(config: Config, bridge: str) -> Iterator[Item]:
    records, _ = Records(config.run_dir).all()
    with Link() as link:
        for record in records:
            endpoint = record.endpoint
            found = link.get(endpoint.host_ifindex)
            if found is not None and found.name == endpoint.host_ifname:
                yield Item(f"interface {found.name} of pod {endpoint.pod}", partial(_delete, found))
        found = link.get(bridge)
        if found is not None and found.kind == "bridge" and (config.run_dir / "endpoints").is_dir():
            mine = {record.endpoint.host_ifname for record in records}
            others = [port.name for port in link.all() if port.master == found.index and port.name not in mine]
            yield Item(f"bridge {bridge}", partial(_delete, found), kept=_ports(others))


def _ports(names: Sequence[str]) -> str:
    """Why a bridge is kept; "" if it has no port of others."""
    return f"it has {len(names)} ports of others: {_shown(names)}" if names else ""


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")


def _uplinks() -> Iterator[Item]:
    with Link() as link:
        found = uplink_programs.attached_to(link)
    for interface in found:
        yield Item(f"programs on {interface.name}", partial(_detach, interface))


def _detach(interface: Interface) -> None:
    with Link() as link:
        uplink_programs.detach(link, interface.index)


def _delete(interface: Interface) -> None:
    with Link() as link:
        link.delete(interface.index)


def _routes() -> Iterator[Item]:
    with Link() as link:
        found = [route for route in routes.list_routes(link) if route.protocol == routes.PROTOCOL]
    if found:
        yield Item(f"{len(found)} routes to other nodes (proto {routes.PROTOCOL})", routes.remove_ours)


def _bridge(conflist: Path) -> str:
    """The bridge that the conflist names; the default if there is none or it cannot be read."""
    try:
        return str(json.loads(conflist.read_text())["plugins"][0]["bridge"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return Options().bridge
