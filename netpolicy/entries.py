"""What an entry matches: a peer by number, a direction, a protocol and a port prefix."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from netpolicy.types import Direction, NamedPort, PortRule, Protocol

ANY = 0
PORT_BITS = 16


class EntryKey(NamedTuple):
    """The match of an entry. `protocol` None: all protocols; else the first `port_bits` bits of `port` must match
    (0: all ports)."""

    peer: int
    direction: Direction
    protocol: Protocol | None
    port: int
    port_bits: int


class Ports(NamedTuple):
    """As in EntryKey."""

    protocol: Protocol | None
    port: int
    port_bits: int


ALL_PORTS = Ports(None, 0, 0)


def named(port: PortRule, named_ports: tuple[NamedPort, ...]) -> tuple[Ports, ...]:
    """The ports of a pod with the name that the rule gives."""
    found = (p.port for p in named_ports if p.name == port.port and p.protocol is port.protocol)
    return tuple(Ports(port.protocol, number, PORT_BITS) for number in found)


def prefixes(port: PortRule) -> tuple[Ports, ...]:
    """The ports of a rule that gives numbers, or none."""
    if port.port is None:
        return (Ports(port.protocol, 0, 0),)
    first = int(port.port)
    return tuple(Ports(port.protocol, *prefix) for prefix in port_prefixes(first, port.end_port or first))


@lru_cache(maxsize=4096)
def port_prefixes(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """The fewest (port, leading bits) pairs that cover exactly first..last, both included."""
    found = []
    while first <= last:
        free = PORT_BITS if first == 0 else (first & -first).bit_length() - 1
        while first + (1 << free) - 1 > last:
            free -= 1
        found.append((first, PORT_BITS - free))
        first += 1 << free
    return tuple(found)
