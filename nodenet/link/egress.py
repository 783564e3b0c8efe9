"""The agent's masquerading: packets of this node's pods that leave the cluster get the node's address.

    table ip|ip6 nodenet-egress
        set pods      this node's pod networks
        set excluded  networks whose hosts see pod addresses
        chain rules   postrouting, srcnat

A table is replaced as a whole in one transaction. Connections keep their translation, because conntrack has it: only
the first packet of a connection passes the chain.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nodenet.endpoint import IPNetwork
from nodenet.link import chains
from nodenet.link import nftables as nf
from nodenet.link.netlink import CREATE, RefusedError, Request, attribute, nested, text

TABLE = "nodenet-egress"
_CHAIN, _SOURCES, _EXCLUDED = "rules", "pods", "excluded"
_INTERVAL = 0x4  # NFT_SET_INTERVAL
_INTERVAL_END = 0x1  # NFT_SET_ELEM_INTERVAL_END
# linux/netfilter/nf_nat.h. NF_NAT_RANGE_PROTO_SPECIFIED: the ports count.
_PORTS = 0x2
# NF_NAT_RANGE_PROTO_RANDOM_FULLY: two pods that open connections at the same time seldom get the same port. Without it
# the second one's first packet would be dropped, when both are confirmed.
_FULLY_RANDOM = 0x10
_META_L4PROTO = 16
_PROTOCOLS = (6, 17, 132)  # TCP, UDP, SCTP
# Elements in one message. An attribute, which contains all of them, has at most 64 KiB.
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules of one IP version. Packets from `sources` to other networks than `excluded` are masqueraded, with ports
    from `low` to `high`. Both tuples are sorted."""

    version: int
    sources: tuple[IPNetwork, ...]
    excluded: tuple[IPNetwork, ...]
    low: int
    high: int


def apply(plan: Plan) -> None:
    """Replace the table of this version. Raises LinkError."""
    with nf.Nft() as nft:
        try:
            nft.change(list(_requests(plan)))
        except RefusedError as error:
            raise nf.refused(f"cannot masquerade IPv{plan.version}", error) from error


def remove(version: int) -> bool:
    """Remove the table of this version. Returns False if there is none. Raises LinkError."""
    if not nf.available():
        return False
    with nf.Nft() as nft:
        try:
            nft.change([nf.request(nf.DELTABLE, _family(version), text(1, TABLE))])
        except RefusedError as error:
            if error.code == errno.ENOENT or error.code in nf.ABSENT:
                return False
            raise nf.refused(f"cannot remove table {TABLE}", error) from error
    return True


def exists(version: int) -> bool:
    """True if there is a table of this version. Raises LinkError."""
    return chains.has_table(_family(version), TABLE)


def generation() -> int:
    """The generation of the whole ruleset: it differs after every change of any program. Raises LinkError."""
    with nf.Nft() as nft:
        try:
            return nft.generation()
        except RefusedError as error:
            raise nf.refused("cannot read nf_tables", error) from error


def digest(version: int) -> bytes:
    """A digest of everything in the table, including the kernel's handles: it differs after any change, also if the
    same rules were written again. b"" if there is no table. Raises LinkError."""
    family, found = _family(version), hashlib.sha256()
    with nf.Nft() as nft:
        try:
            bodies = [
                nft.get(nf.GETTABLE, family, text(1, TABLE)),
                *nft.list(nf.GETRULE, family, text(1, TABLE)),
                *nft.list(nf.GETSETELEM, family, text(1, TABLE) + text(2, _SOURCES)),
                *nft.list(nf.GETSETELEM, family, text(1, TABLE) + text(2, _EXCLUDED)),
                nft.get(nf.GETCHAIN, family, text(1, TABLE) + text(3, _CHAIN)),
            ]
        except RefusedError as error:
            if error.code == errno.ENOENT:
                return b""
            raise nf.refused(f"cannot read table {TABLE}", error) from error
    for body in bodies:
        # Bytes 2 and 3 of nfgenmsg may hold the generation of the ruleset.
        found.update(body[:2] + body[4:])
    return found.digest()


def _requests(plan: Plan) -> Iterator[Request]:
    family = _family(plan.version)
    table = text(1, TABLE)
    # Creating the table first makes the deletion succeed if there is none.
    yield nf.request(nf.NEWTABLE, family, table, CREATE)
    yield nf.request(nf.DELTABLE, family, table)
    yield nf.request(nf.NEWTABLE, family, table, CREATE)
    for number, (name, networks) in enumerate(((_SOURCES, plan.sources), (_EXCLUDED, plan.excluded)), 1):
        size = 4 if plan.version == 4 else 16
        key = nf.be32(3, _INTERVAL) + nf.be32(4, 7 if plan.version == 4 else 8) + nf.be32(5, size)
        yield nf.request(nf.NEWSET, family, table + text(2, name) + key + nf.be32(10, number), CREATE)
        elements = list(_elements(networks, size))
        for start in range(0, len(elements), _CHUNK):
            body = table + text(2, name) + nested(3, *elements[start : start + _CHUNK])
            yield nf.request(nf.NEWSETELEM, family, body, CREATE)
    hook = nested(4, nf.be32(1, nf.POSTROUTING), nf.be32(2, nf.SRCNAT))
    chain = table + text(3, _CHAIN) + hook + nf.be32(5, nf.ACCEPT) + text(7, "nat")
    yield nf.request(nf.NEWCHAIN, family, chain, CREATE)
    for expressions in _rules(plan):
        yield nf.rule(family, TABLE, _CHAIN, expressions)


def _rules(plan: Plan) -> Iterator[list[bytes]]:
    size = 4 if plan.version == 4 else 16
    source, destination = (12, 16) if size == 4 else (8, 24)
    leave = nf.verdict(nf.RETURN)
    yield [nf.payload(base=1, offset=source, length=size), nf.lookup(_SOURCES, inverted=True), leave]
    yield [nf.payload(base=1, offset=destination, length=size), nf.lookup(_EXCLUDED), leave]
    for protocol in _PROTOCOLS:
        yield [
            nf.expression("meta", nf.be32(1, 1) + nf.be32(2, _META_L4PROTO)),
            nf.compare(bytes([protocol]), equal=True),
            nf.value(1, struct.pack(">H", plan.low)),
            nf.value(2, struct.pack(">H", plan.high)),
            nf.expression("masq", nf.be32(1, _PORTS | _FULLY_RANDOM) + nf.be32(2, 1) + nf.be32(3, 2)),
        ]
    # Other protocols, such as ICMP, have no ports.
    yield [nf.expression("masq", b"")]


def _elements(networks: Iterable[IPNetwork], size: int) -> Iterator[bytes]:
    """An interval set has the first address of each interval, and the one after its last."""
    for first, end in _intervals(networks):
        yield _element(first.to_bytes(size, "big"))
        # An interval that ends with the last address of all is open.
        if end < 1 << (8 * size):
            yield _element(end.to_bytes(size, "big"), nf.be32(3, _INTERVAL_END))


def _element(key: bytes, flags: bytes = b"") -> bytes:
    return nested(1, nested(1, attribute(1, key)), flags)


def _intervals(networks: Iterable[IPNetwork]) -> list[tuple[int, int]]:
    """Disjoint intervals, each with the address after its end. Neighbours become one interval."""
    found: list[tuple[int, int]] = []
    for first, end in sorted((int(n.network_address), int(n.broadcast_address) + 1) for n in networks):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return found


def _family(version: int) -> int:
    return nf.IP if version == 4 else nf.IP6
