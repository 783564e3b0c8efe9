"""Our own packet filter rules, through the netlink interface of nf_tables: the node needs no `nft` or `iptables`
program.

There are two kinds of tables, each removed as a whole, so that rules of other programs are never read or changed:

    table ip|ip6 nodenet-masq-<network>-<subnet>   ipMasq: the addresses whose packets leave the subnet masqueraded
    table netdev nodenet-mac-<interface>           macspoofchk: drop a veth's frames with another source MAC

Each change is one atomic transaction. The numbers are from linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from ipaddress import ip_network

from nodenet.endpoint import IPAddress, IPNetwork
from nodenet.link.handle import LinkError
from nodenet.link.netlink import (
    APPEND,
    CREATE,
    Netlink,
    RefusedError,
    Request,
    attribute,
    attributes,
    nested,
    string,
    text,
)

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _DELRULE, _NEWSET = 0, 1, 2, 3, 6, 8, 9
_NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN = 12, 13, 14, 16
_IP, _IP6, _NETDEV = 2, 10, 5
_POSTROUTING, _SRCNAT, _INGRESS, _BEFORE_ALL = 4, 100, 0, -500
_ACCEPT, _DROP = 1, 0
_ERESTART = 85
# Errors of a kernel without nf_tables, or without parts of it.
_ABSENT = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.EAFNOSUPPORT)
# Seconds. The kernel replies at once; the timeout is for the case that it does not.
_TIMEOUT = 10.0
# Attempts of a change that conflicts with a change of another program between reading and writing.
_TRIES = 50
_SET, _CHAIN, _OURS = "pods", "rules", "nodenet-"


def masquerade(network: str, subnet: IPNetwork, address: IPAddress) -> None:
    """Packets from `address` leave with the node's address, except to its subnet and to multicast. Idempotent."""
    table, family = _masq_table(network, subnet), _family(subnet)
    with _Nft() as nft:
        try:
            nft.change([_element(_NEWSETELEM, family, table, address)])
        except RefusedError as error:
            if error.code != errno.ENOENT:
                raise _refused(f"cannot masquerade {address}", error) from error
            try:
                nft.change([*_masq_rules(family, table, subnet), _element(_NEWSETELEM, family, table, address)])
            except RefusedError as second:
                raise _refused(f"cannot create table {table}", second) from second


def remove_rules(network: str, ifname: str, addresses: Iterable[IPAddress]) -> None:
    """Remove addresses from the network's masquerading, remove the MAC check of an interface, and remove tables that
    are empty then. Idempotent. No error if the kernel has no nf_tables, because then there is nothing to remove."""
    wanted = tuple(addresses)
    with _Nft() as nft:
        try:
            names = nft.tables()
        except RefusedError as error:
            if error.code in _ABSENT:
                return
            raise _refused("cannot list the tables of nf_tables", error) from error
        for family, name in names:
            if family == _NETDEV and name == _mac_table(ifname):
                _remove(nft, family, name)
            elif (subnet := _masq_subnet(network, name)) is not None:
                _remove_addresses(nft, family, name, [a for a in wanted if a.version == subnet.version and a in subnet])


def is_masqueraded(network: str, subnet: IPNetwork, address: IPAddress) -> bool:
    """True if the address is masqueraded."""
    table, family = _masq_table(network, subnet), _family(subnet)
    with _Nft() as nft:
        body = text(1, table) + text(2, _SET) + nested(3, nested(1, nested(1, attribute(1, address.packed))))
        try:
            return bool(nft.get(_GETSETELEM, family, body))
        except RefusedError as error:
            if error.code == errno.ENOENT:
                return False
            raise _refused(f"cannot read table {table}", error) from error


