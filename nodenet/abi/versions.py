"""Records with two versions: what was in force before a change of policy, and what is in force after it.

The change has a number, its generation. `since` is that number: `now` counts from then on, `was` before. So entries
that are written one by one come into force together, when nn_state gets the generation (docs/decisions/0039).
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, Protocol, Self

from nodenet.abi.numbers import EndpointFlag
from nodenet.abi.packing import U32, pack_mac, unpack_mac
from nodenet.abi.policy import EndpointEntry, Rule

GENERATIONS = 1 << 32
_HALF = GENERATIONS // 2


def is_in_force(since: int, generation: int) -> bool:
    """Whether the change of generation `since` is in force in `generation`. Generations wrap: two that are compared
    must be less than half of their number apart."""
    return (generation - since) % GENERATIONS < _HALF


class Versions(Protocol):
    """A value of a map with two versions. None stands for "no entry"."""

    @property
    def since(self) -> int: ...

    @classmethod
    def of(cls, now: Any, was: Any, since: int) -> Self: ...

    def at(self, generation: int) -> Any:
        """What a program that has read this generation finds."""
        ...

    def pack(self) -> bytes: ...

    @classmethod
    def unpack(cls, data: bytes) -> Self: ...


class NumberVersions(NamedTuple):
    """nn_ipcache_entry, nn_cidr_entry: two versions of a U32. 0 stands for "no entry"."""

    now: int
    was: int
    since: int

    @classmethod
    def of(cls, now: U32 | None, was: U32 | None, since: int) -> Self:
        return cls(now.value if now is not None else 0, was.value if was is not None else 0, since)

    def at(self, generation: int) -> U32 | None:
        value = self.now if is_in_force(self.since, generation) else self.was
        return U32(value) if value else None

    def pack(self) -> bytes:
        return struct.pack("=III", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=III", data))


class RuleVersions(NamedTuple):
    """nn_policy_entry: two versions of a Rule. A rule without a verdict stands for "no entry"."""

    now: Rule
    was: Rule
    since: int

    @classmethod
    def of(cls, now: Rule | None, was: Rule | None, since: int) -> Self:
        return cls(now if now is not None else _NO_RULE, was if was is not None else _NO_RULE, since)

    def at(self, generation: int) -> Rule | None:
        rule = self.now if is_in_force(self.since, generation) else self.was
        return rule if rule.verdict else None

    def pack(self) -> bytes:
        return struct.pack("=IIIII", *self.now, *self.was, self.since)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        now, rule, was, old_rule, since = struct.unpack("=IIIII", data)
        return cls(Rule(now, rule), Rule(was, old_rule), since)


class EndpointVersions(NamedTuple):
    """nn_endpoint_entry: two versions of the identity and the flags of an endpoint. The other members have one version,
    because they describe the interface.

    A version in which the endpoint does not exist is closed: no identity, and isolated in both directions.
    """

    ifindex: int
    identity: int
    was_identity: int
    since: int
    endpoint_id: int
    flags: int
    was_flags: int
    mac: str
    netns: int

    @classmethod
    def of(cls, now: EndpointEntry | None, was: EndpointEntry | None, since: int) -> Self:
        """At least one of the two is not None. If they are different endpoints, the earlier one counts as None: its
        identity must not apply to the interface of the later one."""
        if now is None:
            assert was is not None
            now = was._replace(identity=0, flags=int(_CLOSED))
        identity, flags = 0, int(_CLOSED)
        if was is not None and (was.ifindex, was.endpoint_id) == (now.ifindex, now.endpoint_id):
            identity, flags = was.identity, was.flags
        return cls(now.ifindex, now.identity, identity, since, now.endpoint_id, now.flags, flags, now.mac, now.netns)

    def at(self, generation: int) -> EndpointEntry:
        if is_in_force(self.since, generation):
            identity, flags = self.identity, self.flags
        else:
            identity, flags = self.was_identity, self.was_flags
        return EndpointEntry(self.ifindex, identity, self.endpoint_id, flags, self.mac, self.netns)

    def pack(self) -> bytes:
        return _ENDPOINT.pack(*self[:7], pack_mac(self.mac), self.netns)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        ifindex, identity, was_identity, since, endpoint_id, flags, was_flags, mac, netns = _ENDPOINT.unpack(data)
        return cls(ifindex, identity, was_identity, since, endpoint_id, flags, was_flags, unpack_mac(mac), netns)


def always(value: U32 | Rule | EndpointEntry) -> NumberVersions | RuleVersions | EndpointVersions:
    """The value in both versions: it is in force whatever the generation."""
    if isinstance(value, U32):
        return NumberVersions.of(value, value, 0)
    return RuleVersions.of(value, value, 0) if isinstance(value, Rule) else EndpointVersions.of(value, value, 0)


_NO_RULE = Rule(0, 0)
_CLOSED = EndpointFlag.ISOLATED_INGRESS | EndpointFlag.ISOLATED_EGRESS
_ENDPOINT = struct.Struct("=IIIIHBB6sH")
