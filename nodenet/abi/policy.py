"""Records of endpoints, identities and policy."""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from nodenet.abi.numbers import V4_PREFIX_BITS, Action, RuleDirection
from nodenet.abi.packing import pack_addr, swap_port, unpack_addr
from nodenet.model import Direction, IPAddress, IPNetwork


class AddressKey(NamedTuple):
    """nn_endpoint_key"""

    addr: IPAddress

    def pack(self) -> bytes:
        return pack_addr(self.addr)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(unpack_addr(data))


class EndpointEntry(NamedTuple):
    """What is in force for one address of an endpoint. `netns`: 1 + the id (nsid) that the node's namespace has for the
    pod's; 0: not known. nn_endpoint holds EndpointVersions."""

    ifindex: int
    identity: int
    endpoint_id: int
    flags: int
    mac: str
    netns: int = 0


class LpmKey(NamedTuple):
    """nn_lpm_key. `prefixlen` counts bits of the 16-byte address."""

    prefixlen: int
    addr: IPAddress

    @classmethod
    def of(cls, network: IPNetwork) -> Self:
        bits = V4_PREFIX_BITS if network.version == 4 else 0
        return cls(bits + network.prefixlen, network.network_address)

    @classmethod
    def host(cls, address: IPAddress) -> Self:
        return cls(128, address)

    def pack(self) -> bytes:
        return struct.pack("=I16s", self.prefixlen, pack_addr(self.addr))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        prefixlen, addr = struct.unpack("=I16s", data)
        return cls(prefixlen, unpack_addr(addr))


class PolicyKey(NamedTuple):
    """nn_policy_key. Fields beyond `prefixlen` bits must be 0."""

    prefixlen: int
    subject: int
    peer: int
    direction: RuleDirection | Direction
    protocol: int
    port: int

    def pack(self) -> bytes:
        return struct.pack("=IIIBBH", *self[:5], swap_port(self.port))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        prefixlen, subject, peer, direction, protocol, port = struct.unpack("=IIIBBH", data)
        return cls(prefixlen, subject, peer, RuleDirection(direction), protocol, swap_port(port))


class Rule(NamedTuple):
    """nn_rule: what happens to packets that match an entry of nn_policy. `verdict`: precedence << 8 | action; a larger
    one is stronger. `rule_id` names the rule."""

    verdict: int
    rule_id: int

    @classmethod
    def allow(cls, rule_id: int, precedence: int = 0) -> Self:
        return cls(precedence << _ACTION_BITS | Action.ALLOW, rule_id)

    @classmethod
    def deny(cls, rule_id: int, precedence: int = 0) -> Self:
        return cls(precedence << _ACTION_BITS | Action.DENY, rule_id)

    @classmethod
    def pass_(cls, rule_id: int, precedence: int = 0) -> Self:
        return cls(precedence << _ACTION_BITS | Action.PASS, rule_id)

    @property
    def action(self) -> Action:
        return Action(self.verdict & ((1 << _ACTION_BITS) - 1))

    @property
    def precedence(self) -> int:
        return self.verdict >> _ACTION_BITS

    def pack(self) -> bytes:
        return struct.pack("=II", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=II", data))


class State(NamedTuple):
    """nn_state: the generation of policy that is in force. Flows that were judged before the generation `recheck_from`
    are judged again."""

    generation: int
    recheck_from: int

    def pack(self) -> bytes:
        return struct.pack("=II", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=II", data))


_ACTION_BITS = 8
