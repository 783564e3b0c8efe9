"""Our own packet filter rules, through the netlink interface of nf_tables: the node needs no `nft` or `iptables`
program.

There are two kinds of tables, each removed as a whole, so that rules of other programs are never read or changed:

    table ip|ip6 nodenet-masq-<network>-<subnet>   ipMasq: the addresses whose packets leave the subnet masqueraded
    table netdev nodenet-mac-<interface>           macspoofchk: drop a veth's frames with another source MAC

Each change is one atomic transaction.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import ip_network

from nodenet.endpoint import IPAddress, IPNetwork
from nodenet.link import nftables as nf
from nodenet.link.handle import LinkError
from nodenet.link.netlink import (
    CREATE,
    RefusedError,
    Request,
    attribute,
    nested,
    text,
)

# Attempts of a change that conflicts with a change of another program between reading and writing.
_TRIES = 50
_SET, _CHAIN = "pods", "rules"


def masquerade(network: str, subnet: IPNetwork, address: IPAddress) -> None:
    """Packets from `address` leave with the node's address, except to its subnet and to multicast. Idempotent."""
    table, family = _masq_table(network, subnet), _family(subnet)
    with nf.Nft() as nft:
        try:
            nft.change([_element(nf.NEWSETELEM, family, table, address)])
        except RefusedError as error:
            if error.code != errno.ENOENT:
                raise nf.refused(f"cannot masquerade {address}", error) from error
            try:
                nft.change([*_masq_rules(family, table, subnet), _element(nf.NEWSETELEM, family, table, address)])
            except RefusedError as second:
                raise nf.refused(f"cannot create table {table}", second) from second


def remove_rules(network: str, ifname: str, addresses: Iterable[IPAddress]) -> None:
    """Remove addresses from the network's masquerading, remove the MAC check of an interface, and remove tables that
    are empty then. Idempotent. No error if the kernel has no nf_tables, because then there is nothing to remove."""
    wanted = tuple(addresses)
    if not nf.available():
        return
    with nf.Nft() as nft:
        try:
            names = nft.tables()
        except RefusedError as error:
            if error.code in nf.ABSENT:
                return
            raise nf.refused("cannot list the tables of nf_tables", error) from error
        for family, name in names:
            if family == nf.NETDEV and name == _mac_table(ifname):
                nf.remove(nft, family, name)
            elif (subnet := _masq_subnet(network, name)) is not None:
                _remove_addresses(nft, family, name, [a for a in wanted if a.version == subnet.version and a in subnet])


def our_tables() -> list[tuple[str, Callable[[], None]]]:
    """All tables of ours in this namespace, of the agent too: the name of each, and how to remove it."""
    if not nf.available():
        return []
    with nf.Nft() as nft:
        try:
            found = nft.tables()
        except RefusedError as error:
            if error.code in nf.ABSENT:
                return []
            raise nf.refused("cannot list the tables of nf_tables", error) from error
    return [(name, partial(_remove_table, family, name)) for family, name in found]


def _remove_table(family: int, name: str) -> None:
    with nf.Nft() as nft:
        nf.remove(nft, family, name)


def is_masqueraded(network: str, subnet: IPNetwork, address: IPAddress) -> bool:
    """True if the address is masqueraded."""
    table, family = _masq_table(network, subnet), _family(subnet)
    with nf.Nft() as nft:
        body = text(1, table) + text(2, _SET) + nested(3, nested(1, nested(1, attribute(1, address.packed))))
        try:
            return bool(nft.get(nf.GETSETELEM, family, body))
        except RefusedError as error:
            if error.code == errno.ENOENT:
                return False
            raise nf.refused(f"cannot read table {table}", error) from error


def check_source_mac(ifname: str, mac: str) -> None:
    """Drop frames that arrive on the interface with another source MAC. Replaces an earlier rule."""
    table = _mac_table(ifname)
    hook = nested(4, nf.be32(1, nf.INGRESS), nf.be32(2, nf.BEFORE_ALL), text(3, ifname))
    chain = text(1, table) + text(3, _CHAIN) + hook + nf.be32(5, nf.ACCEPT) + text(7, "filter")
    expressions = [
        nf.payload(base=0, offset=6, length=6),
        nf.compare(bytes.fromhex(mac.replace(":", "")), equal=False),
        nf.verdict(nf.DROP),
    ]
    with nf.Nft() as nft:
        try:
            nft.change(
                [
                    # Creating it first makes the deletion succeed if there is no such table.
                    nf.request(nf.NEWTABLE, nf.NETDEV, text(1, table), CREATE),
                    nf.request(nf.DELTABLE, nf.NETDEV, text(1, table)),
                    nf.request(nf.NEWTABLE, nf.NETDEV, text(1, table), CREATE),
                    nf.request(nf.NEWCHAIN, nf.NETDEV, chain, CREATE),
                    nf.rule(nf.NETDEV, table, _CHAIN, expressions),
                ]
            )
        except RefusedError as error:
            raise nf.refused(f"cannot check source addresses of {ifname}", error) from error


