"""The states of policy for perf/switch.py: what the maps hold in each, and what must happen to each packet.

The states follow from a seed and a number. From one to the next, several pods change identity, rules change their form
and their numbers, regions, isolation flags and tiers change; but most answers stay the same. So a packet that meets a
mixture of two states gets an answer that both do not give.
"""

from __future__ import annotations

import itertools
import random
import struct
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any, NamedTuple

from nodenet.abi import (
    POLICY_BITS_DIRECTION,
    POLICY_BITS_PROTOCOL,
    U32,
    AddressKey,
    EndpointEntry,
    EndpointFlag,
    LpmKey,
    PolicyKey,
    Rule,
    RuleDirection,
)
from nodenet.model import Direction

UDP, PORT = 17, 80
# PROG_TEST_RUN uses the loopback.
_LOOPBACK = 1
_MAC = "02:00:00:00:00:01"
_MACS = bytes.fromhex("0200000000bb020000000001")
PODS = tuple(ip_address(f"10.201.0.{number}") for number in range(1, 7))
# Nested, so that a prefix that comes or goes changes the region of the addresses in it.
BLOCKS = tuple(map(ip_network, ("192.0.2.0/24", "192.0.2.128/25", "192.0.2.192/26")))
OUTSIDE = tuple(map(ip_address, ("192.0.2.1", "192.0.2.129", "192.0.2.193")))
_BITS = (POLICY_BITS_DIRECTION, POLICY_BITS_PROTOCOL, POLICY_BITS_PROTOCOL + 16)
_ISOLATED = int(EndpointFlag.ISOLATED_INGRESS | EndpointFlag.ISOLATED_EGRESS)
_TIERED = int(EndpointFlag.TIERED_INGRESS | EndpointFlag.TIERED_EGRESS)
_ADMIN = {Direction.INGRESS: RuleDirection.ADMIN_INGRESS, Direction.EGRESS: RuleDirection.ADMIN_EGRESS}
# What the Admin tier does about a peer; "" means that it has no rule for it.
_WAYS = ("decide", "pass", "")
_SPORT_OFFSET = 34


class Probe(NamedTuple):
    """A datagram from a pod to another one, or to an address outside."""

    source: IPv4Address
    target: IPv4Address

    def frame(self) -> bytearray:
        """An Ethernet frame. Its source port is set with `set_port`."""
        udp = struct.pack("!HHHH", 0, PORT, 8, 0)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, UDP, 0)
        return bytearray(_MACS + b"\x08\x00" + head + self.source.packed + self.target.packed + udp)


def set_port(frame: bytearray, port: int) -> None:
    struct.pack_into("!H", frame, _SPORT_OFFSET, port)


PROBES = tuple(
    Probe(one, other)
    for one, other in itertools.product(PODS, (*PODS, *OUTSIDE))
    if one != other and isinstance(one, IPv4Address) and isinstance(other, IPv4Address)
)


@dataclass(frozen=True, slots=True)
class World:
    seed: int

    def answers(self, number: int) -> tuple[bool, ...]:
        """For each of PROBES, whether it passes in the state of this number."""
        return _state(self.seed, number).answers()

    def tables(self, number: int) -> dict[str, dict[Any, Any]]:
        """What is in force in the state of this number."""
        return _state(self.seed, number).tables()


