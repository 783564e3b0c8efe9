"""Assigns the numbers in the kernel's maps: deterministic, stable, and never reused while a map may hold the old
meaning.

A number is a hash of its key, so that every node and every restart computes the same one. If two keys have the same
hash, the later one takes the next free number (linear probing). The number of a deleted key is not reused until
`settle`, when the maps no longer hold it: if its meaning changed during an update, traffic could pass that no rule
allows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Generic, NamedTuple, TypeVar

from netpolicy.regions import Region
from netpolicy.types import LabelSet, RuleRef
from nodenet.abi import AddressPort

K = TypeVar("K", bound=Hashable)

# A restored number is accepted only if it is among this many first probes of its key.
_BELIEVED_PROBES = 64


_CANONICAL = json.JSONEncoder(default=str, separators=(",", ":"))


class Space(NamedTuple):
    """Numbers from `first` to `last`, both included."""

    first: int
    last: int


IDENTITIES = Space(256, (1 << 24) - 1)
REGIONS = Space(1 << 24, (1 << 25) - 1)
RULES = Space(1, (1 << 32) - 1)
SERVICES = Space(1, (1 << 31) - 1)
BACKENDS = Space(1, (1 << 31) - 1)


class Numbering(Generic[K]):
    """Assigns each key a number of `space`, which stays the same until the key is retired and settled.

    The hash is that of the key's `canonical` text, which is the same on every node and in every process.
    """

    def __init__(self, space: Space, taken: Mapping[K, int] | None = None) -> None:
        self._space = space
        self._numbers: dict[K, int] = {}
        self._keys: dict[int, K] = {}
        self._retired: set[K] = set()
        if taken:
            self.restore(taken.items())

    def number(self, key: K) -> int:
        """The key's number. Raises OverflowError when the space is full."""
        known = self._numbers.get(key)
        if known is not None:
            # Normally nothing is retired: it lasts until the end of the run.
            if self._retired:
                self._retired.discard(key)
            return known
        if len(self._keys) > self._space.last - self._space.first:
            raise OverflowError(f"no number left between {self._space.first} and {self._space.last}")
        first, last = self._space
        # The first of `_probes`, nearly always.
        number = first + _hash(key) % (last - first + 1)
        while number in self._keys:
            number = number + 1 if number < last else first
        self._take(key, number)
        return number

    def restore(self, pairs: Iterable[tuple[K, int]]) -> None:
        """Take over numbers from pinned maps. A pair is ignored if its key or number is in use, or if the key cannot
        have produced the number."""
        for key, number in pairs:
            if key in self._numbers or number in self._keys:
                continue
            if any(number == probe for _, probe in zip(range(_BELIEVED_PROBES), self._probes(key), strict=False)):
                self._take(key, number)

    def keep(self, wanted: Collection[K]) -> None:
        """Retire every key that is not in `wanted`. Their numbers are free after the next `settle`."""
        self._retired = {key for key in self._numbers if key not in wanted}

    def retire(self, key: K) -> None:
        """Retire one key. Its number is free after the next `settle`."""
        if key in self._numbers:
            self._retired.add(key)

    def settle(self) -> None:
        """Free the numbers of retired keys: the maps hold the last result and use them no longer."""
        if not self._retired:
            return
        for key in self._retired:
            del self._keys[self._numbers.pop(key)]
        self._retired = set()

    def __len__(self) -> int:
        return len(self._numbers)

    def _take(self, key: K, number: int) -> None:
        self._numbers[key] = number
        self._keys[number] = key

    def _probes(self, key: K) -> Iterator[int]:
        size, start = self._space.last - self._space.first + 1, _hash(key)
        return (self._space.first + (start + step) % size for step in range(size))


class IdentityKey(NamedTuple):
    """The key of an identity: pods with these labels.

    `distinguishing`: the high-cardinality labels that policies use. They are part of the key, because the same labels
    select fewer pods as soon as one more label counts.
    """

    labels: LabelSet
    distinguishing: tuple[str, ...] = ()


def _hash(key: Hashable) -> int:
    return int.from_bytes(blake2b(canonical(key).encode(), digest_size=8).digest(), "big")


def canonical(key: Hashable) -> str:
    """The text of a key, which does not depend on the process. Keys are strings, numbers, enums, addresses, tuples and
    IdentityKeys."""
    if isinstance(key, AddressPort):
        # The same text as below, in a quarter of the time: a cluster may have 250,000 backends.
        return f'["{key.addr!s}",{key.port},{int(key.protocol)}]'
    if isinstance(key, IdentityKey):
        key = (key.labels.namespace, key.labels.labels, key.labels.named_ports, key.distinguishing)
    return _CANONICAL.encode(key)


@dataclass(frozen=True, slots=True)
class Ids:
    """All numberings of one agent. One instance is used for the agent's whole lifetime.

    `services` and `backends` are keyed by the AddressPorts of the Service compiler.
    """

    identities: Numbering[IdentityKey] = field(default_factory=lambda: Numbering(IDENTITIES))
    regions: Numbering[Region] = field(default_factory=lambda: Numbering(REGIONS))
    rules: Numbering[RuleRef] = field(default_factory=lambda: Numbering(RULES))
    services: Numbering[Hashable] = field(default_factory=lambda: Numbering(SERVICES))
    backends: Numbering[Hashable] = field(default_factory=lambda: Numbering(BACKENDS))

    def settle(self) -> None:
        """Call after a successful apply (see Numbering.settle)."""
        for numbering in (self.identities, self.regions, self.rules, self.services, self.backends):
            numbering.settle()
