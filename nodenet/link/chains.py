"""Chains and jumps of nf_tables, of any program: to find rules that concern us, and to remove those of kube-proxy."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nodenet.link import nftables as nf
from nodenet.link.netlink import RefusedError, Request, attribute, attributes, string, text

_FAMILIES = {1: "inet", nf.IP: "ip", nf.NETDEV: "netdev", 7: "bridge", nf.IP6: "ip6"}
_FORWARD = 2
_LIST_ELEMENT = 1


class Chain(NamedTuple):
    """`hook`: the hook of a base chain; None for others. `drops`: its policy."""

    family: int
    table: str
    name: str
    hook: int | None = None
    drops: bool = False

    def __str__(self) -> str:
        return f"{_FAMILIES.get(self.family, self.family)} {self.table} {self.name}"

    @property
    def forwards(self) -> bool:
        """True if packets that the node forwards pass this base chain."""
        return self.hook == _FORWARD and self.family in (1, nf.IP, nf.IP6)


class _Jump(NamedTuple):
    chain: str
    handle: bytes
    targets: frozenset[str]


def generation() -> int | None:
    """The generation of the whole ruleset: it differs after every change of any program. None if the kernel has no
    nf_tables. Raises LinkError."""
    if not nf.available():
        return None
    with nf.Nft() as nft:
        try:
            return nft.generation()
        except RefusedError as error:
            if error.code in nf.ABSENT:
                return None
            raise nf.refused("cannot read nf_tables", error) from error


def all_chains() -> list[Chain]:
    """All chains of this namespace; none if the kernel has no nf_tables. Raises LinkError."""
    if not nf.available():
        return []
    with nf.Nft() as nft:
        try:
            return [_chain(body) for body in nft.list(nf.GETCHAIN, 0, b"")]
        except RefusedError as error:
            if error.code in nf.ABSENT:
                return []
            raise nf.refused("cannot list the chains of nf_tables", error) from error


def remove_chains(family: int, table: str, ours: Callable[[str], bool]) -> None:
    """Remove all chains of a table whose names `ours` selects, and the rules of other chains that lead to them, in one
    transaction. Raises LinkError."""
    with nf.Nft() as nft:
        try:
            doomed = [
                chain.name
                for chain in map(_chain, nft.list(nf.GETCHAIN, family, b""))
                if chain.table == table and ours(chain.name)
            ]
            jumps = [_jump(body) for body in nft.list(nf.GETRULE, family, text(1, table))]
            nft.change(list(_removals(family, table, doomed, jumps)))
        except RefusedError as error:
            raise nf.refused(f"cannot remove chains of table {table}", error) from error


def has_table(family: int, table: str) -> bool:
    """True if there is a table of this name. Raises LinkError."""
    if not nf.available():
        return False
    with nf.Nft() as nft:
        try:
            return bool(nft.get(nf.GETTABLE, family, text(1, table)))
        except RefusedError as error:
            if error.code == errno.ENOENT or error.code in nf.ABSENT:
                return False
            raise nf.refused(f"cannot read table {table}", error) from error


def remove_table(family: int, table: str) -> None:
    """Remove a whole table; no error if there is none. Raises LinkError."""
    with nf.Nft() as nft:
        nf.remove(nft, family, table)


def _removals(family: int, table: str, doomed: list[str], jumps: list[_Jump]) -> Iterator[Request]:
    names = frozenset(doomed)
    for jump in jumps:
        if jump.chain not in names and jump.targets & names:
            yield nf.request(nf.DELRULE, family, text(1, table) + text(2, jump.chain) + attribute(3, jump.handle))
    # All rules go before the first chain does, because chains refer to each other.
    for name in doomed:
        yield nf.request(nf.DELRULE, family, text(1, table) + text(2, name))
    for name in doomed:
        yield nf.request(nf.DELCHAIN, family, text(1, table) + text(3, name))


def _chain(body: bytes) -> Chain:
    found = attributes(body, 4)
    hook = attributes(found[4]) if 4 in found else {}
    return Chain(
        body[0],
        string(found, 1),
        string(found, 3),
        struct.unpack(">I", hook[1])[0] if 1 in hook else None,
        5 in found and struct.unpack(">I", found[5])[0] == nf.DROP,
    )


def _jump(body: bytes) -> _Jump:
    found = attributes(body, 4)
    targets = frozenset(filter(None, map(_target, _elements(found.get(4, b"")))))
    return _Jump(string(found, 2), found[3], targets)


def _target(expression: bytes) -> str:
    """The chain that an expression jumps or goes to; "" if none."""
    found = attributes(expression)
    if string(found, 1) != "immediate":
        return ""
    verdict = attributes(attributes(attributes(found.get(2, b"")).get(2, b"")).get(2, b""))
    return string(verdict, 2)


def _elements(data: bytes) -> Iterator[bytes]:
    """The contents of a list, whose elements all have the same attribute."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        if kind & 0x3FFF == _LIST_ELEMENT:
            yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