def check_source_mac(ifname: str, mac: str) -> None:
    """Drop frames that arrive on the interface with another source MAC. Replaces an earlier rule."""
    table = _mac_table(ifname)
    hook = nested(4, _be32(1, _INGRESS), _be32(2, _BEFORE_ALL), text(3, ifname))
    chain = text(1, table) + text(3, _CHAIN) + hook + _be32(5, _ACCEPT) + text(7, "filter")
    expressions = [
        _payload(base=0, offset=6, length=6),
        _compare(bytes.fromhex(mac.replace(":", "")), equal=False),
        _verdict(_DROP),
    ]
    with _Nft() as nft:
        try:
            nft.change(
                [
                    # Creating it first makes the deletion succeed if there is no such table.
                    _request(_NEWTABLE, _NETDEV, text(1, table), CREATE),
                    _request(_DELTABLE, _NETDEV, text(1, table)),
                    _request(_NEWTABLE, _NETDEV, text(1, table), CREATE),
                    _request(_NEWCHAIN, _NETDEV, chain, CREATE),
                    _rule(_NETDEV, table, expressions),
                ]
            )
        except RefusedError as error:
            raise _refused(f"cannot check source addresses of {ifname}", error) from error


def checks_source_mac(ifname: str) -> bool:
    """True if the interface has a rule of `check_source_mac`."""
    with _Nft() as nft:
        try:
            return bool(nft.get(_GETTABLE, _NETDEV, text(1, _mac_table(ifname))))
        except RefusedError:
            return False


class _Nft:
    """A socket to nf_tables in the calling thread's network namespace. Its calls raise RefusedError."""

    def __init__(self) -> None:
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError as error:
            raise LinkError("cannot reach nf_tables: the kernel has no nfnetlink", error.errno or 0) from error
        sock.settimeout(_TIMEOUT)
        self._kernel = Netlink(sock)

    def __enter__(self) -> _Nft:
        return self

    def __exit__(self, *_: object) -> None:
        self._kernel.close()

    def change(self, requests: list[Request], generation: int | None = None) -> None:
        """Execute one transaction. ERESTART if the ruleset has changed since `generation`."""
        guard = _be32(1, generation) if generation is not None else b""
        begin = Request(_BATCH_BEGIN, _header(0, _SUBSYSTEM) + guard)
        self._kernel.transact(begin, requests, Request(_BATCH_END, _header(0, _SUBSYSTEM)))

    def tables(self) -> list[tuple[int, str]]:
        """(family, name) of our tables."""
        found = []
        for body in self.list(_GETTABLE, 0, b""):
            name = string(attributes(body, 4), 1)
            if name.startswith(_OURS):
                found.append((body[0], name))
        return found

    def get(self, kind: int, family: int, body: bytes) -> bytes:
        """The body of the requested object, including nfgenmsg. ENOENT if it does not exist."""
        request = _request(kind, family, body)
        return self._kernel.get(request.kind, request.body)

    def list(self, kind: int, family: int, body: bytes) -> list[bytes]:
        """The bodies of all requested objects, including nfgenmsg."""
        request = _request(kind, family, body)
        return self._kernel.dump(request.kind, request.body)

    def generation(self) -> int:
        """The generation number of the ruleset; every change by any program increments it."""
        return int(struct.unpack_from(">I", self.get(_GETGEN, 0, b""), 8)[0])


def _remove_addresses(nft: _Nft, family: int, table: str, addresses: list[IPAddress]) -> None:
    for address in addresses:
        try:
            nft.change([_element(_DELSETELEM, family, table, address)])
        except RefusedError as error:
            if error.code != errno.ENOENT:
                raise _refused(f"cannot end the masquerading of {address}", error) from error
    if addresses:
        _remove_if_empty(nft, family, table)


def _remove(nft: _Nft, family: int, table: str) -> None:
    try:
        nft.change([_request(_DELTABLE, family, text(1, table))])
    except RefusedError as error:
        if error.code != errno.ENOENT:
            raise _refused(f"cannot remove table {table}", error) from error


