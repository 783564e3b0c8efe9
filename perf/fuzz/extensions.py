"""Valid and invalid IPv6 extension headers and IPv4 options. Pure."""

from __future__ import annotations

import random
import struct

from perf.fuzz import build

_KINDS = (build.DEST, build.DEST, build.HOP, build.ROUTING, build.AUTH, build.FRAGMENT, 135, 139, 140, build.ESP)
_PLAIN = (build.DEST, build.DEST, build.DEST, build.HOP, build.ROUTING)


def padding(rng: random.Random, units: int) -> bytes:
    """The body of an options header of `units` times 8 bytes that contains only padding (RFC 8200, 4.2)."""
    body = b""
    room = units * 8 - 2
    while room > 0:
        size = min(room, rng.choice((room, 7)))
        body += b"\0" if size == 1 else bytes((1, size - 2)) + bytes(size - 2)
        room -= size
    return bytes((units - 1,)) + body


def some(rng: random.Random, most: int = 3, fragments: bool = True) -> list[tuple[int, bytes]]:
    """A few headers for `build.chain`. A hop-by-hop header mostly comes first, the only place where kernels accept
    it."""
    kinds = [
        rng.choice(_KINDS if fragments and rng.random() < 0.3 else _PLAIN) for _ in range(rng.randrange(1, most + 1))
    ]
    if rng.random() < 0.8:
        kinds.sort(key=lambda kind: kind != build.HOP)
        kinds = [kind for number, kind in enumerate(kinds) if kind != build.HOP or number == 0] or [build.DEST]
    return [(kind, _body(rng, kind)) for kind in kinds]


def walkable(rng: random.Random) -> list[tuple[int, bytes]]:
    """Zero to three headers that every kernel skips at any position."""
    return [(build.DEST, padding(rng, rng.choice((1, 1, 2, 3)))) for _ in range(rng.choice((0, 1, 2, 2, 3)))]


def _body(rng: random.Random, kind: int) -> bytes:
    units = rng.choice((1, 1, 1, 2, 2, 3))
    if kind == build.FRAGMENT:
        offset, more = rng.choice(((0, False), (0, False), (0, True), (8, False)))
        return build.fragment_header(offset, more, rng.randrange(1 << 32))
    if kind == build.ROUTING:
        # The kernel skips a routing header of type 0 or of an unknown type if it has no segments left.
        return bytes((units - 1, rng.choice((0, 2, 3, 4, 200)), rng.choice((0, 0, 0, 1)))) + bytes(units * 8 - 4)
    if kind == build.AUTH:
        words = rng.choice((2, 4, 6))
        return bytes((words - 2 + 1,)) + bytes((words + 1) * 4 - 2)
    if kind in (build.HOP, build.DEST):
        if rng.random() < 0.1:
            # A jumbogram option (RFC 2675), or an unknown one.
            option = rng.choice((b"\xc2\x04" + struct.pack("!I", 70000), b"\x1e\x04" + rng.randbytes(4)))
            return b"\0" + option
        return padding(rng, units)
    return bytes((units - 1,)) + rng.randbytes(units * 8 - 2)


def bent(rng: random.Random, payload: bytes) -> bytes:
    """The same chain with a changed length in one of its first headers."""
    data = bytearray(payload)
    at = rng.choice((1, 9, 17))
    if at < len(data):
        data[at] = rng.choice((0, 1, 2, 3, 5, 255, rng.randrange(256)))
    return bytes(data)


def ipv4_options(rng: random.Random, lie: bytes) -> bytes:
    """Up to 40 bytes of options: padding, a router alert, a source route, or a transport header inside an option."""
    choice = rng.randrange(5)
    if choice == 0:
        return b"\1" * rng.choice((4, 8, 40))
    if choice == 1:
        return b"\x94\x04\0\0"
    if choice == 2:
        return b"\x83\x07\x04" + rng.randbytes(4) + b"\0"
    if choice == 3:
        data = lie[: rng.choice((4, 8, 20))]
        return data + bytes(-len(data) % 4)
    size = rng.randrange(4, 41, 4)
    return rng.randbytes(size)