@dataclass(frozen=True, slots=True)
class _State:
    identities: dict[Any, int]
    isolated: dict[Any, bool]
    # Pods with rules of the Admin tier too. They do not change what happens to a packet, but how it is decided.
    tiered: dict[Any, bool]
    # Pairs of pods, in both directions; pairs of a pod and a block.
    allowed: frozenset[tuple[Any, Any]]
    # The blocks in use, and their regions.
    regions: dict[Any, int]
    # The seed of what varies without a meaning: the forms of the rules and their numbers.
    forms: str

    def _region_block(self, address: Any) -> Any:
        return next((block for block in reversed(BLOCKS) if block in self.regions and address in block), None)

    def _passes(self, probe: Probe) -> bool:
        if probe.target in PODS:
            isolated = self.isolated[probe.source] or self.isolated[probe.target]
            return not isolated or (probe.source, probe.target) in self.allowed
        return not self.isolated[probe.source] or (probe.source, self._region_block(probe.target)) in self.allowed

    def answers(self) -> tuple[bool, ...]:
        return tuple(map(self._passes, PROBES))

    def tables(self) -> dict[str, dict[Any, Any]]:
        forms = random.Random(self.forms)
        policy: dict[PolicyKey, Rule] = {}
        for subject, direction in itertools.product(PODS, (Direction.EGRESS, Direction.INGRESS)):
            policy |= self._rules(forms, subject, direction)
        return {
            "nn_policy": policy,
            "nn_cidr": {LpmKey.of(block): U32(region) for block, region in self.regions.items()},
            "nn_ipcache": {LpmKey.host(pod): U32(identity) for pod, identity in self.identities.items()},
            "nn_endpoint": {
                AddressKey(pod): EndpointEntry(_LOOPBACK, self.identities[pod], number, self._flags(pod), _MAC)
                for number, pod in enumerate(PODS, 1)
            },
        }

    def _flags(self, pod: Any) -> int:
        return (_ISOLATED if self.isolated[pod] else 0) | (_TIERED if self.tiered[pod] else 0)

    def _rules(self, forms: random.Random, subject: Any, direction: Direction) -> dict[PolicyKey, Rule]:
        """The rules of one pod and direction, in random forms."""
        own, found = self.identities[subject], {}
        egress = direction is Direction.EGRESS
        peers = {pod: self.identities[pod] for pod in PODS if pod != subject} | (self.regions if egress else {})
        # A deny for every peer, behind all other rules: only without it may the Admin tier leave an allow out.
        trap = self.tiered[subject] and self.isolated[subject] and forms.random() < 0.5
        if trap:
            found[_key(forms, own, 0, _ADMIN[direction])] = Rule.deny(forms.randrange(1, 1 << 20), 1)
        for peer, number in sorted(peers.items(), key=str):
            is_allowed = ((subject, peer) if egress else (peer, subject)) in self.allowed
            passes = is_allowed or not self.isolated[subject]
            way = forms.choice(_WAYS) if self.tiered[subject] else ""
            if not way and trap and passes:
                way = "pass"
            rule, precedence = forms.randrange(1, 1 << 20), forms.randrange(2, 1 << 20)
            if way == "decide":
                # What the lower tiers say does not count: let them say the contrary.
                decision = Rule.allow(rule, precedence) if passes else Rule.deny(rule, precedence)
                contrary = Rule.deny(rule + 1) if passes else Rule.allow(rule + 1)
                found[_key(forms, own, number, _ADMIN[direction])] = decision
                found[_key(forms, own, number, direction)] = contrary
                continue
            if way == "pass":
                found[_key(forms, own, number, _ADMIN[direction])] = Rule.pass_(rule, precedence)
            if is_allowed:
                found[_key(forms, own, number, direction)] = Rule.allow(rule + 2)
        return found


def _key(forms: random.Random, subject: int, peer: int, direction: Direction | RuleDirection) -> PolicyKey:
    bits = forms.choice(_BITS)
    protocol = UDP if bits >= POLICY_BITS_PROTOCOL else 0
    return PolicyKey(bits, subject, peer, direction, protocol, PORT if bits > POLICY_BITS_PROTOCOL else 0)


@lru_cache(maxsize=64)
def _state(seed: int, number: int) -> _State:
    base, own = random.Random(seed), random.Random(f"{seed} {number}")
    pairs = [(one, other) for one in PODS for other in (*PODS, *BLOCKS) if one != other]
    allowed = {pair for pair in pairs if base.random() < 0.5}
    # Some pairs differ from state to state.
    allowed ^= set(own.sample(pairs, 2))
    identities = dict(zip(PODS, own.sample(range(1000, 1012), len(PODS)), strict=True))
    # The first pod is isolated in some states only; its rules exist in all of them.
    isolated = {pod: pod != PODS[0] or own.random() < 0.5 for pod in PODS}
    tiered = {pod: own.random() < 0.5 for pod in PODS}
    blocks = [block for block in BLOCKS if own.random() < 0.7]
    regions = dict(zip(blocks, own.sample(range((1 << 24) + 1, (1 << 24) + 9), len(blocks)), strict=True))
    return _State(identities, isolated, tiered, frozenset(allowed), regions, f"{seed} {number} forms")
