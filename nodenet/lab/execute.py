"""Runs a command in place of this process inside a pod: with its network namespace, cgroup, host name, environment,
/etc/hosts and resolver.

The command sees the host's files, because stand-in pods have no image. /sys, /etc/hosts, /etc/resolv.conf and
/etc/nsswitch.conf of the pod are mounted in a private mount namespace.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nodenet.errors import BadInputError, CannotRunError
from nodenet.lab import cluster_dns, find, groups, names, pods, process
from nodenet.link import mounts, netns

_CLONE_NEWUTS = 0x04000000
_HOSTS = Path("/etc/hosts")
_RESOLVER = Path("/etc/resolv.conf")
_NAME_SERVICES = Path("/etc/nsswitch.conf")
_CACHE = Path("/run/nscd")
# Variables to take over from the caller: those that terminals and the search for programs need.
_KEPT = ("PATH", "TERM", "HOME", "LANG", "LC_ALL", "COLUMNS", "LINES")


def place(lab: str, pod: Mapping[str, Any]) -> process.Place:
    """Where the pod's processes run. Raises CannotRunError if the pod does not run (yet)."""
    metadata, node = pod["metadata"], pod["spec"].get("nodeName", "")
    ref = (metadata["namespace"], metadata["name"])
    name = names.node_netns(lab, node) if pods.host_network(pod) else names.pod_netns(lab, *ref)
    where = process.Place(names.netns_path(name), groups.pod_group(lab, node, *ref))
    if not node or not where.netns.exists() or not where.cgroup.is_dir():
        reason = pods.waiting_message(pod) or f"its phase is {pod.get('status', {}).get('phase', 'Pending')}"
        raise CannotRunError(f"pod {'/'.join(ref)} does not run: {reason}")
    return where


def become(lab: str, pod: Mapping[str, Any], services: Sequence[Mapping[str, Any]], command: Sequence[str]) -> NoReturn:
    """Replace this process (which must be single-threaded) by `command` in the pod. The caller then gets the exit
    status of `command`. Raises BadInputError if the program does not exist.
    """
    where = place(lab, pod)
    files = _files(pod, services)
    (where.cgroup / "cgroup.procs").write_text(str(os.getpid()))
    netns.enter(where.netns)
    mounts.own()
    # /sys shows the interfaces of the network namespace in which it was mounted, so mount it again.
    mounts.mount("sysfs", Path("/sys"), "sysfs")
    for path, text in files.items():
        _replace(path, text, names.node_dir(lab, pod["spec"]["nodeName"]))
    # The name service cache daemon would answer from outside of the pod's network.
    if files.keys() > {_HOSTS} and _CACHE.is_dir():
        mounts.mount("tmpfs", _CACHE, "tmpfs")
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUTS) == 0:
        socket.sethostname(pod["metadata"]["name"][:64])
    if refused := pods.left_out(pod):
        print(f"nodenet: not set, a host's program would load code by it: {', '.join(refused)}", file=sys.stderr)
    environment = {key: os.environ[key] for key in _KEPT if key in os.environ} | pods.environment(pod, services)
    try:
        os.execvpe(command[0], list(command), environment)
    except FileNotFoundError as error:
        raise BadInputError(f"{command[0]}: no such program (pods see this machine's files)") from error
    except OSError as error:
        raise BadInputError(f"{command[0]}: {error.strerror}") from error


def _files(pod: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> dict[Path, str]:
    """The pod's files by path. Without a DNS server in the cluster /etc/hosts has the names of Services."""
    servers = cluster_dns.servers(services)
    if not servers:
        return {_HOSTS: pods.hosts_file(pod, services)}
    return {
        _HOSTS: cluster_dns.hosts_file(pod),
        _RESOLVER: cluster_dns.resolv_conf(pod, servers, _read(_RESOLVER)),
        _NAME_SERVICES: cluster_dns.name_services(_read(_NAME_SERVICES)),
    }


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _replace(path: Path, text: str, folder: Path) -> None:
    """Mount a file with this text over `path`, if this machine has such a file: a mount needs a place."""
    if not path.exists():
        return
    # The name has our pid: several commands may start in one pod at the same time.
    source = folder / f"{path.name}.{os.getpid()}"
    source.write_text(text)
    mounts.bind(source, path)
    source.unlink()


def describe(pod: Mapping[str, Any]) -> str:
    """The pod with its node and addresses, for messages."""
    return f"{find.full_name(pod)} on {pod['spec'].get('nodeName', 'no node')}"
