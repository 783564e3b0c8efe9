"""Keeps the rules that masquerade what pods send out of the cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network
from typing import NamedTuple

from nodenet.agent.ip_masq_file import IpMasqFile, read_file
from nodenet.config import Config
from nodenet.errors import BadInputError, NodenetError
from nodenet.link import egress
from nodenet.link.egress import Plan
from nodenet.model import IPNetwork, Node, ObjectRef
from nodenet.store import Snapshot

log = logging.getLogger(__name__)

VERSIONS = (4, 6)
# Seconds between two checks. A check without any change of the ruleset is one request to the kernel.
POLL_SECONDS = 1.0
# Never masqueraded: the kernel does not route link-local addresses of IPv6, and multicast has no replies.
_MULTICAST = {4: ip_network("224.0.0.0/4"), 6: ip_network("ff00::/8")}
_LINK_LOCAL = {4: ip_network("169.254.0.0/16"), 6: ip_network("fe80::/10")}


class _Applied(NamedTuple):
    """What is in the kernel: `digest` of the table after it was written, at this generation of the ruleset."""

    plan: Plan
    digest: bytes
    generation: int


class _Planned(NamedTuple):
    """Plans and what they were made from."""

    nodes: Mapping[ObjectRef, Node]
    file: IpMasqFile
    plans: Mapping[int, Plan]


class Masquerade:
    """`known` returns the Snapshot, or None until the Nodes are known. If both versions are off it removes the rules of
    an earlier configuration once, and then does nothing."""

    def __init__(self, config: Config, known: Callable[[], Snapshot | None]) -> None:
        # A sentence for each current problem.
        self.problems: list[str] = []
        self.repairs = 0
        self._config = config
        self._known = known
        self._applied: dict[int, _Applied] = {}
        self._file = IpMasqFile()
        self._planned: _Planned | None = None

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that are masqueraded."""
        return tuple(v for v in VERSIONS if (self._config.masquerade_ipv4, self._config.masquerade_ipv6)[v == 6])

    async def keep(self) -> None:
        """Keep the rules until cancelled."""
        while True:
            snapshot = self._known()
            if snapshot is not None:
                await asyncio.to_thread(self.check, snapshot)
                if not self.versions and not self.problems:
                    return
            await asyncio.sleep(POLL_SECONDS)

    def check(self, snapshot: Snapshot) -> None:
        """Compare once and write what differs."""
        problems = []
        try:
            self._file = read_file(self._config.ip_masq_agent_config)
        except BadInputError as error:
            # The last readable version stays in force.
            problems.append(str(error))
        try:
            wanted = self._plans(snapshot)
            # A cluster of one IP version may have both switched on.
            if self.versions and not wanted:
                has = ObjectRef("", self._config.node_name) in snapshot.nodes
                lacks = "this Node has no spec.podCIDRs yet" if has else "the cluster has no Node of this name"
                problems.append(f"masquerade: {self._config.node_name}: {lacks}")
            for version in VERSIONS:
                if version not in self.versions:
                    self._remove(version)
                elif version in wanted:
                    self._sync(version, wanted[version])
                else:
                    problems.extend(self._keep_applied(version))
        except (NodenetError, OSError) as error:
            problems.append(f"masquerade: {error}")
        for problem in problems:
            if problem not in self.problems:
                log.warning("%s", problem)
        self.problems = problems

    def _plans(self, snapshot: Snapshot) -> Mapping[int, Plan]:
        """The plans, made again only if the Nodes or the file have changed: thousands of Nodes take a while."""
        known = self._planned
        if known is None or known.nodes is not snapshot.nodes or known.file != self._file:
            found = plans(snapshot, self._config, self._file, self.versions)
            known = self._planned = _Planned(snapshot.nodes, self._file, found)
        return known.plans

    def _remove(self, version: int) -> None:
        if egress.remove(version):
            log.info("masquerading of IPv%d removed", version)

    def _keep_applied(self, version: int) -> Iterator[str]:
        """Keep the rules of a version that is on while no pod network of this node is known: pods may still run. Yields
        the problem."""
        applied = self._applied.get(version)
        if applied:
            self._sync(version, applied.plan)
        if applied or egress.exists(version):
            yield f"masquerade: no IPv{version} network of this node's pods is known: the rules for the last ones stay"

    def _sync(self, version: int, plan: Plan) -> None:
        applied = self._applied.get(version)
        # Read it before the table: a change in between is found by the next check.
        now = egress.generation()
        if applied and applied.plan == plan:
            if applied.generation == now:
                return
            if applied.digest == egress.digest(version):
                self._applied[version] = applied._replace(generation=now)
                return
            self.repairs += 1
            log.warning("masquerading of IPv%d was changed by another program: put back", version)
        egress.apply(plan)
        self._applied[version] = _Applied(plan, egress.digest(version), now)
        if not applied:
            log.info("masquerading IPv%d from %s", version, ", ".join(map(str, plan.sources)))


def plans(
    snapshot: Snapshot, config: Config, file: IpMasqFile, versions: tuple[int, ...] = VERSIONS
) -> Mapping[int, Plan]:
    """The rules by IP version; none for a version of which this node has no pods. Pure."""
    node = snapshot.nodes.get(ObjectRef("", config.node_name))
    found = {}
    for version in versions:
        sources = {n for n in (node.pod_cidrs if node else ()) if n.version == version}
        if not sources:
            continue
        excluded = {n for n in (*config.masquerade_exclude, *file.networks) if n.version == version}
        for other in snapshot.nodes.values():
            excluded |= _networks_of(other, version)
        excluded.add(_MULTICAST[version])
        if not file.masquerades_link_local(version):
            excluded.add(_LINK_LOCAL[version])
        low, high = config.masquerade_port_range
        found[version] = Plan(version, _sorted(sources), _sorted(excluded), low, high)
    return found


def _networks_of(node: Node, version: int) -> set[IPNetwork]:
    addresses = {ip_network(address) for address in node.addresses if address.version == version}
    return addresses | {network for network in node.pod_cidrs if network.version == version}


def _sorted(networks: set[IPNetwork]) -> tuple[IPNetwork, ...]:
    return tuple(sorted(networks, key=lambda n: (int(n.network_address), n.prefixlen)))