def _remove_if_empty(nft: _Nft, family: int, table: str) -> None:
    """Remove a masquerading table if it has no addresses; do not remove it if another process adds one at the same
    time."""
    for _ in range(_TRIES):
        try:
            generation = nft.generation()
            bodies = nft.list(_GETSETELEM, family, text(1, table) + text(2, _SET))
            if any(_has_elements(body) for body in bodies):
                return
            nft.change([_request(_DELTABLE, family, text(1, table))], generation)
            return
        except RefusedError as error:
            if error.code == errno.ENOENT:
                return
            if error.code not in (_ERESTART, errno.EINTR, errno.EAGAIN):
                raise _refused(f"cannot remove table {table}", error) from error
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
    made = text(1, table) + text(2, _SET) + _be32(3, 0) + _be32(4, 7 if size == 4 else 8) + _be32(5, size)
    hook = nested(4, _be32(1, _POSTROUTING), _be32(2, _SRCNAT))
    chain = text(1, table) + text(3, _CHAIN) + hook + _be32(5, _ACCEPT) + text(7, "nat")
    multicast = b"\xf0" + bytes(3) if size == 4 else b"\xff" + bytes(15)
    group = b"\xe0" + bytes(3) if size == 4 else multicast
    expressions = [
        _payload(base=1, offset=source, length=size),
        _expression("lookup", text(1, _SET) + _be32(2, 1)),
        _payload(base=1, offset=destination, length=size),
        _mask(subnet.netmask.packed),
        _compare(subnet.network_address.packed, equal=False),
        _payload(base=1, offset=destination, length=size),
        _mask(multicast),
        _compare(group, equal=False),
        _expression("counter", b""),
        _expression("masq", b""),
    ]
    return [
        _request(_NEWTABLE, family, text(1, table), CREATE),
        _request(_NEWSET, family, made + _be32(10, 1), CREATE),
        _request(_NEWCHAIN, family, chain, CREATE),
        _request(_DELRULE, family, text(1, table) + text(2, _CHAIN)),
        _rule(family, table, expressions),
    ]


def _masq_table(network: str, subnet: IPNetwork) -> str:
    # Names of nft may contain letters, digits, '/', '\\', '_', '.' and '-', but no colon.
    return f"{_OURS}masq-{network[:150]}-{str(subnet).replace(':', '_')}"


def _masq_subnet(network: str, table: str) -> IPNetwork | None:
    """The subnet of a masquerading table of this network; None for other tables."""
    start, _, subnet = table.rpartition("-")
    if start != f"{_OURS}masq-{network[:150]}":
        return None
    try:
        return ip_network(subnet.replace("_", ":"))
    except ValueError:
        return None


def _mac_table(ifname: str) -> str:
    return f"{_OURS}mac-{ifname}"


def _family(subnet: IPNetwork) -> int:
    return _IP if subnet.version == 4 else _IP6


def _element(kind: int, family: int, table: str, address: IPAddress) -> Request:
    key = nested(1, nested(1, attribute(1, address.packed)))
    flags = CREATE if kind == _NEWSETELEM else 0
    return _request(kind, family, text(1, table) + text(2, _SET) + nested(3, key), flags)


def _rule(family: int, table: str, expressions: list[bytes]) -> Request:
    body = text(1, table) + text(2, _CHAIN) + nested(4, *expressions)
    return _request(_NEWRULE, family, body, CREATE | APPEND)


def _request(kind: int, family: int, body: bytes, flags: int = 0) -> Request:
    return Request(_SUBSYSTEM << 8 | kind, _header(family) + body, flags)


def _expression(name: str, body: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, body))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _be32(1, 1) + _be32(2, base) + _be32(3, offset) + _be32(4, length))


def _mask(mask: bytes) -> bytes:
    values = nested(4, attribute(1, mask)) + nested(5, attribute(1, bytes(len(mask))))
    return _expression("bitwise", _be32(1, 1) + _be32(2, 1) + _be32(3, len(mask)) + values)


def _compare(value: bytes, equal: bool) -> bytes:
    return _expression("cmp", _be32(1, 1) + _be32(2, 0 if equal else 1) + nested(3, attribute(1, value)))


def _verdict(code: int) -> bytes:
    return _expression("immediate", _be32(1, 0) + nested(2, nested(2, _be32(1, code))))


def _be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def _header(family: int, resource: int = 0) -> bytes:
    return struct.pack(">BBH", family, 0, resource)


def _refused(doing: str, error: RefusedError) -> LinkError:
    return LinkError(doing, error.code, error.text)
