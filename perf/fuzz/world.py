"""The fuzzer's fixed world: senders, receivers and programs, what policy allows, and which flows are open. Pure.

A track is one path through the programs. In each, A sends to B, and only packets of A are fuzzed:

    egress    A is local and isolated for egress; B is elsewhere
    ingress   A is elsewhere; B is local and isolated for ingress
    local     both are local, B is isolated for ingress: one program checks egress and ingress

The only rule everywhere allows TCP 80 and UDP 53. In addition, answers to flows that B opened (REVERSE) may pass.
Addresses of two tracks differ in more than one byte, so that a mutation cannot change one into the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

# B's MAC is the receiver's in every track.
B_MAC = bytes.fromhex("0200000000bb")

ALLOWED = frozenset({(TCP, 80), (UDP, 53)})
DENIED_PORTS = {TCP: (22, 53, 2222, 8080), UDP: (80, 5354, 7000)}
# Flows that B opened: protocol -> (A's port, B's port).
REVERSE = {TCP: (7001, 9001), UDP: (7002, 9002)}
# B's flows with another peer: protocol -> (the peer's port, B's port).
FOREIGN = {TCP: (443, 9003), UDP: (443, 9004)}


@dataclass(frozen=True, slots=True)
class Track:
    """One path. Addresses are packed, by IP version. `number`: A's endpoint number; B's is one more."""

    name: str
    program: str
    number: int
    a: dict[int, bytes]
    b: dict[int, bytes]
    a_mac: bytes
    a_is_local: bool
    b_is_local: bool


def _packed(v4: str, v6: str) -> dict[int, bytes]:
    return {4: ip_address(v4).packed, 6: ip_address(v6).packed}


TRACKS = (
    Track(
        name="egress",
        program="endpoint_egress",
        number=11,
        a=_packed("10.201.17.1", "fd01:1111::1"),
        b=_packed("10.201.17.2", "fd01:1111::2"),
        a_mac=bytes.fromhex("0200000000a1"),
        a_is_local=True,
        b_is_local=False,
    ),
    Track(
        name="ingress",
        program="endpoint_ingress",
        number=21,
        a=_packed("10.202.34.1", "fd01:2222::1"),
        b=_packed("10.202.34.2", "fd01:2222::2"),
        a_mac=bytes.fromhex("0200000000a2"),
        a_is_local=False,
        b_is_local=True,
    ),
    Track(
        name="local",
        program="endpoint_egress",
        number=31,
        a=_packed("10.203.68.1", "fd01:4444::1"),
        b=_packed("10.203.68.2", "fd01:4444::2"),
        a_mac=bytes.fromhex("0200000000a3"),
        a_is_local=True,
        b_is_local=True,
    ),
)
BY_NAME = {track.name: track for track in TRACKS}
BY_SOURCE = {address: track for track in TRACKS for address in track.a.values()}
# Another peer outside the node, with which B has flows.
OTHER = _packed("10.204.136.9", "fd01:8888::9")
# Another pod of the node.
NEIGHBOUR = _packed("10.207.170.5", "fd01:aaaa::5")
NEIGHBOUR_MAC = bytes.fromhex("0200000000a4")
# A router on the path to B, without an identity of its own.
ROUTER = _packed("10.206.3.3", "fd01:cccc::3")
# The source address of the last frame of every batch. When that frame arrives, all frames before it have been handled.
SENTINEL = ip_address("10.205.1.1").packed


@dataclass(frozen=True, slots=True)
class Frame:
    """One Ethernet frame. With `gso_size` it is a TCP frame that a device cuts into segments later."""

    data: bytes
    gso_size: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """The frames of one attempt, in order. `tag`: bytes that must reach B if the frames are well-formed and allowed."""

    kind: str
    track: str
    frames: tuple[Frame, ...]
    tag: bytes = b""
