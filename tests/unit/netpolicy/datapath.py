"""The datapath's policy decision, modelled over packed map entries as bpf/lib/policy.h reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nodenet.abi import (
    Action,
    AddressKey,
    EndpointFlag,
    EndpointVersions,
    LpmKey,
    NumberVersions,
    PolicyKey,
    Record,
    Rule,
    RuleDirection,
    RuleVersions,
    Versions,
    always,
)
from nodenet.model import Direction, Identity, IPAddress

PROTOCOLS = {"ICMP": 1, "TCP": 6, "UDP": 17, "SCTP": 132}
_POLICY_LENGTHS = (*range(96, 79, -1), 72)


class Trie:
    """BPF_MAP_TYPE_LPM_TRIE: longest prefix over the bytes that follow the length."""

    def __init__(self, lengths: Iterable[int]) -> None:
        # Longest first; only lengths that were ever used are asked, which keeps the model quick.
        self._tables: dict[int, dict[int, bytes]] = {length: {} for length in lengths}

    def update(self, key: bytes, value: bytes) -> None:
        length, bits = self._read(key)
        assert bits == _mask(bits, length, len(key) - 4), "bits beyond the prefix must be zero"
        self._tables[length][bits] = value

    def delete(self, key: bytes) -> None:
        length, bits = self._read(key)
        del self._tables[length][bits]

    def lookup(self, data: bytes) -> bytes | None:
        bits = int.from_bytes(data, "big")
        for length, table in self._tables.items():
            if table and (value := table.get(_mask(bits, length, len(data)))) is not None:
                return value
        return None

    def _read(self, key: bytes) -> tuple[int, int]:
        return struct.unpack_from("=I", key)[0], int.from_bytes(key[4:], "big")


def _mask(bits: int, length: int, size: int) -> int:
    rest = 8 * size - length
    return bits >> rest << rest


class Packet(NamedTuple):
    source: IPAddress
    destination: IPAddress
    protocol: str
    port: int


@dataclass
class Datapath:
    """Four maps and the verdict of one packet; `update` and `delete` take records, as a pinned map does. `generation`
    is the one that a program reads that starts now."""

    maps: dict[str, Trie | dict[bytes, bytes]] = field(
        default_factory=lambda: {
            "nn_policy": Trie(_POLICY_LENGTHS),
            "nn_cidr": Trie(range(128, -1, -1)),
            "nn_ipcache": Trie(range(128, -1, -1)),
            "nn_endpoint": {},
        }
    )
    generation: int = 0

    def update(self, table: str, key: Record, value: Record) -> None:
        where = self.maps[table]
        if isinstance(where, Trie):
            where.update(key.pack(), value.pack())
        else:
            where[key.pack()] = value.pack()

    def delete(self, table: str, key: Record) -> None:
        where = self.maps[table]
        if isinstance(where, Trie):
            where.delete(key.pack())
        else:
            del where[key.pack()]

    def load(self, tables: Mapping[str, Mapping[Record, Record]]) -> None:
        """Fill the maps with values that are in force."""
        for table, entries in tables.items():
            for key, value in entries.items():
                self.update(table, key, always(value))  # type: ignore[arg-type]

    def allowed(self, packet: Packet) -> bool:
        return self.allows(Direction.EGRESS, packet) and self.allows(Direction.INGRESS, packet)

    def allows(self, direction: Direction, packet: Packet, generation: int | None = None) -> bool:
        """`generation`: what the program has read; by default it starts now."""
        return self.rule(direction, packet, generation) is not None

    def rule(self, direction: Direction, packet: Packet, generation: int | None = None) -> int | None:
        """rule_id that allows, 0 where nothing needs allowing, None for a drop."""
        read = self.generation if generation is None else generation
        egress = direction is Direction.EGRESS
        subject, peer = (packet.source, packet.destination) if egress else (packet.destination, packet.source)
        endpoints = self.maps["nn_endpoint"]
        assert isinstance(endpoints, dict)
        raw = endpoints.get(AddressKey(subject).pack())
        if raw is None:
            return 0
        endpoint = EndpointVersions.unpack(raw).at(read)
        isolated = endpoint.flags & (EndpointFlag.ISOLATED_EGRESS if egress else EndpointFlag.ISOLATED_INGRESS)
        tiered = endpoint.flags & (EndpointFlag.TIERED_EGRESS if egress else EndpointFlag.TIERED_INGRESS)
        if not isolated and not tiered:
            return 0
        address = LpmKey.host(peer).pack()[4:]
        identity = self._number("nn_ipcache", address, read) or Identity.WORLD
        if identity == Identity.HOST:
            return 0
        peers = (identity, self._number("nn_cidr", address, read), int(Identity.UNKNOWN))
        found: Rule | None = None
        if tiered:
            admin = RuleDirection.ADMIN_EGRESS if egress else RuleDirection.ADMIN_INGRESS
            found = self._strongest(endpoint.identity, admin, peers, packet, read, True)
        if found is None or found.action is Action.PASS:
            found = self._strongest(endpoint.identity, RuleDirection(direction), peers, packet, read, bool(tiered))
        if found is None:
            return None if isolated else 0
        return found.rule_id if found.action is Action.ALLOW else None

    def _strongest(
        self,
        subject: int,
        direction: RuleDirection,
        peers: Iterable[int | None],
        packet: Packet,
        read: int,
        every: bool,
    ) -> Rule | None:
        """What one tier says: the strongest of the hits, or the first one if not every one is looked up."""
        found: Rule | None = None
        for number in peers:
            if number is None or (found is not None and not every):
                continue
            key = PolicyKey(96, subject, number, direction, PROTOCOLS[packet.protocol], packet.port)
            rule: Rule | None = self._at("nn_policy", key.pack()[4:], RuleVersions, read)
            if rule is not None and (found is None or rule.verdict > found.verdict):
                found = rule
        return found

    def _number(self, table: str, data: bytes, generation: int) -> int | None:
        found = self._at(table, data, NumberVersions, generation)
        return None if found is None else int(found.value)

    def _at(self, table: str, data: bytes, kind: type[Versions], generation: int) -> Any:
        trie = self.maps[table]
        assert isinstance(trie, Trie)
        found = trie.lookup(data)
        return None if found is None else kind.unpack(found).at(generation)
