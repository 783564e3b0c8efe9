"""Finds what kube-proxy left in the kernel, in each of its modes, and removes exactly that.

    nftables    tables `ip kube-proxy` and `ip6 kube-proxy`
    iptables    chains with its names, in nf_tables (iptables-nft) or in legacy iptables
    ipvs        the interface kube-ipvs0, virtual servers, ipsets, and some of the chains

Chains of the kubelet (KUBE-FIREWALL of the table filter, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT) are not kube-proxy's.
The names are those of kubernetes pkg/proxy/{iptables,ipvs,nftables}/proxier.go.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

from nodenet.errors import CannotRunError
from nodenet.link import addresses, chains, iptables
from nodenet.link import nftables as nf
from nodenet.link.handle import Link

DEVICE = "kube-ipvs0"
TABLE = "kube-proxy"
_MARK = "KUBE-SERVICES"
_NAMES = frozenset(
    f"KUBE-{name}"
    for name in (
        *("SERVICES", "EXTERNAL-SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ", "FORWARD", "PROXY-FIREWALL"),
        *("PROXY-CANARY", "LOAD-BALANCER", "NODE-PORT", "SOURCE-RANGES-FIREWALL", "IPVS-FILTER", "IPVS-OUT-FILTER"),
    )
)
_PREFIXES = tuple(f"KUBE-{name}-" for name in ("SVC", "SVL", "SEP", "FW", "XLB", "EXT"))
_IN_NAT = "KUBE-FIREWALL"
_PROGRAM = {4: "iptables-legacy", 6: "ip6tables-legacy"}
_TIMEOUT = 60


@dataclass(frozen=True, slots=True)
class Remains:
    """One thing to remove. `kind`: table, chains, legacy, servers, ipsets, device. `chains`: the names of chains or
    ipsets, or the addresses of virtual servers. `active`: it makes packets go to Services."""

    kind: str
    name: str
    family: int = 0
    table: str = ""
    chains: tuple[str, ...] = ()
    active: bool = True

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Unchecked:
    """What cannot be looked for here, why, and what to do on the node."""

    what: str
    why: str
    command: str


def unchecked() -> list[Unchecked]:
    """What `find` leaves out because a program is missing. Call it before the interface is removed, which shows that
    kube-proxy used IPVS. Raises LinkError."""
    if not list(_device()):
        return []
    return [
        Unchecked(what, f"{program} is not installed here", command)
        for program, what, command in (
            ("ipvsadm", "IPVS: virtual servers", "ipvsadm -Ln; if all are kube-proxy's: ipvsadm -C"),
            ("ipset", "ipsets", "ipset list -n | grep ^KUBE- | xargs -n1 ipset destroy"),
        )
        if shutil.which(program) is None
    ]


def find() -> list[Remains]:
    """All remains in this network namespace. Raises LinkError, OSError."""
    return [*_tables(), *_nft_chains(), *_legacy_chains(), *_ipvs()]


def serving() -> list[Remains]:
    """Those that make packets go to Services. Starts no program. Raises LinkError, OSError."""
    found = [*_tables(), *_nft_chains(), *_legacy_chains(), *_device()]
    return [one for one in found if one.active]


def remove(found: Remains) -> None:
    """Remove one. Idempotent for everything but legacy chains. Raises LinkError, OSError, CannotRunError."""
    match found.kind:
        case "table":
            chains.remove_table(found.family, found.table)
        case "chains":
            chains.remove_chains(found.family, found.table, lambda name: is_kube_proxy(found.table, name))
        case "legacy":
            _remove_legacy(found)
        case "servers":
            for flag, address in _servers(found.chains):
                _output(["ipvsadm", "-D", flag, address])
        case "ipsets":
            for name in found.chains:
                _output(["ipset", "destroy", name])
        case "device":
            with Link() as link:
                link.delete(DEVICE)


def is_kube_proxy(table: str, chain: str) -> bool:
    """True for the name of a chain that kube-proxy makes in a table of iptables. Pure."""
    return chain in _NAMES or chain.startswith(_PREFIXES) or (table == "nat" and chain == _IN_NAT)


def removal_rules(saved: str, table: str) -> str:
    """Input for `iptables-restore --noflush` that removes kube-proxy's chains of a table and the rules that lead to
    them. `saved`: the output of `iptables-save -t TABLE`. Pure."""
    names = [line.split()[0][1:] for line in saved.splitlines() if line.startswith(":")]
    doomed = [name for name in names if is_kube_proxy(table, name)]
    deleted = [
        line.replace("-A ", "-D ", 1)
        for line in saved.splitlines()
        if line.startswith("-A ") and line.split()[1] not in doomed and _target(line.split()) in doomed
    ]
    flushed = [f":{name} - [0:0]" for name in doomed]
    return "\n".join([f"*{table}", *flushed, *deleted, *(f"-X {name}" for name in doomed), "COMMIT", ""])


def _target(words: list[str]) -> str:
    """The chain that a rule of iptables-save jumps or goes to: a comment with such words comes before it."""
    return next((to for flag, to in reversed(list(pairwise(words))) if flag in ("-j", "-g")), "")


def _tables() -> Iterator[Remains]:
    for family, words in ((nf.IP, "ip"), (nf.IP6, "ip6")):
        if chains.has_table(family, TABLE):
            yield Remains("table", f"nf_tables: table {words} {TABLE}", family, TABLE)


def _nft_chains() -> Iterator[Remains]:
    found: dict[tuple[int, str], list[str]] = {}
    for chain in chains.all_chains():
        if chain.family in (nf.IP, nf.IP6) and is_kube_proxy(chain.table, chain.name):
            found.setdefault((chain.family, chain.table), []).append(chain.name)
    for (family, table), names in sorted(found.items()):
        words = "iptables" if family == nf.IP else "ip6tables"
        yield Remains(
            "chains", _words(f"{words} (nf_tables)", table, names), family, table, tuple(names), _MARK in names
        )


def _legacy_chains() -> Iterator[Remains]:
    for version in (4, 6):
        for table in iptables.legacy_tables(version):
            names = [name for name in table.chains if is_kube_proxy(table.name, name)]
            if names:
                words = _words(_PROGRAM[version], table.name, names)
                yield Remains("legacy", words, version, table.name, tuple(names), _MARK in names)


def _ipvs() -> Iterator[Remains]:
    """Virtual servers and ipsets are read by their programs: `unchecked` names those that are missing. A virtual server
    with another address than those of the interface may be another program's, also if it is a NodePort's."""
    with Link() as link:
        device = link.get(DEVICE)
        held = [str(entry.ip) for entry in addresses.local(link, device.index)] if device else []
    if servers := _servers(held):
        others = sum(line.startswith("-A ") for line in _lines(["ipvsadm", "-Sn"])) - len(servers)
        stay = f" ({others} with other addresses, such as NodePorts, stay: see ipvsadm -Ln)" if others > 0 else ""
        words = f"IPVS: {len(servers)} virtual servers with addresses of {DEVICE}{stay}"
        yield Remains("servers", words, chains=tuple(held))
    # Rules refer to ipsets, so these come after the chains.
    if sets := [name for name in _lines(["ipset", "list", "-n"]) if name.startswith("KUBE-")]:
        yield Remains("ipsets", f"{len(sets)} ipsets ({', '.join(sets[:3])}, ...)", chains=tuple(sets), active=False)
    yield from _device()


def _device() -> Iterator[Remains]:
    with Link() as link:
        if link.get(DEVICE) is not None:
            yield Remains("device", f"interface {DEVICE} (IPVS)")


def _servers(held: Collection[str]) -> list[tuple[str, str]]:
    """Flag and address of each virtual server with one of these addresses, as `ipvsadm` takes them."""
    found = []
    for line in _lines(["ipvsadm", "-Sn"]) if held else ():
        words = line.split()
        if words[:1] == ["-A"] and words[2].rpartition(":")[0].strip("[]") in held:
            found.append((words[1], words[2]))
    return found


def _lines(command: list[str]) -> list[str]:
    """The lines that a program prints; none if it is not installed, or if the kernel lacks what it reads."""
    if shutil.which(command[0]) is None:
        return []
    try:
        return _output(command).splitlines()
    except CannotRunError:
        return []


def _words(program: str, table: str, names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{program}: {len(names)} chains of table {table} ({shown})"


def _remove_legacy(found: Remains) -> None:
    program = _PROGRAM[found.family]
    for name in (f"{program}-save", f"{program}-restore"):
        if shutil.which(name) is None:
            filtered = f"{program}-save -t {found.table} | grep -v KUBE- | {program}-restore --wait"
            hint = f"run on the node: {filtered}; the kubelet writes its own chains again"
            raise CannotRunError(f"{name} is not installed here", hint)
    rules = removal_rules(_output([f"{program}-save", "-t", found.table]), found.table)
    _output([f"{program}-restore", "--noflush", "--wait"], rules)


def _output(command: list[str], given: str = "") -> str:
    """The output of a program in this thread's namespace. Raises CannotRunError."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode != 0:
        raise CannotRunError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
