"""net.ipv4.ip_local_reserved_ports: ports that the kernel gives to no socket that lets it choose. Of IPv6 too."""

from __future__ import annotations

from collections.abc import Iterable

from nodenet.link import sysctl

KEY = "ipv4/ip_local_reserved_ports"
# The ports from which the kernel chooses, for both versions.
LOCAL_KEY = "ipv4/ip_local_port_range"
# The kernel takes one page, less one byte, at once. It replaces the list by what it took of a longer one.
_LONGEST = 4095

# The first and the last port.
Range = tuple[int, int]


def read() -> tuple[Range, ...]:
    """The reserved ports of this namespace. Raises OSError, ValueError."""
    return parse(sysctl.read(KEY))


def local() -> Range:
    """The range from which the kernel chooses ports for sockets of this namespace. Raises OSError, ValueError."""
    text = sysctl.read(LOCAL_KEY)
    try:
        low, high = map(int, text.split())
    except ValueError:
        raise ValueError(f"net/{LOCAL_KEY}: expected two ports, got {text!r}") from None
    return low, high


def add(wanted: Iterable[Range]) -> None:
    """Reserve ports, besides those that are reserved. Raises OSError, ValueError."""
    _write((*read(), *wanted))


def remove(gone: Iterable[Range]) -> None:
    """Reserve these ports no longer. Raises OSError, ValueError."""
    _write(without(read(), gone))


def _write(wanted: Iterable[Range]) -> None:
    words = render(wanted)
    if len(words) > _LONGEST:
        raise ValueError(f"net/{KEY}: expected at most {_LONGEST} characters, got {len(words)}: too many ranges")
    # An empty write changes nothing.
    sysctl.write(KEY, words or "\n")


def without(some: Iterable[Range], others: Iterable[Range]) -> tuple[Range, ...]:
    """The ports of `some` that are not in `others`."""
    return ranges(_ports(some) - _ports(others))


def fits(found: Iterable[Range]) -> bool:
    """True if the kernel takes these at once."""
    return len(render(found)) <= _LONGEST


def count(some: Iterable[Range]) -> int:
    """How many different ports."""
    return len(_ports(some))


def parse(text: str) -> tuple[Range, ...]:
    """Ranges from the kernel's words, such as "8080,49152-65535". Raises ValueError."""
    found = []
    for word in filter(None, text.strip().split(",")):
        low, dash, high = word.partition("-")
        try:
            found.append((int(low), int(high if dash else low)))
        except ValueError:
            raise ValueError(f"expected ranges of ports such as 8080,49152-65535, got {word[:40]!r}") from None
    return tuple(found)


def render(found: Iterable[Range]) -> str:
    """The kernel's words, in order."""
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges(_ports(found)))


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