def checks_source_mac(ifname: str) -> bool:
    """True if the interface has a rule of `check_source_mac`."""
    with nf.Nft() as nft:
        try:
            return bool(nft.get(nf.GETTABLE, nf.NETDEV, text(1, _mac_table(ifname))))
        except RefusedError:
            return False


def _remove_addresses(nft: nf.Nft, family: int, table: str, addresses: list[IPAddress]) -> None:
    for address in addresses:
        try:
            nft.change([_element(nf.DELSETELEM, family, table, address)])
        except RefusedError as error:
            if error.code != errno.ENOENT:
                raise nf.refused(f"cannot end the masquerading of {address}", error) from error
    if addresses:
        _remove_if_empty(nft, family, table)


def _remove_if_empty(nft: nf.Nft, family: int, table: str) -> None:
    """Remove a masquerading table if it has no addresses; do not remove it if another process adds one at the same
    time."""
    for _ in range(_TRIES):
        try:
            generation = nft.generation()
            bodies = nft.list(nf.GETSETELEM, family, text(1, table) + text(2, _SET))
            if any(_has_elements(body) for body in bodies):
                return
            nft.change([nf.request(nf.DELTABLE, family, text(1, table))], generation)
            return
        except RefusedError as error:
            if error.code == errno.ENOENT:
                return
            if error.code not in (nf.ERESTART, errno.EINTR, errno.EAGAIN):
                raise nf.refused(f"cannot remove table {table}", error) from error
    raise LinkError(f"cannot remove table {table}: the ruleset changes too often", errno.EAGAIN)


def _has_elements(body: bytes) -> bool:
    """True if a reply to GETSETELEM contains NFTA_SET_ELEM_LIST_ELEMENTS (after nfgenmsg)."""
    offset = 4
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if kind & 0x3FFF == 3 and length > 4:
            return True
        offset += max(4, (length + 3) & ~3)
    return False


def _masq_rules(family: int, table: str, subnet: IPNetwork) -> list[Request]:
    """The table with its set and its chain. The chain is emptied first, so that two concurrent callers end with one
    rule."""
    size = subnet.max_prefixlen // 8
    source, destination = (12, 16) if size == 4 else (8, 24)
    made = text(1, table) + text(2, _SET) + nf.be32(3, 0) + nf.be32(4, 7 if size == 4 else 8) + nf.be32(5, size)
    hook = nested(4, nf.be32(1, nf.POSTROUTING), nf.be32(2, nf.SRCNAT))
    chain = text(1, table) + text(3, _CHAIN) + hook + nf.be32(5, nf.ACCEPT) + text(7, "nat")
    multicast = b"\xf0" + bytes(3) if size == 4 else b"\xff" + bytes(15)
    group = b"\xe0" + bytes(3) if size == 4 else multicast
    expressions = [
        nf.payload(base=1, offset=source, length=size),
        nf.expression("lookup", text(1, _SET) + nf.be32(2, 1)),
        nf.payload(base=1, offset=destination, length=size),
        nf.mask(subnet.netmask.packed),
        nf.compare(subnet.network_address.packed, equal=False),
        nf.payload(base=1, offset=destination, length=size),
        nf.mask(multicast),
        nf.compare(group, equal=False),
        nf.expression("counter", b""),
        nf.expression("masq", b""),
    ]
    return [
        nf.request(nf.NEWTABLE, family, text(1, table), CREATE),
        nf.request(nf.NEWSET, family, made + nf.be32(10, 1), CREATE),
        nf.request(nf.NEWCHAIN, family, chain, CREATE),
        nf.request(nf.DELRULE, family, text(1, table) + text(2, _CHAIN)),
        nf.rule(family, table, _CHAIN, expressions),
    ]


def _masq_table(network: str, subnet: IPNetwork) -> str:
    # Names of nft may contain letters, digits, '/', '\\', '_', '.' and '-', but no colon.
    return f"{nf.OURS}masq-{network[:150]}-{str(subnet).replace(':', '_')}"


def _masq_subnet(network: str, table: str) -> IPNetwork | None:
    """The subnet of a masquerading table of this network; None for other tables."""
    start, _, subnet = table.rpartition("-")
    if start != f"{nf.OURS}masq-{network[:150]}":
        return None
    try:
        return ip_network(subnet.replace("_", ":"))
    except ValueError:
        return None


def _mac_table(ifname: str) -> str:
    return f"{nf.OURS}mac-{ifname}"


def _family(subnet: IPNetwork) -> int:
    return nf.IP if subnet.version == 4 else nf.IP6


def _element(kind: int, family: int, table: str, address: IPAddress) -> Request:
    key = nested(1, nested(1, attribute(1, address.packed)))
    flags = CREATE if kind == nf.NEWSETELEM else 0
    return nf.request(kind, family, text(1, table) + text(2, _SET) + nested(3, key), flags)
