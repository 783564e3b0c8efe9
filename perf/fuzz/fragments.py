"""Makes fragmented datagrams."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from perf.fuzz import build, extensions
from perf.fuzz.parts import Parts
from perf.fuzz.world import Case


@dataclass(frozen=True, slots=True)
class _Piece:
    """One fragment. `following`: number of the header at the start of `data`. `trailer`: bytes behind the packet's
    end."""

    following: int
    offset: int
    data: bytes
    more: bool
    ident: int
    trailer: bytes


def fragments(parts: Parts) -> Case:
    """Two to four fragments of two faces, with any cuts, overlaps, order, copies, trailers and second fragment
    headers."""
    rng = parts.rng
    track, version, src, dst = parts.ends()
    faces = parts.faces(src, dst)
    headers = extensions.walkable(rng) if version == 6 else []
    lie = build.chain(headers, faces.lie_protocol, faces.lie)
    truth = build.chain(headers, faces.truth_protocol, faces.truth)
    length = len(truth[1])
    # Cut mostly within the headers.
    reach = min(length, rng.choice((24, 40, 80, length)))
    cuts = sorted(rng.randrange(1, max(reach, 2)) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    if rng.random() < 0.6:
        cuts = [cut + 7 & ~7 for cut in cuts]
    bounds = [0, *cuts, length]
    # Clean: no random damage. The first fragment has the lie; the others, or its own trailer, have something else.
    is_clean = rng.random() < 0.4
    ident = parts.next_ident()
    packets: list[bytes] = []
    for number, (start, end) in enumerate(pairwise(bounds)):
        tells_lie = number == 0 if is_clean else rng.random() < (0.8 if number == 0 else 0.15)
        face = lie if tells_lie else truth
        more = number < len(bounds) - 2
        trailer = rng.choice((lie, lie, truth))[1][end:] if rng.random() < 0.4 else b""
        start &= ~7
        if not is_clean:
            start = max(0, start + (rng.choice((-16, -8, 8)) if rng.random() < 0.1 else 0))
            end = max(0, end + (rng.choice((-8, -3, 3, 8, 16)) if rng.random() < 0.15 else 0))
            more ^= rng.random() < 0.05
        piece = _Piece(face[0], start, face[1][start:end], more, ident, trailer)
        packets.append(_fragment(parts, version, src, dst, piece, is_clean))
    if not is_clean:
        if rng.random() < 0.4:
            rng.shuffle(packets)
        if rng.random() < 0.2:
            packets.insert(rng.randrange(len(packets) + 1), rng.choice(packets))
    return Case("fragments", track.name, tuple(parts.frame(track, version, packet) for packet in packets))


def _fragment(parts: Parts, version: int, src: bytes, dst: bytes, piece: _Piece, is_clean: bool) -> bytes:
    rng = parts.rng
    slip = 0 if is_clean or rng.random() < 0.8 else rng.choice((-1, 1, 4, len(piece.trailer)))
    if version == 4:
        field = (piece.offset >> 3 & 0x1FFF) | (build.MORE if piece.more else 0) | rng.choice((0, 0, 0, 0x4000, 0x8000))
        total = max(20 + len(piece.data) + slip, 0)
        data = piece.data + piece.trailer
        return build.ipv4(src, dst, piece.following, data, ident=piece.ident, fragment=field, total=total)
    reserved = rng.choice((0, 0, 0, rng.randrange(1 << 16)))
    headers = [(build.FRAGMENT, build.fragment_header(piece.offset, piece.more, piece.ident, reserved))]
    if not is_clean and rng.random() < 0.2:
        headers = [*extensions.some(rng, most=2, fragments=False), *headers]
    if rng.random() < 0.08:
        second = build.fragment_header(
            rng.choice((0, piece.offset)), rng.random() < 0.3, piece.ident ^ rng.choice((0, 1))
        )
        headers.insert(rng.randrange(len(headers) + 1), (build.FRAGMENT, second))
    first, payload = build.chain(headers, piece.following, piece.data)
    return build.ipv6(src, dst, first, payload + piece.trailer, length=max(len(payload) + slip, 0))
