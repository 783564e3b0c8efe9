"""Selects the addresses that are left out of nn_ipcache if not all of them fit, and closes them. Pure.

An address without an entry counts as the world, and no deny of a pod matches it. So prefixes that cover all addresses
that are left out get the identity UNMANAGED: no rule selects it, and pods with rules of ClusterNetworkPolicies do not
talk to it (compile/rule_values.py). Shares are fair between namespaces, as those of nn_policy (compile/shares.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from netpolicy.types import LabelSet
from nodenet.abi import U32, V4_PREFIX_BITS, LpmKey
from nodenet.compile.shares import Room, fair_level
from nodenet.compile.state import Table
from nodenet.model import Identity, IPAddress

# The largest number of prefixes that cover what is left out.
PREFIXES = 256


class Addresses(NamedTuple):
    """nn_ipcache, and how many addresses of pods were left out of it."""

    table: Table
    left_out: int = 0


def fit(table: Table, labels: Mapping[int, LabelSet], local: Collection[IPAddress], room: Room) -> Addresses:
    """`table`: all addresses. `labels`: of identities. `local`: addresses of this node's endpoints, which always have
    room, as those of nodes do. Returns the same table if it fits."""
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
    covers = {key: U32(int(Identity.UNMANAGED)) for key in prefixes(key.addr for key in gone)}
    return Addresses({**covers, **kept}, len(gone))


def _space(identity: int, labels: Mapping[int, LabelSet]) -> str | None:
    """The namespace that has a share for an identity. Pods whose labels are not known have one share together: a prefix
    says the same of them. None: the address always has room."""
    if identity == Identity.UNMANAGED:
        return ""
    group = labels.get(identity)
    return None if group is None else group.namespace


def prefixes(addresses: Iterable[IPAddress]) -> list[LpmKey]:
    """At most PREFIXES prefixes that cover these addresses, all of one length for each family."""
    found: list[LpmKey] = []
    families = defaultdict(set)
    for address in addresses:
        families[address.version].add(int(address))
    for version, numbers in sorted(families.items()):
        bits = 32 if version == 4 else 128
        left = 0
        while len(numbers) > PREFIXES // 2:
            left += 1
            numbers = {number >> 1 for number in numbers}
        kind = IPv4Address if version == 4 else IPv6Address
        length = bits - left + (V4_PREFIX_BITS if version == 4 else 0)
        found += [LpmKey(length, kind(number << left)) for number in sorted(numbers)]
    return found


def _order(key: LpmKey) -> tuple[int, int]:
    return key.addr.version, int(key.addr)
