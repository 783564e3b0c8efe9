"""Takes a node back to what it was before nodenet: finds everything of ours, for `nodenet cleanup`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from nodenet.agent import uplink_programs
from nodenet.bpf import loader
from nodenet.bpf.pins import Pins
from nodenet.cni import install
from nodenet.cni.conflist import CONFLIST, EXECUTABLE, Options
from nodenet.cni.records import Records
from nodenet.config import Config
from nodenet.link import nft, routes
from nodenet.link.handle import Interface, Link


class Item(NamedTuple):
    """One thing that is there. `remove` raises NodenetError or OSError."""

    what: str
    remove: Callable[[], object]


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
    yield from _interfaces(config, bridge)
    yield from _routes()
    yield from (Item(f"nf_tables: table {name}", remove) for name, remove in nft.our_tables())
    if config.bpffs.is_dir():
        yield Item(f"programs and maps pinned in {config.bpffs}", partial(shutil.rmtree, config.bpffs))
    leases = folders.data_dir / Options().name
    for folder in (leases, config.run_dir):
        if folder.is_dir():
            yield Item(f"folder {folder}", partial(shutil.rmtree, folder))


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
            yield Item(f"bridge {bridge}", partial(_delete, found))


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
