"""net.ipv4.ip_local_reserved_ports: ports that the kernel gives to no socket that lets it choose. Of IPv6 too."""

from __future__ import annotations

from collections.abc import Iterable

from nodenet.link import sysctl

KEY = "ipv4/ip_local_reserved_ports"

# The first and the last port.
Range = tuple[int, int]


def read() -> tuple[Range, ...]:
    """The reserved ports of this namespace. Raises OSError, ValueError."""
    return parse(sysctl.read(KEY))


def add(wanted: Range) -> tuple[Range, ...]:
    """Reserve ports, besides those that are reserved. Returns those that were not reserved before. Raises OSError,
    ValueError."""
    present = _ports(read())
    fresh = _ports((wanted,)) - present
    if fresh:
        sysctl.write(KEY, render(present | fresh))
    return ranges(fresh)


def remove(gone: Iterable[Range]) -> None:
    """Reserve these ports no longer. Raises OSError, ValueError."""
    # An empty write changes nothing.
    sysctl.write(KEY, render(_ports(read()) - _ports(gone)) or "\n")


def parse(text: str) -> tuple[Range, ...]:
    """Ranges from the kernel's words, such as "8080,49152-65535". Raises ValueError."""
    found = []
    for word in filter(None, text.strip().split(",")):
        low, dash, high = word.partition("-")
        found.append((int(low), int(high if dash else low)))
    return tuple(found)


def render(ports: Iterable[int]) -> str:
    """The kernel's words."""
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges(ports))


def ranges(ports: Iterable[int]) -> tuple[Range, ...]:
    """Ports as the fewest ranges, in order."""
    found: list[Range] = []
    for port in sorted(ports):
        if found and found[-1][1] == port - 1:
            found[-1] = (found[-1][0], port)
        else:
            found.append((port, port))
    return tuple(found)


def _ports(found: Iterable[Range]) -> set[int]:
    return {port for low, high in found for port in range(low, high + 1)}
