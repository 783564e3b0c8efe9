"""What a report about this node says beside the agent's own state: kernel, interfaces, routes, sysctls, CNI files.

It reads, and changes nothing. Files that hold credentials (kubeconfigs, the token of the service account) are not read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nodenet.link import addresses, routes
from nodenet.link.handle import Link

_LONGEST = 4 << 20
_COMMAND_SECONDS = 15
_PROC = (
    *("version", "cmdline", "uptime", "loadavg", "meminfo", "self/mountinfo", "self/cgroup", "self/status"),
    *("net/dev", "net/arp", "net/if_inet6", "net/sockstat", "net/sockstat6", "net/snmp", "net/snmp6", "net/netstat"),
    "net/softnet_stat",
)
_SYSCTLS = (
    *("net/ipv4/ip_forward", "net/ipv4/ip_local_port_range", "net/ipv4/conf/*/rp_filter", "net/ipv4/conf/*/forwarding"),
    *("net/ipv6/conf/*/forwarding", "net/ipv6/conf/*/accept_ra", "net/ipv6/conf/*/disable_ipv6"),
    *("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables", "net/netfilter/nf_conntrack_max"),
    *("net/netfilter/nf_conntrack_count", "net/core/bpf_jit_enable", "net/core/bpf_jit_limit"),
    *("kernel/unprivileged_bpf_disabled", "kernel/osrelease"),
)
# In the agent's container the node's folder is below /host.
_CNI_FOLDERS = ("/etc/cni/net.d", "/host/etc/cni/net.d")
# Other files of these folders are kubeconfigs of other plugins.
_CNI_SUFFIXES = (".conf", ".conflist", ".json")
_FILES = ("/etc/os-release", "/etc/resolv.conf", "/sys/kernel/security/lsm", "/sys/fs/cgroup/cgroup.controllers")
# What the programs of a node say, where it has them. A container has few.
_COMMANDS: dict[str, tuple[str, ...]] = {
    "ip-address": ("ip", "-d", "-s", "address"),
    "ip-route": ("ip", "route", "show", "table", "all"),
    "ip-rule": ("ip", "rule"),
    "ip-neighbour": ("ip", "neighbour"),
    "nft-ruleset": ("nft", "list", "ruleset"),
    "iptables": ("iptables-save",),
    "ip6tables": ("ip6tables-save",),
    "bpftool-net": ("bpftool", "net", "show"),
    "bpftool-prog": ("bpftool", "prog", "show"),
    "bpftool-cgroup": ("bpftool", "cgroup", "tree"),
    "ss": ("ss", "-s"),
}


def collect() -> Iterator[tuple[str, str]]:
    """Pairs of a file's name in the report and its text."""
    yield "versions.json", _json(_versions())
    yield (
        "programs-missing.txt",
        "".join(f"{words[0]}: not installed here\n" for words in _COMMANDS.values() if shutil.which(words[0]) is None),
    )
    for name, read in _LINK.items():
        yield f"{name}.json", _or_error(read)
    yield "proc.txt", _files(Path("/proc"), _PROC)
    yield "sysctl.txt", _files(Path("/proc/sys"), _SYSCTLS)
    yield "files.txt", _files(Path("/"), tuple(name.lstrip("/") for name in _FILES))
    yield "cni.txt", "".join(_cni(Path(folder)) for folder in _CNI_FOLDERS)
    yield "bpffs.txt", _tree(Path("/sys/fs/bpf"))
    for name, words in _COMMANDS.items():
        if shutil.which(words[0]):
            yield f"{name}.txt", _or_error(partial(_output, words))


def _versions() -> dict[str, object]:
    packages = ("nodenet", "grpcio", "protobuf", "msgspec", "aiohttp", "click", "PyYAML", "prometheus-client")
    found: dict[str, object] = {"python": sys.version, "uname": " ".join(os.uname())}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _interfaces() -> str:
    with Link() as link:
        return _json([asdict(one) for one in link.all()])


def _addresses() -> str:
    with Link() as link:
        return _json([asdict(one) for one in addresses.local(link)])


def _routes() -> str:
    with Link() as link:
        return _json([asdict(one) for one in routes.list_routes(link, None)])


_LINK: dict[str, Callable[[], str]] = {"interfaces": _interfaces, "addresses": _addresses, "routes": _routes}


def _files(root: Path, names: tuple[str, ...]) -> str:
    """The files with a line above each. A name may have *."""
    paths = [path for name in names for path in (sorted(root.glob(name)) if "*" in name else [root / name])]
    return "".join(f"==== {path}\n{_or_error(partial(_text, path)).rstrip()}\n" for path in paths)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_LONGEST).decode(errors="replace")


def _cni(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    names = sorted(path.name for path in folder.iterdir())
    shown = [name for name in names if name.endswith(_CNI_SUFFIXES)]
    return f"==== {folder}: {', '.join(names)}\n" + _files(folder, tuple(shown))


def _tree(folder: Path) -> str:
    return (
        "".join(f"{path}\n" for path in sorted(folder.rglob("*"))) if folder.is_dir() else f"{folder} does not exist\n"
    )


def _output(words: tuple[str, ...]) -> str:
    done = subprocess.run(words, capture_output=True, timeout=_COMMAND_SECONDS, check=False)
    text = done.stdout[:_LONGEST].decode(errors="replace")
    return text if not done.returncode else f"{text}{done.stderr.decode(errors='replace')}exit code {done.returncode}\n"


def _or_error(read: Callable[[], str]) -> str:
    """The text, or the error: a report lacks a part rather than everything."""
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - whatever one part raises, the others are still worth having
        return f"not read: {type(error).__name__}: {error}\n"


def _json(value: object) -> str:
    return json.dumps(value, indent=1, default=str) + "\n"
