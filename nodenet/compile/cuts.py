"""Which blocks are in force: the regions that fit into nn_cidr, and whose entries fit into nn_policy. Pure.

A prefix that one namespace names divides the blocks of all: a rule for 0.0.0.0/0 has an entry for each prefix of the
cluster. So prefixes are left out too if they make the rules of another namespace too large.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from netpolicy.demands import Demand
from netpolicy.regions import Blocks, Regions, partition
from netpolicy.resolve import Resolver
from netpolicy.types import IPAddress, LabelSet, Policy
from nodenet.compile.policy_set import PolicySet
from nodenet.compile.shares import Closed, LeftOut, Room, share_entries, share_prefixes

# Each try to leave out more prefixes has room for this part of those of the try before.
_TIGHTER = 4


@dataclass(frozen=True, slots=True)
class Cut:
    """The regions that are in force, and the policies whose blocks are not."""

    regions: Regions
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class Named:
    """All policies, their `blocks`, and the addresses of pods, which matter for blocks with named ports."""

    policies: PolicySet
    blocks: Blocks
    addresses: Collection[tuple[IPAddress, LabelSet]]

    def cut(self, prefixes: int) -> Cut:
        """As many blocks as fit into so many prefixes."""
        regions = _regions(self.blocks, self.addresses)
        if len(regions.regions) <= prefixes:
            return Cut(regions)
        left_out = share_prefixes(self.policies.values(), self.addresses, prefixes)
        closed = {one.policy for one in left_out}
        return Cut(self._of(policy for policy in self.policies.values() if policy.ref not in closed), left_out)

    def tighter(self, resolver: Resolver, demands: Sequence[Demand], closed: Closed, room: Room) -> Cut | None:
        """Fewer blocks, so that no namespace loses rules only because of the prefixes of others. None if none does, or
        if that does not help. `closed`: what is left out of `demands` with all blocks."""
        unique = {demand.key: demand for demand in demands}
        names = {key.policies[0].namespace for key in unique if key.policies}
        own = {name: self._of(p for p in self.policies.values() if p.namespace == name) for name in sorted(names)}
        alone = {
            key: resolver.imagined(demand, own[key.policies[0].namespace], ()) if key.policies else demand
            for key, demand in unique.items()
        }
        deserved, _ = share_entries([alone[demand.key] for demand in demands], room)
        prefixes, cut = room.prefixes, None
        while any(refs - deserved.get(key, frozenset()) for key, refs in closed.items()):
            prefixes //= _TIGHTER
            if not prefixes:
                return None
            cut = self.cut(prefixes)
            without = {one.policy for one in cut.left_out}
            found = {key: resolver.imagined(demand, cut.regions, without) for key, demand in unique.items()}
            closed, _ = share_entries([found[demand.key] for demand in demands], room)
        return cut

    def _of(self, policies: Iterable[Policy]) -> Regions:
        blocks = Blocks()
        for policy in policies:
            blocks.change(None, policy)
        return _regions(blocks, self.addresses)


def _regions(blocks: Blocks, addresses: Collection[tuple[IPAddress, LabelSet]]) -> Regions:
    hosts = blocks.hosts(addresses) if blocks.names_ports else {}
    return Regions(partition(blocks.cuts | hosts.keys()), hosts)
