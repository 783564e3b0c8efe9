"""Names rules of other programs that break what the agent does: forward chains that drop what pods send to other hosts,
kube-proxy's rules that come while the agent serves Services, and a bridge that does not pass packets through its
rules while it does not.

Docker, ufw and firewalld make such forward chains. A drop is final, so an accept in a table of ours would not help,
and the agent changes no rules of others. Whether a rule of the chain accepts pods' packets is not decided here: the
sentence says what to check.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from nodenet.errors import NodenetError
from nodenet.link import chains, iptables, kube_proxy, sysctl
from nodenet.link.chains import Chain
from nodenet.link.iptables import LegacyTable
from nodenet.link.nftables import OURS

log = logging.getLogger(__name__)

_BRIDGE = {4: "bridge/bridge-nf-call-iptables", 6: "bridge/bridge-nf-call-ip6tables"}
_PROGRAMS = {4: "iptables-legacy", 6: "ip6tables-legacy"}


class ForeignRules:
    """Checks every `seconds`. `services`: whether the agent serves Services. `families`: the IP versions of pods."""

    def __init__(self, seconds: float, services: bool, families: Callable[[], Iterable[int]] = lambda: ()) -> None:
        self.problems: list[str] = []
        self._seconds = seconds
        self._services = services
        self._families = families
        # What was found at which generation of nf_tables: kube-proxy may have 100,000 chains there.
        self._known: tuple[int, list[Chain]] = (-1, [])
        self._proxied: list[str] = []
        self._legacy: list[LegacyTable] = []

    async def keep(self) -> None:
        """Check until cancelled."""
        while True:
            try:
                found = await asyncio.to_thread(self._find)
            except (NodenetError, OSError) as error:
                found = [f"rules of other programs could not be read: {error}"]
            for problem in found:
                if problem not in self.problems:
                    log.warning("%s", problem)
            self.problems = found
            await asyncio.sleep(self._seconds)

    def _find(self) -> list[str]:
        """A sentence for each chain. Blocks. Raises NodenetError, OSError."""
        generation = chains.generation()
        known, proxied = self._known, self._proxied
        changed = generation is None or generation != known[0]
        if changed:
            known = (-1 if generation is None else generation, [c for c in chains.all_chains() if c.forwards])
        # Legacy tables have no generation.
        legacy = [table for version in (4, 6) for table in iptables.legacy_tables(version)]
        if changed or legacy != self._legacy:
            proxied = [_proxied(str(one)) for one in kube_proxy.serving()] if self._services else []
        # Only when all of it could be read: otherwise the next check would take the same state for known.
        self._known, self._legacy, self._proxied = known, legacy, proxied
        bridged = [] if self._services else [one for version in self._families() if (one := _unfiltered(version))]
        return [*sentences(known[1], legacy), *proxied, *bridged]


def sentences(found: Iterable[Chain], legacy: Iterable[LegacyTable]) -> Iterable[str]:
    """A sentence for each chain that drops what no rule accepts. Pure."""
    for chain in found:
        if chain.forwards and chain.drops and not chain.table.startswith(OURS):
            yield _sentence(f"nft list chain {chain}")
    for table in legacy:
        if table.forward_drops:
            yield _sentence(f"{_PROGRAMS[table.version]} -t {table.name} -S FORWARD")


def _sentence(command: str) -> str:
    return f"packets of pods are dropped unless a rule accepts them: the chain's policy is drop: {command}"


def _unfiltered(version: int) -> str:
    """A sentence if packets between pods of this node do not pass kube-proxy's rules; else ""."""
    key = _BRIDGE[version]
    try:
        if sysctl.read(key) == "1":
            return ""
        how = f"sysctl -w net.{key.replace('/', '.')}=1"
    except FileNotFoundError:
        how = f"modprobe br_netfilter, then sysctl -w net.{key.replace('/', '.')}=1"
    return (
        f"Services of kube-proxy fail for IPv{version} if client and backend are pods of this node: on the node: {how}"
    )


def _proxied(what: str) -> str:
    return f"kube-proxy serves Services on this node too: {what}: stop it and run nodenet cleanup --kube-proxy"
