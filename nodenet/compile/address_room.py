"""Selects the addresses that are left out of nn_ipcache if not all of them fit, and closes them. Pure.

An address without an entry counts as the world, and no deny of a pod matches it. So prefixes that cover all addresses
that are left out get the identity UNMANAGED: no rule selects it, and pods with rules of ClusterNetworkPolicies do not
talk to it (compile/rule_values.py). Shares are fair between namespaces, as those of nn_policy (compile/shares.py).

The prefixes stay within the pod networks of the nodes, so that hosts outside of the cluster remain the world.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, collapse_addresses
from typing import NamedTuple

from netpolicy.types import LabelSet
from nodenet.abi import U32, V4_PREFIX_BITS, LpmKey
from nodenet.compile.shares import Room, fair_level
from nodenet.compile.state import Table
from nodenet.model import Identity, IPAddress, IPNetwork, Node, ObjectRef

# The largest number of prefixes that cover what is left out.
PREFIXES = 256


class Addresses(NamedTuple):
    """nn_ipcache, and how many addresses of pods were left out of it."""

    table: Table
    left_out: int = 0


def pod_networks(nodes: Mapping[ObjectRef, Node]) -> tuple[IPNetwork, ...]:
    """spec.podCIDRs of all nodes as the fewest networks: neighbours are one."""
    found = {network for node in nodes.values() for network in node.pod_cidrs}
    return (
        *collapse_addresses(network for network in found if network.version == 4),
        *collapse_addresses(network for network in found if network.version == 6),
    )


def fit(
    table: Table,
    labels: Mapping[int, LabelSet],
    local: Collection[IPAddress],
    room: Room,
    networks: Sequence[IPNetwork] = (),
) -> Addresses:
    """`table`: all addresses. `labels`: of identities. `local`: addresses of this node's endpoints, which always have
    room, as those of nodes do. `networks`: as `pod_networks` returns them. Returns the same table if it fits."""
    if len(table) <= room.addresses:
        return Addresses(table)
    spaces: dict[str, list[LpmKey]] = defaultdict(list)
    for key, value in table.items():
        space = _space(value.value, labels)
        if space is not None and key.addr not in local:
            spaces[space].append(key)
    others = len(table) - sum(map(len, spaces.values()))
    level = fair_level(map(len, spaces.values()), max(room.addresses - others - PREFIXES, 0))
    gone = {key for keys in spaces.values() for key in sorted(keys, key=_order)[level:]}
    kept = {key: value for key, value in table.items() if key not in gone}
    covers = {key: U32(int(Identity.UNMANAGED)) for key in prefixes((key.addr for key in gone), networks)}
    return Addresses({**covers, **kept}, len(gone))


def _space(identity: int, labels: Mapping[int, LabelSet]) -> str | None:
    """The namespace that has a share for an identity. Pods whose labels are not known have one share together: a prefix
    says the same of them. None: the address always has room."""
    if identity == Identity.UNMANAGED:
        return ""
    group = labels.get(identity)
    return None if group is None else group.namespace


def prefixes(addresses: Iterable[IPAddress], networks: Sequence[IPNetwork] = ()) -> list[LpmKey]:
    """At most PREFIXES prefixes that cover these addresses. A prefix is never wider than a network of `networks` in
    which its addresses lie, unless there are too many such networks. Addresses in none of them have prefixes too."""
    found: list[LpmKey] = []
    families = defaultdict(set)
    for address in addresses:
        families[address.version].add(int(address))
    for version, numbers in sorted(families.items()):
        those = [network for network in networks if network.version == version]
        kind, bits = (IPv4Address, 32) if version == 4 else (IPv6Address, 128)
        covers = _covers(_limits(numbers, those, bits), bits)
        if len(covers) > PREFIXES // 2:
            covers = _covers({(number, bits) for number in numbers}, bits)
        length = bits + (V4_PREFIX_BITS if version == 4 else 0)
        found += [LpmKey(length - left, kind(number)) for number, left in sorted(covers)]
    return found


def _limits(numbers: Iterable[int], networks: Iterable[IPNetwork], bits: int) -> set[tuple[int, int]]:
    """Each number with the most bits that its prefix may leave out: those of its network's hosts."""
    ordered = sorted((int(network.network_address), bits - network.prefixlen) for network in networks)
    found = set()
    for number in numbers:
        place = bisect_right(ordered, (number, bits)) - 1
        start, hosts = ordered[place] if place >= 0 else (0, bits)
        found.add((number, hosts if place >= 0 and number >> hosts == start >> hosts else bits))
    return found


def _covers(limits: set[tuple[int, int]], bits: int) -> set[tuple[int, int]]:
    """(first address, bits left out) of prefixes that cover the numbers of `limits`: as short as needed for half of
    PREFIXES, or as their limits allow."""
    left = 0
    covers = {(number, 0) for number, _ in limits}
    while len(covers) > PREFIXES // 2 and left < bits:
        left += 1
        limits = {(number >> min(left, most) << min(left, most), most) for number, most in limits}
        covers = {(number, min(left, most)) for number, most in limits}
    return covers


def _order(key: LpmKey) -> tuple[int, int]:
    return key.addr.version, int(key.addr)
