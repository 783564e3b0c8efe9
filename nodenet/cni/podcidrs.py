"""The node's own pod networks as ranges, for a configuration without any (`"ipam": {"type": "nodenet"}`).

The agent reads them from its Node object (spec.podCIDRs). It writes a copy to `<run_dir>/pod-cidrs`, one network per
line, for the plugin to use while the agent is not running. A reboot removes the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

from nodenet.cni.conf import NetConf
from nodenet.cni.errors import CniError, Code
from nodenet.cni.ranges import RangeSet, range_sets
from nodenet.endpoint import IPNetwork

# Returns the networks; empty if they are not known yet.
Networks = Callable[[], Sequence[IPNetwork]]


def sets_of(conf: NetConf, run_dir: Path, networks: Networks | None) -> tuple[RangeSet, ...]:
    """The configured ranges, or else one set per pod network of the node. Raises CniError with code 11 if the pod
    networks are not known."""
    if conf.ipam is None or conf.ipam.sets:
        return conf.ipam.sets if conf.ipam else ()
    if networks is None:
        found = _cached(run_dir)
        why = "no agent is running on this node, and no agent has stored them"
        hint = f"set ipam.ranges, or start the agent: its socket is {conf.agent_socket} (agentSocket)"
    else:
        found = tuple(networks())
        why = "its Node object has no spec.podCIDRs yet"
        hint = "set ipam.ranges, or have the controller manager allocate node CIDRs"
        _cache(run_dir, found)
    if not found:
        message = (
            f"network {conf.name}: ipam.ranges: none configured, and this node's pod networks are not known: {why}"
        )
        raise CniError(Code.TRY_AGAIN, message, hint)
    try:
        return range_sets({"ranges": [[{"subnet": str(network)}] for network in found]}, None)
    except ValueError as error:
        raise CniError(Code.BAD_CONFIG, f"network {conf.name}: this node's pod networks: {error}") from error


def known(run_dir: Path, networks: Networks | None) -> tuple[IPNetwork, ...]:
    """The node's pod networks from the agent or its copy; empty if neither has them."""
    return (tuple(networks()) if networks else ()) or _cached(run_dir)


def _path(run_dir: Path) -> Path:
    return run_dir / "pod-cidrs"


def _cached(run_dir: Path) -> tuple[IPNetwork, ...]:
    try:
        return tuple(ip_network(line) for line in _path(run_dir).read_text().split())
    except (FileNotFoundError, ValueError):
        return ()


def _cache(run_dir: Path, found: Sequence[IPNetwork]) -> None:
    """Write the copy. Errors are ignored, because the running agent does not need it."""
    if found and _cached(run_dir) != tuple(found):
        with suppress(OSError):
            temporary = _path(run_dir).with_suffix(".new")
            temporary.write_text("\n".join(map(str, found)) + "\n")
            temporary.rename(_path(run_dir))
